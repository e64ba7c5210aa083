"""Candidate scores as the paper defines them, by the plainest code: an oracle for tests, a baseline for benchmarks.

Arditi et al. 2024, section 2.3 and appendix C, and their hook points: one candidate at a time, three full sweeps over
all prompts, logits of every position in float64. Shares no code with demur beyond the loaded model.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

EPSILON = 1e-8


class NaiveSweep:
    """Three scores of one candidate at a time.

    Args:
        model: a causal language model of transformers.
        blocks: its decoder blocks.
        harmful: token ids of the prompts for bypass scores.
        harmless: token ids of the prompts for induce scores and KL.
        tokens: refusal tokens.
        batch: prompts at a time.
    """

    def __init__(
        self,
        model: Any,
        blocks: Sequence[nn.Module],
        harmful: Sequence[Sequence[int]],
        harmless: Sequence[Sequence[int]],
        tokens: Sequence[int],
        *,
        batch: int = 32,
    ) -> None:
        self.model, self.blocks, self.tokens, self.batch = model, blocks, list(tokens), batch
        self.harmful, self.harmless = harmful, harmless
        self.base = self.logits(harmless)

    @torch.no_grad()
    def logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Next-token logits, [prompt, vocabulary], from the whole [prompt, token, vocabulary] in float64."""
        found = []
        for start in range(0, len(prompts), self.batch):
            rows = prompts[start : start + self.batch]
            width = max(map(len, rows))
            ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
            positions = (mask.cumsum(-1) - 1).clamp_min(0)
            output = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
            found.append(output.logits.to(torch.float64)[:, -1].clone())
        return torch.cat(found)

    def refusal_scores(self, logits: Tensor) -> list[float]:
        """log P - log(1 - P) of the refusal tokens, with epsilon."""
        p = torch.softmax(logits, -1)[:, self.tokens].sum(-1)
        return (torch.log(p + EPSILON) - torch.log(1 - p + EPSILON)).tolist()

    def bypass(self, vector: Tensor) -> list[float]:
        """Refusal scores of harmful prompts with the direction ablated."""
        with self.ablated(vector):
            return self.refusal_scores(self.logits(self.harmful))

    def induce(self, vector: Tensor, layer: int) -> list[float]:
        """Refusal scores of harmless prompts with the vector added at its layer's input."""

        def add(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return _with_stream(args, kwargs, lambda stream: stream + vector.to(stream))

        handle = self.blocks[layer].register_forward_pre_hook(add, with_kwargs=True)
        try:
            return self.refusal_scores(self.logits(self.harmless))
        finally:
            handle.remove()

    def kl(self, vector: Tensor) -> list[float]:
        """KL(base || ablated) of the next token on harmless prompts."""
        with self.ablated(vector):
            changed = torch.log_softmax(self.logits(self.harmless), -1)
        base = torch.log_softmax(self.base, -1)
        return (base.exp() * (base - changed)).sum(-1).tolist()

    @contextmanager
    def ablated(self, vector: Tensor) -> Iterator[None]:
        """x - d d^T x at every block's input, attention output and MLP output."""
        unit = vector / vector.norm()

        def project(stream: Tensor) -> Tensor:
            along = unit.to(stream)
            return stream - (stream @ along)[..., None] * along

        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return _with_stream(args, kwargs, project)

        def after(_module: nn.Module, _args: Any, output: Any) -> Any:
            return (project(output[0]), *output[1:]) if isinstance(output, tuple) else project(output)

        with ExitStack() as stack:
            for block in self.blocks:
                stack.callback(block.register_forward_pre_hook(before, with_kwargs=True).remove)
                for name in ("self_attn", "attn", "attention", "mlp"):
                    if hasattr(block, name):
                        stack.callback(getattr(block, name).register_forward_hook(after).remove)
            yield


def _with_stream(args: tuple[Any, ...], kwargs: dict[str, Any], change: Any) -> Any:
    if args:
        return (change(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}
