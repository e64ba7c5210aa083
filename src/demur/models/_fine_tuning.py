"""Short LoRA fine-tuning of a loaded model, in memory: to see what becomes of refusal, not to train a model."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from demur.errors import InputError, ModelError, UnsupportedInterventionError
from demur.models._chat_model import ChatModel
from demur.models._generation import end_tokens, forward_inputs
from demur.models._hooks import swapped_parameters

OnStep = Callable[[int], bool | None]
"""Is told the number of steps taken, with the model as it is then; returns True to stop."""

_LARGEST_NORM = 1.0
"""To which gradients are clipped."""
_SENTINEL = "zqxjkvbp"


@dataclass(frozen=True)
class FineTuning:
    """Settings of a LoRA fine-tuning (Hu et al. 2021): W + B A in every linear layer of the blocks, AdamW."""

    steps: int = 100
    learning_rate: float = 1e-3
    """Constant over the steps."""
    batch_size: int = 16
    """Rows in one step; all rows where there are fewer."""
    rank: int = 8
    """Of B A."""
    seed: int = 0
    """Of the first A and of the order of the rows."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "rank"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} of a fine-tuning is a number of at least 1; got {getattr(self, name)}.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"the learning rate is a number above 0, such as 0.001; got {self.learning_rate}.")


@contextmanager
def fine_tuned(
    chat: ChatModel, rows: Sequence[tuple[str, str]], settings: FineTuning, *, on_step: OnStep | None = None
) -> Iterator[None]:
    """Fine-tune the model on (prompt, answer) rows; inside the context it is the fine-tuned one.

    The loss is the cross-entropy of the answers and of the token that ends them. The model stays in evaluation mode (no
    dropout), so the result depends on rows and settings alone. What is trained is what is seen: weights merged in the
    model's own dtype. Embeddings, head, norms and fused experts are not trained. At the end the very same parameter
    objects are back.

    Args:
        chat: the model, in memory as a whole.
        rows: what to learn; prompts are rendered with the model's chat template.
        settings: how long, how fast, by what seed.
        on_step: called after each step, without gradients, with the model as it is after the step.

    Raises:
        InputError: no rows, or a row without an answer.
        UnsupportedInterventionError: the weights are packed (quantised), not in memory, or there is no linear layer.
        ModelError: the loss is not finite.
    """
    weights = _linear_weights(chat)
    end = _end_of_turn(chat)
    examples = [_example(chat, number, *row, end) for number, row in enumerate(rows, start=1)]
    if not examples:
        raise InputError("there is nothing to fine-tune on: give at least one row of prompt and answer.")
    identity = chat.__dict__.get("identity")
    try:
        factors = _trained(chat, weights, examples, settings, on_step)
        with _merged(chat, weights, factors):
            yield
    finally:
        if identity is not None:
            chat.__dict__["identity"] = identity


Factors = dict[str, tuple[Tensor, Tensor]]
"""Name of a weight [n, m] -> (B [n, rank], A [rank, m]), float32."""


def _linear_weights(chat: ChatModel) -> dict[str, Tensor]:
    """The matrices of the linear layers inside the blocks, by parameter name."""
    if chat.layout.packed is not None:
        raise UnsupportedInterventionError(
            f"{chat.name}: its weights are {chat.layout.packed}, which cannot be fine-tuned here. Give the unquantised "
            "checkpoint."
        )
    inside = tuple(f"{block}." for block in chat.layout.blocks)
    weights = {
        f"{path}.weight": module.weight
        for path, module in chat.module.named_modules()
        if path.startswith(inside) and _is_linear(module)
    }
    if not weights:
        raise UnsupportedInterventionError(f"{chat.name}: there is no linear layer in its blocks to fine-tune.")
    if any(weight.is_meta for weight in weights.values()):
        raise UnsupportedInterventionError(
            f"{chat.name}: some of its weights are not in memory (offloaded), and fine-tuning needs all of them. "
            "Load it on devices that hold it."
        )
    return weights


def _is_linear(module: Any) -> bool:
    # transformers' Conv1D is a linear layer with its weight transposed (GPT-2 and its kin).
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _example(chat: ChatModel, number: int, prompt: str, answer: str, end: list[int]) -> tuple[list[int], int]:
    """Token ids of one row, and how many of the last ones are learned."""
    learned = list(chat.tokenizer(answer, add_special_tokens=False)["input_ids"])
    if not learned:
        raise InputError(f"row {number} of the fine-tuning has no answer; leave it out, or give it one.")
    learned += end
    return chat.template.encode(prompt) + learned, len(learned)


def _end_of_turn(chat: ChatModel) -> list[int]:
    """The token with which the chat template ends an answer, if generation stops there; else the tokenizer's own."""
    ends = end_tokens(chat.model, chat.tokenizer)
    earlier = (*chat.template.earlier, ("user", "x"), ("assistant", _SENTINEL))
    try:
        rendered = replace(chat.template, earlier=earlier).render("x")
    except ModelError:
        rendered = ""  # the template takes no earlier exchange
    after = chat.tokenizer(rendered.partition(_SENTINEL)[2], add_special_tokens=False)["input_ids"]
    token = next((token for token in after if token in ends), chat.tokenizer.eos_token_id)
    return [] if token is None else [int(token)]


def _trained(
    chat: ChatModel,
    weights: dict[str, Tensor],
    examples: Sequence[tuple[list[int], int]],
    settings: FineTuning,
    on_step: OnStep | None,
) -> Factors:
    generator = torch.Generator().manual_seed(settings.seed)
    factors = {name: _first_factors(weight, settings.rank, generator) for name, weight in weights.items()}
    trainable = [factor for pair in factors.values() for factor in pair]
    optimizer = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=0.0)
    batches = _batches(len(examples), settings.batch_size, generator)
    for step in range(1, settings.steps + 1):
        with torch.enable_grad():
            loss = _loss(chat, weights, factors, [examples[index] for index in next(batches)])
            if not torch.isfinite(loss):
                raise ModelError(
                    f"{chat.name}: the loss of the fine-tuning is not finite at step {step}. Lower the learning rate "
                    f"(it is {settings.learning_rate:g}), or load the model with --dtype float32."
                )
            optimizer.zero_grad()
            loss.backward(inputs=trainable)  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trainable, _LARGEST_NORM)
        optimizer.step()
        if on_step is not None:
            with torch.no_grad(), _merged(chat, weights, factors):
                if on_step(step):
                    break
    return factors


def _first_factors(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """B = 0 and a Gaussian A, so that training starts at the model itself (Hu et al. 2021, section 4.1)."""
    rows, columns = weight.shape
    rank = min(rank, rows, columns)
    first = torch.randn(rank, columns, generator=generator) / columns**0.5
    zero = torch.zeros(rows, rank)
    return tuple(factor.to(weight.device).requires_grad_() for factor in (zero, first))  # type: ignore[return-value]


def _batches(n_rows: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless batches of row numbers: each row once before any comes again."""
    size = min(size, n_rows)
    waiting: list[int] = []
    while True:
        if len(waiting) < size:
            waiting += torch.randperm(n_rows, generator=generator).tolist()
        yield waiting[:size]
        waiting = waiting[size:]


def _loss(
    chat: ChatModel, weights: dict[str, Tensor], factors: Factors, examples: Sequence[tuple[list[int], int]]
) -> Tensor:
    """Mean cross-entropy, in nats, over all learned tokens of a batch."""
    batch = chat.batch([tokens for tokens, _ in examples], side="right")
    inputs = forward_inputs(chat.model, batch, last_logits_only=False)
    merged = {name: _sum(weights[name], pair) for name, pair in factors.items()}
    logits = functional_call(chat.module, merged, args=(), kwargs=inputs).logits
    parts = [
        (logits[row, len(tokens) - learned - 1 : len(tokens) - 1], tokens[len(tokens) - learned :])
        for row, (tokens, learned) in enumerate(examples)
    ]
    targets = torch.tensor([token for _, learned in parts for token in learned], device=logits.device)
    return cross_entropy(torch.cat([predicted for predicted, _ in parts]).float(), targets)


def _sum(weight: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
    """W + B A, computed in float32 or wider and rounded to the weight's dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.detach().to(wide) + (pair[0] @ pair[1]).to(wide)).to(weight.dtype)


@contextmanager
def _merged(chat: ChatModel, weights: dict[str, Tensor], factors: Factors) -> Iterator[None]:
    """The model as trained so far; its identity, which holds a hash of the weights, is that of no other state."""
    with torch.no_grad():
        changed = {name: _sum(weights[name], pair) for name, pair in factors.items()}
    with swapped_parameters(chat.module, changed):
        chat.__dict__.pop("identity", None)
        try:
            yield
        finally:
            chat.__dict__.pop("identity", None)
