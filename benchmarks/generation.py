"""Generation: answers whose rows leave when they are done and share their prompts, against transformers' `generate`.

The same answers of the toy model both ways, in one process: test prompts, and harmful ones under all conditions
of pressure. `generate` is given each condition by itself, in batches of the same size.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest import mock

from _common import Result, arguments, counted, finish, in_turn, median

from demur.evaluation import PhraseJudge, Runner, applicable_conditions, measure_pressure
from demur.models import ChatModel
from demur.models import _generation as generation
from demur.models._decoding_proof import PLAIN
from demur.prompts import Prompt
from demur.records import BASE_MODEL
from demur.testing import load_toy_chat_model, toy_prompt_sets
from demur.types import SilentProgress

BATCH, LONGEST = 128, 32


def main() -> None:
    """Both jobs, both ways."""
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=160, help="of each kind")
    parser.set_defaults(repeats=3)
    options = parser.parse_args()
    if options.smoke:
        options.prompts, options.repeats = 3, 1
    chat = load_toy_chat_model()
    sets = [prompts.split("test")[: options.prompts] for prompts in toy_prompt_sets().values()]
    harmful = toy_prompt_sets()["harmful"].split("test")[: options.prompts]
    result = Result("Generation", ("job", "how", "answers", "tokens", "seconds", "tokens x layers"))
    measure(result, chat, "test prompts", partial(test_prompts, sets=sets), partial(test_prompts, sets=sets), options)
    measure(result, chat, "pressure", partial(together, harmful=harmful), partial(one_by_one, harmful=harmful), options)
    finish(result, options)


def test_prompts(runner: Runner, *, sets: Sequence[Sequence[Prompt]]) -> None:
    """Plain answers."""
    for prompts in sets:
        runner.complete(prompts, condition=BASE_MODEL, split="test")


def together(runner: Runner, *, harmful: Sequence[Prompt]) -> None:
    """All conditions, as a calibration asks them."""
    measure_pressure(runner, harmful, None, variants={}, progress=SilentProgress())


def one_by_one(runner: Runner, *, harmful: Sequence[Prompt]) -> None:
    """All conditions, each by itself, every answer to its end."""
    for condition in applicable_conditions(runner.chat)[0]:
        runner.complete(harmful, condition=BASE_MODEL, split="test", intervention=condition.rounding, asking=condition)


@contextmanager
def by_generate() -> Iterator[None]:
    """Decode by transformers' own loop."""
    with mock.patch.object(generation, "proved_decoding", lambda *_: PLAIN):
        yield


def measure(
    result: Result,
    chat: ChatModel,
    job: str,
    ours: Callable[[Runner], None],
    naive: Callable[[Runner], None],
    options: Any,
) -> None:
    """One job, both ways; the rates must be equal."""
    runners: dict[str, Runner] = {}

    def new(how: str) -> Runner:
        runners[how] = Runner(chat, PhraseJudge(), max_new_tokens=LONGEST, batch_size=BATCH)
        return runners[how]

    def run_ours() -> None:
        ours(new("demur"))

    def run_naive() -> None:
        with by_generate():
            naive(new("generate"))

    seconds = in_turn({"demur": run_ours, "generate": run_naive}, repeats=options.repeats)
    refused = {}
    for how, run in (("demur", run_ours), ("generate", run_naive)):
        with counted(chat) as work:
            run()
        records = list(runners[how]._known.values())
        refused[how] = sorted(
            (each.condition, each.prompt_sha256, each.verdict != "full_compliance") for each in records
        )
        tokens = sum(each.n_tokens + each.ended for each in records)
        result.rows.append((job, how, len(records), tokens, median(seconds[how]), work.tokens_times_layers))
    assert refused["demur"] == refused["generate"], "the two ways disagree about refusals"
    ratios = [one / two for one, two in zip(seconds["generate"], seconds["demur"], strict=True)]
    result.ratio(f"{job}: seconds of generate / demur", median(ratios))


if __name__ == "__main__":
    main()
