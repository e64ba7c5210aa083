"""The numeric proof of a layout, on a few tokens.

Two independent checks, in float32 for half precision. With all writers orthogonalized to a random unit vector, the
stream has no component along it at any block boundary: no parameter that writes was missed. With all write sites
silenced, the stream leaves the last block as it entered the first: no place that writes was missed.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from demur.errors import LayoutError, ModelError
from demur.models._hooks import first_tensor, hooked, reading_inputs, swapped_parameters
from demur.models._layout import ForwardTrace, Layout, Writer
from demur.models._widened import HALF, Widened, widened, widened_dtype
from demur.types import Progress, SilentProgress

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""Largest residual that counts as none: rounding of the dtype, relative to the size of the stream."""


@dataclass(frozen=True)
class ProbeResult:
    """What the probe measured."""

    residual: float
    """Largest component along a random u over block boundaries and tokens, all writers orthogonalized to u.
    Relative to the size of the stream as u sees it (`_components`)."""
    baseline: float
    """The same without orthogonalization: what the residual is to be compared with."""
    silent_difference: float
    """Largest relative change of the stream through all blocks with every write site silenced."""
    tolerance: float
    per_block: tuple[float, ...] = ()
    """The residual at the input of each block and after the last one."""
    dtype: torch.dtype = torch.float32
    """What the numbers were computed in: float32 for half precision, where there are kernels for it."""


@dataclass(frozen=True)
class BlockErrors:
    """Whether blocks are what the layout says, measured on a few tokens; relative."""

    capture: float
    """Largest difference between the input read at a block and the output of the block before it."""
    decomposition: float
    """Largest part of a block's output that is no sum of its input and its writes, each up to one number per token."""


def block_errors(model: nn.Module, layout: Layout, inputs: dict[str, Tensor]) -> BlockErrors:
    """Check that the stream runs from block to block, and that each block adds its writes to it and nothing else."""
    entered: dict[str, Tensor] = {}
    left: dict[str, Tensor] = {}

    def keep_output(path: str, tensor: Tensor) -> Tensor:
        left[path] = tensor.cpu().to(torch.float64)
        return tensor

    def keep_input(path: str, tensor: Tensor) -> None:
        entered[path] = tensor.cpu().to(torch.float64)

    sites = [site.module for site in layout.sites]
    outputs = {path: partial(keep_output, path) for path in (*sites, *layout.blocks)}
    readers = {path: partial(keep_input, path) for path in layout.blocks}
    with widened(model), reading_inputs(model, readers), hooked(model, outputs=outputs), torch.no_grad():
        last_stream(model, layout, inputs, head=False)
    capture = max((_relative(entered[two] - left[one], left[one]) for one, two in pairwise(layout.blocks)), default=0.0)
    decomposition = 0.0
    for index, path in enumerate(layout.blocks):
        parts = [entered[path], *(left[site.module] for site in layout.sites if site.block == index)]
        target = left[path].reshape(-1, layout.d_model)
        # [token, d_model, part]: one least-squares fit per token, so that gates and multipliers of a write are allowed.
        stacked = torch.stack([part.reshape(-1, layout.d_model) for part in parts], dim=-1)
        fitted = torch.linalg.lstsq(stacked, target[..., None]).solution
        decomposition = max(decomposition, _relative((stacked @ fitted)[..., 0] - target, target))
    return BlockErrors(capture, decomposition)


def _relative(difference: Tensor, reference: Tensor) -> float:
    return float(difference.norm() / reference.norm().clamp_min(torch.finfo(torch.float64).tiny))


def probe_layout(
    model: nn.Module, layout: Layout, inputs: dict[str, Tensor], *, seed: int = 0, progress: Progress | None = None
) -> ProbeResult:
    """Measure whether the layout's writers and sites are all there are.

    Half precision is computed in float32, an operation at a time, so that rounding explains nothing that is left.
    Needs the memory of one block's writers in float32 beyond the model.

    Args:
        model: the model.
        layout: what is to be proved.
        inputs: arguments of a forward pass over a few tokens.
        seed: of the random direction.
        progress: told of each of the three forward passes.

    Raises:
        LayoutError: the numbers say that a writer or a site was missed.
        ModelError: the stream is NaN or infinite, so the numbers say nothing.
    """
    progress = progress or SilentProgress()
    progress.start("proving the layout", 3)
    wide = Widened(model)
    if layout.packed is not None:
        # Kernels for packed weights take what they were written for; some would compute nonsense in silence.
        return _probe(model, layout, inputs, seed, None, progress)
    if wide.half is None:
        return _probe(model, layout, inputs, seed, wide, progress)
    try:
        return _probe(model, layout, inputs, seed, wide, progress)
    except (LayoutError, ModelError):
        raise
    except (RuntimeError, TypeError, ValueError):
        # Kernels of the model's own that take half precision only: the tolerance is that of half precision then.
        progress.start("proving the layout", 3)
        return _probe(model, layout, inputs, seed, None, progress)


def _probe(
    model: nn.Module,
    layout: Layout,
    inputs: dict[str, Tensor],
    seed: int,
    wide: Widened | None,
    progress: Progress,
) -> ProbeResult:
    # Not `widened(model)`: where `wide` is None the model's own precision is wanted.
    context = nullcontext if wide is None else partial(widened, model, wide)
    with context():
        streams = boundary_streams(model, layout, inputs)
    progress.advance()
    _check_finite(model, layout, streams)
    spread = _spread(streams)
    direction = torch.randn(layout.d_model, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) / spread
    direction = direction / direction.norm()
    before = _components(streams, direction)
    changed = orthogonalized_blockwise(model, layout, direction[None], wide=wide)
    if layout.packed is not None:
        changed = _projected(model, layout, direction)
    with context(), changed:
        after = _components(boundary_streams(model, layout, inputs), direction)
    progress.advance()
    with context():
        silent = _silent_difference(model, layout, inputs, spread)
    progress.advance()
    dtype = layout.dtype if wide is None or wide.narrow else widened_dtype(layout.dtype)
    tolerance = tolerance_of(dtype, len(layout.blocks))
    # Not max(): it drops a NaN that does not come first.
    residual = float(torch.tensor(after, dtype=torch.float64).max())
    result = ProbeResult(residual, max(before), silent, tolerance, tuple(after), dtype)
    if not result.residual <= tolerance:
        first = next(index for index, value in enumerate(after) if not value <= tolerance)
        where = "the embeddings" if first == 0 else f"block {first - 1} ({layout.blocks[first - 1]})"
        raise LayoutError(
            f"{type(model).__name__}: a parameter that writes to the residual stream was missed: with all "
            f"{len(layout.writers)} known writers orthogonalized, {result.residual:.2e} of a random direction is "
            f"left, first seen after {where} (tolerance {tolerance:.0e}). demur will not edit this model; please "
            "report the architecture."
        )
    if not result.silent_difference <= tolerance:
        raise LayoutError(
            f"{type(model).__name__}: a write to the residual stream was missed: with all {len(layout.sites)} known "
            f"write sites silenced, the stream still changes by {result.silent_difference:.2e} "
            f"(tolerance {tolerance:.0e}). demur will not edit this model; please report the architecture."
        )
    return result


def tolerance_of(dtype: torch.dtype, blocks: int) -> float:
    """What rounding explains in a stream to which two writes per block are added, relative to its size.

    In half precision the roundings of all additions add up like a random walk; 1.5 covers the largest of a few hundred
    tokens and boundaries. In wider dtypes the fixed value lies far above that.
    """
    walk = 1.5 * torch.finfo(dtype).eps * math.sqrt(2 * blocks + 1)
    return max(TOLERANCES.get(dtype, 5e-2), walk) if dtype in HALF else TOLERANCES.get(dtype, 5e-2)


@contextmanager
def _projected(model: nn.Module, layout: Layout, direction: Tensor) -> Iterator[None]:
    """Packed weights cannot be orthogonalized: the same check with the direction taken off every write by hooks."""

    def project(stream: Tensor) -> Tensor:
        unit = direction.to(device=stream.device, dtype=torch.float32)
        exact = stream.float()
        return (exact - (exact @ unit)[..., None] * unit).to(stream.dtype)

    outputs = dict.fromkeys((*layout.entry_sites, *(site.module for site in layout.sites)), project)
    with hooked(model, inputs={layout.blocks[0]: project}, outputs=outputs):
        yield


def _check_finite(model: nn.Module, layout: Layout, streams: Iterable[Tensor]) -> None:
    for boundary, stream in enumerate(streams):
        if not torch.isfinite(stream).all():
            where = "the embeddings" if boundary == 0 else f"block {boundary - 1} ({layout.blocks[boundary - 1]})"
            raise ModelError(
                f"{type(model).__name__}: the residual stream after {where} is NaN or infinite. Half precision "
                "overflows in some models: load it with --dtype bfloat16 or --dtype float32; if that does not help, "
                "the weights are damaged."
            )


def check_finite_trace(model: nn.Module, layout: Layout, trace: ForwardTrace) -> None:
    """Refuse a model that overflows in its own dtype; the proof, in float32, would not see it.

    Raises:
        ModelError: the stream is NaN or infinite somewhere.
    """
    numbers = [trace.entered[layout.blocks[0]], *(trace.left[path] for path in layout.blocks)]
    _check_finite(model, layout, (trace.tape.tensors[number] for number in numbers))


@contextmanager
def orthogonalized_blockwise(
    model: nn.Module, layout: Layout, directions: Tensor, *, wide: Widened | None = None
) -> Iterator[None]:
    """Orthogonalize all writers while the context is open, one block's at a time.

    Embeddings are swapped for the whole context; each block's writers are swapped when it starts and put back when it
    returns, so the extra memory is that of one block.

    Args:
        model: the model.
        layout: its layout.
        directions: [k, d_model].
        wide: computes the forward passes in float32: the edited weights are not rounded back to half precision then,
            and of an embedding only the rows that are looked up are edited.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    looked_up = {} if wide is None else _looked_up(model, layout, parameters)

    def edited(block: int | None) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for writer in layout.writers:
            if writer.block == block and writer.parameter not in looked_up:
                source = result.get(writer.parameter)
                if source is None:
                    source = parameters[writer.parameter].detach()
                    source = source if wide is None else source.to(widened_dtype(source.dtype))
                result[writer.parameter] = writer.without(source, directions)
        return result

    with ExitStack() as stack:
        for name, writers in looked_up.items():
            key = id(parameters[name])
            wide.rows[key] = partial(_edited_rows, writers, directions)  # type: ignore[union-attr]
            stack.callback(wide.rows.pop, key)  # type: ignore[union-attr]
        stack.enter_context(swapped_parameters(model, edited(None)))
        for index, path in enumerate(layout.blocks):
            # On the outer stack too: the second hook does not run after an error.
            swap = stack.enter_context(ExitStack())
            before, after = _swap_hooks(model, edited, index, swap)
            module = model.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield


def _looked_up(model: nn.Module, layout: Layout, parameters: Mapping[str, Tensor]) -> dict[str, list[Writer]]:
    """The embeddings whose rows can be edited when they are looked up: the table may be larger than many blocks."""
    found: dict[str, list[Writer]] = {}
    for writer in layout.writers:
        module = model.get_submodule(writer.parameter.rpartition(".")[0])
        if writer.block is None and isinstance(module, nn.Embedding) and parameters[writer.parameter].dim() == 2:
            found.setdefault(writer.parameter, []).append(writer)
    return {name: writers for name, writers in found.items() if all(writer.axis == 1 for writer in writers)}


def _edited_rows(writers: list[Writer], directions: Tensor, rows: Tensor) -> Tensor:
    flat = rows.reshape(-1, rows.shape[-1])
    for writer in writers:
        flat = writer.without(flat, directions)
    return flat.reshape(rows.shape)


def _swap_hooks(
    model: nn.Module, edited: Callable[[int | None], dict[str, Tensor]], index: int, swap: ExitStack
) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(*_: Any) -> None:
        swap.enter_context(swapped_parameters(model, edited(index)))

    def after(*_: Any) -> None:
        swap.close()

    return before, after


def boundary_streams(model: nn.Module, layout: Layout, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The stream at each block's input and after the last block, each [token, d_model], float64, on the CPU."""
    streams: list[Tensor] = []

    def read(stream: Tensor) -> None:
        streams.append(stream.reshape(-1, layout.d_model).cpu().to(torch.float64))

    with reading_inputs(model, dict.fromkeys(layout.blocks, read)), torch.no_grad():
        read(last_stream(model, layout, inputs, head=False))
    return streams


def _spread(streams: list[Tensor]) -> Tensor:
    """[d_model]: the root mean square of each dimension of the stream.

    The random direction is divided by it. Of a model with massive activations a plain random direction would read
    little but the massive dimensions: their rounding would hide what a missed parameter writes to the others.
    """
    spread = torch.stack([stream.pow(2).mean(0) for stream in streams]).mean(0).sqrt()
    return spread.clamp_min(1e-3 * float(spread.median()) or 1.0)


def _components(streams: list[Tensor], direction: Tensor) -> list[float]:
    """At each boundary, the largest |u . x| over tokens, relative to the largest ||u * x|| that the token had so far.

    ||u * x|| is what u . x rounds in proportion to, and what it is about in a stream that has u. What an activation was
    rounded to while it was massive stays in the stream when a later block takes it off again: hence "so far".
    """
    values: list[float] = []
    scale = torch.zeros(len(streams[0]), dtype=torch.float64)
    for stream in streams:
        scale = torch.maximum(scale, (stream * direction).norm(dim=-1))
        values.append(float(((stream @ direction).abs() / scale.clamp_min(torch.finfo(torch.float64).tiny)).max()))
    return values


class _ReachedEnd(Exception):  # noqa: N818 (no error: what comes after the last block is not wanted)
    pass


def last_stream(model: nn.Module, layout: Layout, inputs: dict[str, Tensor], *, head: bool = True) -> Tensor:
    """The residual stream after the last block, [batch, token, d_model]; `head`: whether to compute the rest too."""
    caught: list[Tensor] = []

    def catch(_module: nn.Module, _args: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            caught.append(tensor)
            if not head:
                raise _ReachedEnd

    handle = model.get_submodule(layout.blocks[-1]).register_forward_hook(catch)
    try:
        with torch.no_grad(), suppress(_ReachedEnd):
            model(**inputs)
    finally:
        handle.remove()
    if not caught:
        raise LayoutError(f"{type(model).__name__}: {layout.blocks[-1]} did not run over a few tokens of text.")
    return caught[0]


def _silent_difference(model: nn.Module, layout: Layout, inputs: dict[str, Tensor], spread: Tensor) -> float:
    """Largest relative change of a token's stream, each dimension in units of its spread."""
    first: list[Tensor] = []
    silent = {site.module: torch.zeros_like for site in layout.sites}
    with hooked(model, outputs=silent), reading_inputs(model, {layout.blocks[0]: first.append}), torch.no_grad():
        end = (
            last_stream(model, layout, inputs, head=False).reshape(-1, layout.d_model).cpu().to(torch.float64) / spread
        )
    start = first[0].reshape(-1, layout.d_model).to(end) / spread
    # Some families multiply the stream itself by a constant in every block; that keeps directions.
    tiny = torch.finfo(torch.float64).tiny
    ratio = (end * start).sum() / start.pow(2).sum().clamp_min(tiny)
    return float(((end - ratio * start).norm(dim=-1) / end.norm(dim=-1).clamp_min(tiny)).max())
