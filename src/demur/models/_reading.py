"""What one forward pass shows at one position: the stream, every write, what linear layers read, attention weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from demur.models._chat_model import ChatModel
from demur.models._generation import forward_inputs
from demur.models._hooks import first_tensor, reading_inputs, stream_argument


@dataclass
class Reading:
    """One forward pass at one position, on the CPU in float64."""

    rows: int
    width: int
    position: int
    streams: dict[int, Tensor] = field(default_factory=dict)
    """Boundary -> [row, d_model]; 0 is the first block's input, the last one the last block's output."""
    writes: dict[str, Tensor] = field(default_factory=dict)
    """Write site -> [row, d_model]."""
    entered: dict[str, Tensor] = field(default_factory=dict)
    """Linear layer -> its input, [row, in]."""
    left: dict[str, Tensor] = field(default_factory=dict)
    """Linear layer -> its output, [row, out]."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Module -> attention weights from the position, [row, head, token]."""

    def has_every_token(self, tensor: Tensor) -> bool:
        """Whether a tensor holds something for every token; what an expert reads does not."""
        if tensor.dim() == 3:
            return tensor.shape[0] == self.rows
        return tensor.numel() == self.rows * self.width * tensor.shape[-1]

    def at_position(self, tensor: Tensor) -> Tensor:
        """[row, last dimension]; some modules return the tokens of all rows in one dimension."""
        shaped = tensor if tensor.dim() == 3 else tensor.reshape(self.rows, self.width, tensor.shape[-1])
        return shaped[:, self.position].detach().to("cpu", torch.float64)

    def keep_stream(self, boundary: int, stream: Tensor) -> None:
        """Keep the stream at the input of a block, or after the last one."""
        self.streams[boundary] = self.at_position(stream)

    def keep_write(self, path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        """Forward hook of a write site."""
        tensor = first_tensor(output)
        if tensor is not None:
            self.writes.setdefault(path, self.at_position(tensor))

    def keep_linear(self, path: str, _module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook of a linear layer."""
        entered, tensor = stream_argument(args, {}), first_tensor(output)
        if entered is not None and tensor is not None and path not in self.left and self.has_every_token(entered):
            self.entered[path], self.left[path] = self.at_position(entered), self.at_position(tensor)

    def keep_end(self, boundary: int, _module: nn.Module, _args: Any, output: Any) -> None:
        """Forward hook of the last block."""
        tensor = first_tensor(output)
        if tensor is not None:
            self.keep_stream(boundary, tensor)

    def keep_attention(self, path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        """Forward hook of a module inside a block, which may be an attention."""
        weights = self._attention_weights(output)
        if weights is not None:
            self.weights[path] = weights[:, :, self.position].detach().to("cpu", torch.float64)

    def _attention_weights(self, output: Any) -> Tensor | None:
        """The tensor among a module's outputs that holds shares of 1: [row, head, token, token]."""
        for each in output if isinstance(output, (tuple, list)) else ():
            if isinstance(each, Tensor) and self._are_weights(each):
                return each
        return None

    def _are_weights(self, tensor: Tensor) -> bool:
        if tensor.dim() != 4 or (tensor.shape[0], *tensor.shape[2:]) != (self.rows, self.width, self.width):
            return False
        # Attention sinks take a share of their own, so the rest may add up to less than 1.
        return bool((tensor >= 0).all() and (tensor[:, :, -1].float().sum(-1) <= 1.02).all())


def read_position(
    chat: ChatModel, sequences: Sequence[Sequence[int]], position: int, linears: Sequence[str]
) -> Reading:
    """One forward pass with eager attention.

    Args:
        chat: the model.
        sequences: token ids of prompts of one length: transformers' eager attention gives NaN for padding in float64.
        position: token position from the end, negative.
        linears: paths of linear layers whose inputs and outputs are kept.
    """
    batch = chat.batch(sequences)
    rows, width = batch["input_ids"].shape
    reading = Reading(rows, width, position)
    layout, module = chat.layout, chat.module
    inside = tuple(f"{path}." for path in layout.blocks)
    parents = [
        path
        for path, each in module.named_modules()
        if path.startswith(inside) and next(each.children(), None) is not None
    ]
    hooks: list[tuple[str, Callable[..., None]]] = [
        *((site.module, partial(reading.keep_write, site.module)) for site in layout.sites),
        *((path, partial(reading.keep_linear, path)) for path in linears),
        *((path, partial(reading.keep_attention, path)) for path in parents),
        (layout.blocks[-1], partial(reading.keep_end, len(layout.blocks))),
    ]
    with ExitStack() as stack:
        stack.enter_context(eager_attention(module))
        readers = {path: partial(reading.keep_stream, index) for index, path in enumerate(layout.blocks)}
        stack.enter_context(reading_inputs(module, readers))
        for path, hook in hooks:
            stack.callback(module.get_submodule(path).register_forward_hook(hook).remove)
        with torch.no_grad():
            chat.model(**forward_inputs(chat.model, batch))
    return reading


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Attention by plain matrix products while the context is open, which shows its weights; then as it was."""
    configs: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if config is not None and hasattr(config, "_attn_implementation"):
            configs.setdefault(id(config), config)
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        # A config hands its value on to those inside it. The outer one comes first, so those get their own back.
        for config, value in before:
            config._attn_implementation = value
