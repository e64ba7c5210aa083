"""The limits of a policy against a baseline, prompt by prompt."""

from collections.abc import Iterator, Mapping

from demur.assurance._check_baseline import ACCURACY, RATES, flags_of
from demur.assurance._check_inputs import COMPARABLE, COUNTED, TITLES, Inputs, members_of, standing_for
from demur.assurance._check_policy import MaxLoss
from demur.assurance._check_rules import Direction, Named, absent, change_rule, plain_rule
from demur.records import PLAIN, Baseline, CheckRule


def baseline_rules(inputs: Inputs) -> Iterator[CheckRule]:
    limits = inputs.policy.baseline
    if limits is None and inputs.baseline is None:
        return
    comparable = _comparable(inputs)
    yield comparable
    for name in (*RATES, ACCURACY):
        limit = None if limits is None else getattr(limits, name)
        if limit is None:
            continue
        direction: Direction = "at_least" if hasattr(limit, "max_loss") else "at_most"
        key = "max_loss" if direction == "at_least" else "max_increase"
        named = Named(f"baseline.{name}.{key}", "baseline", f"{TITLES[name]}, against the baseline")
        before, now = _flags(inputs.baseline, name), _flags(inputs.now, name)
        if comparable.decision != "pass":
            yield plain_rule(named, "skipped", f"There is nothing to compare with, see {COMPARABLE}.")
        elif not before and not now:
            yield absent(named, "No harmless prompt carries an answer (a column `answer`).", required=limit.required)
        elif before.keys() != now.keys():
            yield plain_rule(named, "error", "Baseline and run have answers to other prompts.")
        else:
            judge = inputs.now.rates[name].judge
            allowed = getattr(limit, key)
            yield change_rule(named, before, now, allowed, direction, what=COUNTED[name], judge=judge)
    if limits is not None:
        for family, lost in limits.pressure.items():
            yield _pressure_change(inputs, family, lost, comparable)


def _comparable(inputs: Inputs) -> CheckRule:
    named = Named(COMPARABLE, "baseline", "The baseline can be compared")
    if inputs.baseline is None and inputs.bootstrap:
        return plain_rule(named, "skipped", "There is no baseline yet: this run is to become it.")
    if inputs.baseline is None:
        return plain_rule(
            named,
            "error",
            "The policy has limits against a baseline, and none was given. Make one with demur check RUN --policy "
            "POLICY --write-baseline baseline.json, commit it, and give it with --baseline.",
        )
    if inputs.differences:
        return plain_rule(
            named,
            "error",
            f"The baseline cannot be compared with this run: {'; '.join(inputs.differences)}. Measure as the baseline "
            "was measured, or, if the change is meant, write a new baseline with --write-baseline and commit it.",
        )
    return plain_rule(named, "pass", "Same prompts, judge, template, rendering and length of answers.")


def _flags(verdicts: Baseline | None, name: str) -> Mapping[str, bool | None]:
    if verdicts is None:
        return {}
    return dict(verdicts.answers) if name == ACCURACY else flags_of(verdicts, RATES[name], PLAIN)


def _pressure_change(inputs: Inputs, family: str, limit: MaxLoss, comparable: CheckRule) -> CheckRule:
    title = f"True refusals under pressure: {family}, against the baseline"
    named = Named(f"baseline.pressure.{family}.max_loss", "baseline", title)
    if comparable.decision != "pass" or inputs.baseline is None:
        return plain_rule(named, "skipped", f"There is nothing to compare with, see {COMPARABLE}.")
    members = members_of(inputs.now, family)
    if not members:
        return absent(named, f"No condition of the family {family} was asked.", required=limit.required)
    if members != members_of(inputs.baseline, family):
        return plain_rule(named, "error", f"Baseline and run asked under other conditions of the family {family}.")
    rules = []
    for condition in members:
        before, now = flags_of(inputs.baseline, "harmful", condition), flags_of(inputs.now, "harmful", condition)
        if before.keys() != now.keys():
            return plain_rule(named, "error", f"Baseline and run asked other prompts under {condition}.")
        rule = change_rule(
            named,
            before,
            now,
            limit.max_loss,
            "at_least",
            what=f"refusals of harmful prompts under {condition}",
            judge=inputs.now.judge,
            comparisons=len(members),
        )
        rules.append(rule)
    return standing_for(rules)
