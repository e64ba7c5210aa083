"""Whether our decoding of a model is that of transformers' `generate`: tried out at first use, never assumed.

Caches differ: some do not survive that rows leave or are repeated, state-space models read padding, windows count it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from demur.models._decoding import Stream
from demur.models._hooks import hook_count, model_device

_STEPS = 4
_LONGEST = 48
"""Tokens of a probe prompt at most."""
_EXACT = 1e-4
"""Largest difference in single precision and above, as a share of the spread of the logits."""
_HALF = (0.03, 0.1)
"""The same in half precision: three times the model's own noise between one pass and steps, but within these."""


@dataclass(frozen=True)
class Decoding:
    """What may be done with a model."""

    own: bool
    """Decode with rows that leave the batch or come from one prompt."""
    shared_prefix: bool
    """Read the tokens that all prompts begin with once."""


PLAIN = Decoding(own=False, shared_prefix=False)
_known: "WeakKeyDictionary[Any, Decoding]" = WeakKeyDictionary()


def proved_decoding(model: Any, prompt: Sequence[int]) -> Decoding:
    """What is proved of a model; a few short forward passes at first use, then looked up.

    Nothing is done to a model with hooks: they may hold one value per row.

    Args:
        model: a transformers causal language model.
        prompt: tokens of any prompt.
    """
    if hook_count(model) or not prompt:
        return PLAIN
    if model not in _known:
        # Three different lengths are needed.
        _known[model] = _prove(model, [*prompt, *prompt, *prompt, *prompt][: max(4, min(len(prompt), _LONGEST))])
    return _known[model]


def _prove(model: Any, prompt: list[int]) -> Decoding:
    rows = [prompt, prompt[::-1][: len(prompt) * 2 // 3], prompt[: len(prompt) // 2]]
    own = _agrees(model, rows, shared=0)
    start = prompt[: min(4, len(prompt) // 2)]
    windowed = _has_window(model)
    return Decoding(
        own=own, shared_prefix=own and not windowed and _agrees(model, [start + row for row in rows], shared=len(start))
    )


def _has_window(model: Any) -> bool:
    """Whether attention is limited in length: padding between tokens would count, and a short probe would not tell."""
    config = model.config.get_text_config(decoder=True)
    types = getattr(config, "layer_types", None) or getattr(config, "attention_types", None)
    if types:
        return any(word in str(types) for word in ("sliding", "chunk", "local"))
    return any(value and ("window" in key or "chunk" in key) for key, value in config.to_dict().items())


def _agrees(model: Any, rows: list[list[int]], *, shared: int) -> bool:
    """Whether the logits of our decoding are those of `generate`, with rows repeated, moved and taken out."""
    batch = _left_padded(rows, model_device(model))
    try:
        with torch.no_grad():
            expected, tokens = _generated(model, batch)
            found = _decoded(model, batch, tokens, shared=shared)
            alone, same = _generated(model, _left_padded(rows[-1:], model_device(model)))
            passed = _in_one_pass(model, batch, tokens)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError) as error:
        if "out of memory" in str(error):
            raise
        return False
    pairs = [(expected[step][row], logits) for step, row, logits in found]
    # Where padding counts, an answer depends on what is asked beside it, and there is nothing to be equal to.
    agreeing = int((same[0] == tokens[-1]).int().cumprod(0).sum())
    pairs += [(one[0], two[-1]) for one, two in list(zip(alone, expected, strict=True))[: agreeing + 1]]
    return _alike(model, pairs, expected[-1], passed)


def _generated(model: Any, batch: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Raw logits of every step, [step] of [row, vocabulary], and the greedy tokens, [row, step]."""
    config = type(model.generation_config)(
        max_new_tokens=_STEPS, do_sample=False, pad_token_id=0, output_logits=True, return_dict_in_generate=True
    )
    defaults, model.generation_config = model.generation_config, type(model.generation_config)()
    try:
        output = model.generate(**batch, generation_config=config)
    finally:
        model.generation_config = defaults
    return list(output.logits), output.sequences[:, -_STEPS:]


def _decoded(model: Any, batch: dict[str, Tensor], tokens: Tensor, *, shared: int) -> list[tuple[int, int, Tensor]]:
    """Step, row and logits of our decoding, fed with the same tokens."""
    stream = Stream(model)
    logits = stream.start(batch, shared=shared)
    here = list(range(len(logits)))
    found = []
    for step in range(_STEPS):
        moved = {0: [2, 0, 1, 0], 1: [1, 2, 3], 2: [1, 0]}.get(step)  # repeat one; drop the first; swap and drop
        found += [(step, row, logits[place]) for place, row in enumerate(here)]
        if step == _STEPS - 1:
            return found
        if moved is not None:
            stream.select(torch.tensor(moved, device=tokens.device))
            here = [here[place] for place in moved]
        logits = stream.step([int(tokens[row, step]) for row in here])
    return found


def _alike(model: Any, pairs: Sequence[tuple[Tensor, Tensor]], stepped: Tensor, passed: Tensor) -> bool:
    spread = max(_size(one - one.mean()) for one, _ in pairs)
    if any(torch.isnan(one).any() for one, _ in pairs) or not spread:
        return False
    if any((torch.isfinite(one) != torch.isfinite(two.to(one.device))).any() for one, two in pairs):
        return False
    # Openings are read step by step, and by `generate` in one pass: both must come to the same.
    in_steps = _size(stepped - passed.to(stepped)) / spread
    half = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    allowed = max(3 * in_steps, _HALF[0]) if half else _EXACT
    difference = max(_size(one - two.to(one.device)) for one, two in pairs) / spread
    return max(difference, in_steps) <= min(allowed, _HALF[1])


def _in_one_pass(model: Any, batch: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Logits of the last step without any cache."""
    ids = torch.cat([batch["input_ids"], tokens[:, :-1]], dim=1)
    mask = torch.cat([batch["attention_mask"], torch.ones_like(tokens[:, :-1])], dim=1)
    return Stream(model).start({"input_ids": ids, "attention_mask": mask})


def _size(values: Tensor) -> float:
    """Root mean square; masked logits (minus infinity) are left out."""
    return float(values[torch.isfinite(values)].to(torch.float64).square().mean().sqrt()) if values.numel() else 0.0


def _left_padded(rows: Sequence[Sequence[int]], device: torch.device) -> dict[str, Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device),
    }
