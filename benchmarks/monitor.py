"""Cost of a monitor: seconds in its hooks over seconds of the pass, while prompts are read and while answers are made.

A random model of a real shape with five probes at four layers, as `demur monitor` fits them. The share is that of
processor time (of time on the device's clock with a GPU) inside the hooks, which is steadier than the ratio of passes
with and without them; that ratio is given too.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from _common import Result, arguments, finish, median, random_chat_model

from demur.models import ChatModel
from demur.monitoring import Probe, RefusalMonitor, Watch

PROMPTS, TOKENS, GENERATED = 4, 64, 16


def main() -> None:
    """Both jobs, with and without the monitor, in turn."""
    parser = arguments(__doc__)
    parser.add_argument("--shape", default="0.5b")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.set_defaults(repeats=7)
    options = parser.parse_args()
    if options.smoke:
        options.shape, options.repeats = "tiny", 2
    chat = random_chat_model(options.shape, device=options.device, dtype=getattr(torch, options.dtype))
    monitor = five_probes(chat)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 259, (PROMPTS, TOKENS), generator=generator).to(chat.device)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    jobs: dict[str, Callable[[], Any]] = {
        f"reading {PROMPTS} prompts of {TOKENS} tokens": lambda: chat.next_token_logits(batch),
        f"generating {GENERATED} tokens for one prompt": lambda: chat.model.generate(
            input_ids=ids[:1], attention_mask=batch["attention_mask"][:1], pad_token_id=0, eos_token_id=None,
            max_new_tokens=GENERATED, min_new_tokens=GENERATED, do_sample=False,
        ),
    }  # fmt: skip
    result = Result("Cost of a monitor", ("job", "milliseconds bare", "milliseconds watched", "of them in hooks"))
    for job, run in jobs.items():
        measure(result, chat, monitor, job, run, repeats=options.repeats)
    finish(result, options)


def five_probes(chat: ChatModel) -> RefusalMonitor:
    """Harm early, r at three layers, w' at one of them: random directions, which cost the same."""
    generator = torch.Generator().manual_seed(1)
    early, last = chat.n_layers // 3, chat.n_layers - 1
    places = [("harm", early), ("refusal", early + 1), ("refusal", (early + last) // 2), ("refusal", last)]
    probes = [
        Probe(f"{role}@{layer}/{index}", role, layer, -1, torch.randn(chat.layout.d_model, generator=generator))  # type: ignore[arg-type]
        for index, (role, layer) in enumerate([*places, ("false_refusal", early + 1)])
    ]
    return RefusalMonitor(tuple(probes))


def measure(
    result: Result, chat: ChatModel, monitor: RefusalMonitor, job: str, run: Callable[[], Any], *, repeats: int
) -> None:
    """One job, watched and not, in turn; the first turn warms up."""
    seconds: dict[str, list[float]] = {"bare": [], "watched": []}
    inside: list[float] = []
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "bare": nullcontext,
        "watched": lambda: monitor.watching(chat),
    }
    for repeat in range(repeats + 1):
        for way in list(ways)[:: 1 if repeat % 2 else -1]:
            with hooks_timed() as spent, ways[way]():
                start = clock()
                run()
                seconds[way].append(clock() - start)
            if way == "watched":
                inside.append(sum(spent))
    shares = [one / two for one, two in zip(inside[1:], seconds["watched"][1:], strict=True)]
    ratios = [one / two for one, two in zip(seconds["watched"][1:], seconds["bare"][1:], strict=True)]
    result.rows.append((job, *(1000 * median(some[1:]) for some in (seconds["bare"], seconds["watched"], inside))))
    result.ratio(f"{job}: share of time in the hooks", median(shares), at_most=0.01)
    result.ratio(f"{job}: watched / bare", median(ratios))


@contextmanager
def hooks_timed() -> Iterator[list[float]]:
    """Seconds of every call of a watch's hooks."""
    spent: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            start = clock()
            try:
                return function(*args)
            finally:
                spent.append(clock() - start)

        return run

    with (
        mock.patch.object(Watch, "_read", timed(Watch._read)),
        mock.patch.object(Watch, "_passed", timed(Watch._passed)),
    ):
        yield spent


def clock() -> float:
    """Processor seconds; with a GPU, seconds after it has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


if __name__ == "__main__":
    main()
