"""Forward passes in float32 of a model whose weights are float16 or bfloat16, without a second copy of the model.

Rounding of half precision adds up over depth, and a massive activation (one dimension of a few tokens, thousands of
times the rest) loses all digits of what stands beside it. What is to be proved must not depend on that.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HALF = (torch.float16, torch.bfloat16)
# They pick entries of what may be a huge matrix: only what was picked is widened.
_GATHERS = frozenset({"embedding", "index", "index_select", "gather"})


class Widened(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, every operation on half-precision tensors computes in float32 and returns float32.

    It works below the modules, one operation at a time, so it needs the memory of one weight beyond the model, and
    casts inside modules (`hidden.to(input_dtype)`) do not narrow anything. Weights, buffers and hooks stay as they are.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        dtypes = [tensor.dtype for tensor in (*model.parameters(), *model.buffers())]
        self.half = next((dtype for dtype in dtypes if dtype in HALF), None)
        """The half precision among the model's weights; None where there is nothing to widen."""
        self.rows: dict[int, Callable[[Tensor], Tensor]] = {}
        """id of an embedding's weight -> what is to be done with the rows that are looked up in it."""
        self.narrow: set[str] = set()
        """Operations that have no float32 kernel and were computed in half precision after all."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, widened."""
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        if name == "embedding" and id(args[0]) in self.rows:
            return self.rows[id(args[0])](_wide(func(*args, **kwargs)))
        if self.half is None or func.is_view:
            return func(*args, **kwargs)
        if name in _GATHERS:
            return _mapped(_wide, func(*args, **kwargs))
        mutated = func._schema.is_mutable
        given = args
        # What an operation writes into must stay the very same tensor.
        args = (args[0], *_mapped(_wide, args[1:])) if mutated else _mapped(_wide, args)
        named = kwargs if mutated else _mapped(_wide, kwargs)
        if named.get("dtype") in HALF:
            named = {**named, "dtype": torch.float32}
        try:
            result = func(*args, **named)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError):
            if mutated:
                raise
            self.narrow.add(name)
            result = func(*_mapped(self._narrowed, given), **_mapped(self._narrowed, kwargs))
        return result if mutated else _mapped(_wide, result)

    def _narrowed(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.half) if tensor.dtype == torch.float32 else tensor


class WidenedCalls(TorchFunctionMode):
    """For functions that compare dtypes before any operation runs (convolutions): calls them with all in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call one function; again, widened, if it refuses its dtypes."""
        kwargs = kwargs or {}
        try:
            return func(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            tensors = [item for item in tree_leaves((args, kwargs)) if isinstance(item, Tensor)]
            if getattr(func, "__name__", "_").endswith("_") or not any(item.dtype in HALF for item in tensors):
                raise
            return func(*_mapped(_wide, args), **_mapped(_wide, kwargs))


def _mapped(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The value with every tensor in its tuples, lists and dicts changed; torch's own map takes most of a pass."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        items = [_mapped(change, item) for item in value]
        # Named tuples take their fields one by one.
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, dict):
        return {key: _mapped(change, item) for key, item in value.items()}
    return value


def _wide(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in HALF else tensor


def widened_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the numbers of a model are computed: its own, float32 for half precision."""
    return torch.float32 if dtype in HALF else dtype


@contextmanager
def widened(model: nn.Module, wide: Widened | None = None) -> Iterator[None]:
    """Compute in float32 what is half precision, while the context is open; nothing changes for wider models.

    Give `wide` where `orthogonalized_blockwise` has it too.
    """
    mode = Widened(model) if wide is None else wide
    with ExitStack() as stack:
        if mode.half is not None:
            stack.enter_context(WidenedCalls())
        if mode.half is not None or wide is not None:
            stack.enter_context(mode)
        yield
