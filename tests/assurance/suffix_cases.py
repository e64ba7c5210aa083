"""The toy's refusal direction without a search for it, and small settings, for tests of suffixes and of model pairs."""

from demur.activations import mean_activations
from demur.assurance import Directions, SuffixSearchSettings, SuffixSettings
from demur.directions import Direction, difference_in_means
from demur.evaluation import discover_refusal_tokens, next_token_logits
from demur.prompts import assign_splits
from demur.testing import toy_prompt_sets

LAYER, POSITION = 2, -1
SEARCH = SuffixSearchSettings(n_tokens=8, n_prompts=6, steps=5, candidates=20)
SETTINGS = SuffixSettings(n_prompts=20, max_new_tokens=12, batch_size=64, search=SEARCH)
GIVEN = "thank you very much"


def few_prompts():
    counts = {"train": 48, "validation": 16, "test": 24}
    return {
        label: assign_splits(prompts, counts=counts, minimum=counts)
        for label, prompts in toy_prompt_sets().items()
        if label != "borderline"
    }


def toy_directions(chat, prompts):
    means = [
        mean_activations(chat, [prompt.text for prompt in prompts[label].split("train")], n_positions=1)
        for label in ("harmful", "harmless")
    ]
    logits = [
        next_token_logits(chat, [prompt.text for prompt in prompts[label].split("validation")])
        for label in ("harmful", "harmless")
    ]
    tokens = tuple(token.id for token in discover_refusal_tokens(chat, *logits))
    return Directions(
        Direction(difference_in_means(*means)[0, LAYER], POSITION, LAYER),
        None,
        tokens,
        "difference in means, for tests",
    )
