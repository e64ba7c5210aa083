"""What each part of a model writes along a direction at one position, and where its heads look from there.

The stream is a sum: the embeddings plus every write of every block. Direct feature attribution (Arditi et al. section
5.2) is the projection of each summand. A write of an attention is taken apart by heads where its linear writer can be
found and the sum is proved by numbers; where not, the write stays whole and the reason is told.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from demur.errors import LayoutError, ModelError
from demur.models._chat_model import ChatModel
from demur.models._layout import Writer
from demur.models._probe import TOLERANCES
from demur.models._reading import Reading, read_position

PartKind = Literal["embedding", "head", "bias", "write"]
"""bias: what an attention write adds beside its heads; write: a whole write, such as that of an MLP."""


@dataclass(frozen=True)
class Part:
    """One summand of the residual stream."""

    kind: PartKind
    block: int | None
    """None for the embeddings."""
    module: str
    """The write site; for the embeddings the first block, at whose input they are read."""
    head: int | None = None


@dataclass(frozen=True)
class Attribution:
    """Projections of all parts at one position of each prompt, after the last block."""

    parts: tuple[Part, ...]
    values: Tensor
    """[prompt, part], float64: the part's projection on the unit direction, as it stands in the last stream."""
    projections: Tensor
    """[prompt, boundary], float64: the projection of the stream itself on the unit direction, at each block's input and
    after the last block."""
    cosines: Tensor
    """[prompt, boundary]: the same, divided by the length of the stream."""
    whole: dict[str, str]
    """Write sites that were not taken apart into heads, with the reason; MLPs are not in it."""
    attention: Tensor | None
    """[prompt, head, group]: share of each head's attention on each group of tokens; heads as in `heads`."""
    heads: tuple[tuple[int, int], ...]
    """(block, head) of every row of `attention`."""

    @property
    def unexplained(self) -> float:
        """Largest difference between the sum of the parts and the stream, as a share of the largest projection."""
        total = self.projections[:, -1]
        return float((self.values.sum(-1) - total).abs().max() / total.abs().max().clamp_min(1e-30))


def attribute(
    chat: ChatModel,
    sequences: Sequence[Sequence[int]],
    direction: Tensor,
    *,
    position: int = -1,
    groups: Sequence[Sequence[int]] | None = None,
    batch_size: int = 32,
    advance: Callable[[int], None] | None = None,
) -> Attribution:
    """Take the projection on a direction apart (direct feature attribution, Arditi et al. section 5.2).

    Attention is computed eagerly for the time of the call, so that its weights can be read.

    Args:
        chat: the model.
        sequences: token ids of each prompt.
        direction: [d_model]; made a unit vector.
        position: token position from the end, negative.
        groups: for each prompt the group of each of its tokens, numbered from 0; sums the attention of the heads.
        batch_size: prompts read together.
        advance: is told how many prompts are done.

    Raises:
        LayoutError: a block is no sum of its input and its writes.
        ModelError: the direction is zero, or a sequence has fewer tokens than the position asks for.
    """
    unit = _unit(direction)
    if min(len(tokens) for tokens in sequences) < -position:
        raise ModelError(
            f"{chat.name}: a prompt has fewer than {-position} tokens, so position {position} is not there."
        )
    n_groups = 1 + max(max(row) for row in groups) if groups else 0
    splitter = _Splitter(chat, unit)
    values: dict[int, Tensor] = {}
    along: dict[int, Tensor] = {}
    sizes: dict[int, Tensor] = {}
    attention: dict[int, Tensor] = {}
    for indices in _equal_lengths(sequences, batch_size):
        read = read_position(chat, [sequences[index] for index in indices], position, splitter.linears)
        contributions = splitter.split(read)
        streams = torch.stack([read.streams[boundary] for boundary in range(chat.n_layers + 1)], dim=1)
        masses = _masses(read, [groups[index] for index in indices], n_groups, splitter.attending) if groups else None
        for row, index in enumerate(indices):
            values[index], along[index], sizes[index] = (
                contributions[row],
                streams[row] @ unit,
                streams[row].norm(dim=-1),
            )
            if masses is not None:
                attention[index] = masses[row]
        if advance is not None:
            advance(len(indices))
    heads = tuple((block, head) for block, _, count in splitter.attending for head in range(count))
    return Attribution(
        parts=tuple(splitter.parts),
        values=_in_order(values),
        projections=_in_order(along),
        cosines=_in_order(along) / _in_order(sizes).clamp_min(torch.finfo(torch.float64).tiny),
        whole=splitter.whole,
        attention=_in_order(attention) if attention else None,
        heads=heads if attention else (),
    )


def _in_order(rows: dict[int, Tensor]) -> Tensor:
    return torch.stack([rows[index] for index in sorted(rows)])


def _equal_lengths(sequences: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Batches without padding: transformers' eager attention gives NaN for it in float64, which spreads."""
    lengths = [len(tokens) for tokens in sequences]
    for length in sorted(set(lengths), reverse=True):
        members = [index for index, each in enumerate(lengths) if each == length]
        for start in range(0, len(members), size):
            yield members[start : start + size]


def _unit(direction: Tensor) -> Tensor:
    vector = direction.detach().to("cpu", torch.float64)
    if not torch.isfinite(vector).all() or not vector.norm() > 0:
        raise ModelError("a direction to attribute is zero or not finite; nothing could be projected on it.")
    unit: Tensor = vector / vector.norm()
    return unit


def _masses(
    read: Reading, groups: Sequence[Sequence[int]], n_groups: int, attending: Sequence[tuple[int, str, int]]
) -> Tensor | None:
    """[row, head, group]; None where no block shows its attention."""
    if not attending:
        return None
    member = torch.nn.functional.one_hot(torch.tensor([list(row) for row in groups]), n_groups).to(torch.float64)
    return torch.cat([read.weights[path] @ member for _, path, _ in attending], dim=1)


# From what was read to parts ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Heads:
    """How one write site is a sum over heads."""

    linear: str
    count: int
    per_input: Tensor
    """[in]: what each entry of the linear module's input adds to the projection, before the norm after the write."""
    reading: Tensor
    """[d_model]: the direction as it reads before the norm."""
    scales: tuple[Callable[[Tensor], Tensor], ...]
    bias: float
    """Of the linear module, along the direction."""
    shift: Tensor | None
    """[d_model]: bias of the norm after the write."""

    def after_norm(self, output: Tensor) -> Tensor:
        """The linear module's output as it reaches the stream, up to one number per token and the shift."""
        for step in reversed(self.scales):
            output = step(output)
        return output


class _Splitter:
    """Takes the stream of every batch apart in the same way: how is decided on the first one, and proved on all."""

    def __init__(self, chat: ChatModel, unit: Tensor) -> None:
        self.chat = chat
        self.unit = unit
        self.parameters = dict(chat.module.named_parameters(remove_duplicate=False))
        self.tolerance = TOLERANCES.get(chat.layout.dtype, 5e-2)
        self.writers = {
            writer.parameter.rpartition(".")[0]: writer
            for writer in chat.layout.writers
            if writer.block is not None and self.parameters[writer.parameter].dim() == 2
        }
        self.linears = tuple(self.writers)
        self.parts: list[Part] = []
        self.whole: dict[str, str] = {}
        self.heads: dict[str, _Heads] = {}
        self.attending: list[tuple[int, str, int]] = []
        """(block, module, heads) of every module that shows its attention."""

    def split(self, read: Reading) -> Tensor:
        """[row, part]: projections as they stand after the last block."""
        if not self.parts:
            self._decide(read)
        layout = self.chat.layout
        columns = [(read.streams[0] @ self.unit)[:, None]]
        for index, path in enumerate(layout.blocks):
            modules = [site.module for site in layout.sites if site.block == index]
            factors = self._factors(read, index, path, modules)
            columns = [column * factors[:, :1] for column in columns]
            for number, module in enumerate(modules, start=1):
                columns.append(self._write(read, module) * factors[:, number : number + 1])
        return torch.cat(columns, dim=1)

    def _decide(self, read: Reading) -> None:
        layout = self.chat.layout
        self.parts.append(Part("embedding", None, layout.blocks[0]))
        for index, path in enumerate(layout.blocks):
            named = [name for name in read.weights if name.startswith(f"{path}.")]
            # Of modules that hand on the same weights the innermost computes them.
            shown = [(name, read.weights[name]) for name in named if not _is_outside(name, named)]
            modules = [site.module for site in layout.sites if site.block == index]
            if len(shown) == 1:
                name, weights = shown[0]
                self.attending.append((index, name, weights.shape[1]))
                self._find_heads(read, path, modules, name, weights.shape[1])
            elif modules:
                reason = "no attention weights" if not shown else "several attentions"
                self.whole[path] = f"{reason} were seen inside the block, so its heads cannot be told apart"
            for module in modules:
                heads = self.heads.get(module)
                for head in range(heads.count if heads else 0):
                    self.parts.append(Part("head", index, module, head))
                self.parts.append(Part("bias" if heads else "write", index, module))

    def _find_heads(self, read: Reading, block: str, modules: Sequence[str], attention: str, count: int) -> None:
        """The one linear writer inside the attention whose output is one of the block's writes."""
        packed = self.chat.layout.packed
        if packed is not None:
            self.whole[block] = f"the weights are {packed}, so the output projection cannot be sliced"
            return
        linears = [path for path in self.linears if path.startswith(f"{attention}.") and path in read.entered]
        found = []
        for linear in linears:
            if read.entered[linear].shape[-1] % count:
                continue
            heads = self._heads(linear, count)
            found += [(module, heads) for module in modules if self._proved(read, module, self._shifted(heads, module))]
        if len(found) != 1:
            self.whole[block] = (
                f"{len(found)} linear layers of {attention} with {count} heads account for a write of the block, "
                "where one is needed"
            )
            return
        module, heads = found[0]
        self.heads[module] = self._shifted(heads, module)

    def _heads(self, linear: str, count: int) -> _Heads:
        writer = self.writers[linear]
        reading, scales = _through_norm(writer, self.unit)
        weight = self.parameters[writer.parameter].detach().to("cpu", torch.float64)
        bias = self.parameters.get(f"{linear}.bias")
        along = 0.0 if bias is None else float(bias.detach().to("cpu", torch.float64) @ reading)
        per_input = weight.movedim(writer.axis, 0).T @ reading
        return _Heads(linear, count, per_input, reading, scales, along, None)

    def _shifted(self, heads: _Heads, module: str) -> _Heads:
        """With the bias of the norm that follows the write, where the write site is one."""
        shift = self.parameters.get(f"{module}.bias")
        if module == heads.linear or shift is None or shift.dim() != 1:
            return heads
        values = shift.detach().to("cpu", torch.float64)
        return _Heads(heads.linear, heads.count, heads.per_input, heads.reading, heads.scales, heads.bias, shift=values)

    def _proved(self, read: Reading, module: str, heads: _Heads) -> bool:
        """Whether the write is the linear module's output up to a number per token, and that is linear in its input."""
        written = read.writes.get(module)
        return written is not None and self._error(read, written, heads) <= self.tolerance

    def _error(self, read: Reading, written: Tensor, heads: _Heads) -> float:
        if heads.per_input.shape[0] != read.entered[heads.linear].shape[-1]:
            return float("inf")
        expected, factor = _matched(read, written, heads)
        size = written.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
        shape = (expected - written).norm(dim=-1) / size
        output, entered = read.left[heads.linear], read.entered[heads.linear]
        linear = entered @ heads.per_input + heads.bias - output @ heads.reading
        return float(torch.maximum(shape, (factor * linear).abs() / size).max())

    def _write(self, read: Reading, module: str) -> Tensor:
        """[row, part of this write]."""
        written = read.writes[module]
        heads = self.heads.get(module)
        if heads is None:
            return (written @ self.unit)[:, None]
        if not self._error(read, written, heads) <= self.tolerance:
            raise LayoutError(f"{self.chat.name}: {module} is a sum over heads for some prompts and not for others.")
        _, factor = _matched(read, written, heads)
        each = (read.entered[heads.linear] * heads.per_input).reshape(read.rows, heads.count, -1).sum(-1)
        rest = factor * heads.bias + (0.0 if heads.shift is None else float(heads.shift @ self.unit))
        return torch.cat([each * factor[:, None], rest[:, None]], dim=1)

    def _factors(self, read: Reading, index: int, path: str, modules: Sequence[str]) -> Tensor:
        """[row, 1 + writes]: what a block multiplies its input and each write by: 1, but for families that scale."""
        parts = torch.stack([read.streams[index], *(read.writes[module] for module in modules)], dim=-1)
        target = read.streams[index + 1]
        ones = torch.ones(read.rows, parts.shape[-1], dtype=torch.float64)
        plain = _relative(parts.sum(-1) - target, target)
        precision = torch.finfo(self.chat.layout.dtype).eps
        if plain <= precision:
            return ones
        fitted = torch.linalg.lstsq(parts, target[..., None]).solution
        left = _relative((parts @ fitted)[..., 0] - target, target)
        if left > self.tolerance:
            raise LayoutError(
                f"{self.chat.name}: {path} is no sum of its input and its writes at this position ({left:.1e} is left "
                f"over, tolerance {self.tolerance:.0e}), so nothing can be attributed."
            )
        # What rounding leaves over is no reason to scale.
        return ones if plain <= max(10 * left, 10 * precision) else fitted[..., 0]


def _is_outside(name: str, others: Sequence[str]) -> bool:
    return any(other.startswith(f"{name}.") for other in others)


def _through_norm(writer: Writer, unit: Tensor) -> tuple[Tensor, tuple[Callable[[Tensor], Tensor], ...]]:
    """The direction before the channel-wise steps that follow a writer, and those steps, outermost first."""
    reading = unit
    steps: list[Callable[[Tensor], Tensor]] = []
    for step in writer.steps:
        if step.kind == "scale" and step.vector is not None:
            vector = step.vector.detach().to("cpu", torch.float64)
            reading = reading * vector
            steps.append(partial(torch.mul, vector))
        else:
            reading = reading - reading.mean()
            steps.append(_centred)
    return reading, tuple(steps)


def _centred(output: Tensor) -> Tensor:
    return output - output.mean(-1, keepdim=True)


def _matched(read: Reading, written: Tensor, heads: _Heads) -> tuple[Tensor, Tensor]:
    """The write as the heads explain it, [row, d_model], and the number per token that a norm multiplies by, [row]."""
    target = written if heads.shift is None else written - heads.shift
    shape = heads.after_norm(read.left[heads.linear])
    square = shape.pow(2).sum(-1).clamp_min(torch.finfo(torch.float64).tiny)
    factor = (shape * target).sum(-1) / square
    explained = shape * factor[:, None]
    return explained if heads.shift is None else explained + heads.shift, factor


def _relative(difference: Tensor, reference: Tensor) -> float:
    sizes = reference.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
    return float((difference.norm(dim=-1) / sizes).max())
