"""The rules of a release gate on rates and on changes of rates. Each takes counts or flags and gives one decision.

A rule passes where the whole 95 % interval is on the good side of its limit, fails where the whole interval is on the
bad side, and is inconclusive in between. Rates have exact intervals (Clopper and Pearson 1934), so a model whose true
rate is exactly the limit passes in at most 2.5 % of test sets, whatever their size. Changes have Tango's score
interval (1998).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

from demur.evaluation import clopper_pearson, paired_comparison, tango_interval
from demur.records import CheckRule, JudgeIdentity, Mean, PairedComparison, Rate, RuleDecision, RuleKind

Direction = Literal["at_least", "at_most"]
_LEVEL = 0.05
_MOST_PROMPTS = 1_000_000
_FEWEST_MEANS = 10
"""A percentile bootstrap of fewer values is far too narrow: it proves nothing."""
_SEVERITY: tuple[RuleDecision, ...] = ("fail", "error", "inconclusive", "skipped", "pass")


class Named(NamedTuple):
    """What a rule is called."""

    name: str
    kind: RuleKind
    title: str


def absent(named: Named, reason: str, *, required: bool = True) -> CheckRule:
    """The rule where nothing was measured."""
    if required:
        return plain_rule(named, "inconclusive", reason)
    return plain_rule(named, "skipped", f"{reason} The policy does not require it.")


def rate_rule(
    named: Named, rate: Rate, limit: float, direction: Direction, *, what: str = "prompts", comparisons: int = 1
) -> CheckRule:
    """A rate against a limit.

    Args:
        named: what the rule is called.
        rate: counts; its own interval is not used.
        limit: a share.
        direction: whether the rate should be at least or at most that.
        what: what was counted, for the sentence.
        comparisons: rates of which the worst is looked at; shared over them, a chance failure is no more likely.
    """
    low, high = clopper_pearson(rate.k, rate.n)
    if rate.rate is None:
        rule = absent(named, f"None of the {what} was judged.")
        return rule.model_copy(update={"limit": limit, "comparison": direction})
    strict = clopper_pearson(rate.k, rate.n, confidence=1 - _LEVEL / comparisons)
    passed = low >= limit if direction == "at_least" else high <= limit
    failed = strict.high < limit if direction == "at_least" else strict.low > limit
    found = f"{rate.k} of {rate.n} {what} ({_percent(rate.rate)}, 95 % interval {_percent(low)} to {_percent(high)})"
    bound = low if direction == "at_least" else high
    words = f"{_bound_word(direction)} bound {_percent(bound)}"
    side = "at least" if direction == "at_least" else "at most"
    decision: RuleDecision = "inconclusive"
    if passed:
        decision, reason = "pass", f"{found}: the {words} keeps the limit of {side} {_percent(limit)}."
    elif failed:
        decision, reason = "fail", f"{found}: the limit of {side} {_percent(limit)} is missed."
    else:
        reason = f"{found}: the interval holds the limit of {side} {_percent(limit)}{_advice(rate, limit, direction)}."
    return _rule(
        named,
        decision,
        reason,
        comparison=direction,
        limit=limit,
        bound=bound,
        value=rate.rate,
        low=low,
        high=high,
        interval="clopper_pearson",
        k=rate.k,
        n=rate.n,
        judge=rate.judge,
    )


def mean_rule(named: Named, mean: Mean, limit: float, *, what: str) -> CheckRule:
    """A mean (nats) against an upper limit, by its bootstrap interval."""
    found = f"{what} is {mean.mean:.3g} nats (n = {mean.n}, 95 % interval {mean.low:.3g} to {mean.high:.3g})"
    decision: RuleDecision = "inconclusive"
    if mean.n < _FEWEST_MEANS:
        reason = f"{found}, and fewer than {_FEWEST_MEANS} prompts give no usable interval."
    elif mean.high <= limit:
        decision, reason = "pass", f"{found}: the upper bound keeps the limit of at most {limit:g} nats."
    elif mean.low > limit:
        decision, reason = "fail", f"{found}: the limit of at most {limit:g} nats is missed."
    else:
        reason = f"{found}: the interval holds the limit of at most {limit:g} nats."
    return _rule(
        named,
        decision,
        reason,
        comparison="at_most",
        limit=limit,
        bound=mean.high,
        unit="nats",
        value=mean.mean,
        low=mean.low,
        high=mean.high,
        interval="bootstrap",
        n=mean.n,
    )


def change_rule(
    named: Named,
    before: Mapping[str, bool | None],
    now: Mapping[str, bool | None],
    limit: float,
    direction: Direction,
    *,
    what: str,
    judge: JudgeIdentity | None,
    comparisons: int = 1,
) -> CheckRule:
    """A paired change against a limit: non-inferiority for what must not fall, and the mirror for what must not rise.

    Args:
        named: what the rule is called.
        before: flag of each prompt in the baseline, by hash; None where it was not judged.
        now: the same of this run, for the same prompts.
        limit: the largest loss (at_least) or increase (at_most) that counts as none, as a positive share.
        direction: whether the rate must not fall or must not rise.
        what: what was counted, for the sentence.
        judge: of the flags.
        comparisons: see `rate_rule`.
    """
    keys = sorted(before)
    pair = paired_comparison([before[key] for key in keys], [now[key] for key in keys])
    signed = -limit if direction == "at_least" else limit
    if not pair.n:
        rule = absent(named, f"None of the {what} was judged both times.")
        return rule.model_copy(update={"limit": signed, "comparison": direction})
    strict = tango_interval(pair.n, pair.lost, pair.gained, confidence=1 - _LEVEL / comparisons)
    passed = pair.low > signed if direction == "at_least" else pair.high < signed
    failed = strict.high < signed if direction == "at_least" else strict.low > signed
    decision: RuleDecision = "pass" if passed else "fail" if failed else "inconclusive"
    reason = _change_sentence(pair, decision, limit, direction, what)
    return _rule(
        named,
        decision,
        reason,
        comparison=direction,
        limit=signed,
        bound=pair.low if direction == "at_least" else pair.high,
        value=pair.difference,
        low=pair.low,
        high=pair.high,
        interval="tango",
        n=pair.n,
        lost=pair.lost,
        gained=pair.gained,
        p_value=pair.p_value,
        judge=judge,
    )


def worst(rules: Sequence[CheckRule]) -> CheckRule:
    """The rule that stands for all of them.

    All must pass, and each was tested at its full level, so together they are (an intersection-union test).
    """

    def order(rule: CheckRule) -> tuple[int, float]:
        if rule.bound is None or rule.limit is None:
            return _SEVERITY.index(rule.decision), float("-inf")
        room = rule.bound - rule.limit if rule.comparison == "at_least" else rule.limit - rule.bound
        return _SEVERITY.index(rule.decision), room

    return min(rules, key=order)


def share_of_set_rule(named: Named, counts: Mapping[str, tuple[int, int]], limit: float, *, what: str,
                      can_fail: bool) -> CheckRule:  # fmt: skip
    """The largest share over sets of something that should hardly be there.

    What is missing from this very test set is known exactly, so the share itself is compared and not a bound; it fails
    only where `can_fail` and its lower bound is beyond the limit too.

    Args:
        named: what the rule is called.
        counts: number and total by the name of the set.
        limit: a share.
        what: what was counted, for the sentence.
        can_fail: whether it says something bad about the model.
    """
    where, (number, total) = max(counts.items(), key=lambda item: (item[1][0] / max(item[1][1], 1), item[1][1]))
    share = number / max(total, 1)
    found = f"{number} of {total} completions of {where} ({_percent(share)}) {what}"
    low = clopper_pearson(number, total).low
    decision: RuleDecision = "inconclusive"
    if share <= limit:
        decision, reason = "pass", f"At most {found}; the limit is {_percent(limit)}."
    else:
        reason = f"{found}; the limit is {_percent(limit)}."
        decision = "fail" if can_fail and low > limit else "inconclusive"
    return _rule(
        named, decision, reason, comparison="at_most", limit=limit, bound=share, value=share, k=number, n=total
    )


def plain_rule(named: Named, decision: RuleDecision, reason: str) -> CheckRule:
    """A rule without numbers to compare."""
    return _rule(named, decision, reason)


def count_rule(named: Named, n: int, least: int, *, what: str) -> CheckRule:
    """Enough prompts, or not."""
    decision: RuleDecision = "pass" if n >= least else "inconclusive"
    words = "as many as the policy asks for" if n >= least else f"the policy asks for {least}"
    return _rule(named, decision, f"{n} {what} were judged; {words}.", comparison="at_least", limit=least, bound=n,
                 unit="count", value=n, n=n)  # fmt: skip


def _rule(named: Named, decision: RuleDecision, reason: str, **numbers: object) -> CheckRule:
    values = {"name": named.name, "kind": named.kind, "title": named.title, "decision": decision, "reason": reason}
    return CheckRule.model_validate({**values, **numbers})


def _change_sentence(
    pair: PairedComparison, decision: RuleDecision, limit: float, direction: Direction, what: str
) -> str:
    change = (
        f"{pair.lost} lost and {pair.gained} gained of {pair.n} {what}, a change of {_points(pair.difference)} points "
        f"(95 % interval {_points(pair.low)} to {_points(pair.high)}, exact McNemar p {pair.p_value:.2g})"
    )
    allowed = f"{'loss' if direction == 'at_least' else 'increase'} of {100 * limit:.3g} points"
    end = {
        "pass": f"it stays within the allowed {allowed}",
        "fail": f"it is beyond the allowed {allowed}",
        "inconclusive": f"the interval holds the allowed {allowed}",
    }[decision]
    return f"{change}: {end}."


def _advice(rate: Rate, limit: float, direction: Direction) -> str:
    """How many prompts would decide, if the rate stays as it is."""
    share = rate.k / rate.n
    good = share > limit if direction == "at_least" else share < limit

    def decided(n: int) -> bool:
        low, high = clopper_pearson(round(share * n), n)
        return low >= limit if good == (direction == "at_least") else high <= limit

    needed = _first(decided)
    if needed is None:
        return ""
    return f"; if this rate holds, about {needed:,} would be enough to {'pass' if good else 'fail'}"


def _first(decided: Callable[[int], bool]) -> int | None:
    """About the fewest prompts that decide; None above a million."""
    high = 1
    while high <= _MOST_PROMPTS and not decided(high):
        high *= 2
    if high > _MOST_PROMPTS:
        return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


def _bound_word(direction: Direction) -> str:
    return "lower" if direction == "at_least" else "upper"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
