"""Memory: peak over the loaded weights of extraction and of a selection, against one bare forward of the same batch.

Prompts begin alike, as under most chat templates. One selection is over two layers, 10 candidates; where that does not
take too long, another is over all layers: what is kept for candidates (keys and values of the shared beginning) and
layers (block inputs) must not grow with their number.
Each is measured in a process of its own, so that no peak hides another's (Linux: the peak is reset after loading). The
allocator is told to hand large blocks back when they are freed, so that the peak is that of what is in use.
"""

import ctypes
import gc
import json
import os
import re
import subprocess
import sys
from pathlib import Path

from _common import (
    Result,
    arguments,
    chat_model,
    finish,
    median,
    plant_refusal,
    prompt_texts,
    random_model,
    select_direction,
)

from demur.activations import mean_activations
from demur.models import ChatModel, length_sorted_batches

WHAT = ("bare", "extraction", "selection", "selection, all layers")
TOO_LONG = ("0.5b",)
"""Shapes whose selection over all layers is left out."""
HEADER = "<|im_start|>You are a helpful model."
SHORT_HEADER = "<|im_start|>s"
"""For the tiny shape: behind a longer one too few of its prompts can be told apart by a planted token."""
ROWS = 16
"""Rows of a batch, for all of them."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
"""For glibc, which otherwise keeps freed blocks of up to 32 MiB, as many as their order happens to leave."""


def main() -> None:
    """Measure everything in its own process, in turn; or be such a process."""
    parser = arguments(__doc__)
    parser.add_argument("--shapes", nargs="+", default=["125m", "0.5b"])
    parser.add_argument("--measure", choices=WHAT, help="measure this one, in this process, and print it as JSON")
    parser.set_defaults(repeats=1)  # peaks hardly differ from run to run
    options = parser.parse_args()
    if options.smoke:
        options.shapes, options.repeats = ["tiny"], 1
    if options.measure:
        print(json.dumps(measure(options.measure, options.shapes[0])))
        return
    result = Result("Memory", ("shape", "what", "loaded MiB", "peak over loaded MiB"))
    for shape in options.shapes:
        peaks: dict[str, list[float]] = {what: [] for what in WHAT[: -1 if shape in TOO_LONG else None]}
        loaded = 0.0
        for _ in range(options.repeats):
            for what, values in peaks.items():
                measured = in_own_process(what, shape)
                loaded = measured["loaded"]
                values.append(measured["peak"] - loaded)
        for what, values in peaks.items():
            result.rows.append((shape, what, loaded, median(values)))
        for what in list(peaks)[1:]:
            ratio = median(peaks[what]) / median(peaks["bare"])
            result.ratio(f"{shape}: peak over weights of {what} / bare", ratio, at_most=1.2)
    finish(result, options)


def in_own_process(what: str, shape: str) -> dict[str, float]:
    """Loaded and peak memory, MiB."""
    command = [sys.executable, __file__, "--measure", what, "--shapes", shape]
    done = subprocess.run(command, env=os.environ | ALLOCATOR, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def measure(what: str, shape: str) -> dict[str, float]:
    """Loaded memory, and the peak after one call."""
    chat = chat_model(random_model(shape), shape, header=SHORT_HEADER if shape == "tiny" else HEADER)
    harmful, harmless = prompt_texts("harmful", 30), prompt_texts("harmless", 30)
    # A selection reads both: what it is compared with is the widest batch of either.
    longest = max((harmful, harmless), key=lambda texts: max(map(len, chat.encode(texts))))
    runs = {
        "bare": lambda: bare(chat, longest),
        "extraction": lambda: mean_activations(
            chat, longest, n_positions=len(chat.template.post_instruction_tokens()), batch_size=ROWS
        ),
    }
    if what.startswith("selection"):
        token = plant_refusal(chat, harmful, harmless)
        share = 2.01 / chat.n_layers if what == "selection" else 0.8
        runs[what] = lambda: select_direction(chat, token, harmful, harmless, batch_size=ROWS, layer_fraction=share)
    chat.next_token_logits(chat.batch(chat.encode(["Hi"])))  # what libraries allocate once is not the batch's
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    loaded = status("VmRSS")
    runs[what]()
    return {"loaded": loaded, "peak": status("VmHWM")}


def status(name: str) -> float:
    """A number of /proc/self/status, MiB."""
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return int(found[1]) / 1024


def bare(chat: ChatModel, prompts: list[str]) -> None:
    """One forward pass over the largest batch."""
    encoded = chat.encode(prompts)
    first = next(length_sorted_batches([*map(len, encoded)], ROWS))
    chat.next_token_logits(chat.batch([encoded[index] for index in first]))


if __name__ == "__main__":
    main()
