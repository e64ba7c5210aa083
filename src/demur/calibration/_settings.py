"""Everything a calibration can be told, with the published values as defaults."""

from dataclasses import asdict, dataclass
from typing import Any

from demur.errors import InputError


@dataclass(frozen=True)
class CalibrationSettings:
    """Settings of one calibration. All of them are part of the run's fingerprint."""

    n_train: int = 128
    """Most prompts of each set that directions are fitted on (both papers)."""
    n_scored: int = 32
    """Most validation prompts of each set on which candidates are scored (both papers)."""
    n_validation: int = 256
    """Most validation prompts of each set on which answers are judged to choose lambda."""
    n_mechanism: int = 128
    """Most test prompts of each set on which the direction itself is ablated and added."""
    kl_limit: float = 0.1
    """Largest KL of a refusal direction's ablation on harmless prompts, nats (Arditi et al.)."""
    induce_minimum: float = 0.0
    """Smallest refusal score that adding the refusal direction must reach on harmless prompts (Arditi et al.)."""
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
    max_new_tokens: int = 128
    """Longest answer that is generated and judged."""
    batch_size: int = 64
    """Prompts generated together."""
    seed: int = 0
    """Of the random control directions and of bootstrap intervals."""
    refusal_tokens: tuple[int, ...] | None = None
    """Token ids of the refusal score; None finds them from the model's own refusals."""

    def __post_init__(self) -> None:
        for name in ("n_train", "n_scored", "n_validation", "n_mechanism", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is a number of at least 1; got {getattr(self, name)}.")
        if not self.lambdas or any(not 0 <= value <= 1 for value in self.lambdas):
            raise InputError(f"lambdas are numbers from 0 to 1; got {self.lambdas}.")
        if not 0 < self.margin < 1:
            raise InputError(f"margin is a share between 0 and 1, such as 0.02 for 2 points; got {self.margin}.")

    def as_record(self) -> dict[str, Any]:
        """Plain values for `run.json`."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
