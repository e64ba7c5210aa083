"""Measuring: refusal score, judge, rates with intervals, paired comparisons, KL, the runner, the gate."""

from demur.evaluation._gate import LARGEST_MARGIN, decide_gate
from demur.evaluation._judge import Judge, Judgement
from demur.evaluation._judge_quality import LabelledAnswer, cohen_kappa, measure_judge, read_labels
from demur.evaluation._measure import Completions, compare, mean_kl, metrics_of, next_token_logits, refusal_rate
from demur.evaluation._phrase_judge import PhraseJudge
from demur.evaluation._refusal_score import discover_refusal_tokens, kl_divergences, refusal_scores
from demur.evaluation._runner import Asking, Runner, contains_answer, is_refusal
from demur.evaluation._statistics import bootstrap_mean, clopper_pearson, paired_comparison, rate, tango_interval

__all__ = [
    "LARGEST_MARGIN",
    "Asking",
    "Completions",
    "Judge",
    "Judgement",
    "LabelledAnswer",
    "PhraseJudge",
    "Runner",
    "bootstrap_mean",
    "clopper_pearson",
    "cohen_kappa",
    "compare",
    "contains_answer",
    "decide_gate",
    "discover_refusal_tokens",
    "is_refusal",
    "kl_divergences",
    "mean_kl",
    "measure_judge",
    "metrics_of",
    "next_token_logits",
    "paired_comparison",
    "rate",
    "read_labels",
    "refusal_rate",
    "refusal_scores",
    "tango_interval",
]
