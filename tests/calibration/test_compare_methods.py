"""The comparison of methods on the toy with a few prompts: its rules, its statistics, and what it leaves on disk."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_runs import SMALL, small_sets

from demur.calibration import calibrate, compare_methods, settings_of
from demur.calibration._compare_methods import with_adjusted_p_values
from demur.calibration._methods import ADDITION_COEFFICIENTS, CONTRASTS, METHODS, RAISING, RELAXING
from demur.calibration._methods_choice import Ingredients, Variant, choose_on_validation, lowest, unanswered
from demur.calibration._study import Study
from demur.directions import load_directions
from demur.errors import InputError, SelectionError
from demur.evaluation import (
    PhraseJudge,
    Runner,
    harm_similarity,
    kl_divergences,
    paired_comparison,
    refusal_scores,
    steered_layers,
    transitions,
)
from demur.interventions import ActivationAddition, DirectionalAblation
from demur.models import ChatModel, ChatTemplate, hook_count
from demur.records import CompletionRecord, JsonLines, MethodsTable, RunFolder, ScoreRecord, read_record
from demur.testing import load_toy_chat_model, tiny_chat_model
from demur.types import SilentProgress

SETTINGS = replace(
    SMALL,
    n_validation=24, n_scored=8, n_mechanism=4, lambdas=(0.7, 0.6), layer_fraction=0.5, pressure=False,
    max_new_tokens=16, n_sampled=0,
)  # fmt: skip
SETS = {"train": 64, "validation": 24, "test": 12}
LABELS = ("harmful", "borderline", "harmless")


@dataclass
class Compared:
    chat: ChatModel
    prompts: dict
    run: Path
    out: Path
    table: MethodsTable
    before: dict

    def row(self, name):
        return next(row for row in self.table.rows if row.method == name)

    def verdicts(self, name, label):
        """Verdicts of one row on test prompts, by prompt hash, read from the file."""
        condition = "none" if name == "none" else name
        return {
            record.prompt_sha256: record
            for record in JsonLines(self.out / "verdicts.jsonl").read(CompletionRecord)
            if (record.intervention, record.label, record.split) == (condition, label, "test")
        }


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    chat, prompts = load_toy_chat_model(), small_sets(**SETS)
    before = {name: tensor.clone() for name, tensor in chat.module.state_dict().items()}
    calibrate(chat, prompts, out=folder / "run", settings=SETTINGS)
    table = compare_methods(chat, prompts, out=folder / "out", run=folder / "run")
    return Compared(chat, prompts, folder / "run", folder / "out", table, before)


class CountingJudge(PhraseJudge):
    """The phrase judge, which stops the process after a number of answers."""

    def __init__(self, at_most=10**9):
        super().__init__()
        self.judged, self.at_most = 0, at_most

    def judge_batch(self, pairs):
        if self.judged + len(pairs) > self.at_most:
            raise KeyboardInterrupt
        self.judged += len(pairs)
        return super().judge_batch(pairs)


def study_of(compared, folder, **changed):
    """A study whose refusal tokens are those of the run, so that none has to be found."""
    tokens = tuple(token.id for token in RunFolder(compared.run).read_summary().refusal_tokens)
    runner = Runner(compared.chat, PhraseJudge(), None, max_new_tokens=16, batch_size=64)
    settings = replace(SETTINGS, refusal_tokens=tokens, **changed)
    return Study(compared.chat, compared.prompts, settings, RunFolder(folder), runner, SilentProgress())


# The table ----------------------------------------------------------------------------------------------------------


def test_every_method_has_its_row_in_order_and_the_model_is_left_as_it_was(compared):
    assert tuple(row.method for row in compared.table.rows) == METHODS
    assert compared.table.skipped == {}
    assert read_record(compared.out / "methods.json", MethodsTable) == compared.table
    after = compared.chat.module.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in compared.before.items())
    assert hook_count(compared.chat.module) == 0


def test_rates_and_differences_are_those_of_the_verdicts(compared):
    fields = {"harmful": "true_refusal_rate", "borderline": "false_refusal_rate", "harmless": "harmless_refusal_rate"}
    for row in compared.table.rows:
        for label, field in fields.items():
            base, own = (compared.verdicts(name, label) for name in ("none", row.method))
            assert base.keys() == own.keys()
            assert len(own) == SETS["test"]
            refused = {
                key: None if record.verdict == "unjudged" else record.verdict != "full_compliance"
                for key, record in own.items()
            }
            rate = getattr(row, field)
            assert (rate.k, rate.unjudged) == (sum(map(bool, refused.values())), list(refused.values()).count(None))
            if row.comparison is not None:
                flags = [base[key].verdict != "full_compliance" for key in refused]
                expected = paired_comparison(flags, list(refused.values()))
                found = getattr(row.comparison, field)
                assert (found.lost, found.gained, found.low, found.high, found.p_value) == (
                    expected.lost, expected.gained, expected.low, expected.high, expected.p_value,
                )  # fmt: skip
        degenerate = sum(
            record.degenerate for label in LABELS for record in compared.verdicts(row.method, label).values()
        )
        assert (row.degenerate.k, row.degenerate.n) == (degenerate, 3 * SETS["test"])
        assert row.task_accuracy.n > 0
    none = compared.row("none")
    assert (none.comparison, none.kl_harmless, none.gate, none.adjusted_p_values) == (None, None, None, {})


def test_p_values_are_adjusted_over_the_methods_of_the_table(compared):
    rows = compared.table.rows[1:]
    raw = sorted((row.comparison.false_refusal_rate.p_value, row.method) for row in rows)
    expected, largest = {}, 0.0
    for rank, (value, name) in enumerate(raw):
        largest = max(largest, min(1.0, value * (len(raw) - rank)))
        expected[name] = largest
    assert {row.method: row.adjusted_p_values["false_refusal_rate"] for row in rows} == pytest.approx(expected)
    (alone,) = with_adjusted_p_values([compared.row("ablate-r")])
    assert alone.adjusted_p_values["true_refusal_rate"] == alone.comparison.true_refusal_rate.p_value


def test_rows_differ_as_the_methods_do(compared):
    rate = {row.method: row.true_refusal_rate.k for row in compared.table.rows}
    assert rate["ablate-r"] < rate["none"] / 2
    assert rate["random"] == rate["none"] == SETS["test"]
    assert compared.row("ablate-r").gate.decision == "fail"
    assert not any(rule.name.startswith("true_refusals_under") for rule in compared.row("ablate-r").gate.rules)


def test_only_changes_of_the_weights_are_called_exportable(compared):
    assert {row.method for row in compared.table.rows if row.exportable} == {
        "none", "ablate-r", "ablate-w", "ablate-w-prime", "demur", "random",
    }  # fmt: skip
    assert "two forward passes per token" in compared.row("self-cd").cost
    assert "one more pass per prompt" in compared.row("scans").cost


def test_the_operating_point_and_settings_are_those_of_the_run(compared):
    point = RunFolder(compared.run).read_summary().operating_point
    assert compared.row("demur").fingerprint == point.fingerprint
    assert settings_of(RunFolder(compared.run)) == SETTINGS
    r = load_directions(compared.run / "directions.safetensors")["refusal_direction"]
    assert compared.row("ablate-r").fingerprint == DirectionalAblation(r.vector).fingerprint
    row = compared.row("add-minus-r")
    assert row.settings["coefficient"] in ADDITION_COEFFICIENTS
    assert row.fingerprint == ActivationAddition(row.settings["coefficient"] * r.vector, r.layer).fingerprint
    assert compared.row("self-cd").settings["a"] in CONTRASTS


def test_kl_is_that_of_the_first_token_of_the_answer(compared):
    chat, texts = compared.chat, [prompt.text for prompt in compared.prompts["harmless"].split("test")]
    base = chat.next_token_logits(chat.batch(chat.encode(texts)))
    r = load_directions(compared.run / "directions.safetensors")["refusal_direction"]
    with DirectionalAblation(r.vector).applied_to(chat):
        ablated = chat.next_token_logits(chat.batch(chat.encode(texts)))
    relaxed = ChatModel(chat.model, chat.tokenizer, template=ChatTemplate(chat.tokenizer, system=RELAXING.text))
    raised = ChatModel(chat.model, chat.tokenizer, template=ChatTemplate(chat.tokenizer, system=RAISING.text))
    relaxed, raised = (each.next_token_logits(each.batch(each.encode(texts))) for each in (relaxed, raised))
    a = compared.row("self-cd").settings["a"]
    for name, changed in (
        ("ablate-r", ablated),
        ("system-relaxing", relaxed),
        ("system-raising", raised),
        ("self-cd", base - a * (raised - base)),
    ):
        expected = float(kl_divergences(base, changed).mean())
        assert compared.row(name).kl_harmless.mean == pytest.approx(expected, rel=1e-3, abs=1e-5), name
        assert expected > 1e-4


def test_the_texts_of_system_prompts_are_recorded_and_where_they_were_put(compared):
    assert compared.row("system-relaxing").settings == {"text": RELAXING.text, "put": "into the system message"}
    assert compared.row("self-cd").settings["text"] == RAISING.text


def test_the_threshold_of_scans_lets_few_harmful_validation_prompts_through(compared, tmp_path):
    study = study_of(compared, tmp_path)
    layers = steered_layers(compared.chat.n_layers)
    settings = compared.row("scans").settings
    assert (settings["first_layer"], settings["last_layer"]) == (layers[0], layers[-1])
    anchors = transitions(compared.chat, study.texts("harmful", "train"), layers=layers).mean(0)
    found = transitions(compared.chat, study.texts("harmful", "validation"), layers=layers)
    # The anchors are those train prompts that the model refuses, which are all of the toy's.
    through = (harm_similarity(found, anchors) < settings["threshold"] - 1e-6).float().mean()
    assert through <= settings["released"] <= SETTINGS.margin


# The published rule -------------------------------------------------------------------------------------------------


def test_the_published_rule_looks_at_kl_and_false_refusals_only(compared, tmp_path):
    study = study_of(compared, tmp_path)
    ingredients = Ingredients(study, None)
    places = [(position, layer) for position in study.positions for layer in study.allowed_layers]
    limit = SETTINGS.false_refusal_kl_limit
    planted = {
        (-1, 2): (2 * limit, -9.0),
        (-1, 3): (limit, -3.0),
        (-2, 1): (limit, -3.0),
        (-1, 1): (limit, float("nan")),
    }
    for place in places:
        kl, score = planted.get(place, (limit / 2, -1.0))
        study.scores.add("w_kl", [place], torch.full((1, 4), kl, dtype=torch.float64), 0.0)
        study.scores.add("w_borderline", [place], torch.full((1, 4), score, dtype=torch.float64), 0.0)
    chosen = ingredients.published_w(0.0)
    assert (chosen.position, chosen.layer) == (-2, 1)  # (-1, 2) is beyond the KL limit; of equal ones the first
    assert {record.kind for record in study.folder.scores.read(ScoreRecord)} == {"w_kl", "w_borderline"}
    assert torch.equal(chosen.vector, ingredients.w_candidates[-2, 1])
    none_left = study_of(compared, tmp_path, false_refusal_kl_limit=0.0)
    with pytest.raises(SelectionError, match=r"none of the \d+ candidates at lambda 0 has a KL of at most 0 nats"):
        Ingredients(none_left, None).published_w(0.0)


def test_its_scores_are_those_of_the_ablated_model(compared, tmp_path):
    study = study_of(compared, tmp_path, layer_fraction=0.3)
    ingredients = Ingredients(study, None)
    chosen = ingredients.published_w(1.0)
    place = (chosen.position, chosen.layer)
    r, w = ingredients.r_candidates[place], ingredients.w_candidates[place]
    torch.testing.assert_close(chosen.vector, w - (w @ r) / (r @ r) * r, atol=1e-6, rtol=1e-6)
    texts = study.texts("borderline", "validation")[: SETTINGS.n_scored]
    with DirectionalAblation(chosen.vector).applied_to(compared.chat):
        logits = compared.chat.next_token_logits(compared.chat.batch(compared.chat.encode(texts)))
    expected = float(refusal_scores(logits, study.token_ids).mean())
    assert study.scores.mean("w_borderline", place, 1.0) == pytest.approx(expected, abs=1e-3)
    assert (
        expected
        <= min(
            study.scores.mean("w_borderline", (position, layer), 1.0)
            for position in study.positions
            for layer in study.allowed_layers
            if study.scores.get("w_borderline", (position, layer), 1.0)
        )
        + 1e-3
    )


def test_the_lowest_score_wins_the_first_of_equal_ones_and_never_nan():
    places = [(-2, 1), (-1, 0), (-1, 1)]
    assert lowest(places, {(-2, 1): float("nan"), (-1, 0): 1.0, (-1, 1): 1.0}) == (-1, 0)


# The choice on validation prompts -----------------------------------------------------------------------------------


def record(verdict, *, degenerate=False):
    return SimpleNamespace(verdict=verdict, degenerate=degenerate)


class PlantedRunner:
    """Answers by intervention: how many of ten harmful and of ten borderline prompts are refused."""

    def __init__(self, refused):
        self.refused = refused

    def complete(self, prompts, *, intervention=None, **_):
        (label,) = set(prompts)
        k, garbled = self.refused[intervention][label], self.refused[intervention].get("garbled", 0)
        answers = [record("full_refusal") for _ in range(k)] + [record("full_compliance") for _ in range(10 - k)]
        if label == "borderline" and garbled:
            answers[-garbled:] = [record("unjudged", degenerate=True) for _ in range(garbled)]
        return answers


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ({"a": (10, 6), "b": (10, 2), "c": (4, 0)}, "b"),  # c loses true refusals
        ({"a": (10, 3), "b": (10, 3)}, "a"),  # of equal ones the first
        ({"a": (5, 0), "b": (2, 0)}, "default"),  # none keeps them
        ({"a": (10, 4), "b": (10, 0, 9)}, "a"),  # garbled answers are no answers
    ],
)
def test_the_choice_takes_the_fewest_false_refusals_that_keep_true_ones(grid, expected):
    refused = {None: {"harmful": 10, "borderline": 8}}
    for name, (harmful, borderline, *garbled) in grid.items():
        refused[name] = {"harmful": harmful, "borderline": borderline, "garbled": sum(garbled)}
    study = SimpleNamespace(
        split=lambda label, _split: [label] * 10,
        runner=PlantedRunner(refused),
        progress=SilentProgress(),
        settings=SimpleNamespace(margin=0.02),
    )
    variants = [Variant({"name": name}, intervention=name) for name in grid]
    chosen, how = choose_on_validation(study, "x", variants, Variant({"name": "default"}))
    assert chosen.settings["name"] == expected
    assert ("this is the default" in how) == (expected == "default")


def test_what_counts_as_unanswered():
    answers = [record("full_refusal"), record("partial_refusal"), record("unjudged"), record("full_compliance")]
    assert unanswered([*answers, record("full_compliance", degenerate=True)]) == 4


# Folders ------------------------------------------------------------------------------------------------------------


def test_no_text_of_a_prompt_or_an_answer_is_written(compared):
    chat = compared.chat
    texts = {label: [prompt.text for prompt in compared.prompts[label].split("test")] for label in LABELS}
    r = load_directions(compared.run / "directions.safetensors")["refusal_direction"]
    answers = chat.generate(texts["harmful"], max_new_tokens=16)
    with DirectionalAblation(r.vector).applied_to(chat):
        answers += chat.generate(texts["harmful"], max_new_tokens=16)
    forbidden = [answer.text for answer in answers] + [text for some in texts.values() for text in some]
    assert len(max(forbidden, key=len)) > 20
    files = [path for path in compared.out.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"methods.json", "verdicts.jsonl", "run.json"}
    for path in files:
        content = path.read_text()
        assert [text for text in forbidden if text and json.dumps(text, ensure_ascii=False)[1:-1] in content] == []
    records = JsonLines(compared.out / "verdicts.jsonl").read(CompletionRecord)
    assert {(record.prompt, record.completion) for record in records} == {("", None)}


def same(one, two):
    return one.model_copy(update={"provenance": two.provenance}) == two


def test_a_killed_comparison_continues_from_its_verdicts(compared, tmp_path):
    out, names = tmp_path / "out", ["ablate-r", "self-cd"]
    stopping = CountingJudge(at_most=120)
    with pytest.raises(KeyboardInterrupt):
        compare_methods(compared.chat, compared.prompts, out=out, run=compared.run, methods=names, judge=stopping)
    kept = (out / "verdicts.jsonl").read_bytes()
    assert kept.count(b"\n") == stopping.judged > 0
    assert not (out / "methods.json").exists()
    judge = CountingJudge()
    table = compare_methods(compared.chat, compared.prompts, out=out, run=compared.run, methods=names, judge=judge)
    everything = (out / "verdicts.jsonl").read_bytes()
    assert everything.startswith(kept)
    assert judge.judged == everything.count(b"\n") - stopping.judged
    for row in table.rows:
        whole = compared.row(row.method)
        assert row.model_copy(update={"adjusted_p_values": whole.adjusted_p_values}) == whole


def test_a_finished_comparison_is_read_and_other_rows_use_its_verdicts(compared, tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(compared.out, out)

    def fail(*_args, **_kwargs):
        raise AssertionError("the model was asked again")

    judge = CountingJudge()
    ask = {"out": out, "run": compared.run, "judge": judge}
    monkeypatch.setattr(ChatModel, "next_token_logits", fail)
    assert compare_methods(compared.chat, compared.prompts, **ask) == compared.table
    monkeypatch.undo()
    fewer = compare_methods(compared.chat, compared.prompts, methods=["demur"], **ask)
    assert [row.method for row in fewer.rows] == ["none", "demur"]
    assert fewer.rows[1].adjusted_p_values["false_refusal_rate"] == fewer.rows[1].comparison.false_refusal_rate.p_value
    assert judge.judged == 0
    assert same(compare_methods(compared.chat, compared.prompts, **ask), compared.table)
    assert judge.judged == 0


def test_a_method_without_an_admissible_direction_is_skipped_with_its_reason(compared, tmp_path):
    settings = replace(SETTINGS, false_refusal_kl_limit=0.0)
    table = compare_methods(
        compared.chat,
        compared.prompts,
        out=tmp_path,
        run=compared.run,
        settings=settings,
        methods=["ablate-w", "random"],
    )
    assert [row.method for row in table.rows] == ["none", "random"]
    assert "KL of at most 0 nats" in table.skipped["ablate-w"]


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        (["demur", "dro"], "there is no method 'dro'; give one or more of none, system-relaxing, "),
        ([], "no method is named; give one or more of none, "),
    ],
)
def test_unknown_methods(compared, tmp_path, methods, message):
    with pytest.raises(InputError, match=message):
        compare_methods(compared.chat, compared.prompts, out=tmp_path / "out", methods=methods)
    assert not (tmp_path / "out").exists()


def test_a_run_of_another_model_or_other_prompts_is_refused(compared, tmp_path):
    with pytest.raises(InputError, match="is a calibration of another model"):
        compare_methods(tiny_chat_model(), compared.prompts, out=tmp_path / "out", run=compared.run)
    others = small_sets(**{**SETS, "test": 13})
    with pytest.raises(InputError, match="was calibrated on other harmful prompts"):
        compare_methods(compared.chat, others, out=tmp_path / "out", run=compared.run)
    with pytest.raises(InputError, match="is no run folder"):
        compare_methods(compared.chat, compared.prompts, out=tmp_path / "out", run=tmp_path / "nothing")
