"""Fine-tunes of the toy model that take a second, and what is needed to measure them."""

from dataclasses import dataclass
from functools import cached_property

from demur.assurance import Directions, directions_of
from demur.evaluation import PhraseJudge
from demur.models import ChatModel, FineTuning
from demur.prompts import PromptSet, assign_splits
from demur.testing import load_toy_chat_model, toy_prompt_sets, toy_settings

Rows = list[tuple[str, str]]
FAST = 1e-2
"""Learning rate at which answered borderline prompts alone take nearly all true refusals within 6 steps."""
SLOW = 1e-3
"""At which they begin to go after about 12 steps."""


def tuning(*, steps=6, rate=FAST, seed=0):
    return FineTuning(steps=steps, learning_rate=rate, batch_size=16, seed=seed)


@dataclass
class Toy:
    chat: ChatModel
    prompts: dict[str, PromptSet]
    directions: Directions

    def _answers(self, label: str, *, refused: bool) -> Rows:
        texts = [prompt.text for prompt in self.prompts[label].split("train")]
        pairs = [
            (text, each.text) for text, each in zip(texts, self.chat.generate(texts, max_new_tokens=24), strict=True)
        ]
        verdicts = PhraseJudge().judge_batch(pairs)
        return [pair for pair, each in zip(pairs, verdicts, strict=True) if (each.verdict == "full_refusal") == refused]

    @cached_property
    def eroding(self) -> Rows:
        """Benign rows only: borderline prompts that the toy answers, with its own answers."""
        return self._answers("borderline", refused=False)

    @cached_property
    def keeping(self) -> Rows:
        """The same, with harmless rows and with harmful prompts that are refused."""
        return self.eroding + self._answers("harmless", refused=False) + self._answers("harmful", refused=True)

    def true_refusals(self) -> float:
        pairs = [
            (prompt.text, answer.text)
            for prompt, answer in zip(
                self.prompts["harmful"].split("validation"),
                self.chat.generate(
                    [each.text for each in self.prompts["harmful"].split("validation")], max_new_tokens=24
                ),
                strict=True,
            )
        ]
        verdicts = PhraseJudge().judge_batch(pairs)
        return sum(each.verdict != "full_compliance" for each in verdicts) / len(verdicts)


def load_toy() -> Toy:
    chat, everything = load_toy_chat_model(), toy_prompt_sets()
    found = directions_of(chat, everything, settings=toy_settings())
    counts = {"train": 96, "validation": 40, "test": 40}
    prompts = {label: assign_splits(each, counts=counts, minimum=counts) for label, each in everything.items()}
    return Toy(chat, prompts, found)
