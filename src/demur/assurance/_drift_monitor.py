"""Drift while a model is trained: a few probe prompts, read again and again by forward passes, nothing generated."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from demur.assurance._directions import Directions, directions_of
from demur.assurance._drift_reference import DriftFolder, Probe, Reading, Reference, fix_reference, probe_of
from demur.assurance._drift_statistics import DEFAULT_RULE, check_rule, drift_tests, probed
from demur.errors import InputError
from demur.models import ChatModel
from demur.prompts import PromptSet
from demur.records import DriftCheckpoint, DriftRule, DriftStatistic, DriftTest
from demur.types import PromptLabel

if TYPE_CHECKING:
    from demur.models import MeasuringCallback

_WORDS: dict[DriftStatistic, str] = {
    "gap": "the projection gap of harmful and harmless prompts is down to {left:.0%} of what it was",
    "score": "the mean refusal score of harmful prompts is down to {left:.0%} of what it was",
    "auroc": "the AUROC of the frozen refusal direction changed by {left:+.3f}",
}


@dataclass(frozen=True)
class DriftReading:
    """One measurement."""

    checkpoint: DriftCheckpoint
    tests: tuple[DriftTest, ...]
    """Empty for the first measurement."""

    @property
    def alarms(self) -> tuple[DriftTest, ...]:
        """The tests that raise an alarm."""
        return tuple(test for test in self.tests if test.alarm)

    @property
    def words(self) -> str | None:
        """What is wrong, or None."""
        told = [_WORDS[test.statistic].format(left=test.estimate.value) for test in self.alarms]
        return f"refusal is eroding: {'; '.join(told)}." if told else None

    @property
    def values(self) -> dict[str, float]:
        """Numbers for a log."""
        shares = {f"drift/{_NAMES[test.statistic]}": test.estimate.value for test in self.tests}
        scores = {f"drift/score_{label}": sum(each) / len(each) for label, each in self.checkpoint.scores.items()}
        return {**shares, **scores, "drift/cosine": self.checkpoint.cosine, "drift/alarm": float(bool(self.alarms))}


_NAMES: dict[DriftStatistic, str] = {"gap": "gap_kept", "score": "score_kept", "auroc": "auroc_change"}


@dataclass
class DriftMonitor:
    """Measures a model against what it was at the first call, and says when it has lost refusal.

    One forward pass over the probe prompts each time; the model is in evaluation mode meanwhile and left as it was. The
    chance of any alarm, however often it measures, is at most the rule's false-alarm rate while no loss exceeds its
    limit.

    Args:
        chat: the model, made before training begins; adapters that are put into it later are measured with it.
        prompts: harmful and harmless, if wanted borderline prompts, with splits.
        out: folder for the reference and a line per measurement; `demur drift OUT` draws them. If it holds a reference
            (training that is resumed), that one goes on being used.
        directions: refusal direction and tokens; found from the prompts if not given.
        run: calibration of this model to take them from.
        n_probes: most probe prompts of each kind.
        batch_size: prompts in one pass.
        rule: when an alarm is raised.
    """

    chat: ChatModel
    prompts: Mapping[PromptLabel, PromptSet]
    out: Path | str | None = None
    directions: Directions | None = None
    run: Path | str | None = None
    n_probes: int = 32
    batch_size: int = 64
    rule: DriftRule = field(default=DEFAULT_RULE)
    _reference: Reference | None = field(default=None, init=False)
    _probe: Probe | None = field(default=None, init=False)
    _measured: list[DriftCheckpoint] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        check_rule(self.rule)
        if self.n_probes < 1:
            raise InputError(f"n_probes is a number of at least 1; got {self.n_probes}.")
        folder = self._folder
        if folder is not None and folder.is_one():
            self._reference = folder.read_reference()
            self._probe = probe_of(self.chat, self.prompts, self._reference, batch_size=self.batch_size)
            self._measured = folder.checkpoints.read(DriftCheckpoint)
            return
        with _evaluating(self.chat.module):
            self.directions = self.directions or directions_of(self.chat, self.prompts, run=self.run)

    @property
    def _folder(self) -> DriftFolder | None:
        return None if self.out is None else DriftFolder(self.out)

    def measure(self, step: int = 0) -> DriftReading:
        """Read the probe prompts of the model as it is now; the first call fixes what later ones are compared with.

        Raises:
            ModelError: a logit is NaN.
            RunFolderError: the folder cannot be written.
        """
        with _evaluating(self.chat.module):
            reference, reading = self._read()
        checkpoint = reference.checkpoint(reading, name=f"step {step}", step=step, model=self.chat.name)
        checkpoint = checkpoint.model_copy(update={"source": "training"})
        values = probed(checkpoint.projections, checkpoint.scores)
        tests: Sequence[DriftTest] = ()
        if self._measured:
            first = self._measured[0]
            before, threshold = probed(first.projections, first.scores), reference.record.threshold
            tests = drift_tests(before, values, self.rule, number=len(self._measured), threshold=threshold)
        self._measured.append(checkpoint)
        if self._folder is not None:
            self._folder.checkpoints.append([checkpoint])
        return DriftReading(checkpoint, tuple(tests))

    def _read(self) -> tuple[Reference, Reading]:
        if self._reference is not None and self._probe is not None:
            return self._reference, self._probe.read()
        assert self.directions is not None
        self._reference, self._probe, reading = fix_reference(
            self.chat, self.prompts, self.directions, n_probes=self.n_probes, batch_size=self.batch_size
        )
        # The hash of the weights is that of the first step; it must not be taken for that of the trained model.
        self.chat.__dict__.pop("identity", None)
        if self._folder is not None:
            self._folder.claim(self._reference)
        return self._reference, reading

    def callback(self, *, share: float = 0.02, every: int | None = None, stop: bool = False) -> "MeasuringCallback":
        """For transformers' Trainer: `Trainer(..., callbacks=[monitor.callback()])`.

        Args:
            share: largest share of the training time that measuring takes.
            every: measure at every so many steps instead, whatever it costs.
            stop: end the training at an alarm.
        """
        from demur.models import Measured, MeasuringCallback  # noqa: PLC0415 (imports the Trainer, which takes seconds)

        def measured(step: int) -> Measured:
            reading = self.measure(step)
            return Measured(reading.values, reading.words)

        return MeasuringCallback(measured, share=share, every=every, stop=stop)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode in which it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
