"""How a number that a model computes changes with what is written to its residual stream: one backward pass."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from demur.models._chat_model import ChatModel
from demur.models._hooks import hooked

ScoreOf = Callable[[Tensor], Tensor]
"""Logits at the last position, [batch, vocabulary] -> one number for each row, [batch], with its graph."""


def writes_with_gradients(
    chat: ChatModel, encoded: Sequence[Sequence[int]], score: ScoreOf
) -> list[tuple[Tensor, Tensor]]:
    """Everything that is written to the residual stream, and the gradient of a score with respect to it.

    Args:
        chat: the model; no gradient of its weights is computed.
        encoded: token ids of one batch of prompts.
        score: what is differentiated; rows must not depend on each other.

    Returns:
        (write, gradient) of the stream as it enters the first block and of every write site, each
        [batch, token, d_model], detached. Padding has the gradient 0.
    """
    caught: list[Tensor] = []

    def keep(stream: Tensor) -> Tensor:
        stream = stream if stream.requires_grad else stream.detach().requires_grad_()
        stream.retain_grad()
        caught.append(stream)
        return stream

    layout = chat.layout
    sites = dict.fromkeys((site.module for site in layout.sites), keep)
    with _frozen(chat.module), hooked(chat.module, inputs={layout.blocks[0]: keep}, outputs=sites):
        logits = chat.logits_with_gradient(chat.batch(encoded), count=1)[:, -1]
        score(logits).sum().backward()  # type: ignore[no-untyped-call]
    shape = (len(encoded), -1, layout.d_model)
    # Some families leave NaN in padding, which must not meet the gradient 0 there.
    return [
        (each.detach().view(shape).nan_to_num(), each.grad.view(shape).nan_to_num())
        for each in caught
        if each.grad is not None
    ]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Weights take no gradient while the context is open: theirs would be as large as the model."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
