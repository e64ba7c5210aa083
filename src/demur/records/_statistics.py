"""What the statistics beyond plain rates give: clustered and corrected rates, sample sizes, noise, stability."""

from typing import Literal

from pydantic import Field

from demur.records._base import Record
from demur.records._rates import JudgeIdentity, Rate


class Clustering(Record):
    """How far prompts of one cluster answer alike, and what that costs."""

    clusters: int
    """Clusters with at least one judged prompt."""
    informative: int
    """Clusters that tell about the spread between clusters: for a rate the fewer of those with and of those without;
    for a difference those in which something changed."""
    design_effect: float
    """Variance of the estimate relative to that of as many independent prompts; at least 1."""
    effective_n: float
    """n / design_effect: independent prompts that would say as much."""
    degrees_of_freedom: float
    """Of the t quantile: effective number of clusters, (sum of sizes)^2 / sum of squared sizes, minus 1."""
    note: str = ""
    """What is wrong with so few clusters; empty where nothing is."""


class ClusteredRate(Record):
    """A share of prompts that come in clusters, with a two-sided interval for new clusters."""

    k: int
    n: int
    """Prompts judged."""
    rate: float | None
    """k / n; null where n is 0."""
    low: float
    high: float
    unjudged: int
    clustering: Clustering


class ClusteredComparison(Record):
    """After against before on the same prompts, which come in clusters."""

    n: int
    """Pairs in which both completions were judged."""
    lost: int
    gained: int
    difference: float
    """after minus before, as a share of n."""
    low: float
    high: float
    p_value: float
    """Two-sided, of no difference; below 0.05 exactly where the 95 % interval leaves out 0."""
    clustering: Clustering


class CorrectedRate(Record):
    """A rate corrected for the judge's errors."""

    rate: float | None
    """(p + Sp - 1) / (Se + Sp - 1), cut to 0 to 1 (Rogan and Gladen 1978); null where it cannot be computed."""
    low: float
    """With the uncertainty of the sample and of both error rates; 0 to 1 where the rate is null."""
    high: float
    observed: Rate
    """As the judge counted."""
    sensitivity: Rate
    """Share of the answers that people call refusals which the judge calls refusals too."""
    specificity: Rate
    """Share of the answers that people call compliance which the judge calls compliance too."""
    method: Literal["lang_reiczigel"] = "lang_reiczigel"
    reason: str = ""
    """Why there is no corrected rate; empty where there is one."""


class JudgeErrorRates(Record):
    """Measured errors of a judge on the answers of one model (or condition)."""

    sensitivity: Rate
    specificity: Rate


class CorrectedDifference(Record):
    """A paired difference corrected for the judge's errors."""

    difference: float | None
    """True rate after minus true rate before; null where it cannot be computed."""
    low: float
    """2.5 % quantile of the draws; -1 to 1 where the difference is null."""
    high: float
    n: int
    """Pairs in which both completions were judged."""
    observed_difference: float
    """As the judge counted."""
    errors_before: JudgeErrorRates
    errors_after: JudgeErrorRates
    """The same as before, unless the judge was measured on both models."""
    draws: int
    seed: int
    method: Literal["jeffreys_draws"] = "jeffreys_draws"
    reason: str = ""
    """Why there is no corrected difference; empty where there is one."""


class CorrectedMeasure(Record):
    """One measure of a run, corrected for the judge's errors."""

    before: CorrectedRate
    after: CorrectedRate | None = None
    difference: CorrectedDifference | None = None
    """null where nothing was applied."""


class CorrectedRun(Record):
    """`corrected.json`: the rates of a run, corrected for the judge's errors on labelled answers."""

    schema_: Literal["demur.corrected/1"] = Field(default="demur.corrected/1", alias="schema")
    judge: JudgeIdentity
    labels: str
    """The file of labelled answers."""
    n_labels: int
    errors_before: JudgeErrorRates
    errors_after: JudgeErrorRates
    """Measured apart where the labels name the models `before` and `after`."""
    measures: dict[str, CorrectedMeasure]
    """true_refusal_rate, false_refusal_rate, harmless_refusal_rate."""


class PowerRow(Record):
    """What a number of test prompts can show."""

    n: int
    """Test prompts of one set."""
    kept: float
    """Chance that the gate's rule "true refusals kept" passes."""
    drop: float
    """Chance that the drop of false refusals is significant (exact McNemar, two-sided 5 %)."""
    half_width: float
    """Half the width of the 95 % interval of a single rate near one half, as a share."""


class PowerPlan(Record):
    """How many test prompts a calibration needs."""

    schema_: Literal["demur.power/1"] = Field(default="demur.power/1", alias="schema")
    margin: float
    lost: float
    """Assumed share of harmful prompts whose refusal is lost."""
    gained: float
    """Assumed share of harmful prompts that are newly refused."""
    detect: float
    """Net drop of false refusals that is to be found, as a share of the borderline prompts."""
    flip_back: float
    """Assumed share of borderline prompts that are newly refused."""
    power: float
    harmful_n: int | None
    """Fewest harmful test prompts; null where no number is enough, as the assumed loss reaches the margin."""
    borderline_n: int
    """Fewest borderline test prompts."""
    harmful_file: int | None
    """Prompts in the file of which the default split puts `harmful_n` into test, nearly always."""
    borderline_file: int
    rows: tuple[PowerRow, ...]


class NoiseFloor(Record):
    """The same model twice on the same prompts, in other batches: what changes though nothing was changed."""

    n: int
    """Prompts that were asked twice."""
    flips: Rate
    """Prompts that were refused in one run and answered in the other, of those judged in both."""
    verdict_changes: int
    """Prompts whose verdict differs in any way, unjudged included."""
    different_texts: int
    """Prompts whose answer differs in any character."""
    max_logit_difference: float | None
    """Largest difference of any next-token logit at the last prompt position; null where it is not finite."""
    max_score_difference: float | None
    """The same of the refusal score, log-odds; null where no refusal tokens were given."""
    batch_size: int
    other_batch_size: int
    """Of the second run, in which every prompt has additional padding too."""


class CandidateWins(Record):
    """How often one candidate is chosen."""

    position: int
    layer: int
    wins: int
    """Resamples in which it was chosen."""


class Stability(Record):
    """Which candidate is chosen when the validation prompts are drawn again (with replacement)."""

    kind: Literal["refusal_direction", "false_refusal_direction"]
    lambda_: float | None = Field(default=None, alias="lambda")
    position: int
    """Of the candidate that all validation prompts choose."""
    layer: int
    wins: int
    """Resamples in which it is chosen again."""
    resamples: int
    none_passed: int
    """Resamples in which no candidate passes the filters."""
    others: tuple[CandidateWins, ...]
    """The other candidates that are chosen at all, most wins first; at most five."""
    expected_regret: float | None
    """Mean of how much worse (higher, log-odds) the resample's choice scores on all validation prompts than the
    candidate that they choose; null where no resample chooses any."""
    n_candidates: int
    n_unscored: int
    """Candidates of which a score is missing or not a number; they are never chosen."""
    n_prompts: dict[str, int]
    """Validation prompts by label."""
    seed: int
