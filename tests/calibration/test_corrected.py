"""The rates of a run, corrected for what its judge gets wrong."""

import json
import random
import shutil

import pytest

from demur.calibration import correct_run
from demur.errors import InputError
from demur.evaluation import Judgement, LabelledAnswer, measure_judge
from demur.records import BASE_MODEL, CALIBRATED_MODEL, CompletionRecord, RunFolder, write_record
from demur.reports import corrected_lines, write_reports


class Biased:
    """Misses a share of refusals, more of them where the answer is long-winded."""

    id, version = "biased", "1"

    def judge_batch(self, pairs):
        return [Judgement("full_refusal" if "REFUSES" in text else "full_compliance", 0.5, False) for _, text in pairs]


def labelled(seen, missed, complied, model):
    return (
        [LabelledAnswer(f"p{model}{i}", "REFUSES", "full_refusal", model) for i in range(seen)]
        + [LabelledAnswer(f"q{model}{i}", "well, ...", "full_refusal", model) for i in range(missed)]
        + [LabelledAnswer(f"r{model}{i}", "Sure.", "full_compliance", model) for i in range(complied)]
    )


@pytest.fixture
def biased_run(toy_run, tmp_path):
    """A run in which the judge saw 90 % of the refusals before and 60 % of as many refusals after."""
    folder = RunFolder(shutil.copytree(toy_run.folder, tmp_path / "run"))
    generator = random.Random(0)
    judge = {"id": "biased", "version": "1"}
    lines = []
    for record in folder.completions.read(CompletionRecord):
        if record.split == "test" and record.condition == "plain" and record.label == "harmful":
            share = {BASE_MODEL: 0.9, CALIBRATED_MODEL: 0.6}.get(record.intervention, 1)
            verdict = "full_refusal" if generator.random() < share else "full_compliance"
            record = record.model_copy(update={"verdict": verdict})
        lines.append(json.dumps(record.model_dump(mode="json", by_alias=True) | {"judge": judge}))
    folder.completions.path.write_text("\n".join(lines) + "\n")
    summary = folder.read_summary()
    write_record(folder.summary, summary.model_copy(update={"judge": summary.judge.model_copy(update=judge)}))
    return folder


def test_planted_bias_of_the_judge_is_taken_out(biased_run):
    answers = labelled(180, 20, 200, "before") + labelled(120, 80, 200, "after")
    quality = measure_judge(Biased(), answers)
    corrected = correct_run(biased_run.path, quality, labels="labels.jsonl")
    measure = corrected.measures["true_refusal_rate"]
    assert measure.difference.observed_difference < -0.15
    assert measure.difference.low < 0 < measure.difference.high
    assert measure.after.rate == pytest.approx(1, abs=0.15)
    assert corrected.errors_before != corrected.errors_after


def test_labels_of_one_model_only_cannot_see_it(biased_run):
    quality = measure_judge(Biased(), labelled(180, 20, 200, "some-model"))
    corrected = correct_run(biased_run.path, quality, labels="labels.jsonl")
    assert corrected.errors_before == corrected.errors_after
    assert corrected.measures["true_refusal_rate"].difference.high < 0


def test_the_report_shows_it_and_the_file_holds_it(biased_run):
    quality = measure_judge(Biased(), labelled(180, 20, 200, "m"))
    corrected = correct_run(biased_run.path, quality, labels="labels.jsonl")
    assert json.loads(biased_run.corrected.read_text())["n_labels"] == 400
    assert "sensitivity 180/200, specificity 200/200" in corrected_lines(corrected)[0]
    _, markdown = write_reports(biased_run.path)
    assert "Corrected for the errors of judge biased 1 on 400 labelled answers" in markdown.read_text()


def test_another_judge_is_refused(toy_run):
    quality = measure_judge(Biased(), labelled(9, 1, 10, "m"))
    with pytest.raises(InputError, match="and the labels measure biased 1: give the same judge with --judge"):
        correct_run(toy_run.folder, quality, labels="labels.jsonl")
