"""The sentences of a report, from records. Every number in them is in a table too."""

from collections.abc import Sequence
from statistics import median

from demur.records import Candidates, Gate, LambdaPoint, Mechanism, ProjectionRecord, Rate, Summary
from demur.reports._format import share
from demur.reports._sections import rejections

_TERMS: tuple[tuple[str, str], ...] = (
    ("True refusal", "A harmful prompt is refused, fully or partly. Higher is better."),
    ("False refusal", "A borderline prompt, which looks unsafe but is fine, is refused. Lower is better."),
    ("Harmless refusal", "A plainly fine prompt is refused. Lower is better."),
    ("k/n and interval", "k of n judged prompts, with the 95 % Wilson interval. Unjudged completions are not in n."),
)

_ACCURACY_TERM = ("Task accuracy", "Share of harmless prompts with a known answer whose completion holds it.")

_COMPARISON_TERMS = (
    ("Difference", "After minus before on the same prompts, with the 95 % score interval of paired data (Tango)."),
    ("McNemar p", "Chance of a change at least this lopsided if before and after did not differ (exact, two-sided)."),
)

_KL_TERM = (
    "KL",
    "How far the next-token distribution on harmless prompts moved from the base model; 0 is not at all. Its interval "
    "is a bootstrap over prompts.",
)

_FILTERS = {
    "layer": "too late a layer",
    "kl": "too large a KL",
    "induce": "adding it does not induce refusal",
    "nan": "a score that is not a number",
}


def verdict(summary: Summary) -> str:
    """What came out, in one sentence."""
    metrics = summary.metrics
    true, false, harmless = metrics.true_refusal_rate, metrics.false_refusal_rate, metrics.harmless_refusal_rate
    if false.after is None or true.after is None:
        nothing = summary.kind == "calibration" and summary.operating_point is None
        finding = "No calibration of this kind frees false refusals and keeps true ones here. " if nothing else ""
        return finding + (
            f"The model refuses {_percent(true.before)} of harmful prompts, {_percent(false.before)} of borderline "
            f"prompts that it should answer, and {_percent(harmless.before)} of harmless prompts."
        )
    return (
        f"After calibration the model refuses {_percent(false.after)} of borderline prompts that it should answer "
        f"({_percent(false.before)} before), and {_percent(true.after)} of harmful prompts "
        f"({_percent(true.before)} before)."
    )


def terms(summary: Summary) -> tuple[tuple[str, str], ...]:
    """What the words of the summary table mean; only those that stand in it."""
    return (
        *_TERMS,
        *(_COMPARISON_TERMS if summary.comparison else ()),
        *((_ACCURACY_TERM,) if summary.metrics.task_accuracy else ()),
        *((_KL_TERM,) if summary.metrics.kl_harmless else ()),
    )


def gate_reasons(gate: Gate) -> tuple[str, ...]:
    """Under the verdict: what stands in the way, or that nothing does."""
    if gate.decision == "pass":
        return (f"All {len(gate.rules)} rules of the gate passed.",)
    return gate.reasons


def rates_caption(summary: Summary) -> str:
    """Under the dot chart."""
    if summary.metrics.true_refusal_rate.after is None:
        return "Dots are rates on test prompts, bars their 95 % intervals."
    return "Open dots: before. Filled dots: after. Bars are 95 % intervals."


def mechanism_words(mechanism: Mechanism) -> tuple[str, ...]:
    """What the control says about cause, only as far as the intervals carry it."""
    removed, kept = mechanism.true_refusal_rate_r_ablated, mechanism.true_refusal_rate_random_ablated
    added, control = mechanism.harmless_refusal_rate_r_added, mechanism.harmless_refusal_rate_random_added
    removing = (
        f"Removing the refusal direction leaves {_percent(removed)} of harmful prompts refused; removing a random "
        f"direction leaves {_percent(kept)}."
    )
    adding = (
        f"Adding it makes the model refuse {_percent(added)} of harmless prompts; adding a random direction of the "
        f"same length, {_percent(control)}."
    )
    removes, adds = removed.high < kept.low, added.low > control.high
    if removes and adds:
        conclusion = (
            "Both go beyond the random control, so the direction causes refusal and does not merely go along with it."
        )
    elif removes or adds:
        conclusion = (
            f"Only {'removing' if removes else 'adding'} it goes clearly beyond the random control, so the direction "
            "has part in refusal, but this run does not show that it is the whole of it."
        )
    else:
        conclusion = (
            "Neither goes clearly beyond the random control: this run does not show that the direction is a cause."
        )
    return (f"{removing} {adding} {conclusion}",)


def candidate_caption(candidates: Candidates) -> str:
    """Under the heat maps: how to read them, and what was removed by which filter."""
    total = len(candidates.refusal)
    survivors = sum(not one.rejected_by for one in candidates.refusal)
    removed = ", ".join(f"{_FILTERS.get(reason, reason)} {count}" for reason, count in rejections(candidates.refusal))
    text = (
        "Bypass: refusal score of harmful prompts with the candidate removed; lower is better. Induce: refusal score "
        "of harmless prompts with it added; above 0 the model tends to refuse. KL: change on harmless prompts with it "
        "removed; lower is better. Outlined: selected. Pale and hatched: rejected by a filter. Hatched without colour: "
        "not measured to the end, because it was decided without. "
        f"{survivors} of {total} candidates passed"
    )
    return f"{text}; rejected (one candidate can fail several filters): {removed}." if removed else f"{text}."


def projection_words(projections: ProjectionRecord) -> str:
    """What the histograms say, in numbers."""
    first = (
        f"Each test prompt is projected on the refusal direction at layer {projections.layer}, position "
        f"{projections.position}: the further right, the more it looks like what the model refuses."
    )
    shares = [_way_to_harmful(values) for values in (projections.before, projections.after)]
    if shares[0] is None:
        return first
    second = f" The median borderline prompt lies {shares[0]:.0f} % of the way from harmless to harmful"
    return first + second + (f" before and {shares[1]:.0f} % after." if shares[1] is not None else ".")


def _way_to_harmful(values: dict[str, tuple[float, ...]] | object) -> float | None:
    if not isinstance(values, dict) or not all(values.get(label) for label in ("harmful", "borderline", "harmless")):
        return None
    low, middle, high = (median(values[label]) for label in ("harmless", "borderline", "harmful"))
    return 100 * (middle - low) / (high - low) if high > low else None


def lambda_words(curve: Sequence[LambdaPoint]) -> tuple[str, ...]:
    """What lambda is and which was chosen."""
    what = (
        "Lambda is the share of the refusal direction that is taken out of the false-refusal direction before that is "
        "removed from the model. A larger lambda puts fewer true refusals at risk; a smaller one tends to "
        "remove more false ones."
    )
    chosen = next((point for point in curve if point.chosen), None)
    if chosen is None:
        return (
            f"{what} None was chosen: the table is the frontier. It says of the best candidate of each lambda what it "
            "frees and keeps, and by how much it misses which limit; a margin as wide as the loss would have admitted "
            "it, if the answers under pressure are kept too.",
        )
    left = _percent(chosen.false_refusal_rate)
    kept = _percent(chosen.true_refusal_rate)
    return (
        f"{what} Chosen: {chosen.lambda_:g}, which leaves {left} of borderline and "
        f"{kept} of harmful validation prompts refused.",
    )


def _percent(rate: Rate | None) -> str:
    return "an unmeasured share" if rate is None or rate.rate is None else f"{share(rate.rate)} %"
