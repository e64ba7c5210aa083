"""One large GPU: extraction and selection on random weights in the shapes of an 8B, a 32B and a 70B model, in bfloat16.

Weights are made on the device in bfloat16. What does not fit is left out, with the reason. Selection has no filter that
removes anything, so it does the most work that it can have. Prints a table; writes nothing but its JSON result.

    python benchmarks/gpu.py --device cuda            # under 8 minutes
    python benchmarks/gpu.py --device cpu --smoke     # does it run?
"""

import gc
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from _common import (
    SHAPES,
    Result,
    arguments,
    chat_model,
    counted,
    environment,
    finish,
    median,
    plant_refusal,
    prompt_texts,
    random_model,
    select_direction,
)

from demur.activations import mean_activations
from demur.models import ChatModel, length_sorted_batches

COLUMNS = (
    "shape",
    "what",
    "seconds",
    "prompts per second",
    "tokens x layers",
    "share of matrix rate",
    "peak over weights GiB",
)
ROOM = 1.03
"""Memory that a model needs, over its weights."""


def main() -> None:
    """Measure every shape that fits, until time is up."""
    parser = arguments(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", default=["8b", "32b", "70b"])
    parser.add_argument("--prompts", type=int, default=96, help="of each kind; a third, at most 32, scores candidates")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=420, help="begin no further step after this time")
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.smoke:
        options.shapes, options.prompts, options.repeats = ["tiny"], 48, 1
    deadline = time.perf_counter() + options.seconds
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else environment()["processor"]
    result = Result(f"{name}, {environment()['date']}", COLUMNS)
    rate = matrix_rate(device, 512 if options.smoke else 8192)
    result.notes.append(f"Measured matrix rate, bfloat16: {rate / 1e12:.3g} TFLOP/s.")
    for shape in options.shapes:
        reason = too_large(shape, device)
        if not reason and time.perf_counter() > deadline:
            reason = "no time left"
        if reason:
            result.notes.append(f"{shape}: left out, {reason}.")
            continue
        try:
            measure(result, shape, device, rate, options, deadline)
        except torch.OutOfMemoryError as error:
            result.notes.append(f"{shape}: ended early, out of memory: {str(error).splitlines()[0]}")
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    finish(result, options)


def matrix_rate(device: torch.device, size: int) -> float:
    """Operations per second of a large bfloat16 matrix product, the median of ten."""
    one, two = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = [elapsed(device, partial(torch.mm, one, two))[0] for _ in range(12)]
    return 2.0 * size**3 / median(seconds[2:])


def too_large(shape: str, device: torch.device) -> str:
    """Why the shape does not fit, or nothing."""
    with torch.device("meta"):
        needed = 2 * sum(parameter.numel() for parameter in random_skeleton(shape).parameters())
    if device.type != "cuda":
        return ""
    free, _ = torch.cuda.mem_get_info(device)
    if needed * ROOM <= free:
        return ""
    return f"{needed / 2**30:.0f} GiB of weights in bfloat16, with some room, do not fit into {free / 2**30:.0f} GiB"


def random_skeleton(shape: str) -> Any:
    """The model without values."""
    from transformers import AutoModelForCausalLM  # noqa: PLC0415 (only here)

    return AutoModelForCausalLM.from_config(SHAPES[shape](), dtype=torch.bfloat16)


@dataclass
class Rows:
    """Measures one step of one shape after another into rows."""

    result: Result
    shape: str
    device: torch.device
    rate: float
    weights: float = 0.0
    """Bytes that the model takes."""

    def add(self, what: str, run: Callable[[], Any], chat: ChatModel | None = None, prompts: int = 0) -> Any:
        """Run one step; return what it returns. Of a chat model, the work is counted."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with nullcontext() if chat is None else counted(chat) as work:
            seconds, value = elapsed(self.device, run)
        peak: Any = "-"
        if self.device.type == "cuda":
            peak = (torch.cuda.max_memory_allocated(self.device) - self.weights) / 2**30
        tokens: Any = "-"
        share = "-"
        if chat is not None and work is not None:
            tokens = work.tokens_times_layers
            share = f"{2 * tokens * block_parameters(chat) / seconds / self.rate:.1%}"
        per_second = prompts / seconds if prompts else "-"
        self.result.rows.append((self.shape, what, seconds, per_second, tokens, share, peak))
        return value


def measure(result: Result, shape: str, device: torch.device, rate: float, options: Any, deadline: float) -> None:
    """Making, proving, bare forward passes, extraction, selection."""
    rows = Rows(result, shape, device, rate)
    model = rows.add("random weights", lambda: random_model(shape, device=str(device), dtype=torch.bfloat16))
    rows.weights = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0.0
    harmful, harmless = (prompt_texts(label, options.prompts) for label in ("harmful", "harmless"))
    chat: ChatModel = rows.add("layout found and proved", lambda: chat_model(model, shape))
    token = rows.add("refusal planted", lambda: plant_refusal(chat, harmful, harmless))
    encoded = chat.encode(harmful)
    batches = list(length_sorted_batches([*map(len, encoded)], options.batch_size))

    def bare() -> None:
        for indices in batches:
            chat.next_token_logits(chat.batch([encoded[index] for index in indices]))

    positions, size = len(chat.template.post_instruction_tokens()), options.batch_size
    bare()
    rows.add("bare forward", bare, chat, len(harmful))
    extraction = partial(mean_activations, chat, harmful, n_positions=positions, batch_size=size)
    rows.add("extraction", extraction, chat, len(harmful))
    compare(result, shape)
    # Ablations on both sets and additions on one, of every position and allowed layer, at the pace of extraction.
    scored = min(32, len(harmful) - 2 * len(harmful) // 3)
    whole = 3 * positions * 0.8 * chat.n_layers * scored * result.rows[-1][2] / len(harmful)
    fraction = 0.8 * min(1.0, (deadline - time.perf_counter()) / whole)
    layers = int(fraction * chat.n_layers)
    if layers < 1:
        result.notes.append(f"{shape}: no time left for a selection.")
        return
    select = partial(select_direction, chat, token, harmful, harmless, batch_size=size, layer_fraction=fraction)
    rows.add(f"selection, {positions * layers} candidates, {scored} prompts of each kind", select, chat)
    if fraction < 0.8:
        result.notes.append(f"{shape}: selection in the first {layers} layers only, to stay within the time.")


def compare(result: Result, shape: str) -> None:
    """Extraction against the bare forward passes, time and memory, from the last two rows."""
    bare, extraction = result.rows[-2:]
    result.ratio(f"{shape}: seconds of extraction / bare", extraction[2] / bare[2], at_most=1.1)
    with suppress(TypeError):  # no peaks on a CPU
        result.ratio(f"{shape}: peak over weights of extraction / bare", extraction[-1] / bare[-1], at_most=1.2)


def block_parameters(chat: ChatModel) -> float:
    """Matrix entries of a block, on average: one multiplication and one addition each per token."""
    blocks = [chat.module.get_submodule(path) for path in chat.layout.blocks]
    return sum(each.numel() for block in blocks for each in block.parameters() if each.dim() > 1) / len(blocks)


def elapsed(device: torch.device, run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, the device's work included, and the result."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    value = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, value


if __name__ == "__main__":
    main()
