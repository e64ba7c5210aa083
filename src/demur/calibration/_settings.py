"""Everything a calibration can be told, with the published values as defaults."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from demur.errors import InputError
from demur.evaluation import LARGEST_MARGIN


@dataclass(frozen=True)
class CalibrationSettings:
    """Settings of one calibration. All of them are part of the run's fingerprint."""

    n_train: int = 128
    """Most prompts of each set that directions are fitted on (both papers)."""
    n_scored: int = 32
    """Most validation prompts of each set on which candidates are scored (both papers)."""
    n_screened: int = 3
    """False-refusal candidates of each lambda that are measured, those that a first-order estimate of all promises
    most; 0 measures all."""
    n_judged: int = 5
    """Most points of the lambda grid whose answers are judged; 0 judges all."""
    n_pressed: int = 64
    """Most harmful validation prompts on which a point is put under pressure before it is chosen."""
    n_pressure: int = 96
    """Most harmful test prompts that are asked again under each condition of pressure."""
    n_sampled: int = 96
    """Most test prompts of each set that are answered by sampling too, for the probability of a refusal."""
    n_validation: int = 256
    """Most validation prompts of each set on which answers are judged to choose lambda."""
    n_mechanism: int = 64
    """Most test prompts of each set on which the direction itself is ablated and added."""
    kl_limit: float = 0.1
    """Largest KL of a refusal direction's ablation on harmless prompts, nats (Arditi et al.)."""
    induce_minimum: float | None = None
    """Smallest refusal score that adding the refusal direction must reach on harmless prompts; None is the refusal
    threshold (Arditi et al. use 0 for both)."""
    layer_fraction: float = 0.8
    """Directions are taken from the first int(layer_fraction * layers) blocks (both papers)."""
    false_refusal_kl_limit: float = 0.2
    """Largest KL of a false-refusal direction's ablation on harmless prompts, nats (Wang et al.)."""
    lambdas: tuple[float, ...] = (1.0, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.2, 0.0)
    """Grid of the orthogonalization strength; finer where true refusals usually begin to go."""
    margin: float = 0.02
    """Largest loss of true refusals that counts as none, as a share."""
    gate_kl_limit: float = 0.1
    """Largest KL of the operating point on harmless prompts, nats; for the choice and for the gate."""
    pressure: bool = True
    """Measure true refusals under pressure; the gate does not pass without."""
    max_new_tokens: int = 128
    """Longest answer that is generated and judged."""
    batch_size: int = 0
    """Prompts generated together; 0 takes the size that suits device, memory and model, and keeps it in the run
    folder."""
    seed: int = 0
    """Of the random control directions and of bootstrap intervals."""
    refusal_tokens: tuple[int, ...] | None = None
    """Token ids of the refusal score; None finds them from the model's own refusals."""
    refusal_threshold: float | None = None
    """Refusal score, log-odds, from which a prompt counts as refused; None learns it from the model's own judged
    answers, 0 is that of both papers."""
    n_answered: int = 64
    """Most train prompts of each set whose answers are judged to find refusal tokens and threshold."""
    verdict_tokens: int = 0
    """Tokens of an answer that are generated to judge it; 0 learns from the model's answers how many are enough."""

    search: bool = False
    """Look for an operating point beyond the lambda grid; needs Optuna (the extra `search`)."""
    trials: int = 200
    """Points that a search tries, the grid's included."""

    def __post_init__(self) -> None:
        for name in ("n_train", "n_scored", "n_validation", "n_mechanism", "n_answered", "max_new_tokens", "trials"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is a number of at least 1; got {getattr(self, name)}.")
        for name in ("n_screened", "n_judged", "n_pressed", "n_pressure", "n_sampled"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is a number from 0 up; got {getattr(self, name)}.")
        # All limits are checked here, not where they are used, which may be hours later.
        shares = [0 <= value <= 1 for value in self.lambdas]
        for name, usable, words in (
            ("batch_size", self.batch_size >= 0, "is a number of prompts, or 0 for one that suits the machine"),
            ("lambdas", bool(shares) and all(shares), "are numbers from 0 to 1"),
            (
                "margin",
                0 < self.margin <= LARGEST_MARGIN,
                f"is a share of at most {LARGEST_MARGIN}, such as 0.02 for 2 points",
            ),
            ("layer_fraction", 0 < self.layer_fraction <= 1, "is a share above 0 and up to 1, such as 0.8"),
            ("kl_limit", self.kl_limit >= 0, "is a number of nats from 0 up, such as 0.1"),
            ("false_refusal_kl_limit", self.false_refusal_kl_limit >= 0, "is a number of nats from 0 up, such as 0.2"),
            ("gate_kl_limit", self.gate_kl_limit > 0, "is a number of nats above 0, such as 0.1"),
            ("induce_minimum", _number(self.induce_minimum), "is a refusal score in log-odds, such as 0"),
            ("refusal_threshold", _number(self.refusal_threshold), "is a refusal score in log-odds, such as 0"),
            ("verdict_tokens", self.verdict_tokens >= 0, "is a number of tokens, or 0 to learn it"),
            ("refusal_tokens", _usable(self.refusal_tokens), "are one or more token ids, each given once"),
        ):
            if not usable:
                raise InputError(f"{name} {words}; got {getattr(self, name)}.")

    def as_record(self) -> dict[str, Any]:
        """Plain values for `run.json`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def _number(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def _usable(tokens: tuple[int, ...] | None) -> bool:
    """A token given twice would count twice, and a negative id would be counted from the end of the vocabulary."""
    return tokens is None or (bool(tokens) and min(tokens) >= 0 and len(set(tokens)) == len(tokens))
