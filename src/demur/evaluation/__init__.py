"""Measuring: refusal score, judge, rates with intervals, paired comparisons, KL, the runner, the gate.

Statistics and the gate need no torch, so each name is imported when it is first used.
"""

from typing import TYPE_CHECKING

from demur._lazy import lazy_names

if TYPE_CHECKING:
    from demur.evaluation._cached_judge import CachedJudge
    from demur.evaluation._chat_judge import ChatJudge
    from demur.evaluation._classifier_judge import ClassifierJudge, PairedJudges
    from demur.evaluation._clusters import clustered_difference, clustered_rate
    from demur.evaluation._conditions import Condition, pressure_conditions
    from demur.evaluation._contrastive import MeasuredAsking, SelfContrast, SystemPrompt, asked_logits
    from demur.evaluation._fidelity import measure_fidelity, often
    from demur.evaluation._gate import LARGEST_MARGIN, decide_gate, no_operating_point
    from demur.evaluation._judge import Judge, Judgement, SettlingJudge
    from demur.evaluation._judge_error import corrected_difference, corrected_rate
    from demur.evaluation._judge_formats import FORMS, JudgeFormat
    from demur.evaluation._judge_quality import LabelledAnswer, cohen_kappa, measure_judge, read_labels
    from demur.evaluation._judge_specs import JudgeOptions, judge_cost, judge_options, make_judge
    from demur.evaluation._measure import (
        Completions,
        compare,
        kl_after,
        logits_after,
        mean_kl,
        metrics_of,
        next_token_logits,
        paired_refusals,
        rates_by_category,
        refusal_rate,
        scores_after,
    )
    from demur.evaluation._noise_floor import noise_floor
    from demur.evaluation._phrase_judge import PhraseJudge
    from demur.evaluation._power import (
        power_mcnemar,
        power_non_inferiority,
        power_plan,
        rate_half_width,
        required_n_mcnemar,
        required_n_non_inferiority,
        required_n_rate,
    )
    from demur.evaluation._pressure import (
        PRESSURE_MARGIN,
        Asked,
        applicable_conditions,
        ask,
        ask_together,
        measure_pressure,
        pressure_table,
    )
    from demur.evaluation._refusal_score import (
        LARGEST_SCORE,
        differentiable_refusal_scores,
        discover_refusal_tokens,
        kl_divergences,
        refusal_scores,
    )
    from demur.evaluation._refusal_threshold import fit_threshold, refusal_probability
    from demur.evaluation._runner import Asking, Runner, contains_answer, is_refusal
    from demur.evaluation._sampled import measure_sampled
    from demur.evaluation._scans import (
        PUBLISHED_STRENGTH,
        SimilaritySteering,
        harm_similarity,
        release_threshold,
        steered_layers,
        transitions,
    )
    from demur.evaluation._separation import Separation, separation
    from demur.evaluation._settled import stop_of
    from demur.evaluation._statistics import (
        bootstrap_mean,
        clopper_pearson,
        holm,
        net_change,
        paired_comparison,
        rate,
        tango_interval,
    )

__all__ = [
    "FORMS",
    "LARGEST_MARGIN",
    "LARGEST_SCORE",
    "PRESSURE_MARGIN",
    "PUBLISHED_STRENGTH",
    "Asked",
    "Asking",
    "CachedJudge",
    "ChatJudge",
    "ClassifierJudge",
    "Completions",
    "Condition",
    "Judge",
    "JudgeFormat",
    "JudgeOptions",
    "Judgement",
    "LabelledAnswer",
    "MeasuredAsking",
    "PairedJudges",
    "PhraseJudge",
    "Runner",
    "SelfContrast",
    "Separation",
    "SettlingJudge",
    "SimilaritySteering",
    "SystemPrompt",
    "applicable_conditions",
    "ask",
    "ask_together",
    "asked_logits",
    "bootstrap_mean",
    "clopper_pearson",
    "clustered_difference",
    "clustered_rate",
    "cohen_kappa",
    "compare",
    "contains_answer",
    "corrected_difference",
    "corrected_rate",
    "decide_gate",
    "differentiable_refusal_scores",
    "discover_refusal_tokens",
    "fit_threshold",
    "harm_similarity",
    "holm",
    "is_refusal",
    "judge_cost",
    "judge_options",
    "kl_after",
    "kl_divergences",
    "logits_after",
    "make_judge",
    "mean_kl",
    "measure_fidelity",
    "measure_judge",
    "measure_pressure",
    "measure_sampled",
    "metrics_of",
    "net_change",
    "next_token_logits",
    "no_operating_point",
    "noise_floor",
    "often",
    "paired_comparison",
    "paired_refusals",
    "power_mcnemar",
    "power_non_inferiority",
    "power_plan",
    "pressure_conditions",
    "pressure_table",
    "rate",
    "rate_half_width",
    "rates_by_category",
    "read_labels",
    "refusal_probability",
    "refusal_rate",
    "refusal_scores",
    "release_threshold",
    "required_n_mcnemar",
    "required_n_non_inferiority",
    "required_n_rate",
    "scores_after",
    "separation",
    "steered_layers",
    "stop_of",
    "tango_interval",
    "transitions",
]

_DOORS = {
    "_cached_judge": ("CachedJudge",),
    "_chat_judge": ("ChatJudge",),
    "_classifier_judge": ("ClassifierJudge", "PairedJudges"),
    "_clusters": ("clustered_difference", "clustered_rate"),
    "_conditions": ("Condition", "pressure_conditions"),
    "_contrastive": ("MeasuredAsking", "SelfContrast", "SystemPrompt", "asked_logits"),
    "_fidelity": ("measure_fidelity", "often"),
    "_gate": ("LARGEST_MARGIN", "decide_gate", "no_operating_point"),
    "_judge": ("Judge", "Judgement", "SettlingJudge"),
    "_judge_error": ("corrected_difference", "corrected_rate"),
    "_judge_formats": ("FORMS", "JudgeFormat"),
    "_judge_quality": ("LabelledAnswer", "cohen_kappa", "measure_judge", "read_labels"),
    "_judge_specs": ("JudgeOptions", "judge_cost", "judge_options", "make_judge"),
    "_measure": (
        "Completions",
        "compare",
        "kl_after",
        "logits_after",
        "mean_kl",
        "metrics_of",
        "next_token_logits",
        "paired_refusals",
        "rates_by_category",
        "refusal_rate",
        "scores_after",
    ),
    "_noise_floor": ("noise_floor",),
    "_phrase_judge": ("PhraseJudge",),
    "_power": (
        "power_mcnemar",
        "power_non_inferiority",
        "power_plan",
        "rate_half_width",
        "required_n_mcnemar",
        "required_n_non_inferiority",
        "required_n_rate",
    ),
    "_pressure": (
        "PRESSURE_MARGIN",
        "Asked",
        "applicable_conditions",
        "ask",
        "ask_together",
        "measure_pressure",
        "pressure_table",
    ),
    "_refusal_score": (
        "LARGEST_SCORE",
        "differentiable_refusal_scores",
        "discover_refusal_tokens",
        "kl_divergences",
        "refusal_scores",
    ),
    "_refusal_threshold": ("fit_threshold", "refusal_probability"),
    "_runner": ("Asking", "Runner", "contains_answer", "is_refusal"),
    "_sampled": ("measure_sampled",),
    "_scans": (
        "PUBLISHED_STRENGTH",
        "SimilaritySteering",
        "harm_similarity",
        "release_threshold",
        "steered_layers",
        "transitions",
    ),
    "_separation": ("Separation", "separation"),
    "_settled": ("stop_of",),
    "_statistics": (
        "bootstrap_mean",
        "clopper_pearson",
        "holm",
        "net_change",
        "paired_comparison",
        "rate",
        "tango_interval",
    ),
}
__getattr__, __dir__ = lazy_names(
    __name__, {name: f"{__name__}.{module}" for module, names in _DOORS.items() for name in names}
)
