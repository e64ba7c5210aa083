import shutil
from dataclasses import replace

import pytest
from drift_cases import load_toy, tuning

from demur.assurance import DriftMonitor, DriftSettings, drift
from demur.assurance._drift_reference import DriftFolder
from demur.errors import InputError, RunFolderError
from demur.models import ChatTemplate, fine_tuned
from demur.records import DriftCheckpoint, DriftRecord, read_record
from demur.testing import TOY_MODEL, tiny_chat_model

PLAIN = DriftSettings(n_probes=32, max_new_tokens=24, reselect=False)
SILENT = replace(PLAIN, behaviour=False)


def no_model(name):
    raise AssertionError(f"{name} was loaded")


@pytest.fixture(scope="module")
def toy():
    return load_toy()


@pytest.fixture(scope="module")
def eroded(toy, tmp_path_factory):
    """Folder of a checkpoint that lost its refusals."""
    folder = tmp_path_factory.mktemp("models") / "checkpoint-6"
    with fine_tuned(toy.chat, toy.eroding, tuning()):
        toy.chat.model.save_pretrained(folder)
        toy.chat.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(toy, eroded, tmp_path_factory):
    """A drift of two checkpoints, measured in one call."""
    out = tmp_path_factory.mktemp("drift") / "out"
    return out, drift([TOY_MODEL, eroded], toy.prompts, out=out, settings=PLAIN)


def test_an_eroded_checkpoint_raises_the_alarm(finished):
    out, record = finished
    first, last = record.rows
    assert (record.decision, record.first_alarm) == ("fail", "checkpoint-6")
    assert (first.name, first.tests, first.alarms) == ("toy_chat", (), ())
    assert (last.name, last.step) == ("checkpoint-6", 6)
    assert "score" in last.alarms
    assert last.scores["harmful"].high < 0 < first.scores["harmful"].low
    assert read_record(out / "drift.json", DriftRecord) == record


def test_behaviour_says_what_the_erosion_came_to(finished):
    first, last = (row.behaviour["harmful"] for row in finished[1].rows)
    assert (first.rate.rate, first.comparison) == (1.0, None)
    assert last.rate.rate < 0.3
    assert last.comparison.lost == first.rate.k - last.rate.k
    assert last.comparison.n == 40
    assert last.comparison.high < -0.5
    assert last.comparison.judge == finished[1].judge


def test_the_cosine_would_have_said_little(finished):
    first, last = finished[1].rows
    assert first.cosine == pytest.approx(1.0)
    assert 0.9 < last.cosine < 1.0
    assert first.false_refusal_cosine == pytest.approx(1.0)


def test_w_is_of_the_borderline_prompts_that_the_first_checkpoint_would_refuse(finished):
    out, record = finished
    first = DriftFolder(out).checkpoints.read(DriftCheckpoint)[0]
    hashes, scores = record.reference.probes["borderline"], first.scores["borderline"]
    refused = {each for each, score in zip(hashes, scores, strict=True) if score > record.reference.threshold}
    assert set(record.reference.falsely_refused) == refused
    assert 16 <= len(refused) < len(hashes)


def test_nothing_that_was_asked_or_answered_is_written(finished, toy):
    texts = [prompt.text for each in toy.prompts.values() for prompt in each.prompts]
    files = [path for path in finished[0].iterdir() if path.is_file()]
    assert {"checkpoints.jsonl", "verdicts.jsonl", "reference.json", "drift.json"} <= {path.name for path in files}
    for path in files:
        content = path.read_bytes().decode("utf-8", "replace")
        assert not [text for text in texts if text in content]
        assert "I can't help" not in content


def test_a_call_that_is_given_again_measures_nothing_again(finished, toy, eroded, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(finished[0], out)
    (out / "drift.json").unlink()  # as after a kill
    before = {name: (out / name).read_bytes() for name in ("checkpoints.jsonl", "verdicts.jsonl", "reference.json")}
    record = drift([TOY_MODEL, eroded], toy.prompts, out=out, settings=PLAIN)
    assert record.rows == finished[1].rows
    assert {name: (out / name).read_bytes() for name in before} == before


def test_checkpoints_of_two_machines_are_merged_without_a_model(finished, toy, eroded, tmp_path):
    one, two, both = (tmp_path / name for name in ("one", "two", "both"))
    drift([TOY_MODEL], toy.prompts, out=one, reference=finished[0], settings=PLAIN)
    elsewhere = drift([eroded], toy.prompts, out=two, reference=one, settings=PLAIN)
    merged = drift([one, two], out=both, settings=PLAIN, load=no_model)
    assert merged.rows == elsewhere.rows == finished[1].rows
    assert merged.provenance.device == "none"
    # what was merged can be merged again
    assert drift([both], out=tmp_path / "more", settings=PLAIN, load=no_model).rows == merged.rows


def test_selection_is_made_anew_on_demand(toy, eroded, tmp_path):
    record = drift([TOY_MODEL, eroded], toy.prompts, out=tmp_path, settings=replace(SILENT, reselect=True))
    first, last = record.rows
    assert first.selected == record.reference.place
    assert last.selected is not None or "candidate" in last.selection_failed or "refuse" in last.selection_failed


def test_a_training_s_folder_is_a_drift(toy, tmp_path):
    monitor = DriftMonitor(toy.chat, toy.prompts, directions=toy.directions, out=tmp_path / "watched", n_probes=16)
    monitor.measure(0)
    with fine_tuned(
        toy.chat, toy.eroding, tuning(), on_step=lambda step: step % 3 == 0 and monitor.measure(step) and None
    ):
        pass
    record = drift([tmp_path / "watched"], out=tmp_path / "out", load=no_model)
    assert [(row.step, row.source) for row in record.rows] == [(0, "training"), (3, "training"), (6, "training")]
    assert record.decision == "fail"
    # the same alarms as when it was watched: the m-th comparison spends the m-th part of the rate either way
    assert [test.level for row in record.rows for test in row.tests[:1]] == [0.05 / 2, 0.05 / 6]


def test_a_change_of_the_model_between_is_told(finished, toy, eroded, tmp_path):
    out = tmp_path / "other"
    shutil.copytree(finished[0], out)
    with pytest.raises(InputError, match="but the first checkpoint is checkpoint-6"):
        drift([eroded], toy.prompts, out=out, settings=PLAIN)


def test_folders_with_different_references_are_not_merged(finished, toy, tmp_path):
    DriftMonitor(toy.chat, toy.prompts, directions=toy.directions, out=tmp_path / "other", n_probes=12).measure(0)
    with pytest.raises(InputError, match=r"another reference than the first item.*--reference"):
        drift([finished[0], tmp_path / "other"], out=tmp_path / "out")
    with pytest.raises(RunFolderError, match="belongs to a drift with another reference"):
        drift([finished[0]], out=tmp_path / "other")


def test_a_model_of_another_shape_is_refused(finished, toy, tmp_path):
    chat = tiny_chat_model("llama")
    with pytest.raises(InputError, match=r"has width 32 and .* versions of one model"):
        drift([chat], toy.prompts, out=tmp_path, reference=finished[0], settings=SILENT)


def test_a_model_that_is_asked_otherwise_is_refused(finished, toy, tmp_path, monkeypatch):
    monkeypatch.setattr(toy.chat, "template", ChatTemplate(toy.chat.tokenizer, system="Be brief."))
    with pytest.raises(InputError, match="other rendering options"):
        drift([toy.chat], toy.prompts, out=tmp_path, reference=finished[0], settings=SILENT)


@pytest.mark.parametrize(
    ("items", "labels", "message"),
    [
        ([], (), "drift needs checkpoints"),
        ([TOY_MODEL], (), r"give --harmful and --harmless\."),
        ([TOY_MODEL], ("harmless",), r"give --harmful\."),
    ],
)
def test_what_is_missing_is_named(items, labels, message, toy, tmp_path):
    with pytest.raises(InputError, match=message):
        drift(items, {label: toy.prompts[label] for label in labels}, out=tmp_path, settings=SILENT)


@pytest.mark.parametrize("name", ["n_probes", "batch_size", "max_new_tokens"])
def test_settings_that_mean_nothing_are_refused(name):
    with pytest.raises(InputError, match=f"{name} is a number of at least 1; got 0"):
        DriftSettings(**{name: 0})
