"""What the benchmarks share: random models of real shapes, repeats in turn, counted work, tables and JSON results.

Ratios come from one process or from processes in turn, as medians, so that what else the machine does hits both sides.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results import RESULTS
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from transformers.initialization import no_init_weights

from demur.calibration import CalibrationSettings
from demur.calibration._refusal_direction import RefusalDirection, find_refusal_direction
from demur.calibration._study import Study
from demur.evaluation import PhraseJudge, Runner
from demur.models import ChatModel
from demur.prompts import Prompt, PromptSet
from demur.records import RunFolder
from demur.testing import tiny_tokenizer, toy_prompt_sets
from demur.types import SilentProgress

PADDED = 128256
"""Vocabulary of the random models, padded far beyond the tokenizer's, as many checkpoints' are."""


TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a:\n{% endif %}"
)
"""Five post-instruction tokens, as Llama 3's template has."""


def _config(kind: type, width: int, inner: int, layers: int, heads: int, kv_heads: int, vocabulary: int) -> Any:
    return partial(
        kind,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=width < 1024,
    )


SHAPES: dict[str, Callable[[], Any]] = {
    "tiny": _config(LlamaConfig, 64, 160, 4, 4, 2, 512),
    "125m": _config(LlamaConfig, 768, 2048, 12, 12, 4, PADDED),
    "0.5b": _config(Qwen2Config, 896, 4864, 24, 14, 2, 151936),
    "8b": _config(LlamaConfig, 4096, 14336, 32, 32, 8, PADDED),
    "32b": _config(Qwen2Config, 5120, 27648, 64, 40, 8, 152064),
    "70b": _config(LlamaConfig, 8192, 28672, 80, 64, 8, PADDED),
}
"""Shapes by name; 8b and 70b are Llama 3.1's, 0.5b and 32b Qwen 2.5's."""


def random_model(shape: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A random model, made on the device in its dtype: there is never a wider copy of it."""
    config = SHAPES[shape]()
    with torch.device(device), no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            std = 0.02
            if "o_proj" in name or "down_proj" in name:
                std /= (2 * config.num_hidden_layers) ** 0.5
            for rows in parameter.split(65536):
                rows.normal_(0, std, generator=generator)
    model.tie_weights()
    return model.requires_grad_(requires_grad=False)


def random_chat_model(
    shape: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> ChatModel:
    """The same as a chat model: byte-level tokenizer, short template, layout proved."""
    model = random_model(shape, device=device, dtype=dtype, seed=seed)
    return chat_model(model, shape)


def chat_model(model: Any, shape: str, *, header: str = "") -> ChatModel:
    """A chat model of random weights; `header` is what every prompt begins with."""
    return ChatModel(model, tiny_tokenizer(chat_template=header + TEMPLATE), f"random-{shape}")


def plant_refusal(chat: ChatModel, refused: Sequence[str], answered: Sequence[str], *, score: float = 4.0) -> int:
    """Make a random model "refuse": one row of its output head gives a token log-odds of +-`score` by prompt.

    A random model has no refusals, so no candidate could be scored. The token is a control character that no prompt
    holds; least squares finds its row from the last hidden states of these prompts, so the rest of the model is random.

    Returns:
        The refusal token.
    """
    token = int(chat.tokenizer(chr(1), add_special_tokens=False)["input_ids"][0])
    head = chat.model.get_output_embeddings()
    states: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, args: states.append(args[0][:, -1].detach()))
    try:
        encoded = chat.encode([*refused, *answered])
        batches = [encoded[start : start + 16] for start in range(0, len(encoded), 16)]
        logits = [chat.next_token_logits(chat.batch(batch)) for batch in batches]
    finally:
        handle.remove()
    others = torch.cat([torch.logsumexp(each.double(), -1) for each in logits])
    wanted = others + torch.tensor([score] * len(refused) + [-score] * len(answered), device=others.device)
    stacked = torch.cat(states).double()
    ridge = 1e-3 * stacked.pow(2).sum(-1).mean() * torch.eye(len(stacked), dtype=torch.float64, device=stacked.device)
    row = stacked.T @ torch.linalg.solve(stacked @ stacked.T + ridge / len(stacked), wanted)
    with torch.no_grad():
        head.weight[token] = row.to(head.weight)
    return token


def select_direction(
    chat: ChatModel,
    token: int,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    batch_size: int,
    layer_fraction: float = 0.8,
) -> RefusalDirection:
    """A whole selection of the refusal direction: two thirds of the prompts fit it, at most 32 of each kind score it.

    The limits remove no candidate, so nothing is saved by rejection: a model with real refusals needs less.
    """
    sets = {label: _split_set(label, texts) for label, texts in (("harmful", harmful), ("harmless", harmless))}
    settings = CalibrationSettings(
        refusal_tokens=(token,),
        induce_minimum=-100.0,
        kl_limit=1e9,
        layer_fraction=layer_fraction,
        batch_size=batch_size,
        pressure=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(chat, PhraseJudge())
        return find_refusal_direction(Study(chat, sets, settings, RunFolder(folder), runner, SilentProgress()))


def _split_set(label: Any, texts: Sequence[str]) -> PromptSet:
    bound = 2 * len(texts) // 3
    splits = ["train"] * bound + ["validation"] * (len(texts) - bound)
    prompts = tuple(Prompt(text, label, split=each) for text, each in zip(texts, splits, strict=True))  # type: ignore[arg-type]
    return PromptSet(label, "benchmark", prompts)


def prompt_texts(label: str, count: int) -> list[str]:
    """Prompts of the shipped toy sets: plain text of different lengths."""
    return [prompt.text for prompt in toy_prompt_sets()[label].prompts[:count]]  # type: ignore[index]


# Time and work --------------------------------------------------------------------------------------------------------


def in_turn(variants: Mapping[str, Callable[[], Any]], *, repeats: int, warm_up: bool = True) -> dict[str, list[float]]:
    """Seconds of each variant, `repeats` times, taking turns, in changing order."""
    if warm_up:
        for run in variants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats):
        names = list(variants) if repeat % 2 == 0 else list(variants)[::-1]
        for name in names:
            start = time.perf_counter()
            variants[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median(values: Sequence[float]) -> float:
    """Middle value."""
    return statistics.median(values)


@dataclass
class Work:
    """Counted work of a model."""

    tokens_times_layers: int = 0
    """Rows times tokens, padding included, summed over the blocks that ran."""
    generated: int = 0
    """Rows of passes over one token: steps of generation, those of rows that have ended included."""


@contextmanager
def counted(chat: ChatModel) -> Iterator[Work]:
    """Count what the blocks are given while the context is open, whoever calls the model.

    No hooks: on a model with hooks the library leaves out its own short cuts, and those are to be counted.
    """
    work = Work()

    def counting(forward: Callable[..., Any], index: int, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        stream = output if isinstance(output, Tensor) else output[0]
        tokens = stream.shape[:-1].numel()
        work.tokens_times_layers += tokens
        if index == 0 and stream.shape[-2] == 1:
            work.generated += tokens
        return output

    blocks = [chat.module.get_submodule(path) for path in chat.layout.blocks]
    for index, block in enumerate(blocks):
        block.forward = partial(counting, block.forward, index)
    try:
        yield work
    finally:
        for block in blocks:
            del block.forward


# Results --------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What one benchmark found."""

    name: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    ratios: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def ratio(self, what: str, value: float, *, at_most: float | None = None, at_least: float | None = None) -> None:
        """Add a ratio, with its target if there is one."""
        target = (
            ""
            if at_most is None and at_least is None
            else f"at most {at_most:g}"
            if at_most
            else f"at least {at_least:g}"
        )
        met = (at_most is None or value <= at_most) and (at_least is None or value >= at_least)
        self.ratios.append({"what": what, "value": value, "target": target, "met": met if target else None})

    def markdown(self) -> str:
        """Tables of the rows and of the ratios, and the notes."""
        ratios = [
            (
                each["what"],
                f"{each['value']:.3g}",
                each["target"] or "-",
                {None: "-", True: "yes", False: "no"}[each["met"]],
            )
            for each in self.ratios
        ]
        parts = [f"## {self.name}", table(self.columns, self.rows), table(("ratio", "value", "target", "met"), ratios)]
        return "\n\n".join([*parts, *self.notes]) + "\n"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table; floats with three significant digits."""
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help="a tiny shape and one repeat: does it run?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the JSON result")
    return parser


def finish(result: Result, options: argparse.Namespace) -> None:
    """Print the tables and write the JSON result, unless this was only a trial."""
    print(result.markdown())
    if options.smoke:
        return
    options.results.mkdir(parents=True, exist_ok=True)
    content = {
        "name": result.name,
        "command": " ".join(["python", *sys.argv]),
        "environment": environment(),
        "markdown": result.markdown(),
        "rows": [dict(zip(result.columns, row, strict=True)) for row in result.rows],
        "ratios": result.ratios,
    }
    path = options.results / f"{Path(sys.argv[0]).stem}.json"
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def environment() -> dict[str, str]:
    """Date, processor, threads and versions."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """What the system calls its processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
