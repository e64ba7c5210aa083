"""Suffixes on the toy model: the search finds one, and the analysis shows how it works."""

import copy
import itertools
import json

import pytest
import torch
from suffix_cases import GIVEN, POSITION, SEARCH, SETTINGS, few_prompts, toy_directions

from demur.assurance import SuffixSettings, analyse_suffixes, search_suffix
from demur.assurance._suffix_prompts import INSTRUCTION, SUFFIX, TEMPLATE, WithSuffix, token_groups
from demur.assurance._suffix_search import TOY_WEIGHTS, SuffixSearchSettings, _Search, weights_hash
from demur.errors import InputError, ModelError, RunFolderError
from demur.evaluation import logits_after, refusal_scores
from demur.models import ChatModel
from demur.records import SuffixAnalysis, read_record
from demur.reports import write_pages
from demur.testing import load_toy_chat_model


@pytest.fixture(scope="module")
def chat():
    return load_toy_chat_model()


@pytest.fixture(scope="module")
def prompts():
    return few_prompts()


@pytest.fixture(scope="module")
def directions(chat, prompts):
    return toy_directions(chat, prompts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("suffixes") / "out"


@pytest.fixture(scope="module")
def analysis(chat, prompts, directions, folder):
    return analyse_suffixes(chat, prompts, directions, suffixes=[GIVEN], settings=SETTINGS, out=folder)


def by_name(analysis):
    return {group.name: group for group in analysis.groups}


# The search ----------------------------------------------------------------------------------------------------------


def test_the_searched_suffix_takes_refusals_of_prompts_that_it_never_saw(analysis):
    groups = by_name(analysis)
    assert groups["harmful"].refusal_rate.rate >= 0.9
    assert groups["random-2"].refusal_rate.rate >= 0.8
    assert groups["suffix-2"].refusal_rate.rate <= 0.2
    assert groups["suffix-2"].refusal_score.mean < groups["random-2"].refusal_score.mean - 5
    assert groups["suffix-2"].comparison.lost >= 14
    assert groups["suffix-1"].refusal_rate.rate >= 0.8  # a harmless given one


def test_the_search_never_gets_worse_and_says_how_it_went(analysis):
    scores = [step.score for step in analysis.search.curve]
    assert [step.step for step in analysis.search.curve] == list(range(SEARCH.steps + 1))
    assert all(after <= before for before, after in itertools.pairwise(scores))
    assert scores[-1] < scores[0] - 3
    assert (analysis.search.n_prompts, analysis.search.candidates) == (SEARCH.n_prompts, SEARCH.candidates)


def test_a_step_whose_best_candidate_is_worse_is_not_taken(tiny):
    settings = SuffixSearchSettings(n_tokens=3, n_prompts=2, steps=12, candidates=1)
    _, search = search_suffix(tiny("llama"), ["Hello", "A longer one"], [40, 41, 42], settings=settings)
    scores = [step.score for step in search.curve]
    assert all(after <= before for before, after in itertools.pairwise(scores))
    assert len(set(scores)) < len(scores)  # some candidate was worse


def test_the_suffix_as_text_is_the_tokens_that_were_scored(chat, prompts, directions, analysis):
    """The last score of the search, computed from the text alone."""
    train = sorted(prompts["harmful"].split("train"), key=lambda prompt: prompt.sha256)[: SEARCH.n_prompts]
    found = analysis.suffixes[1]
    assert (found.origin, found.n_tokens) == ("searched", SEARCH.n_tokens)
    logits = logits_after(chat, chat.encode(WithSuffix("s", found.text).after(prompt.text) for prompt in train))
    expected = float(refusal_scores(logits, directions.tokens).mean())
    assert analysis.search.curve[-1].score == pytest.approx(expected, abs=0.01)  # its own odds have no epsilon


def test_the_same_seed_finds_the_same_suffix(chat, prompts, directions):
    settings = SuffixSearchSettings(n_tokens=4, n_prompts=2, steps=1, candidates=4)
    texts = [prompt.text for prompt in prompts["harmful"].split("train")][:2]
    one, two = (search_suffix(chat, texts, directions.tokens, settings=settings) for _ in range(2))
    assert one == two


def test_the_gradient_is_that_of_the_score(tiny):
    """Against a finite difference: the embedding at one place moved a little towards another token's."""
    chat = tiny("llama")
    search = _Search(chat, ["Hello", "A longer one"], [40, 41, 42], SuffixSearchSettings(n_tokens=3))
    gradient = search._gradient()
    weight, place, token, step = chat.model.get_input_embeddings().weight, 1, 77, 1e-3
    towards = (weight[token] - weight[search.suffix[place]]).detach()
    scores = []
    for sign in (1, -1):

        def move(_module, _args, output, sign=sign):
            index = output.shape[1] - search.tail - 3 + place
            changed = output.clone()
            changed[:, index] += sign * step * towards
            return changed

        handle = chat.model.get_input_embeddings().register_forward_hook(move)
        scores.append(float(search._scores([search.suffix])[0]))
        handle.remove()
    expected = (scores[0] - scores[1]) / (2 * step)
    found = float(gradient[place, token] - gradient[place, search.suffix[place]])
    assert found == pytest.approx(expected, rel=5e-3)
    assert abs(expected) > 1e-6


def test_the_search_knows_the_shipped_toy_and_refuses_all_others(chat, prompts, directions):
    assert weights_hash(chat) == TOY_WEIGHTS
    model = copy.deepcopy(chat.model)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-3
    other = ChatModel(model, chat.tokenizer, "other-model")
    with pytest.raises(ModelError, match=r"other-model: demur searches suffixes for the toy model .* and for no other"):
        search_suffix(other, ["Hello"], directions.tokens)
    with pytest.raises(ModelError, match="is an attack"):
        analyse_suffixes(other, prompts, directions, settings=SETTINGS)


@pytest.mark.parametrize(
    ("values", "text"), [({"steps": 0}, "steps of a suffix search is a number of at least 1; got 0")]
)
def test_settings_of_a_search_that_mean_nothing_are_refused(values, text):
    with pytest.raises(InputError, match=text):
        SuffixSearchSettings(**values)


# The analysis --------------------------------------------------------------------------------------------------------


def test_groups_come_in_order_with_a_control_of_the_same_length(analysis):
    assert [group.name for group in analysis.groups] == [
        *("harmful", "random-1", "suffix-1", "random-2", "suffix-2", "harmless")
    ]
    for text in analysis.suffixes:
        control = by_name(analysis)[text.name.replace("suffix", "random")]
        assert (control.suffix, control.role) == (text.name, "random")
        assert f"{text.n_tokens} random tokens" in control.what
    assert {group.n for group in analysis.groups} == {SETTINGS.n_prompts}


def test_the_suffix_makes_harmful_prompts_look_harmless_along_r(analysis):
    """Arditi et al. section 5.1: the projection falls towards that of harmless prompts, random tokens leave it."""
    groups = by_name(analysis)
    at = analysis.layer + 1
    harmful, random, suffix, harmless = (
        groups[name].projection[at].mean for name in ("harmful", "random-2", "suffix-2", "harmless")
    )
    assert harmful - suffix > 0.5 * (harmful - harmless)
    assert harmful - random < 0.3 * (harmful - harmless)
    assert groups["suffix-2"].cosine[at].high < groups["random-2"].cosine[at].low


def test_attention_of_the_top_heads_moves_to_the_suffix(analysis):
    """Section 5.2: heads that write refusal look at the suffix in place of the instruction."""
    groups = by_name(analysis)
    plain, random, suffix = (groups[name].attention for name in ("harmful", "random-2", "suffix-2"))
    assert analysis.attention_read
    assert len(plain) == 8
    assert all(share.suffix.mean == 0 for share in plain)
    strongest = range(3)
    assert sum(suffix[i].suffix.mean for i in strongest) > sum(random[i].suffix.mean for i in strongest) + 0.5
    assert sum(suffix[i].instruction.mean for i in strongest) < sum(plain[i].instruction.mean for i in strongest) - 0.5


def test_parts_add_up_and_the_top_heads_are_the_largest(analysis):
    for group in analysis.groups:
        assert sum(group.parts) == pytest.approx(group.projection[-1].mean, rel=1e-4)
        assert [mean.mean for mean in group.top_heads] == pytest.approx([group.parts[i] for i in analysis.top_heads])
        assert [mean.mean for mean in group.writes] == pytest.approx([group.parts[i] for i in analysis.writes])
    plain = analysis.groups[0].parts
    heads = [index for index, part in enumerate(analysis.parts) if part.kind == "head"]
    assert list(analysis.top_heads) == sorted(heads, key=lambda index: -plain[index])[:8]
    assert {analysis.parts[index].kind for index in analysis.writes} == {"write"}
    assert analysis.unexplained < 1e-4


def test_no_text_of_a_prompt_or_an_answer_is_kept(analysis, prompts, folder):
    (html, markdown), *_ = write_pages(folder)
    pages = [(folder / "suffixes.json").read_text(), html.read_text(), markdown.read_text()]
    for prompt in (*prompts["harmful"].prompts, *prompts["harmless"].prompts):
        assert not any(prompt.text in page for page in pages)
    lines = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    assert {line["completion"] for line in lines if line["label"] == "harmful"} == {None}
    assert len(lines) == 6 * SETTINGS.n_prompts


def test_a_killed_analysis_goes_on_and_ends_the_same(chat, prompts, directions, tmp_path):
    again, settings = (chat, prompts, directions), SuffixSettings(n_prompts=4, max_new_tokens=12)
    whole = analyse_suffixes(*again, suffixes=[GIVEN], settings=settings, out=tmp_path)
    assert analyse_suffixes(*again, suffixes=[GIVEN], settings=settings, out=tmp_path) == whole
    lines = (tmp_path / "completions.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "suffixes.json").unlink()
    (tmp_path / "completions.jsonl").write_bytes(b"".join(lines[:8]))  # killed in the middle of the second group
    resumed = analyse_suffixes(*again, suffixes=[GIVEN], settings=settings, out=tmp_path)
    assert resumed.model_copy(update={"provenance": whole.provenance}) == whole
    assert (tmp_path / "completions.jsonl").read_bytes() == b"".join(lines)
    assert read_record(tmp_path / "suffixes.json", SuffixAnalysis) == resumed
    with pytest.raises(RunFolderError, match="belongs to another run: its setting suffixes is"):
        analyse_suffixes(*again, suffixes=["other"], settings=settings, out=tmp_path)


def test_suffixes_that_cannot_be_used_are_told(chat, prompts, directions):
    given = (chat, prompts, directions)
    with pytest.raises(InputError, match="there is no suffix to look at; give one or more with --suffix"):
        analyse_suffixes(*given)
    with pytest.raises(InputError, match="the suffix 'twice' is given twice"):
        analyse_suffixes(*given, suffixes=["twice", "twice"])
    with pytest.raises(InputError, match="the suffix suffix-2 is empty"):
        analyse_suffixes(*given, suffixes=["one", " "])
    with pytest.raises(InputError, match="n_prompts is a number of at least 1; got 0"):
        SuffixSettings(n_prompts=0)


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_other_models_are_analysed_as_far_as_they_show(tiny, prompts, family):
    chat = tiny(family)
    directions = toy_directions(chat, prompts)
    settings = SuffixSettings(n_prompts=3, max_new_tokens=2)
    found = analyse_suffixes(chat, prompts, directions, suffixes=["!! ??"], settings=settings)
    seen = family == "llama"
    assert found.attention_read is seen
    assert bool(found.top_heads) is seen
    assert bool(found.whole) is not seen
    assert found.unexplained < 1e-6


# Which tokens are which ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["Tell me a story.", "x", "Is 7 odd?"])
@pytest.mark.parametrize("suffix", ["zq !!", "  and more", "."])
def test_tokens_are_template_prompt_and_suffix(tiny, prompt, suffix):
    chat = tiny("llama")
    (plain,) = chat.encode([prompt])
    (tokens,) = chat.encode([WithSuffix("s", suffix).after(prompt)])
    groups = token_groups(chat, plain, tokens)

    def text(group):
        return chat.tokenizer.decode([token for token, each in zip(tokens, groups, strict=True) if each == group])

    assert len(groups) == len(tokens)
    assert text(INSTRUCTION) == prompt
    assert text(SUFFIX).strip() == suffix.strip()
    assert prompt not in text(TEMPLATE)
    assert token_groups(chat, plain, plain).count(SUFFIX) == 0
    assert tokens[POSITION] == plain[POSITION]
    assert groups[POSITION] == TEMPLATE
