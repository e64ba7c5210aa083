"""Our decoding gives the tokens of transformers' `generate`, whatever rows leave, repeat or share."""

import pytest
import torch

from demur.models import Continuation
from demur.models import _generation as generation
from demur.models._decoding import Stream, common_prefix
from demur.models._decoding_proof import PLAIN, Decoding, proved_decoding
from demur.models._generation import answers_to, generate_answers, pad_batch
from demur.testing import load_toy_chat_model, tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
HEAD = [1, 50, 60, 70]
PROMPTS = [
    HEAD + [(7 * number + 11 * place) % 230 + 3 for place in range(length)]
    for number, length in enumerate((5, 17, 9, 3))
]
WAYS = [
    [Continuation(), Continuation((5, 6, 7)), Continuation((), number), Continuation((8,), 9)] for number in range(4)
]
# Full, sliding and latent attention; absolute positions, ALiBi; experts; state spaces; caches of several kinds.
OWN = {
    "llama": True,
    "gpt2": True,
    "opt": True,
    "deepseek_v3": True,
    "qwen2_moe": True,
    "gemma3_text": False,
    "gpt_oss": False,
    "mamba2": False,
    "lfm2_moe": False,
    "zamba2": False,
}
"""Family -> whether the common beginning of prompts is shared too."""


def tokens_of(model, sequences=PROMPTS, ways=WAYS, **more):
    answers = answers_to(model, TOKENIZER, sequences, ways, pad=0, **{"max_new_tokens": 16, **more})
    return [[answer.tokens for answer in each] for each in answers]


@pytest.fixture
def by_generate(monkeypatch):
    """Answers by transformers' own loop."""

    def run(model, *args, **more):
        with monkeypatch.context() as patched:
            patched.setattr(generation, "proved_decoding", lambda *_: PLAIN)
            return tokens_of(model, *args, **more)

    return run


@pytest.mark.parametrize("family", OWN)
def test_tokens_are_those_of_generate(family, by_generate):
    model = tiny_model(family)
    expected = by_generate(model)
    # Tokens that end answers at different steps, so that rows leave one after the other.
    model.generation_config.eos_token_id = sorted(
        {each[min(number, len(each) - 1)] for number, row in enumerate(expected) for each in row}
    )[:4]
    expected = by_generate(model)
    assert len({len(answer) for row in expected for answer in row}) > 3
    assert tokens_of(model) == expected
    assert proved_decoding(model, PROMPTS[0]) == Decoding(own=True, shared_prefix=OWN[family])


def test_what_is_asked_together_is_what_is_asked_alone():
    model = tiny_model("llama")
    together = tokens_of(model)
    alone = [
        [tokens_of(model, [prompt], [[way]])[0][0] for way in ways] for prompt, ways in zip(PROMPTS, WAYS, strict=True)
    ]
    assert together == alone
    assert len({answer for row in together for answer in row}) == 16


def test_steps_follow_the_longest_answer_and_rows_the_sum_of_lengths(monkeypatch, by_generate):
    model = tiny_model("llama")
    first = by_generate(model, ways=[[Continuation()]] * 4)
    model.generation_config.eos_token_id = [first[0][0][1], first[1][0][5]]
    lengths = [len(answer) for (answer,) in by_generate(model, ways=[[Continuation()]] * 4)]
    rows = []
    real = Stream.step
    monkeypatch.setattr(Stream, "step", lambda self, tokens: (rows.append(len(tokens)), real(self, tokens))[1])
    proved_decoding(model, PROMPTS[0])
    rows.clear()
    tokens_of(model, ways=[[Continuation()]] * 4)
    assert len(rows) == max(lengths) - 1
    assert sum(rows) == sum(length - 1 for length in lengths)


def test_prompts_are_read_once_and_their_common_beginning_too(monkeypatch):
    model = tiny_model("llama")
    proved_decoding(model, PROMPTS[0])
    read = []
    real = Stream._read
    monkeypatch.setattr(Stream, "_read", lambda self, ids, at: (read.append(tuple(ids.shape)), real(self, ids, at))[1])
    tokens_of(model, max_new_tokens=1, ways=[[Continuation((), 1), Continuation((), 2), Continuation((), 3)]] * 4)
    assert read == [(1, len(HEAD)), (4, 17)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 2, 3, 4], [1, 2, 5]], 2),
        ([[1, 2, 3], [1, 2, 3]], 2),  # every row goes on after what is shared
        ([[1, 2, 3], [1]], 0),
        ([[1, 2], [3, 2]], 0),
        ([[0, 0, 7], [0, 0, 0, 8]], 2),  # the token that pads is a token
        ([[1, 2, 3]], 0),
    ],
)
def test_the_common_beginning_of_a_batch(rows, expected):
    assert common_prefix(pad_batch(rows, pad=0, side="left", device=torch.device("cpu"))) == expected


class Forgetful:
    """A cache that does not follow when rows are moved."""

    def __init__(self, cache):
        self._cache = cache

    def __getattr__(self, name):
        return getattr(self._cache, name)

    def reorder_cache(self, rows):
        self._cache.reorder_cache(torch.arange(len(rows)).clamp_max(1))


def test_a_cache_that_does_not_follow_its_rows_is_not_used(monkeypatch, by_generate):
    model = tiny_model("llama")
    real = Stream.select

    def select(self, rows):
        self._cache = Forgetful(self._cache)
        real(self, rows)
        self._cache = self._cache._cache

    monkeypatch.setattr(Stream, "select", select)
    assert proved_decoding(model, PROMPTS[0]) == PLAIN
    assert tokens_of(model) == by_generate(model)


def test_a_model_whose_padding_counts_is_left_to_generate():
    """Sparse attention takes the best few of all places, those of padding too."""
    assert proved_decoding(tiny_model("deepseek_v32"), PROMPTS[1]) == PLAIN


def test_a_model_that_reads_a_step_otherwise_than_a_pass_is_left_to_generate():
    assert proved_decoding(tiny_model("moshi"), PROMPTS[1]) == PLAIN


def test_hooks_may_hold_a_value_per_row_so_nothing_moves_while_there_are_any():
    model = tiny_model("llama")
    assert proved_decoding(model, PROMPTS[0]).own
    handle = model.model.layers[0].register_forward_hook(lambda *_: None)
    assert proved_decoding(model, PROMPTS[0]) == PLAIN
    handle.remove()
    assert proved_decoding(model, PROMPTS[0]).own


def test_the_proof_leaves_the_generation_config_and_the_random_numbers():
    model = tiny_model("llama")
    own, state = model.generation_config, torch.random.get_rng_state()
    proved_decoding(model, PROMPTS[0])
    assert model.generation_config is own
    assert torch.equal(state, torch.random.get_rng_state())


def test_shared_beginnings_are_not_used_where_attention_is_limited_in_length():
    assert proved_decoding(tiny_model("llama", sliding_window=None), PROMPTS[0]).shared_prefix
    assert not proved_decoding(tiny_model("mistral"), PROMPTS[0]).shared_prefix


@pytest.mark.parametrize("own", [True, False])
def test_a_settled_answer_stops(own, monkeypatch):
    model = tiny_model("llama")
    if not own:
        monkeypatch.setattr(generation, "proved_decoding", lambda *_: PLAIN)
    whole = generate_answers(model, TOKENIZER, PROMPTS, pad=0, max_new_tokens=16)
    seen = []

    def after(length):
        def settled(text):
            seen.append(text)
            return len(TOKENIZER.encode(text)) >= 0 and len(seen_of(text, whole)) >= length

        return settled

    checks = [after(0), lambda _: False, after(6), lambda _: False]
    stopped = generate_answers(model, TOKENIZER, PROMPTS, pad=0, max_new_tokens=16, settled=checks)
    assert [answer.settled for answer in stopped] == [True, False, True, False]
    assert [answer.n_tokens for answer in stopped] == [4, 16, 8, 16]
    assert not stopped[0].ended
    for one, two in zip(stopped, whole, strict=True):
        assert one.tokens == two.tokens[: one.n_tokens]
    assert [stopped[1], stopped[3]] == [whole[1], whole[3]]


def seen_of(text, whole):
    """The tokens of an answer so far."""
    for answer in whole:
        for length in range(1, len(answer.tokens) + 1):
            if TOKENIZER.decode(answer.tokens[:length], skip_special_tokens=True).strip() == text:
                return answer.tokens[:length]
    raise AssertionError("asked about a text that no answer begins with")


def test_the_toys_answers_are_those_of_generate(by_generate):
    torch.set_num_threads(1)
    chat = load_toy_chat_model()
    sequences = chat.encode(["How do I bake bread?", "Hello!", "What is the capital of France, and why?"])
    ways = [[Continuation(), Continuation((), 3)]] * 3
    assert tokens_of(chat.model, sequences, ways) == by_generate(chat.model, sequences, ways)
