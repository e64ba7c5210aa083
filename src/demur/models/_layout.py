"""The layout of a loaded model: its decoder blocks and every parameter that writes to the residual stream.

Found by structure, from the tape of one forward pass over a few tokens: which tensors are added to the stream, and
which parameters those tensors are linear in. No list of model families decides. `_probe` proves the result by numbers.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from demur.errors import LayoutError
from demur.models._hooks import first_tensor, stream_argument
from demur.models._tape import Ref, Tape
from demur.models._terms import Explanation, Scale, Term, additive_terms

WriterKind = Literal["embedding", "attention", "mlp", "bias", "norm_bias", "other"]


@dataclass(frozen=True)
class Writer:
    """One parameter that writes to the residual stream."""

    parameter: str
    """Name as in `model.named_parameters()`."""
    axis: int
    """The dimension of the parameter that runs along the hidden dimension of the stream."""
    block: int | None
    """Index of the block that holds it; None for embeddings."""
    kind: WriterKind
    steps: tuple[Scale, ...] = ()
    """Channel-wise steps between the parameter and the stream (a norm after the write), outermost first."""

    def reading(self, direction: Tensor) -> Tensor:
        """The unit vector to remove from the parameter so that what reaches the stream has none of `direction`.

        With a norm of scale g after the write, direction . (g * W x) = (g * direction) . W x; a LayerNorm's mean
        subtraction is symmetric, so it is applied to the vector likewise.
        """
        vector = direction.to(torch.float64)
        for step in self.steps:
            if step.kind == "scale" and step.vector is not None:
                vector = vector * step.vector.to(vector)
            else:
                vector = vector - vector.mean()
        unit: Tensor = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
        return unit

    def without(self, tensor: Tensor, directions: Tensor, *, strength: float = 1.0) -> Tensor:
        """A copy of the parameter's `tensor` that writes nothing along any of `directions`.

        W - s U U^T W with U an orthonormal basis of the readings (Arditi et al. section 4.1, weight orthogonalization),
        computed in float64 and returned in the tensor's dtype.

        Args:
            tensor: the parameter's values.
            directions: [k, d_model].
            strength: s, the share that goes.
        """
        readings = torch.stack([self.reading(direction) for direction in directions]).to(tensor.device)
        basis = torch.linalg.qr(readings.T).Q
        result = tensor.detach().clone()
        rows = result.movedim(self.axis, 0)
        flat = rows.reshape(len(rows), -1)
        # Slices of 4 MB stay in the processor's cache: whole matrices in float64 cost more than the products do.
        for columns in torch.split(flat, max(2**19 // len(rows), 1), dim=1):
            exact = columns.to(torch.float64)
            columns.copy_(torch.addmm(exact, basis, basis.T @ exact, alpha=-strength))
        return flat.reshape(rows.shape).movedim(0, self.axis).contiguous()


@dataclass(frozen=True)
class WriteSite:
    """A module whose output, up to one number per token, is added to the stream."""

    module: str
    block: int


@dataclass(frozen=True)
class Layout:
    """Blocks, writers and write sites of one model. All paths are relative to the loaded model."""

    blocks: tuple[str, ...]
    """Decoder blocks in the order in which they run."""
    d_model: int
    """Width of the residual stream."""
    writers: tuple[Writer, ...]
    sites: tuple[WriteSite, ...]
    """Where a hook can change each write inside the blocks; the embeddings are changed at the first block's input."""
    dtype: torch.dtype
    """The narrowest dtype on the way of any write to the stream; it bounds how exact an edit can be."""
    tied_embedding: str | None = None
    """The input embedding's parameter when another module uses the same tensor, else None."""
    entry_sites: tuple[str, ...] = ()
    """Modules whose outputs are added up in the first block's input, each up to one number per token: the embeddings.
    Some families read these once more beside the stream (Zamba's shared blocks, Gemma 4's inputs per layer)."""
    packed: str | None = None
    """How the weights are quantised, in words, where that is so: such a model can be changed by hooks only, and
    `writers` is empty."""

    @property
    def has_norm_after_write(self) -> bool:
        """Whether a channel-wise norm stands between a weight and the stream (Gemma 2 and 3, OLMo 2, ...)."""
        return any(writer.steps for writer in self.writers)


@dataclass
class ForwardTrace:
    """The tape of one forward pass with the tensors that entered and left each module."""

    tape: Tape
    entered: dict[str, int]
    """Module path -> value of its input stream (first call)."""
    left: dict[str, int]
    """Module path -> value of its (first) output tensor (first call)."""
    order: list[str]
    """Module paths in the order of their calls."""
    calls: dict[str, int]


def record_forward(model: nn.Module, inputs: dict[str, Tensor]) -> ForwardTrace:
    """Run one forward pass under a tape and note the tensors at the doors of every module."""
    tape = Tape(model)
    trace = ForwardTrace(tape, {}, {}, [], {})
    names = {id(module): name for name, module in model.named_modules()}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = names[id(module)]
        trace.calls[name] = trace.calls.get(name, 0) + 1
        stream = stream_argument(args, kwargs)
        if stream is not None and name not in trace.entered:
            trace.entered[name] = tape.number(stream)
            trace.order.append(name)

    def after(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is not None:
            trace.left.setdefault(names[id(module)], tape.number(tensor))

    handles = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after))
        with torch.no_grad(), tape:
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return trace


def discover_layout(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Layout, ForwardTrace]:
    """Find blocks and writers from one forward pass over `inputs` (a few tokens).

    Raises:
        LayoutError: no chain of blocks was found, or something is added to the stream that cannot be traced back to
            parameters; the message lists what was found and what was missed.
    """
    trace = record_forward(model, inputs)
    blocks = _find_blocks(model, trace)
    d_model = trace.tape.tensors[trace.entered[blocks[0]]].shape[-1]
    writers: dict[tuple[str, int], Writer] = {}
    sites: list[WriteSite] = []
    problems: list[str] = []
    unknown: list[str] = []
    entry = trace.entered[blocks[0]]
    explained = [_explain(trace, entry)]
    _collect(explained[0].terms, trace, None, "", writers, unknown)
    for index, path in enumerate(blocks):
        explained.append(_explain(trace, trace.left[path], stops=[trace.entered[path]]))
        _check_stream(explained[-1].terms, path, problems)
        _collect(explained[-1].terms, trace, index, path, writers, unknown)
        sites.extend(_find_sites(trace, path, index, problems))
    unknown.extend(_silent_parameters(model, trace, blocks))
    packed = packed_weights(model)
    if packed is not None:
        writers.clear()  # hooks need the stream and its write sites only
    else:
        problems.extend(unknown)
    if problems:
        raise LayoutError(_describe(model, blocks, writers, problems))
    dtype = max((each.dtype for each in explained), key=lambda dtype: torch.finfo(dtype).eps)
    tied = _tied_embedding(model, writers.values())
    entries = _find_entry_sites(trace, entry)
    return Layout(blocks, d_model, tuple(writers.values()), tuple(sites), dtype, tied, entries, packed), trace


def packed_weights(model: nn.Module) -> str | None:
    """How a model's weights are packed (quantised), in words; None where they are plain floating-point tensors."""
    settings = getattr(getattr(model, "config", None), "quantization_config", None)
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
        return f"quantised ({getattr(method, 'value', method)})"
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.dtype.itemsize == 1:
            return f"packed ({name} is {str(parameter.dtype).removeprefix('torch.')})"
    return None


def _explain(trace: ForwardTrace, value: int, stops: Iterable[int] = ()) -> Explanation:
    """The additive terms of a tensor whose last dimension is the hidden one."""
    return additive_terms(trace.tape, value, trace.tape.tensors[value].dim() - 1, stops)


def _find_blocks(model: nn.Module, trace: ForwardTrace) -> tuple[str, ...]:
    """The longest module list whose members ran once each, in order, each reading what the one before it returned."""
    best: tuple[str, ...] = ()
    several: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if not isinstance(module, (nn.ModuleList, nn.Sequential)) or not len(module):
            continue
        paths = tuple(f"{name}.{child}" for child, _ in module.named_children())
        ran = all(trace.calls.get(path) == 1 and path in trace.entered and path in trace.left for path in paths)
        if not ran or not all(_same_stream(trace, trace.left[one], trace.entered[two]) for one, two in pairwise(paths)):
            continue
        dims = {trace.tape.tensors[trace.entered[path]].dim() for path in paths}
        if dims == {3} and len(paths) > len(best):
            best = paths
        elif max(dims) > 3 and len(paths) > len(several):
            several = paths
    if len(several) > len(best):
        shape = trace.tape.tensors[trace.entered[several[0]]].dim()
        raise LayoutError(
            f"{type(model).__name__}: its {len(several)} blocks ({several[0]} ...) run on hidden states of {shape} "
            "dimensions: several residual streams side by side (hyper-connections, AltUp). demur does not support them."
        )
    if not best:
        raise LayoutError(_describe_no_blocks(model, trace))
    return best


def _describe_no_blocks(model: nn.Module, trace: ForwardTrace) -> str:
    message = (
        f"{type(model).__name__}: no list of decoder blocks was found that run one after the other on the same "
        "hidden states. demur needs a decoder-only causal language model; please report the architecture."
    )
    repeated = [(count, name) for name, count in trace.calls.items() if count > 1 and name.rpartition(".")[2].isdigit()]
    if repeated:
        count, name = max(repeated)
        message += f" {name} ran {count} times in one forward pass: recurrence over depth is not supported."
    for name, module in model.named_modules():
        paths = [f"{name}.{child}" for child, _ in module.named_children()] if isinstance(module, nn.ModuleList) else []
        missing = [path for path in paths if path not in trace.calls]
        if missing and any(trace.calls.get(path) == 1 and path in trace.entered for path in paths):
            message += f" {missing[0]} did not run over a few tokens of text."
    return message


def _same_stream(trace: ForwardTrace, one: int, two: int) -> bool:
    """Whether `two` is `one`, up to reshapes."""
    if one == two:
        return True
    terms = _explain(trace, two, stops=[one]).terms
    return len(terms) == 1 and terms[0].kind == "stop" and not terms[0].steps


def _check_stream(terms: Iterable[Term], path: str, problems: list[str]) -> None:
    streams = [term for term in terms if term.kind == "stop"]
    if not streams:
        problems.append(f"{path}: its output does not contain its input as a summand, so it has no residual stream")
    elif any(step.kind == "center" for term in streams for step in term.steps):
        problems.append(f"{path}: a norm acts on the residual stream itself (post-norm on the stream)")
    elif any(term.steps for term in streams):
        problems.append(f"{path}: a norm or a scale per channel acts on the residual stream itself")


def _collect(
    terms: Iterable[Term],
    trace: ForwardTrace,
    block: int | None,
    path: str,
    writers: dict[tuple[str, int], Writer],
    problems: list[str],
) -> None:
    """Turn the parameter terms of one place into writers; note what could not be traced."""
    for term in terms:
        if term.kind == "unknown":
            where = path or "the embeddings"
            problems.append(f"{where}: something that is added to the residual stream {term.reason}")
        elif term.kind == "parameter":
            name = trace.tape.parameters[term.value]
            kind = _kind(name, block, trace.tape.tensors[term.value], path)
            writers.setdefault((name, term.axis), Writer(name, term.axis, block, kind, term.steps))


def _kind(name: str, block: int | None, tensor: Tensor, path: str) -> WriterKind:
    """A word for the table that people read; nothing is decided by it."""
    if tensor.dim() == 1:
        return "norm_bias" if "norm" in name or "ln_" in name else "bias"
    if block is None:
        return "embedding"
    inside = name.removeprefix(path + ".").lower()
    if "attn" in inside or "attention" in inside:
        return "attention"
    if any(word in inside for word in ("mlp", "feed_forward", "ffn", "expert", "dense", "fc", "moe")):
        return "mlp"
    return "other"


def _find_sites(trace: ForwardTrace, path: str, block: int, problems: list[str]) -> list[WriteSite]:
    """For each summand of a block's output that is not the stream: the innermost module that returns it."""
    returned: dict[int, str] = {}
    inside = [name for name in trace.order if name.startswith(path + ".")]
    for name in sorted(inside, key=lambda name: -name.count(".")):
        if name in trace.left:
            returned.setdefault(trace.left[name], name)
    sites: dict[str, WriteSite] = {}
    pending = [trace.left[path]]
    stream = trace.entered[path]
    while pending:
        value = pending.pop()
        terms = _explain(trace, value, stops=[stream]).terms
        if not terms or value == stream:
            continue
        if value in returned and all(term.kind != "stop" for term in terms):
            sites[returned[value]] = WriteSite(returned[value], block)
            continue
        op = trace.tape.ops.get(value)
        refs = _commuting_inputs(trace, value) if op is not None else []
        if not refs:
            problems.append(f"{path}: no module returns one of the tensors that are added to the stream")
        pending.extend(refs)
    return sorted(sites.values(), key=lambda site: trace.order.index(site.module))


def _find_entry_sites(trace: ForwardTrace, entry: int) -> tuple[str, ...]:
    """For each summand of the first block's input: the first module that returns it, where one does.

    The first and not the last, since a norm without a scale may follow the embedding (NanoChat).
    """
    returned: dict[int, str] = {}
    for name in sorted(trace.order, key=lambda name: -name.count(".")):
        if name in trace.left:
            returned.setdefault(trace.left[name], name)

    def find(value: int) -> list[str] | None:
        inputs = _commuting_inputs(trace, value) if value in trace.tape.ops else []
        found = [find(each) for each in inputs]
        if found and all(each is not None for each in found):
            return [name for each in found for name in each or ()]
        if value in returned and not any(term.steps for term in _explain(trace, value).terms):
            return [returned[value]]
        return None

    return tuple(dict.fromkeys(find(entry) or ()))


def _commuting_inputs(trace: ForwardTrace, value: int) -> list[int]:
    """The inputs of an operation with which removing a direction commutes: sums, reshapes, one number per token."""
    op = trace.tape.ops[value]
    shape = trace.tape.tensors[value].shape
    refs = [arg.value for arg in op.args if isinstance(arg, Ref)]
    if op.name.rstrip("_") in ("add", "sub", "mul", "div", "neg"):
        wide = [ref for ref in refs if trace.tape.tensors[ref].shape[-1:] == shape[-1:]]
        if op.name.rstrip("_") in ("mul", "div") and len(wide) != 1:
            return []
        return wide
    if op.name in ("view", "_unsafe_view", "_to_copy", "clone", "unsqueeze", "squeeze", "alias", "detach"):
        return refs[:1]
    return []


def _silent_parameters(model: nn.Module, trace: ForwardTrace, blocks: tuple[str, ...]) -> list[str]:
    """Parameters of the blocks that took no part (experts that no token was sent to): whether they write is unknown."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    took_part = {id(parameters[name]) for name in trace.tape.parameters.values()}
    inside = tuple(f"{path}." for path in blocks)
    return [
        f"{name}: it took no part in the forward pass over a few tokens, so whether it writes is unknown"
        for name, parameter in parameters.items()
        if name.startswith(inside) and id(parameter) not in took_part
    ]


def _tied_embedding(model: nn.Module, writers: Iterable[Writer]) -> str | None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for writer in writers:
        if writer.kind == "embedding":
            sharing = [name for name, p in parameters.items() if p is parameters[writer.parameter]]
            if len(sharing) > 1:
                return writer.parameter
    return None


def _describe(
    model: nn.Module, blocks: tuple[str, ...], writers: dict[tuple[str, int], Writer], problems: list[str]
) -> str:
    found = ", ".join(writer.parameter for writer in list(writers.values())[:6]) or "none"
    more = f" and {len(writers) - 6} more" if len(writers) > 6 else ""
    missed = "\n  - ".join(dict.fromkeys(problems))
    return (
        f"{type(model).__name__}: not every write to the residual stream could be traced to a parameter, so demur will "
        f"not edit this model.\n  blocks: {len(blocks)} ({blocks[0]} ...)\n  writers found: {found}{more}\n"
        f"  not understood:\n  - {missed}"
    )
