"""Conditional ablation: change only the prompts whose projection on a direction falls on one side of a threshold.

The idea is CAST's (Lee et al. 2025, arXiv 2409.05907): whether to steer is asked of the prompt, once. Here the
projection is linear and the answer is kept per row of a batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from demur.errors import InputError, UnsupportedInterventionError
from demur.interventions._graded import WeightAblation, site_changes
from demur.interventions._intervention import _digest
from demur.models import ChatModel, hooked, reading_inputs

Side = Literal["below", "above"]
_CACHES = ("past_key_values", "cache_params")
"""What models call their cache."""


@dataclass(frozen=True)
class ConditionalAblation:
    """An ablation of those prompts only whose stream lies on one side of a plane at one layer and position.

    The condition is decided on the unchanged model, once per prompt, before its first token is generated, and holds for
    the prompt and all that is generated from it: the change begins below the layer at which the condition is read.

    Cost: per prompt one more pass over it through the blocks below `layer`; per generated token the hooks only. A
    condition cannot be held by plain weights, so there is no folded form and no export.

    The prompt ends where the template's tokens after the instruction end; text that follows them (a forced opening, an
    answer so far) does not move the place at which the condition is read.
    """

    ablation: WeightAblation
    layer: int
    """Block at whose input the condition is read."""
    position: int
    """Token position from the end of the prompt, negative."""
    direction: Tensor
    """[d_model]; the projection is the plain inner product, so its length is part of the threshold's unit."""
    threshold: float
    side: Side = "below"
    """Prompts whose projection lies strictly on this side are changed."""
    foldable: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.position >= 0 or self.layer < 0:
            raise InputError(
                "the condition is read at a negative position (from the end of the prompt) and a layer from 0 up; got "
                f"position {self.position}, layer {self.layer}."
            )

    @property
    def fingerprint(self) -> str:
        """sha256 of the ablation's fingerprint and the condition."""
        condition = (self.layer, self.position, self.threshold, self.side)
        return _digest("conditional_ablation", self.ablation.fingerprint, self.direction, *condition)

    def decide(self, chat: ChatModel, batch: dict[str, Tensor]) -> Tensor:
        """Which rows of a left-padded batch are to be changed, [batch], bool.

        Args:
            chat: the model, unchanged.
            batch: `input_ids` and `attention_mask`.
        """
        ends = _prompt_ends(chat, batch)
        kept: list[Tensor] = []

        def read(stream: Tensor) -> None:
            rows = torch.arange(len(ends), device=stream.device)
            kept.append(stream[rows, (ends + self.position).to(stream.device)].to(torch.float64))
            raise _Read

        if not self.layer < chat.n_layers:
            raise InputError(
                f"{chat.name} has {chat.n_layers} layers; the condition is read at {self.layer}. Give a layer from 0 "
                f"to {chat.n_layers - 1}."
            )
        with reading_inputs(chat.module, {chat.layout.blocks[self.layer]: read}), suppress(_Read):
            chat.run(batch)
        projection = kept[0] @ self.direction.to(kept[0])
        return projection < self.threshold if self.side == "below" else projection > self.threshold

    @contextmanager
    def applied_to(self, chat: ChatModel) -> Iterator[None]:
        """Apply at run time, by hooks."""
        inputs, outputs = site_changes(chat, self.ablation)
        state = _Decisions(self, chat)
        handle = chat.module.register_forward_pre_hook(state.before, with_kwargs=True)
        try:
            with hooked(
                chat.module,
                inputs={path: partial(state.change, change=each) for path, each in inputs.items()},
                outputs={path: partial(state.change, change=each) for path, each in outputs.items()},
            ):
                yield
        finally:
            handle.remove()

    def folded_into(self, chat: ChatModel) -> AbstractContextManager[None]:
        """Not possible.

        Raises:
            UnsupportedInterventionError: always.
        """
        raise UnsupportedInterventionError(
            f"{chat.name}: a conditional ablation changes some prompts and not others, which plain weights cannot do. "
            "Use it at run time (applied_to), or calibrate without conditions to get a point that can be exported."
        )


class _Read(Exception):  # noqa: N818 (no error: it ends a pass of which the rest is not needed)
    """The layer of the condition has been read."""


@dataclass
class _Decisions:
    """Which rows of the batch under way are changed."""

    conditional: ConditionalAblation
    chat: ChatModel
    rows: Tensor | None = field(default=None, init=False)
    """[batch], bool; None while the condition itself is being read."""
    deciding: bool = field(default=False, init=False)

    def before(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Decide for a new batch of prompts; a step of generation keeps what was decided for its prompts."""
        if self.deciding:
            return
        ids = kwargs["input_ids"] if kwargs.get("input_ids") is not None else args[0]
        if ids.shape[1] == 1 and any(kwargs.get(name) is not None for name in _CACHES):
            if self.rows is None or len(self.rows) != len(ids):
                raise UnsupportedInterventionError(
                    f"{self.chat.name}: a batch of {len(ids)} rows goes on from prompts that this condition did not "
                    "read. Open applied_to before the prompts are read, and keep the batch as it is."
                )
            return
        mask = kwargs.get("attention_mask")
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids) if mask is None else mask}
        self.rows, self.deciding = None, True
        try:
            self.rows = self.conditional.decide(self.chat, batch)
        finally:
            self.deciding = False

    def change(self, stream: Tensor, *, change: "partial[Tensor]") -> Tensor:
        """The stream with the chosen rows changed; the very same tensor where there are none."""
        if self.rows is None or not self.rows.any():
            return stream
        changed = change(stream)
        if self.rows.all():
            return changed
        # Some modules return all rows' tokens in one dimension.
        rows = self.rows.to(stream.device).repeat_interleave(stream.shape[:-1].numel() // len(self.rows))
        return torch.where(rows.view(*stream.shape[:-1], 1), changed, stream)


def _prompt_ends(chat: ChatModel, batch: dict[str, Tensor]) -> Tensor:
    """Index after the last token of each row's prompt, [batch]: where the template's last closing ends.

    A row without one (a bare prompt) ends where it ends.
    """
    closing = list(chat.template.post_instruction_tokens())
    ends = [_last_end(row, closing) for row in batch["input_ids"].tolist()]
    return torch.tensor(ends)


def _last_end(row: Sequence[int], closing: Sequence[int]) -> int:
    for end in range(len(row), len(closing) - 1, -1):
        if list(row[end - len(closing) : end]) == closing:
            return end
    return len(row)
