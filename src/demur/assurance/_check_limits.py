"""The absolute limits of a policy, on the verdicts of one run."""

from collections.abc import Iterator

from demur.assurance._check_baseline import ACCURACY, RATES, rate_of
from demur.assurance._check_inputs import COUNTED, FLOOR_RULE, TITLES, Inputs, members_of, standing_for
from demur.assurance._check_policy import FLOOR
from demur.assurance._check_rules import Direction, Named, absent, mean_rule, plain_rule, rate_rule
from demur.records import CapabilityRecord, CheckRule, JudgeIdentity, Rate


def limit_rules(inputs: Inputs) -> Iterator[CheckRule]:
    limits, now = inputs.policy.limits, inputs.now
    yield rate_rule(
        Named(FLOOR_RULE, "limit", "There are refusals to speak of"),
        now.rates["true_refusal_rate"],
        FLOOR,
        "at_least",
        what=COUNTED["true_refusal_rate"],
    )
    for name in (*RATES, ACCURACY):
        limit = getattr(limits, name)
        if limit is None:
            continue
        direction: Direction = "at_least" if hasattr(limit, "min") else "at_most"
        value = limit.min if direction == "at_least" else limit.max
        named = Named(f"limits.{name}.{'min' if direction == 'at_least' else 'max'}", "limit", TITLES[name])
        if name in now.rates:
            yield rate_rule(named, now.rates[name], value, direction, what=COUNTED[name])
        else:
            yield absent(named, "No harmless prompt carries an answer (a column `answer`).", required=limit.required)
    if limits.kl_harmless is not None:
        named = Named("limits.kl_harmless.max", "limit", TITLES["kl_harmless"])
        kl = inputs.summary.metrics.kl_harmless if now.side == "after" else None
        if kl is None:
            reason = "Nothing was applied to this model, so there is no base model to differ from."
            yield absent(named, reason, required=limits.kl_harmless.required)
        else:
            yield mean_rule(named, kl, limits.kl_harmless.max, what="the KL divergence on harmless prompts")


def pressure_limits(inputs: Inputs) -> Iterator[CheckRule]:
    for family, limit in inputs.policy.limits.pressure.items():
        named = Named(f"limits.pressure.{family}.min", "limit", f"True refusals under pressure: {family}")
        members = members_of(inputs.now, family)
        if not members:
            yield absent(named, f"No condition of the family {family} was asked.", required=limit.required)
            continue
        rules = [
            rate_rule(
                named,
                rate_of(inputs.now, "harmful", condition),
                limit.min,
                "at_least",
                what=f"harmful prompts refused under {condition}",
                comparisons=len(members),
            )
            for condition in members
        ]
        yield standing_for(rules)


def capability_limits(inputs: Inputs) -> Iterator[CheckRule]:
    for key, limit in inputs.policy.limits.capability.items():
        named = Named(f"limits.capability.{key}.min", "limit", f"Capability: {key}")
        record = inputs.others.capability
        if record is None:
            reason = "There is no capability.json in the run folder or beside it (demur capability --out, --evidence)."
            yield absent(named, reason, required=limit.required)
            continue
        other = _other_model(inputs, record)
        shares = _shares(record, inputs.now.side)
        if other:
            yield plain_rule(named, "error", other)
        elif key not in shares:
            reason = f"capability.json has no share of that name; it has {', '.join(sorted(shares)) or 'none'}."
            yield plain_rule(named, "error", reason)
        else:
            judged = shares[key].model_copy(update={"judge": JudgeIdentity(id=record.harness, version="")})
            yield rate_rule(named, judged, limit.min, "at_least", what="samples")


def _other_model(inputs: Inputs, record: CapabilityRecord) -> str:
    now = inputs.now.model
    if record.model.content_hash != now.content_hash:
        return "capability.json is of another model."
    if now.operating_point is not None and record.fingerprint != now.operating_point:
        return "capability.json was not measured with this operating point (demur capability MODEL --run RUN)."
    return ""


def _shares(record: CapabilityRecord, side: str) -> dict[str, Rate]:
    found = {}
    for task in (*record.tasks, *record.groups):
        for metric in task.metrics:
            measured = None if metric.share is None else getattr(metric.share, side)
            if measured is not None:
                found[f"{task.name}.{metric.name}"] = measured
    return found
