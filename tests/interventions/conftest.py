"""What the tests of interventions share: random directions, and a snapshot of everything a context may not change."""

import pytest
import torch

from demur.models import hook_count

PROMPTS = ["Hi", "What is the capital of France?", "Write a short poem about rivers.", "ok then"]


@pytest.fixture
def prompts():
    return PROMPTS


@pytest.fixture
def random_directions():
    """Gaussian vectors of the tiny models' width, not normalized."""

    def draw(*count, seed=0):
        return 3 * torch.randn(*count, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))

    return draw


@pytest.fixture
def greedy():
    """Token ids of greedy answers, [batch, steps], with no end token to stop at."""

    def generate(chat, texts=PROMPTS, steps=20):
        batch = chat.batch(chat.encode(texts))
        with torch.no_grad():
            output = chat.model.generate(
                **batch, max_new_tokens=steps, min_new_tokens=steps, do_sample=False, pad_token_id=chat.pad_token
            )
        return output[:, batch["input_ids"].shape[1] :]

    return generate


@pytest.fixture
def unchanged():
    """A function that fails if the model is not, object by object and bit by bit, what it was at the first call."""

    def snapshot(chat):
        parameters = dict(chat.module.named_parameters(remove_duplicate=False))
        kept = {name: (value, value.detach().clone()) for name, value in parameters.items()}
        hooks = hook_count(chat.module)
        batch = chat.batch(chat.encode(PROMPTS))
        logits = chat.next_token_logits(batch)

        def check():
            now = dict(chat.module.named_parameters(remove_duplicate=False))
            assert now.keys() == kept.keys()
            for name, (value, copy) in kept.items():
                assert now[name] is value, name
                assert torch.equal(value, copy), name
            assert hook_count(chat.module) == hooks
            assert torch.equal(chat.next_token_logits(batch), logits)

        return check

    return snapshot
