"""Synthetic evidence beside the rates: pressure, fidelity, noise, stability, leakage, corrected rates."""

from report_records import mean, paired, rate, sha

from demur.records import (
    BeforeAfter,
    CandidateWins,
    ClusteredComparison,
    Clustering,
    CorrectedDifference,
    CorrectedMeasure,
    CorrectedRate,
    CorrectedRun,
    CrossEntropy,
    Fidelity,
    JudgeErrorRates,
    JudgeIdentity,
    LeakagePair,
    LeakageReport,
    NoiseFloor,
    PooledDifference,
    Pressure,
    PressureCondition,
    Stability,
)

JUDGE = JudgeIdentity(id="phrases", version="2")


def pressure(*, compared=True):
    rows = (
        ("opening-5", "opening", "the answer is forced to open with 5 tokens of a neutral affirmative", 301, 290),
        ("bare-prompt", "template", "the prompt without the chat template (for information)", 120, 61),
    )
    conditions = tuple(
        PressureCondition(
            name=name,
            family=family,
            what=what,
            gated=name != "bare-prompt",
            true_refusal_rate=BeforeAfter(
                before=rate(before, judge=JUDGE), after=rate(after, unjudged=3, judge=JUDGE) if compared else None
            ),
            comparison=paired(15, 4, -0.047, -0.002, 0.019) if compared else None,
        )
        for name, family, what, before, after in rows
    )
    pooled = PooledDifference(
        family="opening",
        n_conditions=1,
        n_prompts=450,
        comparison=ClusteredComparison(
            n=450, lost=15, gained=4, difference=-11 / 450, low=-0.047, high=-0.002, p_value=0.019,
            clustering=_clustering(),
        ),
        judge=JUDGE,
    )  # fmt: skip
    return Pressure(
        margin=0.05,
        conditions=conditions,
        families=(pooled,) if compared else (),
        not_applicable={"thinking-off": "the chat template has no enable_thinking"},
    )


def _clustering():
    fields = Clustering.model_fields
    values = {"clusters": 450, "design_effect": 1.0}
    return Clustering(
        **{name: values.get(name, "" if field.annotation is str else 1) for name, field in fields.items()}
    )


def fidelity():
    entropy = CrossEntropy(
        before=mean(0.41), after=mean(0.43), difference=mean(0.02), n_tokens=4321, perplexity_before=1.51,
        perplexity_after=1.54,
    )  # fmt: skip
    return Fidelity(
        fingerprint=sha("operating point"),
        form="folded",
        kl_first_token=mean(0.031),
        kl_generated=mean(0.047),
        n_tokens=32,
        cross_entropy_own=entropy,
    )


def noise_floor():
    return NoiseFloor(
        n=96, flips=rate(1, 96, judge=JUDGE), verdict_changes=2, different_texts=5, max_logit_difference=3.1e-5,
        max_score_difference=None, batch_size=64, other_batch_size=7,
    )  # fmt: skip


def stability():
    return Stability(
        kind="refusal_direction",
        position=-1,
        layer=3,
        wins=1500,
        resamples=2000,
        none_passed=0,
        others=(CandidateWins(position=-2, layer=2, wins=500),),
        expected_regret=0.1,
        n_candidates=30,
        n_unscored=2,
        n_prompts={"harmful": 32, "harmless": 32},
        seed=0,
    )


def leakage():
    pair = LeakagePair(
        kind="splits", left="harmful", left_source="a.jsonl", left_split="train", right="harmful",
        right_source="a.jsonl", right_split="test", exact=0, near=17, examples=(),
    )  # fmt: skip
    return LeakageReport(threshold=0.5, pairs=(pair,))


def corrected():
    errors = JudgeErrorRates(sensitivity=rate(180, 200), specificity=rate(195, 200))
    one = CorrectedRate(
        rate=0.912, low=0.88, high=0.94, observed=rate(443), sensitivity=errors.sensitivity,
        specificity=errors.specificity,
    )  # fmt: skip
    difference = CorrectedDifference(
        difference=-0.004, low=-0.02, high=0.01, n=450, observed_difference=-0.004, errors_before=errors,
        errors_after=errors, draws=1000, seed=0,
    )  # fmt: skip
    return CorrectedRun(
        judge=JUDGE,
        labels="labels.jsonl",
        n_labels=400,
        errors_before=errors,
        errors_after=errors,
        measures={"true_refusal_rate": CorrectedMeasure(before=one, after=one, difference=difference)},
    )
