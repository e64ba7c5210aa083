"""Selecting the refusal direction: ours against a naive sweep written from the paper, and against a floor.

    python benchmarks/selection.py                                   # naive sweep sampled where it takes an hour
    python benchmarks/selection.py --shapes 0.5b --sample 0          # every naive candidate

Same model, prompts, candidates and limits. The naive sweep is that of the published pipeline: bypass, induce and KL of
every candidate of every layer, one candidate at a time, 32 prompts in a batch, logits of all positions in float64.
On the largest shape it is timed on a random sample of its candidates and multiplied. The floor replays the forward
passes that ours ran (rows, tokens, blocks) on the bare model: no hooks, no cache, no scores; every third of them
where they are many, multiplied by their work.

Random weights refuse nothing. So a refusal token is planted (its row of the output head is fitted to prompts), and the
limits are set at quantiles of scores on a few prompts, so that induce removes about seven in ten candidates and KL
about three in ten of the others, as in the published tables. Prompts and header are cut to the lengths that a subword
tokenizer would give (a header of 24 tokens is what Qwen 2.5's template has).
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _common import (
    SHAPES,
    Result,
    Work,
    arguments,
    counted,
    finish,
    median,
    plant_refusal,
    prompt_texts,
    random_model,
)
from torch import Tensor

from demur.activations import mean_activations
from demur.calibration import CalibrationSettings, select_refusal_direction
from demur.calibration._refusal_direction import _score
from demur.calibration._selection import ScoreRow
from demur.calibration._study import Study
from demur.directions import difference_in_means
from demur.evaluation import PhraseJudge, Runner
from demur.interventions import ablating_rows
from demur.models import ChatModel, PartialForward
from demur.prompts import Prompt, PromptSet
from demur.records import RunFolder
from demur.testing import load_toy_chat_model, tiny_tokenizer, toy_settings
from demur.types import SilentProgress

HEADERS = {"tiny": "s", "125m": "s", "0.5b": "You are a helpful model."}
TEMPLATE = (
    "<|im_start|>HEADER{% for message in messages %}{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a:\n{% endif %}"
)
COLUMNS = ("model", "what", "seconds", "tokens x layers", "candidates")
INDUCE_SHARE, KL_SHARE = 0.7, 0.3
KL_SAMPLE, KL_PROMPTS = 10, 6
N_TRAIN = 24
MANY_PASSES = 60
LARGEST = "0.5b"


@dataclass
class Case:
    """One model with prompts, candidates and limits."""

    name: str
    chat: ChatModel
    prompts: dict[Any, PromptSet]
    settings: CalibrationSettings
    candidates: Tensor = field(init=False)

    def study(self, folder: Path, **changes: Any) -> Study:
        """A fresh study in a folder."""
        settings = replace(self.settings, **changes)
        runner = Runner(self.chat, PhraseJudge())
        return Study(self.chat, self.prompts, settings, RunFolder(folder), runner, SilentProgress())


def make_case(shape: str, n_scored: int) -> Case:
    """Load or draw the model, fit the candidates, set the limits."""
    texts = {label: prompt_texts(label, 600) for label in ("harmful", "harmless")}
    if shape == "toy":
        chat, settings = load_toy_chat_model(), toy_settings()
        tokens = None
    else:
        tokenizer = tiny_tokenizer(chat_template=TEMPLATE.replace("HEADER", HEADERS[shape]))
        chat = ChatModel(random_model(shape), tokenizer, f"random-{shape}")
        lengths = random.Random(0)
        texts = {label: [text[: lengths.randint(10, 24)] for text in each] for label, each in texts.items()}
        texts = {label: list(dict.fromkeys(each))[: N_TRAIN + n_scored] for label, each in texts.items()}
        tokens = (plant_refusal(chat, texts["harmful"], texts["harmless"]),)
        settings = CalibrationSettings(batch_size=64)
    prompts = {label: _set(label, each[: N_TRAIN + n_scored]) for label, each in texts.items()}
    settings = replace(settings, n_scored=n_scored, refusal_tokens=tokens or _toy_tokens(chat, prompts, settings))
    case = Case(shape, chat, prompts, settings)
    with tempfile.TemporaryDirectory() as folder:
        study = case.study(Path(folder))
        means = {
            label: mean_activations(
                chat, study.fitted_prompts(label, refused=refused), n_positions=len(study.positions)
            )
            for label, refused in (("harmful", True), ("harmless", False))
        }
    case.candidates = difference_in_means(means["harmful"], means["harmless"])
    if shape != "toy":
        case.settings = replace(case.settings, **_limits(case))
    return case


def _toy_tokens(chat: ChatModel, prompts: dict[Any, PromptSet], settings: CalibrationSettings) -> tuple[int, ...]:
    with tempfile.TemporaryDirectory() as folder:
        study = Study(chat, prompts, settings, RunFolder(folder), Runner(chat, PhraseJudge()), SilentProgress())
        return tuple(study.token_ids)


def _set(label: Any, texts: list[str]) -> PromptSet:
    splits: list[Any] = ["train"] * N_TRAIN + ["validation"] * (len(texts) - N_TRAIN)
    return PromptSet(label, "benchmark", tuple(Prompt(t, label, split=s) for t, s in zip(texts, splits, strict=True)))


def _limits(case: Case) -> dict[str, float]:
    """Quantiles of the scores: induce on two prompts, KL on more of them and a sample of what induce leaves."""
    rows = _loose_scores(case, case.candidates, 2)
    minimum = sorted(row.induce or 0.0 for row in rows)[int(INDUCE_SHARE * len(rows))]
    left = [row for row in rows if (row.induce or 0.0) >= minimum]
    some = torch.zeros_like(case.candidates)  # a zero direction is never run
    for row in random.Random(0).sample(left, min(KL_SAMPLE, len(left))):
        some[row.position, row.layer] = case.candidates[row.position, row.layer]
    kl = sorted(row.kl or 0.0 for row in _loose_scores(case, some, KL_PROMPTS))
    return {"induce_minimum": minimum, "kl_limit": kl[int((1 - KL_SHARE) * len(kl))]}


def _loose_scores(case: Case, candidates: Tensor, n_scored: int) -> list[ScoreRow]:
    n_scored = min(n_scored, case.settings.n_scored)
    with tempfile.TemporaryDirectory() as folder:
        loose = case.study(Path(folder), n_scored=n_scored, induce_minimum=-100.0, kl_limit=1e9)
        return [row for row in _score(loose, candidates) if row.kl]


# What is timed --------------------------------------------------------------------------------------------------------


@contextmanager
def recorded(chat: ChatModel) -> Iterator[list[tuple[int, int, int]]]:
    """Every forward pass that runs: rows, tokens, blocks."""
    passes: list[tuple[int, int, int]] = []

    def note(_module: Any, _args: Any, kwargs: Any) -> None:
        passes.append((*kwargs["input_ids"].shape, chat.n_layers))

    def skipped(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
        if (output if isinstance(output, Tensor) else output[0]) is (args[0] if args else kwargs["hidden_states"]):
            rows, tokens, blocks = passes[-1]
            passes[-1] = rows, tokens, blocks - 1

    blocks = [chat.module.get_submodule(path) for path in chat.layout.blocks]
    handles = [chat.module.register_forward_pre_hook(note, with_kwargs=True)]
    handles += [block.register_forward_hook(skipped, with_kwargs=True) for block in blocks]
    try:
        yield passes
    finally:
        for handle in handles:
            handle.remove()


def replay(chat: ChatModel, passes: list[tuple[int, int, int]]) -> float:
    """Seconds of the same passes on the bare model, whose last block reads as little as it may."""
    proved = PartialForward.of(chat, [[1, 2, 3], [4, 5, 6, 7]], partial(ablating_rows, chat))
    bare = PartialForward(chat, tail=proved.tail)
    bare.advanced([[1, 2]], 0, rows=1)  # learns what the blocks return
    replayed = passes[::3] if len(passes) > MANY_PASSES else passes
    work, done = (sum(rows * tokens * blocks for rows, tokens, blocks in each) for each in (passes, replayed))
    start = time.perf_counter()
    with bare._ending():
        for rows, tokens, blocks in replayed:
            batch = {"input_ids": torch.ones(rows, tokens, dtype=torch.long)}
            batch["attention_mask"] = torch.ones_like(batch["input_ids"])
            if blocks < chat.n_layers:
                stream = torch.ones(rows, tokens, chat.layout.d_model, dtype=chat.layout.dtype)
                with bare._running(chat.n_layers - blocks, stream if blocks else None):
                    chat.next_token_logits(batch, check=False)
            else:
                chat.next_token_logits(batch, check=False)
    return (time.perf_counter() - start) * work / done


def ours(case: Case) -> tuple[float, list[ScoreRow]]:
    """Seconds of the scoring and its rows. The base model's logits are a part of neither side."""
    with tempfile.TemporaryDirectory() as folder:
        study = case.study(Path(folder))
        study.scored_validation("harmful", refused=True)
        study.scored_validation("harmless", refused=False)
        start = time.perf_counter()
        rows = _score(study, case.candidates)
        return time.perf_counter() - start, rows


def naive_sweep(case: Case) -> Any:
    """The oracle of the tests, on the same prompts."""
    import sys  # noqa: PLC0415 (the oracle lives with the tests)

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "calibration"))
    from naive_sweep import NaiveSweep  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        study = case.study(Path(folder))
        harmful = study.encode("harmful", "validation", study.scored_validation("harmful", refused=True))
        harmless = study.encode("harmless", "validation", study.scored_validation("harmless", refused=False))
    blocks = [case.chat.module.get_submodule(path) for path in case.chat.layout.blocks]
    return NaiveSweep(case.chat.model, blocks, harmful, harmless, case.settings.refusal_tokens or (), batch=32)


def naive_row(case: Case, naive: Any, place: tuple[int, int]) -> ScoreRow:
    """All three scores of one candidate."""
    vector, layer = case.candidates[place], place[1]
    scores = naive.bypass(vector), naive.induce(vector, layer), naive.kl(vector)
    return ScoreRow(*place, *(sum(each) / len(each) for each in scores))


def measure(case: Case, result: Result, options: argparse.Namespace) -> None:
    """One model: times in turn, work, agreement."""
    positions, n_layers, _ = case.candidates.shape
    everything = [(p - positions, layer) for p in range(positions) for layer in range(n_layers)]
    alive = [place for place in everything if case.candidates[place].norm() > 1e-8]
    most = options.sample if options.sample and (case.name == LARGEST or options.smoke) else len(alive)
    sample = random.Random(0).sample(alive, min(most, len(alive)))
    naive = naive_sweep(case)
    table: list[ScoreRow] = []
    naive_work, rows = Work(), list[ScoreRow]()
    seconds: dict[str, list[float]] = {"ours": [], "floor": [], "naive": []}
    turns = [sample[turn :: options.repeats] for turn in range(options.repeats)]
    for turn in turns:
        with counted(case.chat) as counting:
            start = time.perf_counter()
            table += [naive_row(case, naive, place) for place in turn]
            seconds["naive"].append((time.perf_counter() - start) / len(turn) * len(everything))
        naive_work.tokens_times_layers += counting.tokens_times_layers
        with recorded(case.chat) as passes, counted(case.chat) as work:
            spent, rows = ours(case)
        seconds["ours"].append(spent)
        seconds["floor"].append(replay(case.chat, passes))
    times = {name: median(values) for name, values in seconds.items()}
    total = naive_work.tokens_times_layers * len(everything) // len(sample)
    result.rows += [
        (case.name, "naive sweep", times["naive"], total, len(everything)),
        (case.name, "ours", times["ours"], work.tokens_times_layers, len(rows)),
        (case.name, "floor of ours", times["floor"], work.tokens_times_layers, len(rows)),
    ]
    target = {"at_least": 10.0} if case.name == LARGEST else {}
    result.ratio(f"{case.name}: naive / ours, seconds", times["naive"] / times["ours"], **target)
    result.ratio(f"{case.name}: naive / ours, tokens x layers", total / work.tokens_times_layers)
    floor = median([one / two for one, two in zip(seconds["ours"], seconds["floor"], strict=True)])
    result.ratio(f"{case.name}: ours / floor", floor, at_most=1.25 if case.name == LARGEST else None)
    result.notes.append(_agreement(case, rows, table, whole=len(sample) == len(alive), n=len(everything)))


def _agreement(case: Case, rows: list[ScoreRow], table: list[ScoreRow], *, whole: bool, n: int) -> str:
    limits = {
        "n_layers": case.chat.n_layers,
        "kl_limit": case.settings.kl_limit,
        "induce_minimum": case.settings.induce_minimum,
    }
    selection = select_refusal_direction(rows, **limits)
    place = selection.selected.position, selection.selected.layer
    known = {(row.position, row.layer): row for row in rows}
    differences = [
        abs(value - getattr(other, name))
        for other in table
        for name in ("bypass", "induce", "kl")
        if (row := known.get((other.position, other.layer))) and (value := getattr(row, name)) is not None
    ]
    same = "the naive sweep was sampled, so its choice is not known"
    if whole:
        found = select_refusal_direction(table, **limits).selected
        same = f"the naive sweep chooses {'the same' if (found.position, found.layer) == place else 'ANOTHER'}"
    filters = {name: sum(name in row.rejected_by for row in selection.candidates) for name in ("induce", "kl")}
    unfinished = sum(one.bypass_score is None for one in selection.candidates if not one.rejected_by)
    return (
        f"{case.name}: ours chooses position {place[0]}, layer {place[1]}; {same}. Largest difference of "
        f"{len(differences)} scores that both report: {max(differences, default=0.0):.1e}. Naive candidates run: "
        f"{len(table)} of {n}. Removed by induce {filters['induce']}, by kl {filters['kl']}; stopped as they could "
        f"not win {unfinished}; limits: induce {case.settings.induce_minimum:.3g}, KL {case.settings.kl_limit:.3g}."
    )


def main() -> None:
    """Measure the asked shapes."""
    parser = arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--shapes", default="toy,125m,0.5b", help=f"of: toy, {', '.join(SHAPES)}")
    parser.add_argument("--prompts", type=int, default=16, help="validation prompts of each kind")
    parser.add_argument("--sample", type=int, default=4, help=f"naive candidates timed on {LARGEST}; 0: all of them")
    parser.set_defaults(repeats=2)
    options = parser.parse_args()
    if options.smoke:
        options.shapes, options.prompts, options.sample, options.repeats = "tiny", 4, 2, 1
    result = Result("Selection of the refusal direction", COLUMNS)
    for shape in options.shapes.split(","):
        measure(make_case(shape, options.prompts), result, options)
        finish(result, options)  # after each, as the largest takes most of an hour


if __name__ == "__main__":
    main()
