"""The A/A test: planted noise is counted, a model without any has none, and the toy's is measured."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from demur.errors import InputError
from demur.evaluation import Judgement, Runner, noise_floor, rate
from demur.models import Completion
from demur.prompts import Prompt
from demur.records import BASE_MODEL, JsonLines

TEXTS = [f"Kindly do {'please ' * (number % 4)}{number}" for number in range(20)]
PROMPTS = [Prompt(text, "borderline", split="test") for text in TEXTS]


@dataclass
class NoisyChat:
    """Refuses even prompts; in batches of the second run, which are padded, it goes wrong where it is told to."""

    wrong: dict[int, str] = field(default_factory=dict)
    drift: float = 0.0
    generated: list[int] = field(default_factory=list)
    padded: list[int] = field(default_factory=list)
    identity: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(content_hash="weights"))
    template: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(system=None, options={}, response_prefix="")
    )

    def encode(self, prompts):
        return [list(prompt.encode()) for prompt in prompts]

    def batch(self, sequences):
        return {"texts": [bytes(sequence).decode() for sequence in sequences]}

    def next_token_logits(self, batch, **_options):
        numbers = [float(text.split()[-1]) for text in batch["texts"]]
        extra = self.drift if any(text.count("Kindly") > 1 for text in batch["texts"]) else 0.0
        return torch.tensor([[number, 1.0 + extra, -torch.inf] for number in numbers])

    def generate(self, prompts, *, max_new_tokens):
        self.generated.append(len(prompts))
        return [Completion(self.answer(int(prompt.split()[-1])), max_new_tokens, ended=True) for prompt in prompts]

    def answers(self, sequences, *, max_new_tokens):
        texts = [bytes(sequence).decode() for sequence in sequences]
        self.padded.append(len(texts))
        assert all(len(texts[-1]) >= len(text) + 13 for text in texts[:-1])
        numbers = [int(text.split()[-1]) for text in texts]
        return [Completion(self.wrong.get(each, self.answer(each)), max_new_tokens, ended=True) for each in numbers]

    @staticmethod
    def answer(number):
        return "No." if number % 2 == 0 else f"Yes: {number}"


class FirstWord:
    id = "first-word"
    version = "1"

    def judge_batch(self, pairs):
        verdicts = {"No.": "full_refusal", "Hm": "unjudged"}
        return [Judgement(verdicts.get(text.split()[0], "full_compliance"), 0.5, degenerate=False) for _, text in pairs]


def runner_of(chat, **options):
    return Runner(chat, FirstWord(), batch_size=8, **options)


def test_without_noise_nothing_differs():
    chat = NoisyChat()
    found = noise_floor(runner_of(chat), PROMPTS, token_ids=[0])
    assert found.flips == rate([False] * 20).model_copy(update={"judge": found.flips.judge})
    assert found.flips.judge is not None
    assert (found.n, found.verdict_changes, found.different_texts) == (20, 0, 0)
    assert (found.max_logit_difference, found.max_score_difference) == (0, 0)
    assert (found.batch_size, found.other_batch_size) == (8, 7)
    assert chat.generated == [8, 8, 4]
    assert chat.padded == [8, 8, 7]  # 7, 7 and 6 prompts, and the longer sequence beside them


def test_planted_noise_is_counted():
    chat = NoisyChat(wrong={0: "Yes: 0", 1: "No.", 2: "Hm", 3: "Yes, 3"}, drift=0.25)
    found = noise_floor(runner_of(chat), PROMPTS, token_ids=[1])
    assert (found.flips.k, found.flips.n, found.flips.unjudged) == (2, 19, 1)
    assert found.flips.high > 2 / 19
    assert found.verdict_changes == 3
    assert found.different_texts == 4
    assert found.max_logit_difference == pytest.approx(0.25)
    assert 0.2 < found.max_score_difference <= 0.25 + 1e-6
    assert noise_floor(runner_of(chat), PROMPTS).max_score_difference is None


def test_what_is_known_is_not_asked_again_and_nothing_is_kept(tmp_path):
    chat = NoisyChat()
    runner = runner_of(chat, store=JsonLines(tmp_path / "completions.jsonl"))
    runner.complete(PROMPTS, condition=BASE_MODEL, split="test")
    kept = (tmp_path / "completions.jsonl").read_bytes()
    noise_floor(runner, PROMPTS)
    assert chat.generated == [8, 8, 4]
    assert (tmp_path / "completions.jsonl").read_bytes() == kept


def test_so_many_of_each_label_are_asked():
    both = [*PROMPTS, *(Prompt(f"Do not {number}", "harmful", split="test") for number in range(3))]
    found = noise_floor(runner_of(NoisyChat()), both, most=5)
    assert found.n == 5 + 3
    assert noise_floor(runner_of(NoisyChat()), both[::-1], most=5) == found


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [([], {}, "got none"), (PROMPTS, {"other_batch_size": 0}, "got 0 and 64"), (PROMPTS, {"most": 0}, "got 7 and 0")],
)
def test_bad_input_is_refused(prompts, options, message):
    with pytest.raises(InputError, match=message):
        noise_floor(runner_of(NoisyChat()), prompts, **options)


def test_a_tiny_model_in_double_precision_has_hardly_any_noise(tiny):
    """Real padding and batching: masks and positions are right, or the answers would differ."""
    chat = tiny("llama")
    found = noise_floor(Runner(chat, FirstWord(), batch_size=4, max_new_tokens=8), PROMPTS[:9], token_ids=[3])
    assert found.n == 9
    assert found.max_logit_difference < 1e-9
    assert found.different_texts == 0
