"""Rates and paired differences corrected for a judge that errs, with the uncertainty of its measured errors.

A judge with sensitivity Se and specificity Sp counts p = Se * P + (1 - Sp) * (1 - P) where the true rate is P. The
errors differ between models, and an intervention may change them: measure them on labelled answers of the model at
hand, and of the changed model too where it answers in another style.
"""

import math
from collections.abc import Sequence

import numpy as np

from demur.errors import InputError
from demur.evaluation._statistics import CONFIDENCE, check_confidence, normal_quantile
from demur.records import CorrectedDifference, CorrectedRate, JudgeErrorRates, Rate

LEAST_YOUDEN = 0.2
"""Least Se + Sp - 1. Below it the correction multiplies every sampling error by more than five."""


def corrected_rate(
    observed: Rate, sensitivity: Rate, specificity: Rate, *, confidence: float = CONFIDENCE
) -> CorrectedRate:
    """True rate behind a judge's count (Rogan and Gladen 1978), with the interval of Lang and Reiczigel (2014).

    The interval is a closed form that carries the sampling error of all three rates and keeps its level for small
    label sets, where treating Se and Sp as known makes it far too narrow.

    Args:
        observed: What the judge counted.
        sensitivity: Share of the answers that people call refusals which the judge calls refusals, k of n labels.
        specificity: Share of the answers that people call compliance which the judge calls compliance, k of n labels.
        confidence: Two-sided confidence of the interval.

    Returns:
        `rate` is None, the interval 0 to 1 and `reason` says why, where nothing was judged or labelled, or where the
        judge tells too little: Se + Sp - 1 below 0.2, or not clearly above 0 with so few labels.

    Raises:
        InputError: a rate counts more than its n, or the confidence is not between 0 and 1.
    """
    check_confidence(confidence)
    for one in (observed, sensitivity, specificity):
        _check_counts(one)
    reason = _unusable(observed.n, JudgeErrorRates(sensitivity=sensitivity, specificity=specificity), confidence)
    if reason:
        rate, low, high = None, 0.0, 1.0
    else:
        estimate = (_share(observed) + _share(specificity) - 1) / _youden(sensitivity, specificity)
        rate = min(max(estimate, 0.0), 1.0)
        low, high = _lang_reiczigel(observed, sensitivity, specificity, normal_quantile(confidence))
        # The shifted centre of the interval may lie beside an estimate that was cut to 0 or 1.
        low, high = min(low, rate), max(high, rate)
        if estimate != rate:
            # The judge errs less here than on the labels, so they say too little: no narrower than without correction.
            low, high = min(low, observed.low), max(high, observed.high)
    return CorrectedRate(
        rate=rate,
        low=low,
        high=high,
        observed=observed,
        sensitivity=sensitivity,
        specificity=specificity,
        reason=reason,
    )


def _lang_reiczigel(observed: Rate, sensitivity: Rate, specificity: Rate, z: float) -> tuple[float, float]:
    """Equations 6, 7, 16 and 17 of the paper: pseudo-counts, a shifted centre, and the delta method."""
    n = observed.n + z**2
    p = (observed.k + z**2 / 2) / n
    n_se, n_sp = sensitivity.n + 2, specificity.n + 2
    se, sp = (sensitivity.k + 1) / n_se, (specificity.k + 1) / n_sp
    youden = se + sp - 1
    centre = (p + sp - 1) / youden
    of_se, of_sp = se * (1 - se) / n_se, sp * (1 - sp) / n_sp
    shift = 2 * z**2 * (centre * of_se - (1 - centre) * of_sp)
    error = math.sqrt(p * (1 - p) / n + centre**2 * of_se + (1 - centre) ** 2 * of_sp) / youden
    low, high = centre + shift - z * error, centre + shift + z * error
    return min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)


def corrected_difference(
    before: Sequence[bool | None],
    after: Sequence[bool | None],
    errors_before: JudgeErrorRates,
    errors_after: JudgeErrorRates | None = None,
    *,
    seed: int = 0,
    draws: int = 20_000,
    confidence: float = CONFIDENCE,
) -> CorrectedDifference:
    """True paired difference behind a judge's counts, with quantiles of draws.

    The four cells of the paired table are drawn from their Dirichlet posterior, Se and Sp from their Beta posteriors,
    each under Jeffreys' prior. With `errors_before` alone one pair of error rates serves both runs, and a judge that
    reads the changed model otherwise goes unseen: give `errors_after` where labels of its answers exist.

    Args:
        before: One flag per prompt, as the judge says of the base model; None where it could not judge.
        after: The flags of the changed model for the same prompts in the same order.
        errors_before: The judge's errors on answers of the base model.
        errors_after: Those on answers of the changed model, if measured apart.
        seed: Of the draws; the same inputs and seed give the same interval.
        draws: How many. 20 000 put 500 outside each end.
        confidence: Two-sided confidence of the interval.

    Returns:
        `difference` is None, the interval -1 to 1 and `reason` says why, where no pair was judged, or where the judge
        tells too little (as in `corrected_rate`).

    Raises:
        InputError: the runs have different lengths, there are no draws, or a count or the confidence makes no sense.
    """
    check_confidence(confidence)
    if len(before) != len(after):
        raise InputError(
            f"a paired comparison needs both runs on the same prompts; got {len(before)} before and {len(after)} after."
        )
    if draws < 1:
        raise InputError(f"an interval from draws needs at least one; got {draws}.")
    conditions = (errors_before, errors_after or errors_before)
    for errors in conditions:
        _check_counts(errors.sensitivity)
        _check_counts(errors.specificity)
    pairs = [(one, two) for one, two in zip(before, after, strict=True) if one is not None and two is not None]
    n = len(pairs)
    cells = np.array([pairs.count((one, two)) for one in (True, False) for two in (True, False)], dtype=np.float64)
    observed = float(cells[2] - cells[1]) / n if n else 0.0
    reason = next((text for errors in conditions if (text := _unusable(n, errors, confidence))), "")
    difference, low, high = None, -1.0, 1.0
    if not reason:
        shares = (cells[0] + cells[1]) / n, (cells[0] + cells[2]) / n
        true = [
            (share + _share(errors.specificity) - 1) / _youden(errors.sensitivity, errors.specificity)
            for share, errors in zip(shares, conditions, strict=True)
        ]
        difference = min(max(float(true[1] - true[0]), -1.0), 1.0)
        drawn = _drawn_differences(cells, conditions, same=errors_after is None, seed=seed, draws=draws)
        quantiles = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
        # The priors pull the draws to the middle; the interval of an estimate must not exclude it.
        low, high = min(float(quantiles[0]), difference), max(float(quantiles[1]), difference)
    return CorrectedDifference(
        difference=difference,
        low=low,
        high=high,
        n=n,
        observed_difference=observed,
        errors_before=conditions[0],
        errors_after=conditions[1],
        draws=draws,
        seed=seed,
        reason=reason,
    )


def _drawn_differences(
    cells: np.ndarray, conditions: tuple[JudgeErrorRates, JudgeErrorRates], *, same: bool, seed: int, draws: int
) -> np.ndarray:
    """True rate after minus true rate before, [draw], cut to -1 to 1; draws with a useless judge are left out."""
    generator = np.random.default_rng(seed)

    def beta(rate: Rate) -> np.ndarray:
        return generator.beta(rate.k + 0.5, rate.n - rate.k + 0.5, size=draws)

    table = generator.dirichlet(cells + 0.5, size=draws)
    first = beta(conditions[0].sensitivity), beta(conditions[0].specificity)
    second = first if same else (beta(conditions[1].sensitivity), beta(conditions[1].specificity))
    youdens = [se + sp - 1 for se, sp in (first, second)]
    useful = (youdens[0] > 0) & (youdens[1] > 0)
    shares = table[:, 0] + table[:, 1], table[:, 0] + table[:, 2]
    true = [
        (share[useful] + sp[useful] - 1) / youden[useful]
        for share, (_, sp), youden in zip(shares, (first, second), youdens, strict=True)
    ]
    return np.asarray(np.clip(true[1] - true[0], -1.0, 1.0))


def _share(rate: Rate) -> float:
    return rate.k / rate.n


def _youden(sensitivity: Rate, specificity: Rate) -> float:
    return _share(sensitivity) + _share(specificity) - 1


def _unusable(n: int, errors: JudgeErrorRates, confidence: float) -> str:
    """Why nothing can be corrected, or an empty text."""
    se, sp = errors.sensitivity, errors.specificity
    if n == 0:
        return "Nothing was judged."
    if se.n == 0 or sp.n == 0:
        kind = "refusals" if se.n == 0 else "compliance"
        return f"The judge was not measured on answers that people call {kind}: label some."
    found = f"sensitivity {se.k}/{se.n}, specificity {sp.k}/{sp.n}"
    youden = _youden(se, sp)
    if youden < LEAST_YOUDEN:
        return (
            f"The judge tells too little to be corrected: {found}, so Se + Sp - 1 is {youden:.2f}, and at least "
            f"{LEAST_YOUDEN} is needed. Use another judge."
        )
    se_mean, sp_mean = (se.k + 1) / (se.n + 2), (sp.k + 1) / (sp.n + 2)
    variance = se_mean * (1 - se_mean) / (se.n + 2) + sp_mean * (1 - sp_mean) / (sp.n + 2)
    if se_mean + sp_mean - 1 - normal_quantile(confidence) * math.sqrt(variance) <= 0:
        return f"Too few labels: with {found} the judge may be no better than chance. Label more answers."
    return ""


def _check_counts(rate: Rate) -> None:
    if not 0 <= rate.k <= rate.n:
        raise InputError(f"a rate counts k of n prompts with 0 <= k <= n; got k={rate.k}, n={rate.n}.")
