"""Hooks and swapped parameters that are always removed again, also after an error or Ctrl-C."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ReadTensor = Callable[[Tensor], None]
MapTensor = Callable[[Tensor], Tensor]


def stream_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor among a block's arguments that is its input stream: the first one, or `hidden_states`."""
    if args and isinstance(args[0], Tensor):
        return args[0]
    value = kwargs.get("hidden_states")
    return value if isinstance(value, Tensor) else None


def first_tensor(output: Any) -> Tensor | None:
    """The tensor that a module returns: itself, or the first entry of its tuple."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    return output if isinstance(output, Tensor) else None


def _mapped_input(change: MapTensor) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args and isinstance(args[0], Tensor):
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return hook


def _mapped_output(change: MapTensor) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor):
            return change(output)
        return type(output)([change(output[0]), *output[1:]])

    return hook


@contextmanager
def hooked(
    model: nn.Module,
    *,
    inputs: Mapping[str, MapTensor] | None = None,
    outputs: Mapping[str, MapTensor] | None = None,
) -> Iterator[None]:
    """Replace block inputs and module outputs while the context is open.

    Args:
        model: the module that holds the named submodules.
        inputs: submodule path -> function of its input stream.
        outputs: submodule path -> function of its (first) output tensor.
    """
    with ExitStack() as stack:
        for path, change in (inputs or {}).items():
            handle = model.get_submodule(path).register_forward_pre_hook(_mapped_input(change), with_kwargs=True)
            stack.callback(handle.remove)
        for path, change in (outputs or {}).items():
            handle = model.get_submodule(path).register_forward_hook(_mapped_output(change))
            stack.callback(handle.remove)
        yield


@contextmanager
def reading_inputs(model: nn.Module, readers: Mapping[str, ReadTensor]) -> Iterator[None]:
    """Call each reader with the input stream of its module; the model's computation is not touched."""

    def hook(read: ReadTensor) -> Callable[..., None]:
        def run(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stream = stream_argument(args, kwargs)
            if stream is not None:
                read(stream)

        return run

    with ExitStack() as stack:
        for path, read in readers.items():
            handle = model.get_submodule(path).register_forward_pre_hook(hook(read), with_kwargs=True)
            stack.callback(handle.remove)
        yield


@contextmanager
def swapped_parameters(model: nn.Module, replacements: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other tensors in the place of named parameters, and the very same parameter objects back at the end.

    A parameter that several modules share (tied embeddings) is replaced only under the name given, so the others keep
    the original: this is what makes an edit of the input embedding leave the output head alone.
    """
    with ExitStack() as stack:
        for name, tensor in replacements.items():
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            original = module._parameters[leaf]
            module._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
            stack.callback(module._parameters.__setitem__, leaf, original)
        yield


def hook_count(model: nn.Module) -> int:
    """How many forward hooks are attached anywhere in the model; for tests that nothing leaks."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def model_device(model: nn.Module) -> torch.device:
    """The device that takes the model's input tokens."""
    return next(model.parameters()).device
