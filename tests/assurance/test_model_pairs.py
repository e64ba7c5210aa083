"""A base model beside its chat model, and one model's refusal direction in another."""

import copy
from types import SimpleNamespace

import pytest
import torch
from suffix_cases import LAYER, POSITION, few_prompts, toy_directions

from demur.assurance import PairSettings, compare_base, transfer
from demur.assurance._bootstrap import bootstrap_means
from demur.errors import InputError, ModelError
from demur.evaluation import bootstrap_mean
from demur.interventions import DirectionalAblation
from demur.models import ChatModel, load_base_model
from demur.records import write_record
from demur.reports import write_pages
from demur.testing import load_toy_chat_model

SETTINGS = PairSettings(n_train=32, n_test=20, max_new_tokens=12, batch_size=64)


@pytest.fixture(scope="module")
def chat():
    return load_toy_chat_model()


@pytest.fixture(scope="module")
def prompts():
    return few_prompts()


@pytest.fixture(scope="module")
def directions(chat, prompts):
    return toy_directions(chat, prompts)


def noisy(chat, share, name):
    """The toy with noise on every matrix: at 3 standard deviations nothing of what it learned is left."""
    model, generator = copy.deepcopy(chat.model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * parameter.std() * share)
    return ChatModel(model, chat.tokenizer, name)


@pytest.fixture(scope="module")
def untrained(chat):
    return noisy(chat, 3.0, "untrained")


@pytest.fixture(scope="module")
def compared(chat, untrained, prompts, directions):
    return compare_base(chat, untrained, prompts, directions, settings=SETTINGS)


@pytest.fixture(scope="module")
def transferred(chat, prompts, directions):
    near = noisy(chat, 0.05, "near")
    return transfer(chat, near, prompts, directions, target_directions=toy_directions(near, prompts), settings=SETTINGS)


# Base and chat ------------------------------------------------------------------------------------------------------


def test_the_direction_appears_in_the_chat_model_and_not_in_one_that_learned_nothing(compared):
    assert compared.chat_appears is not None
    assert compared.chat_appears <= LAYER
    assert compared.base_appears is None
    here = [place for place in compared.places if place.position == POSITION]
    assert [place.layer for place in here] == list(range(8))
    for place in here[LAYER:]:
        assert place.chat.along_r.auroc > 0.95
        assert place.base.along_r.auroc < 0.8
        assert abs(place.cosine) < 0.5
    assert here[LAYER].r_with_chat == pytest.approx(1.0, abs=0.02)  # other train prompts
    assert here[0].chat.along_r.auroc == 0.5  # identical template tokens


def test_a_model_beside_itself_is_the_same_everywhere(chat, prompts, directions):
    same = compare_base(chat, chat, prompts, directions, settings=SETTINGS)
    for place in same.places:
        assert place.chat == place.base
        assert place.cosine == pytest.approx(1.0 if place.layer else 0.0, abs=1e-9)
        assert place.r_with_chat == place.r_with_base
    assert same.chat_appears == same.base_appears


def test_separation_is_that_of_the_projections_of_test_prompts(chat, prompts, directions, compared):
    """AUROC and d' from streams read one by one, without padding."""
    projections = []
    for label in ("harmful", "harmless"):
        chosen = sorted(prompts[label].split("test"), key=lambda prompt: prompt.sha256)[: SETTINGS.n_test]
        values = []
        for tokens in chat.encode(prompt.text for prompt in chosen):
            with torch.no_grad():
                states = chat.model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
            values.append(float(states[LAYER][0, POSITION].double() @ directions.refusal.unit))
        projections.append(torch.tensor(values))
    high, low = projections
    wins = (high[:, None] > low).double().mean() + 0.5 * (high[:, None] == low).double().mean()
    spread = ((high.var(correction=0) + low.var(correction=0)) / 2).sqrt()
    place = next(each for each in compared.places if (each.layer, each.position) == (LAYER, POSITION))
    assert place.chat.along_r.auroc == pytest.approx(float(wins))
    assert place.chat.along_r.gap == pytest.approx(float(high.mean() - low.mean()), rel=1e-4)
    assert place.chat.along_r.d_prime == pytest.approx(float((high.mean() - low.mean()) / spread), rel=1e-3)
    assert place.chat.along_r.low < place.chat.along_r.auroc <= place.chat.along_r.high


def test_models_of_other_shapes_and_other_renderings_are_refused(chat, tiny, prompts, directions):
    with pytest.raises(InputError, match="has 8 blocks of width 128 and tiny-llama 3 of width 32"):
        compare_base(chat, tiny("llama"), prompts, directions, settings=SETTINGS)
    with pytest.raises(InputError, match="of one shape only"):
        transfer(tiny("llama"), chat, prompts, directions, settings=SETTINGS)
    other = copy.copy(chat)
    other.template = type(chat.template)(chat.tokenizer, response_prefix="Well")
    with pytest.raises(InputError, match=r"load it with load_base_model\(id, chat\)"):
        compare_base(chat, other, prompts, directions, settings=SETTINGS)


def test_a_base_model_without_a_template_reads_what_its_chat_model_reads(chat, tmp_path):
    chat.model.save_pretrained(tmp_path)
    tokenizer = copy.deepcopy(chat.tokenizer)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    base = load_base_model(str(tmp_path), chat, device="cpu")
    assert base.encode(["Hello"]) == chat.encode(["Hello"])
    batch = chat.batch(chat.encode(["Hello"]))
    assert torch.equal(base.next_token_logits(batch), chat.next_token_logits(batch))


def test_a_base_model_with_other_words_is_refused(chat, tmp_path):
    chat.model.save_pretrained(tmp_path)
    chat.tokenizer.save_pretrained(tmp_path)
    words = chat.tokenizer.get_vocab()
    swapped = {**words, "!": words["?"], "?": words["!"]}
    other = SimpleNamespace(name="other", encode=chat.encode, tokenizer=SimpleNamespace(get_vocab=lambda: swapped))
    with pytest.raises(ModelError, match=r"does not read the tokens of other: the token '[!?]' has another number"):
        load_base_model(str(tmp_path), other, device="cpu")


# Transfer -----------------------------------------------------------------------------------------------------------


def rows_of(record):
    return {row.state: row for row in record.rows}


def test_the_direction_works_in_a_model_nearby_and_a_random_one_does_not(transferred):
    rows = rows_of(transferred)
    assert list(rows) == ["at rest", "other's direction", "own direction", "random direction"]
    assert rows["at rest"].ablated.rate >= 0.9
    assert rows["other's direction"].ablated.rate <= 0.3
    assert rows["random direction"].ablated.rate >= 0.8
    assert rows["other's direction"].added.k > rows["at rest"].added.k + 8
    assert rows["other's direction"].ablated_change.lost >= 12
    assert transferred.cosine > 0.9
    assert transferred.cosine_at_place > 0.9
    assert transferred.share_of_own == pytest.approx(1.0, abs=0.3)


def test_in_the_same_model_both_directions_are_one(chat, prompts, directions):
    settings = PairSettings(n_train=32, n_test=6, max_new_tokens=8)
    same = transfer(chat, chat, prompts, directions, target_directions=directions, settings=settings)
    rows = rows_of(same)
    assert rows["other's direction"].ablated == rows["own direction"].ablated
    assert rows["other's direction"].added == rows["own direction"].added
    assert (same.cosine, same.share_of_own) == (pytest.approx(1.0), 1.0)
    batch = chat.batch(chat.encode(["Hello"]))
    before = chat.next_token_logits(batch)
    with DirectionalAblation(directions.refusal.vector).applied_to(chat):
        assert not torch.equal(chat.next_token_logits(batch), before)  # it does something, and it is off again
    assert torch.equal(chat.next_token_logits(batch), before)


# Pages and intervals ------------------------------------------------------------------------------------------------


def test_pages_tell_the_verdict_and_every_rate(compared, transferred, prompts, tmp_path):
    write_record(tmp_path / "base.json", compared)
    write_record(tmp_path / "transfer.json", transferred)
    pages = {html.stem: (html.read_text(), markdown.read_text()) for html, markdown in write_pages(tmp_path)}
    assert "in the base model it does so at no layer" in pages["base"][1]
    assert pages["base"][0].count('role="img"') == 1
    assert "The direction transfers. Removing the other model" in pages["transfer"][1]
    for row in transferred.rows:
        assert f"{row.ablated.k}/{row.ablated.n}" in pages["transfer"][1]
        assert f"{row.added.k}/{row.added.n}" in pages["transfer"][1]
    for prompt in (*prompts["harmful"].prompts, *prompts["harmless"].prompts):
        assert not any(prompt.text in text for page in pages.values() for text in page)


def test_a_direction_that_removes_nothing_is_not_said_to_transfer(transferred, tmp_path):
    rest, _, own, random = transferred.rows
    useless = transferred.model_copy(
        update={"rows": (rest, random.model_copy(update={"state": "other's direction"}), own, random)}
    )
    write_record(tmp_path / "transfer.json", useless)
    ((_, markdown),) = write_pages(tmp_path)
    assert "The direction is not shown to transfer." in markdown.read_text()


def test_means_at_once_are_those_of_one_at_a_time():
    values = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[:, 2] = 0.1
    together = bootstrap_means(values, seed=0)
    for column, found in enumerate(together):
        alone = bootstrap_mean(values[:, column].tolist(), seed=0)
        assert (found.mean, found.n, found.largest) == (pytest.approx(alone.mean), alone.n, alone.largest)
        assert found.low == pytest.approx(alone.low, abs=0.03)
        assert found.high == pytest.approx(alone.high, abs=0.03)
    assert together[2].high - together[2].low < 1e-12
