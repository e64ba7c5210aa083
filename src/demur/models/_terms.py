"""Where a tensor of the residual stream comes from.

`additive_terms` walks a tensor back through everything that is linear in the hidden dimension (sums, token-wise
scales, reshapes, routing, matrix products) down to parameters. What it cannot walk through it reports, by name.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from demur.models._tape import Op, Ref, Tape


@dataclass(frozen=True)
class Scale:
    """A channel-wise step between a parameter and the stream: multiply by a constant vector, or subtract the mean."""

    kind: Literal["scale", "center"]
    vector: Tensor | None = None


@dataclass(frozen=True)
class Term:
    """One additive contribution to a tensor of the stream."""

    kind: Literal["parameter", "stop", "unknown"]
    value: int
    axis: int
    """The dimension of `value` that runs along the hidden dimension."""
    steps: tuple[Scale, ...] = ()
    """Channel-wise steps from the stream down to this value, outermost first."""
    reason: str = ""


@dataclass(frozen=True)
class Explanation:
    """What is added up in one tensor."""

    terms: tuple[Term, ...]
    dtype: torch.dtype
    """The narrowest floating dtype between the parameters and the tensor: norms often compute in float32."""


@dataclass
class _Walk:
    tape: Tape
    stops: frozenset[int]
    dtype: torch.dtype
    terms: list[Term] = field(default_factory=list)
    seen: set[tuple[Any, ...]] = field(default_factory=set)


# Same numbers, same order of the hidden dimension: only the shape or the dtype around it changes.
_RESHAPES = frozenset(
    {
        "view",
        "_unsafe_view",
        "reshape",
        "unsqueeze",
        "squeeze",
        "expand",
        "clone",
        "_to_copy",
        "alias",
        "detach",
        "lift_fresh",
        "contiguous",
        "_reshape_alias",
        "flatten",
        "unflatten",
    }
)
# Pick, repeat or reorder entries along other dimensions.
_SELECTIONS = frozenset(
    {
        "slice",
        "select",
        "index",
        "index_select",
        "gather",
        "narrow",
        "split",
        "split_with_sizes",
        "unbind",
        "chunk",
        "repeat",
        "flip",
        "roll",
        "repeat_interleave",
        "constant_pad_nd",
        "as_strided",
    }
)
_ZEROS = frozenset({"zeros", "zeros_like", "new_zeros", "empty", "new_empty", "empty_like", "zero_"})
_PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "_grouped_mm": (0, 1)}


def additive_terms(tape: Tape, value: int, axis: int, stops: Iterable[int] = ()) -> Explanation:
    """Everything that is added up in `value`, along its hidden dimension `axis`.

    Args:
        tape: the recorded forward pass.
        value: the tensor to explain.
        axis: which of its dimensions is the hidden one.
        stops: values at which the walk ends (the stream at an earlier place).
    """
    walk = _Walk(tape, frozenset(stops), tape.tensors[value].dtype)
    _visit(walk, value, axis, ())
    return Explanation(tuple(walk.terms), walk.dtype)


def _visit(walk: _Walk, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    """Follow one tensor; what cannot be followed becomes a term, so there is never a reason to hand on."""
    tape = walk.tape
    key = (value, axis, tuple(id(step) for step in steps))
    if key in walk.seen:
        return None
    walk.seen.add(key)
    if value in walk.stops:
        walk.terms.append(Term("stop", value, axis, steps))
        return None
    if value in tape.parameters:
        walk.terms.append(Term("parameter", value, axis, steps))
        return None
    op = tape.ops.get(value)
    if op is None:
        buffer = f" (the buffer {tape.buffers[value]}, which is computed)" if value in tape.buffers else ""
        walk.terms.append(Term("unknown", value, axis, steps, f"comes from outside the parameters{buffer}"))
        return None
    if op.name in _ZEROS:
        return None
    dtype = tape.tensors[value].dtype
    if dtype.is_floating_point and torch.finfo(dtype).eps > torch.finfo(walk.dtype).eps:
        walk.dtype = dtype
    reason = _expand(walk, op, value, axis, steps)
    if reason:
        walk.terms.append(Term("unknown", value, axis, steps, reason))
    return None


def _expand(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str:
    """Visit the inputs of one operation; returns why it could not, or nothing."""
    handler = _HANDLERS.get(op.name.rstrip("_") if op.name.endswith("_") else op.name)
    if op.name in _RESHAPES:
        handler = _reshape
    elif op.name in _SELECTIONS:
        handler = _selection
    elif op.name in _PRODUCTS:
        handler = _product
    if handler is None:
        return f"passes through `{op.name}`, which mixes or bends the hidden dimension"
    return handler(walk, op, value, axis, steps) or ""


def _shape(walk: _Walk, value: int) -> torch.Size:
    return walk.tape.tensors[value].shape


def _reshape(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    source = op.args[0].value
    new, old = _shape(walk, value), _shape(walk, source)
    size, after = new[axis], int(torch.Size(new[axis + 1 :]).numel())
    for candidate in range(len(old)):
        if old[candidate] == size and int(torch.Size(old[candidate + 1 :]).numel()) == after:
            return _visit(walk, source, candidate, steps)
    return f"is reshaped across the hidden dimension by `{op.name}`"


def _selection(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    source = op.args[0].value
    size = _shape(walk, value)[axis]
    old = _shape(walk, source)
    if op.name == "select" and len(old) > 1:
        dim = op.args[1] % len(old)
        candidate = axis + 1 if axis >= dim else axis
    elif op.name == "index":
        removed = sum(1 for item in op.args[1] if item is not None) if op.args[1] else 0
        kept = _shape(walk, value)
        candidate = len(old) - (len(kept) - axis)
        if removed and candidate < len(op.args[1]) and op.args[1][candidate] is not None:
            return "is indexed along the hidden dimension"
    else:
        candidate = axis if len(old) == len(_shape(walk, value)) else len(old) - (len(_shape(walk, value)) - axis)
    if not 0 <= candidate < len(old) or old[candidate] != size:
        return f"is cut along the hidden dimension by `{op.name}`"
    return _visit(walk, source, candidate, steps)


def _product(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    left, right = (op.args[i].value for i in _PRODUCTS[op.name])
    rank = len(_shape(walk, value))
    if op.name in ("addmm", "baddbmm"):
        _visit_broadcast(walk, op.args[0].value, value, axis, steps)
    if axis == rank - 1:
        return _visit(walk, right, len(_shape(walk, right)) - 1, steps)
    if axis == rank - 2:
        return _visit(walk, left, len(_shape(walk, left)) - 2, steps)
    return "is batched along the hidden dimension"


def _embedding(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    if axis != len(_shape(walk, value)) - 1:
        return "is transposed"
    return _visit(walk, op.args[0].value, 1, steps)


def _transpose(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    rank = len(_shape(walk, value))
    if op.name == "t":
        order = list(range(rank))[::-1]
    elif op.name == "permute":
        order = [dim % rank for dim in op.args[1]]
    else:
        order = list(range(rank))
        first, second = op.args[1] % rank, op.args[2] % rank
        order[first], order[second] = order[second], order[first]
    return _visit(walk, op.args[0].value, order[axis], steps)


def _aligned_axis(walk: _Walk, operand: int, value: int, axis: int) -> int | None:
    """The operand's dimension that is broadcast against `axis` of the result; None where it has size 1 or is absent."""
    shape, target = _shape(walk, operand), _shape(walk, value)
    aligned = axis - (len(target) - len(shape))
    if aligned < 0 or (shape[aligned] == 1 and target[axis] != 1):
        return None
    return aligned


def _visit_broadcast(walk: _Walk, operand: int, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    aligned = _aligned_axis(walk, operand, value, axis)
    if aligned is None:
        return "has the same number added in every hidden dimension"
    return _visit(walk, operand, aligned, steps)


def _sum(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    for operand in op.args[:2]:
        if isinstance(operand, Ref):
            if _is_zero(walk, operand.value):
                continue
            reason = _visit_broadcast(walk, operand.value, value, axis, steps)
            if reason:
                return reason
        elif operand != 0:
            return "has the same number added in every hidden dimension"
    return None


def _is_zero(walk: _Walk, value: int) -> bool:
    op = walk.tape.ops.get(value)
    return op is not None and op.name in _ZEROS


def _multiply(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    operands = [operand.value for operand in op.args[:2] if isinstance(operand, Ref)]
    along = [operand for operand in operands if _aligned_axis(walk, operand, value, axis) is not None]
    if len(along) == 1:
        # The other factor is one number per token (a norm's divisor, a gate, a routing weight): it keeps directions.
        return _visit_broadcast(walk, along[0], value, axis, steps)
    constants = [operand for operand in along if operand in walk.tape.constants]
    others = [operand for operand in along if operand not in walk.tape.constants]
    if op.name.startswith("div") and along and along[0] in constants:
        return "is divided by activations"
    if len(constants) == 1 and len(others) == 1:
        vector = walk.tape.tensors[constants[0]].detach().reshape(-1)
        if vector.numel() != _shape(walk, value)[axis]:
            return "is multiplied by a matrix of constants"
        vector = vector.reciprocal() if op.name.startswith("div") else vector
        return _visit_broadcast(walk, others[0], value, axis, (*steps, Scale("scale", vector)))
    return "is multiplied by another activation in every hidden dimension"


def _layer_norm(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    source, _, weight, bias = op.args[:4]
    if value != op.outputs[0] or axis != len(_shape(walk, value)) - 1:
        return "is a norm's statistic"
    if isinstance(bias, Ref):
        _visit(walk, bias.value, 0, steps)
    scaled = steps
    if isinstance(weight, Ref):
        scaled = (*steps, Scale("scale", walk.tape.tensors[weight.value].detach()))
    return _visit(walk, source.value, axis, (*scaled, Scale("center")))


def _rms_norm(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    source, _, weight = op.args[:3]
    if value != op.outputs[0] or axis != len(_shape(walk, value)) - 1:
        return "is a norm's statistic"
    if isinstance(weight, Ref):
        steps = (*steps, Scale("scale", walk.tape.tensors[weight.value].detach()))
    return _visit(walk, source.value, axis, steps)


def _reduction(walk: _Walk, op: Op, _value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    source = op.args[0].value
    rank = len(_shape(walk, source))
    dims = op.args[1] if len(op.args) > 1 and op.args[1] else range(rank)
    removed = sorted({dim % rank for dim in (dims if isinstance(dims, (tuple, range)) else (dims,))})
    keep = len(op.args) > 2 and op.args[2] is True
    kept = list(range(rank)) if keep else [dim for dim in range(rank) if dim not in removed]
    if not kept or kept[axis] in removed:
        return "is summed over the hidden dimension"
    return _visit(walk, source, kept[axis], steps)


def _concatenation(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    rank = len(_shape(walk, value))
    dim = (op.args[1] if len(op.args) > 1 else 0) % rank
    if dim == axis:
        return "is concatenated along the hidden dimension"
    shift = -1 if op.name == "stack" and axis > dim else 0
    for operand in op.args[0]:
        if walk.tape.tensors[operand.value].numel():
            _visit(walk, operand.value, axis + shift, steps)
    return None


def _written(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    """index_add(self, dim, index, source) and its kin: what was there, and what is written into it."""
    sources = {"index_add": 3, "scatter_add": 3, "scatter": 3, "index_copy": 3, "index_put": 2, "copy": 1}
    source = op.args[sources[op.name.rstrip("_")]]
    if not _is_zero(walk, op.args[0].value) and op.name.rstrip("_") != "copy":
        _visit(walk, op.args[0].value, axis, steps)
    if not isinstance(source, Ref):
        return "is overwritten by a constant" if source != 0 else None
    return _visit_broadcast(walk, source.value, value, axis, steps)


def _where(walk: _Walk, op: Op, value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    operands = op.args[1:] if op.name == "where" else (op.args[0], op.args[2])
    for operand in operands:
        if isinstance(operand, Ref) and not _is_zero(walk, operand.value):
            if not walk.tape.tensors[operand.value].any():
                continue
            reason = _visit_broadcast(walk, operand.value, value, axis, steps)
            if reason:
                return reason
        elif not isinstance(operand, Ref) and operand != 0:
            return "is overwritten by a constant"
    return None


def _unchanged(walk: _Walk, op: Op, _value: int, axis: int, steps: tuple[Scale, ...]) -> str | None:
    return _visit(walk, op.args[0].value, axis, steps)


_HANDLERS = {
    "embedding": _embedding,
    "t": _transpose,
    "transpose": _transpose,
    "permute": _transpose,
    "add": _sum,
    "sub": _sum,
    "mul": _multiply,
    "div": _multiply,
    "neg": _unchanged,
    "native_dropout": _unchanged,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "sum": _reduction,
    "mean": _reduction,
    "cat": _concatenation,
    "stack": _concatenation,
    "index_add": _written,
    "scatter_add": _written,
    "scatter": _written,
    "index_copy": _written,
    "index_put": _written,
    "copy": _written,
    "where": _where,
    "masked_fill": _where,
}
