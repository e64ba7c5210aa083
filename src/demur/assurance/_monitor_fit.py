"""Fitting a monitor: probes on training prompts, thresholds on validation prompts, evidence on test prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from demur.assurance._directions import directions_of
from demur.assurance._monitor_evidence import Measuring, measured
from demur.assurance._monitor_probes import find_probes, read_all
from demur.calibration import CalibrationSettings, provenance, rendering
from demur.errors import InputError
from demur.evaluation import clopper_pearson
from demur.models import ChatModel
from demur.monitoring import Reading, RefusalMonitor, order_statistic, widest
from demur.prompts import PromptSet
from demur.records import MonitorFlag, MonitorRecord, MonitorScore, MonitorThreshold, read_record
from demur.types import Progress, PromptLabel, SilentProgress, Split


@dataclass(frozen=True)
class MonitorSettings:
    """What the fit of a monitor can be told."""

    rate: float = 0.05
    """False-positive rate of every flag, for each kind of prompt that must not raise it."""
    batch_size: int = 32
    """Prompts in one pass."""
    answers: int = 32
    """Test prompts of each kind along whose answers the projection is read; 0 for none."""
    max_new_tokens: int = 32
    """Longest of those answers."""

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise InputError(f"a false-positive rate lies between 0 and 1, such as 0.05; got {self.rate}.")
        for name, least in (("batch_size", 1), ("answers", 0), ("max_new_tokens", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} is a number of at least {least}; got {getattr(self, name)}.")

    def check(self, prompts: Mapping[PromptLabel, PromptSet]) -> None:
        """Refuse prompts of which no monitor can be made, before a model is loaded.

        Raises:
            InputError: harmful or harmless prompts are missing, or there are too few validation prompts for the rate.
        """
        missing = {"harmful", "harmless"} - set(prompts)
        if missing:
            raise InputError(
                f"a monitor is fitted on harmful and harmless prompts; {' and '.join(sorted(missing))} missing."
            )
        for label, some in prompts.items():
            order_statistic([0.0] * len(some.split("validation")), rate=self.rate, what=f"{label} prompts")


class Rule(NamedTuple):
    """What a flag means: a score, the side on which it is raised, the kinds of prompts that must not raise it."""

    flag: MonitorFlag
    score: MonitorScore
    side: Literal["above", "below"]
    spared: tuple[PromptLabel, ...]


RULES = (
    Rule("harmful", "harm", "above", ("harmless", "borderline")),
    Rule("refusal_high", "refusal", "above", ("harmless",)),
    Rule("refusal_low", "refusal", "below", ("harmful",)),
    Rule("suppressed", "suppression", "above", ("harmful", "harmless", "borderline")),
    Rule("false_refusal", "suppression", "below", ("harmful", "harmless")),
)


def fit_monitor(
    chat: ChatModel,
    prompts: Mapping[PromptLabel, PromptSet],
    *,
    out: Path | str,
    run: Path | str | None = None,
    suppressed: PromptSet | None = None,
    settings: MonitorSettings | None = None,
    calibration: CalibrationSettings | None = None,
    progress: Progress | None = None,
) -> MonitorRecord:
    """Fit a monitor on a model's prompts and write `monitor.json` and `monitor.safetensors`.

    Args:
        chat: the model.
        prompts: harmful and harmless prompts with splits, borderline ones if there are any.
        out: folder of the two files; what was there is replaced.
        run: calibration whose r and w' are watched; without one r is found here, and no w'.
        suppressed: prompts whose refusal something has suppressed, such as harmful ones with adversarial suffixes; they
            set nothing, and all of them are measured.
        settings: of the monitor.
        calibration: of the search for r without `run`.
        progress: is told what is being done.

    Raises:
        InputError: too few validation prompts for the rate, or the run is for another model.
        ModelError: activations are NaN, or r does not tell harmful from harmless prompts.
        SelectionError: no direction passes the filters.
        RunFolderError: `out` cannot be written, or `run` holds no finished calibration.
    """
    settings, progress = settings or MonitorSettings(), progress or SilentProgress()
    settings.check(prompts)
    directions = directions_of(chat, prompts, run=run, settings=calibration, progress=progress)
    size = settings.batch_size
    probes, reader = find_probes(chat, directions, _texts(prompts, "train"), batch_size=size, progress=progress)
    plain = RefusalMonitor(probes, (), chat.identity, rendering(chat))
    validation = _texts(prompts, "validation")
    readings = read_all(chat, plain, validation, task="setting thresholds", batch_size=size, progress=progress)
    monitor = replace(plain, thresholds=tuple(_threshold(rule, readings, settings.rate) for rule in RULES))
    measuring = Measuring(
        chat,
        monitor,
        reader,
        directions,
        prompts,
        suppressed,
        size,
        settings.answers,
        settings.max_new_tokens,
        progress,
    )
    evidence = measured(measuring, provenance(chat, seed=0))
    monitor.save(out, evidence=evidence)
    return read_record(Path(out) / "monitor.json", MonitorRecord)


def _threshold(rule: Rule, readings: Mapping[PromptLabel, Sequence[Reading]], rate: float) -> MonitorThreshold:
    """One threshold that keeps the rate for each kind of prompt that must not be flagged."""
    cuts = {
        label: order_statistic(
            [reading.scores[rule.score] for reading in readings[label]],
            rate=rate,
            side=rule.side,
            what=f"{label} prompts",
        )
        for label in rule.spared
        if label in readings
    }
    return MonitorThreshold(
        flag=rule.flag,
        score=rule.score,
        side=rule.side,
        value=widest(list(cuts.values()), side=rule.side),
        rate=rate,
        attained={label: cut.attained for label, cut in cuts.items()},
        # The share beyond the k-th of n order statistics follows Beta(k, n + 1 - k): the law of this upper end.
        bound={label: clopper_pearson(cut.k - 1, cut.n, confidence=0.9).high for label, cut in cuts.items()},
        n={label: cut.n for label, cut in cuts.items()},
    )


def _texts(prompts: Mapping[PromptLabel, PromptSet], split: Split) -> dict[PromptLabel, list[str]]:
    return {label: [prompt.text for prompt in some.split(split)] for label, some in prompts.items()}
