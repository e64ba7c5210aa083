"""Overhead of an intervention over the bare forward pass at realistic width: hooks, hooks by row, folded weights.

A Llama of a few layers of width 2048; a pass reads 16 prompts of 24 tokens. Processor time, as wall time of so short
passes follows what else the machine does; medians of the ratios of passes that take turns.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from _common import Result, arguments, chat_model, finish, median
from torch.nn.functional import normalize
from transformers import LlamaConfig, LlamaForCausalLM

from demur.interventions import DirectionalAblation, ablating_rows

ROWS, TOKENS = 16, 24


def main() -> None:
    """Time all forms in turn."""
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=3)
    parser.set_defaults(repeats=25)
    options = parser.parse_args()
    if options.smoke:
        options.width, options.layers, options.repeats = 64, 2, 2
    generator = torch.Generator().manual_seed(0)
    config = LlamaConfig(
        hidden_size=options.width,
        intermediate_size=11 * options.width // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=16,
        num_key_value_heads=8,
        vocab_size=4096,
    )
    chat = chat_model(LlamaForCausalLM(config).eval(), "overhead")
    ids = torch.randint(300, 4000, (ROWS, TOKENS), generator=generator)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    vectors = normalize(torch.randn(ROWS, options.width, dtype=torch.float64, generator=generator), dim=-1)
    ablation = DirectionalAblation(vectors[0])
    forms: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "bare": nullcontext,
        "hooks": lambda: ablation.applied_to(chat),
        "hooks, a direction per row": lambda: ablating_rows(chat, vectors),
        "folded": lambda: ablation.folded_into(chat),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for repeat in range(options.repeats + 1):  # the first warms up
        for name in list(forms)[:: 1 if repeat % 2 else -1]:
            with forms[name]():  # to enter is not counted: it is done once for many passes
                start = time.process_time()
                chat.next_token_logits(batch)
                seconds[name].append(time.process_time() - start)
    result = Result("Overhead of an intervention", ("form", "milliseconds"))
    result.rows += [(name, 1000 * median(values[1:])) for name, values in seconds.items()]
    for name in list(forms)[1:]:
        ratio = median([one / two for one, two in zip(seconds[name][1:], seconds["bare"][1:], strict=True)])
        result.ratio(f"width {options.width}: {name} / bare", ratio, at_most=1.03)
    finish(result, options)


if __name__ == "__main__":
    main()
