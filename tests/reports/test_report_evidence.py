"""The sections about pressure and about what supports the numbers."""

import pytest
import report_evidence
from report_records import calibration_summary, evaluation_summary

from demur.records import write_record
from demur.reports import write_reports


@pytest.fixture(scope="module")
def markdown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    more = {
        "pressure": report_evidence.pressure(),
        "fidelity": report_evidence.fidelity(),
        "noise_floor": report_evidence.noise_floor(),
        "stability": (report_evidence.stability(),),
        "leakage": report_evidence.leakage(),
    }
    write_record(folder / "summary.json", calibration_summary().model_copy(update=more))
    write_record(folder / "corrected.json", report_evidence.corrected())
    html, text = write_reports(folder)
    assert 'id="pressure"' in html.read_text()
    assert 'id="diagnostics"' in html.read_text()
    return text.read_text()


@pytest.mark.parametrize(
    "shown",
    [
        "## True refusals under pressure",
        "the answer is forced to open with 5 tokens of a neutral affirmative, 0 and 3 unjudged",
        "66.9 % (301/450, ",
        "64.4 % (290/450, ",
        "not gated",
        "opening pressure: -2.4 points (-4.7 to -0.2)",
        "| thinking-off | the chat template has no enable",
        "## What supports these numbers",
        "Verdicts by judge phrases, version 2",
        "asked 96 prompts twice in other batches: 1 verdicts flipped",
        "chosen at the same place in 75.0 % of 2000 draws",
        "Fidelity on harmless test prompts",
        "0.047 (n 32, 0.037 to 0.057)",
        "1.51, 1.54",
        "3.1e-05",
        "| harmful, train | harmful, test | 0 | 17 |",
        "Corrected for the errors of judge phrases 2 on 400 labelled answers (sensitivity 180/200, "
        "specificity 195/200)",
        "91.2 % (88.0 to 94.0 %)",
    ],
)
def test_the_report_shows(markdown, shown):
    assert shown in markdown.replace("\\_", "_").replace("\\", "")


def test_pressure_on_a_model_to_which_nothing_was_applied(tmp_path):
    pressure = report_evidence.pressure(compared=False)
    write_record(tmp_path / "summary.json", evaluation_summary().model_copy(update={"pressure": pressure}))
    _, text = write_reports(tmp_path)
    assert "| opening-5 (the answer is forced" in text.read_text()
    assert "The gate looks at each family" not in text.read_text()
