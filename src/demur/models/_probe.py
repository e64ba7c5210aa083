"""The numeric proof of a layout, on a few tokens.

Two independent checks. With all writers orthogonalized to a random unit vector, the stream has no component along it at
any block boundary: no parameter that writes was missed. With all write sites silenced, the stream leaves the last block
as it entered the first: no place that writes was missed.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from demur.errors import LayoutError, ModelError
from demur.models._hooks import first_tensor, hooked, reading_inputs, swapped_parameters
from demur.models._layout import Layout

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""Largest residual that counts as none: rounding of the dtype, relative to the root mean square of the stream."""


@dataclass(frozen=True)
class ProbeResult:
    """What the probe measured."""

    residual: float
    """Largest |u . x| / rms(x) over block boundaries and tokens, all writers orthogonalized to u."""
    baseline: float
    """The same without orthogonalization: what the residual is to be compared with."""
    silent_difference: float
    """Largest relative change of the stream through all blocks with every write site silenced."""
    tolerance: float
    per_block: tuple[float, ...] = ()
    """The residual at the input of each block and after the last one."""


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
        left[path] = tensor.to(torch.float64)
        return tensor

    def keep_input(path: str, tensor: Tensor) -> None:
        entered[path] = tensor.to(torch.float64)

    sites = [site.module for site in layout.sites]
    outputs = {path: partial(keep_output, path) for path in (*sites, *layout.blocks)}
    readers = {path: partial(keep_input, path) for path in layout.blocks}
    with reading_inputs(model, readers), hooked(model, outputs=outputs), torch.no_grad():
        model(**inputs)
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


def probe_layout(model: nn.Module, layout: Layout, inputs: dict[str, Tensor], *, seed: int = 0) -> ProbeResult:
    """Measure whether the layout's writers and sites are all there are.

    Needs the memory of one block's writers beyond the model.

    Raises:
        LayoutError: the numbers say that a writer or a site was missed.
        ModelError: the stream is NaN or infinite, so the numbers say nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(layout.d_model, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm()
    tolerance = TOLERANCES.get(layout.dtype, 5e-2)
    before = _boundary_components(model, layout, inputs, direction)
    _check_finite(model, layout, before)
    changed = orthogonalized_blockwise(model, layout, direction[None])
    if layout.packed is not None:
        changed = _projected(model, layout, direction)
    with changed:
        after = _boundary_components(model, layout, inputs, direction)
    # Not max(): it drops a NaN that does not come first.
    residual = float(torch.tensor(after, dtype=torch.float64).max())
    result = ProbeResult(residual, max(before), _silent_difference(model, layout, inputs), tolerance, tuple(after))
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


def _check_finite(model: nn.Module, layout: Layout, components: list[float]) -> None:
    for boundary, value in enumerate(components):
        if not math.isfinite(value):
            where = "the embeddings" if boundary == 0 else f"block {boundary - 1} ({layout.blocks[boundary - 1]})"
            raise ModelError(
                f"{type(model).__name__}: the residual stream after {where} is NaN or infinite. Half precision "
                "overflows in some models: load it with --dtype bfloat16 or --dtype float32; if that does not help, "
                "the weights are damaged."
            )


@contextmanager
def orthogonalized_blockwise(model: nn.Module, layout: Layout, directions: Tensor) -> Iterator[None]:
    """Orthogonalize all writers while the context is open, one block's at a time.

    Embeddings are swapped for the whole context; each block's writers are swapped when it starts and put back when it
    returns, so the extra memory is that of one block.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))

    def edited(block: int | None) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for writer in layout.writers:
            if writer.block == block:
                source = result.get(writer.parameter, parameters[writer.parameter])
                result[writer.parameter] = writer.without(source, directions)
        return result

    with ExitStack() as stack:
        stack.enter_context(swapped_parameters(model, edited(None)))
        for index, path in enumerate(layout.blocks):
            # On the outer stack too: the second hook does not run after an error.
            swap = stack.enter_context(ExitStack())
            before, after = _swap_hooks(model, edited, index, swap)
            module = model.get_submodule(path)
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after).remove)
        yield


def _swap_hooks(
    model: nn.Module, edited: Callable[[int | None], dict[str, Tensor]], index: int, swap: ExitStack
) -> tuple[Callable[..., None], Callable[..., None]]:
    def before(*_: Any) -> None:
        swap.enter_context(swapped_parameters(model, edited(index)))

    def after(*_: Any) -> None:
        swap.close()

    return before, after


def _boundary_components(model: nn.Module, layout: Layout, inputs: dict[str, Tensor], direction: Tensor) -> list[float]:
    """Largest |u . x| / rms(x) over tokens, at each block's input and at the last block's output."""
    values: list[float] = []

    def read(stream: Tensor) -> None:
        exact = stream.to(torch.float64)
        along = (exact @ direction.to(exact.device)).abs()
        rms = exact.pow(2).mean(-1).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
        values.append(float((along / rms).max()))

    with reading_inputs(model, dict.fromkeys(layout.blocks, read)), torch.no_grad():
        read(last_stream(model, layout, inputs))
    return values


def last_stream(model: nn.Module, layout: Layout, inputs: dict[str, Tensor]) -> Tensor:
    """The residual stream after the last block, [batch, token, d_model]."""
    caught: list[Tensor] = []

    def catch(_module: nn.Module, _args: Any, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            caught.append(tensor)

    handle = model.get_submodule(layout.blocks[-1]).register_forward_hook(catch)
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        handle.remove()
    if not caught:
        raise LayoutError(f"{type(model).__name__}: {layout.blocks[-1]} did not run over a few tokens of text.")
    return caught[0]


def _silent_difference(model: nn.Module, layout: Layout, inputs: dict[str, Tensor]) -> float:
    first: list[Tensor] = []
    silent = {site.module: torch.zeros_like for site in layout.sites}
    with hooked(model, outputs=silent), reading_inputs(model, {layout.blocks[0]: first.append}), torch.no_grad():
        end = last_stream(model, layout, inputs).to(torch.float64)
    start = first[0].to(end)
    # Some families multiply the stream itself by a constant in every block; that keeps directions.
    ratio = (end * start).sum() / start.pow(2).sum().clamp_min(torch.finfo(torch.float64).tiny)
    return float((end - ratio * start).norm() / end.norm().clamp_min(torch.finfo(torch.float64).tiny))
