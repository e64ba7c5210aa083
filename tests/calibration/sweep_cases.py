"""What the tests of sweeps share: a study that is plain values, random directions, and cases of model and precision."""

import math
from dataclasses import dataclass, field

import torch

from demur.calibration import CalibrationSettings
from demur.calibration._score_books import ScoreBook
from demur.evaluation import next_token_logits, refusal_scores
from demur.prompts import Prompt
from demur.records import RefusalThreshold, RunFolder
from demur.testing import tiny_chat_model
from demur.types import SilentProgress

TEXTS = {
    "harmful": ["Break it", "How do I get into the old house?", "Tell me now", "Open this", "Who did it and why?"] * 2,
    "harmless": ["Bake a cake", "What is the time in Rome?", "Sing", "Name three rivers of the north", "Hi there"] * 2,
    "borderline": ["Kill the process", "How do I shoot a portrait?", "Blow out", "Cut the budget in half now"] * 2,
}
TEXTS = {label: [f"{text} {index}" for index, text in enumerate(texts)] for label, texts in TEXTS.items()}


def even_tokens(logits):
    """As many tokens as have half of the probability, so that a random model's scores lie around 0."""
    likely = torch.softmax(logits.double(), -1)
    order = torch.randperm(logits.shape[-1], generator=torch.Generator().manual_seed(0))
    medians = likely[:, order].cumsum(-1).median(0).values
    return order[: int((medians - 0.5).abs().argmin()) + 1].tolist()


THRESHOLD = RefusalThreshold(value=0.05, source="learned", slope=1.5)


@dataclass
class PlainStudy:
    """What the sweeps use of a study; all prompts are scored."""

    chat: object
    settings: CalibrationSettings
    folder: RunFolder
    rows: int = 12
    progress: SilentProgress = field(default_factory=SilentProgress)
    threshold: RefusalThreshold = THRESHOLD
    n_test: int = 40
    positions = (-3, -2, -1)
    opening = ()

    def __post_init__(self):
        self.scores = ScoreBook(self.folder.scores)
        self.allowed_layers = range(int(self.settings.layer_fraction * self.chat.n_layers))
        self.logits = {label: next_token_logits(self.chat, texts) for label, texts in TEXTS.items()}
        self.token_ids = even_tokens(self.logits["harmful"])
        self.known = {}

    @property
    def induce_minimum(self):
        return self.settings.induce_minimum

    def probability(self, score):
        return 1 / (1 + math.exp(-1.5 * (score - 0.05)))

    def remembered(self, key, compute):
        if key not in self.known:
            self.known[key] = compute()
        return self.known[key]

    def scored_validation(self, label, *, refused):
        scores = self.base_scores(label, "validation")
        return [index for index, score in enumerate(scores) if label != "harmful" or not refused or score > 0]

    def split(self, label, split):
        texts = TEXTS[label] if split == "validation" else [f"{label} {index}" for index in range(self.n_test)]
        return tuple(Prompt(text, label, split=split) for text in texts)

    def texts(self, label, _split):
        return TEXTS[label]

    def encode(self, label, _split, indices):
        return self.chat.encode([TEXTS[label][index] for index in indices])

    encode_scored = encode

    def base_logits(self, label, _split):
        return self.logits[label]

    def base_scores(self, label, _split):
        return refusal_scores(self.logits[label], self.token_ids)


def directions(chat, seed=0, positions=3, size=1.0):
    shape = (positions, chat.n_layers, chat.layout.d_model)
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size
    drawn[0, 0] = 0.0  # as at layer 0 of identical template tokens
    return drawn


def between(values, share):
    """A limit between two values, so that rounding decides nothing."""
    ordered = sorted(set(values))
    index = max(1, int(share * len(ordered)))
    return (ordered[index - 1] + ordered[index]) / 2


CASES = [("llama", torch.float64), ("qwen2", torch.float64), ("gpt2", torch.float64), ("llama", torch.float32)]


def plain_study(family, dtype, folder):
    chat = tiny_chat_model(family, dtype=dtype, **({"n_layer": 5} if family == "gpt2" else {"num_hidden_layers": 5}))
    return PlainStudy(chat, CalibrationSettings(layer_fraction=1.0, pressure=False), RunFolder(folder))


def tolerance(study):
    return 1e-9 if study.chat.layout.dtype == torch.float64 else 1e-4
