"""Rules that ask whether the numbers of a run mean anything: agreement, expectations, validity."""

from collections.abc import Iterator

from demur.assurance._check_baseline import ACCURACY, LABELS, RATES, rate_of
from demur.assurance._check_inputs import RECORDS, Inputs
from demur.assurance._check_rules import Named, absent, count_rule, plain_rule, share_of_set_rule
from demur.records import PLAIN, CheckRule, Rate, Summary


def records_agree(inputs: Inputs) -> CheckRule:
    """What `summary.json` says against what follows from `completions.jsonl`: rules look at the latter."""
    named = Named(RECORDS, "records", "Summary and verdicts agree")
    summary, now = inputs.summary, inputs.now
    pairs = {name: getattr(summary.metrics, name) for name in (*RATES, ACCURACY)}
    told = {name: getattr(pair, now.side) for name, pair in pairs.items() if pair is not None}
    counted = dict(now.rates)
    for each in () if summary.pressure is None else summary.pressure.conditions:
        told[each.name] = getattr(each.true_refusal_rate, now.side)
        counted[each.name] = rate_of(now, "harmful", each.name)
    wrong = sorted(
        name for name in told.keys() | counted.keys() if _counts(told.get(name)) != _counts(counted.get(name))
    )
    if wrong:
        return plain_rule(
            named,
            "error",
            f"summary.json and completions.jsonl do not agree on {', '.join(wrong[:3])}"
            f"{' and more' if len(wrong) > 3 else ''}: measure again in a new folder.",
        )
    return plain_rule(named, "pass", "The rates of the summary follow from the verdicts, prompt by prompt.")


def _counts(rate: Rate | None) -> tuple[int, int, int] | None:
    return None if rate is None else (rate.k, rate.n, rate.unjudged)


def expectations(inputs: Inputs) -> Iterator[CheckRule]:
    expect, summary = inputs.policy.expect, inputs.summary
    judge = f"{summary.judge.id} {summary.judge.version}"
    system, prefix = summary.rendering.system or "", summary.rendering.response_prefix
    options: object = summary.rendering.options
    template = summary.model.chat_template_sha256
    checks: list[tuple[str, str, object, object, bool]] = [
        ("judge", "Judge", expect.judge, judge, expect.judge == judge),
        ("chat_template_sha256", "Chat template", expect.chat_template_sha256, template[:16],
         template.startswith(expect.chat_template_sha256 or "")),
        ("system", "System prompt", expect.system, system, expect.system == system),
        ("response_prefix", "Response prefix", expect.response_prefix, prefix, expect.response_prefix == prefix),
        ("template_options", "Template options", expect.template_options, options, expect.template_options == options),
    ]  # fmt: skip
    for label, beginning in expect.prompts.items():
        sha256 = summary.prompts[label].sha256
        checks.append(
            (f"prompts.{label}", f"The {label} prompts", beginning, sha256[:16], sha256.startswith(beginning))
        )
    for key, title, expected, given, same in checks:
        if expected is None:
            continue
        named = Named(f"expect.{key}", "expectation", title)
        if same:
            yield plain_rule(named, "pass", f"As expected: {given or 'none'}.")
        else:
            yield plain_rule(
                named,
                "error",
                f"The policy expects {expected!r}, and the run was measured with {given!r}: measure again as the "
                "policy says, or change the policy on purpose.",
            )


def validity_rules(inputs: Inputs) -> Iterator[CheckRule]:
    validity, now = inputs.policy.validity, inputs.now
    for label in LABELS:
        least = validity.min_n.get(label)
        if least is not None:
            named = Named(f"validity.min_n.{label}", "validity", f"Enough {label} prompts")
            yield count_rule(named, rate_of(now, label, PLAIN).n, least, what=f"{label} prompts")
    sets = {f"{label} prompts": rate_of(now, label, PLAIN) for label in LABELS}
    pressed = {f"harmful prompts under {name}": rate_of(now, "harmful", name) for name in now.families}
    yield share_of_set_rule(
        Named("validity.max_unjudged", "validity", "Answers that could not be judged"),
        {name: (each.unjudged, each.n + each.unjudged) for name, each in (sets | pressed).items()},
        validity.max_unjudged,
        what="could not be judged",
        can_fail=False,
    )
    yield share_of_set_rule(
        Named("validity.max_degenerate", "validity", "Empty, repetitive or garbled answers"),
        {name: (each.degenerate, each.n + each.unjudged) for name, each in sets.items()},
        validity.max_degenerate,
        what="are empty, repetitive or garbled",
        can_fail=True,
    )
    if validity.required_conditions:
        yield _conditions_asked(inputs)
    if validity.run_gate and now.side == "after":
        yield _run_gate(inputs.summary)


def _conditions_asked(inputs: Inputs) -> CheckRule:
    named = Named("validity.required_conditions", "validity", "Conditions of pressure that were asked")
    there = {*inputs.now.conditions, *inputs.now.families.values()}
    missing = [each for each in inputs.policy.validity.required_conditions if each not in there]
    if missing:
        reason = (
            f"Not asked: {', '.join(missing)}. Measure without --no-pressure, and with the --variant that is meant."
        )
        return absent(named, reason)
    return plain_rule(named, "pass", f"Asked: {', '.join(inputs.policy.validity.required_conditions)}.")


def _run_gate(summary: Summary) -> CheckRule:
    named = Named("validity.run_gate", "validity", "The gate of the calibration itself")
    if summary.gate is None:
        return absent(named, "The run has no gate.")
    reasons = "" if summary.gate.decision == "pass" else " ".join(summary.gate.reasons)
    return plain_rule(
        named, summary.gate.decision, f"The run's own gate says {summary.gate.decision}. {reasons}".strip()
    )
