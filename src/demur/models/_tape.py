"""A tape of the tensor operations of one forward pass.

The tape sees every operation below autograd (ATen), so it does not depend on how a model's code is written or named.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class Op:
    """One recorded operation; values are numbered in order of appearance."""

    name: str
    """ATen name without overload, such as `add`."""
    args: tuple[Any, ...]
    """Arguments with every tensor replaced by a `Ref`."""
    kwargs: dict[str, Any]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Ref:
    """A tensor argument: the number of its value."""

    value: int


class Tape(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operations while active. Keeps every tensor alive, so use it on a few tokens only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: dict[int, Op] = {}
        """Value number -> the operation that made it; absent for parameters, buffers and inputs."""
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}
        self.parameters: dict[int, str] = {}
        """Value number -> parameter name, for parameters that took part."""
        self._names: dict[int, str] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            # Of a shared parameter's names the first counts: the input embedding comes before the head.
            self._names.setdefault(id(parameter), name)
        self._buffers = {id(buffer): name for name, buffer in model.named_buffers()}
        self.buffers: dict[int, str] = {}
        """Value number -> buffer name, for buffers that took part."""
        self.constants: set[int] = set()
        """Values that depend on parameters and buffers only, not on the tokens."""

    def number(self, tensor: Tensor) -> int:
        """The value number of a tensor object as it is now."""
        key = id(tensor)
        if key not in self._numbers:
            self._new(tensor)
            if key in self._names:
                self.parameters[self._numbers[key]] = self._names[key]
            if key in self._buffers:
                self.buffers[self._numbers[key]] = self._buffers[key]
            if key in self._names or key in self._buffers:
                self.constants.add(self._numbers[key])
        return self._numbers[key]

    def find(self, tensor: Tensor) -> int | None:
        """The value number of a tensor seen before, or None."""
        return self._numbers.get(id(tensor))

    def _new(self, tensor: Tensor) -> int:
        self.tensors.append(tensor)
        self._numbers[id(tensor)] = len(self.tensors) - 1
        return len(self.tensors) - 1

    def _refs(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return Ref(self.number(value))
        if isinstance(value, (list, tuple)):
            return tuple(self._refs(item) for item in value)
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and write it down."""
        kwargs = kwargs or {}
        refs, named = self._refs(args), {key: self._refs(value) for key, value in kwargs.items()}
        result = func(*args, **kwargs)
        outputs = [item for item in (result if isinstance(result, (list, tuple)) else [result]) if _is_tensor(item)]
        numbers = tuple(self._new(tensor) for tensor in outputs)
        name = func._schema.name.split("::")[1]
        op = Op(name, refs, named, numbers)
        inputs = list(_all_refs((refs, tuple(named.values()))))
        for number in numbers:
            self.ops[number] = op
            if all(ref.value in self.constants for ref in inputs):
                self.constants.add(number)
        return result


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def _all_refs(value: Any) -> Iterable[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, tuple):
        for item in value:
            yield from _all_refs(item)
