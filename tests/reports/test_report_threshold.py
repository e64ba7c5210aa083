"""The threshold with its evidence, sampled refusal rates, and the frontier of a run without an operating point."""

import json

import pytest
from report_records import calibration_summary, mean, rate

from demur.evaluation import clustered_difference, clustered_rate, no_operating_point
from demur.records import (
    BeforeAfter,
    JudgedScores,
    LambdaPoint,
    LimitMiss,
    Metrics,
    RefusalThreshold,
    SampledRefusals,
    ScoreReading,
    Summary,
    read_record,
    write_record,
)
from demur.reports import write_reports
from demur.reports._figures import draw_figures
from demur.reports._records import RunRecords

FIRST = ScoreReading(opening="", opening_tokens=(), tokens=(40,), auroc=0.71, low=0.62, high=0.79)
FORCED = ScoreReading(opening="I can<b>", opening_tokens=(40, 41), tokens=(7,), auroc=0.97, low=0.93, high=0.99)
LEARNED = RefusalThreshold(
    value=-3.25,
    source="learned",
    slope=1.1,
    low=-4.5,
    high=-2.75,
    reading=FORCED,
    tried=(FIRST, FORCED),
    wrong=1,
    judged={
        "harmful": JudgedScores(refused=(-1.0, 0.5, -6.0), answered=(-8.0,), unjudged=2),
        "harmless": JudgedScores(answered=(-9.0, -7.5)),
    },
    verdict_tokens=48,
    verdict_changes=1,
)


def sampled():
    before = [True, True, True, False] * 10
    after = [True, True, False, False] * 10
    clusters = [str(index // 2) for index in range(40)]
    return SampledRefusals(
        label="borderline",
        n_prompts=20,
        n_samples=2,
        before=clustered_rate(before, clusters),
        after=clustered_rate(after, clusters),
        comparison=clustered_difference(before, after, clusters),
    )


def pages(folder, **changes):
    write_record(folder / "summary.json", calibration_summary().model_copy(update=changes))
    html, markdown = (path.read_text() for path in write_reports(folder))
    return html, markdown.replace("\\", "")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return pages(tmp_path_factory.mktemp("threshold"), refusal_threshold=LEARNED, sampled=(sampled(),))


@pytest.mark.parametrize(
    "shown",
    [
        "## From which refusal score on the model refuses",
        "From a refusal score of -3.25 log-odds on (-4.50 to -2.75) this model refuses",
        "learned from its own 6 judged answers to train prompts, of which 1 lie on the other side.",
        "with an AUROC of 0.97",
        "It is read after the answer was made to open with 'I can",
        "first 48 tokens",
        "| harmful | 3 | 1 | 1 | 0 | 2 |",
        "| harmless | 0 | 0 | 2 | 0 | 0 |",
        "| used |",
        "False refusal rate, sampled",
        "2 answers to each of 20 prompts",
        "75.0 % (30/40",
        "50.0 % (20/40",
        "-25.0",
    ],
)  # fmt: skip
def test_the_report_shows_the_threshold_and_the_sampled_rates(written, shown):
    assert shown in written[1]


def test_the_page_has_the_section_and_its_figure(written):
    html, _ = written
    assert 'id="threshold"' in html
    assert "threshold-line" in html
    assert "I can<b>" not in html  # a token's text is escaped


def test_the_figure_has_a_mark_for_every_judged_answer_and_both_thresholds():
    run = RunRecords(summary=calibration_summary().model_copy(update={"refusal_threshold": LEARNED}))
    svg = draw_figures(run)["threshold"]
    assert svg.count("<use") >= 6
    assert 'threshold-line"' in svg


@pytest.mark.parametrize(
    ("threshold", "words"),
    [
        (RefusalThreshold(value=0.0, source="given"), "the threshold was given, not learned"),
        (LEARNED.model_copy(update={"tells": False}), "what is kept was decided by judged answers alone"),
    ],
)
def test_a_threshold_that_was_given_or_does_not_tell_says_so(tmp_path, threshold, words):
    html, markdown = pages(tmp_path, refusal_threshold=threshold)
    assert words in markdown
    assert 'id="threshold"' in html


def test_a_given_threshold_has_no_figure():
    given = RefusalThreshold(value=0.0, source="given")
    run = RunRecords(summary=calibration_summary().model_copy(update={"refusal_threshold": given}))
    assert "threshold" not in draw_figures(run)


NEW_FIELDS = {
    "": ("refusal_threshold", "sampled", "categories"),
    "refusal_direction": ("unmet_filters",),
    "lambda_curve": (
        "true_refusals",
        "false_refusals",
        "misses",
        "true_refusals_by_score",
        "false_refusals_by_score",
    ),
}


def test_a_summary_from_before_these_fields_loads_and_renders(tmp_path):
    document = json.loads(calibration_summary().model_dump_json(by_alias=True))
    for name in NEW_FIELDS[""]:
        del document[name]
    for name in NEW_FIELDS["refusal_direction"]:
        del document["refusal_direction"][name]
    for point in document["lambda_curve"]:
        for name in NEW_FIELDS["lambda_curve"]:
            del point[name]
    assert document["schema"] == "demur.summary/2"
    (tmp_path / "summary.json").write_text(json.dumps(document))
    assert read_record(tmp_path / "summary.json", Summary) == calibration_summary()
    html, markdown = write_reports(tmp_path)
    assert 'id="threshold"' not in html.read_text()
    assert "sampled" not in markdown.read_text()


def frontier():
    """A run that found nothing, as `calibrate` writes it."""
    miss = LimitMiss(limit="true_refusals", measured=-0.081, low=-0.12, high=-0.04, allowed=-0.02, unit="share")
    kl = LimitMiss(limit="kl", measured=0.31, allowed=0.1, unit="nats")
    curve = (
        LambdaPoint(
            lambda_=1.0, position=-1, layer=3, kl_harmless=mean(0.31), true_refusal_rate=rate(410),
            false_refusal_rate=rate(90), misses=(miss, kl),
            note="true refusals lost (-8.1 points, -12.0 to -4.0; margin 2); KL 0.31 above 0.1",
        ),
        LambdaPoint(lambda_=0.5, position=None, layer=None, note="no candidate"),
    )  # fmt: skip
    full = calibration_summary()
    metrics = Metrics(
        true_refusal_rate=BeforeAfter(before=full.metrics.true_refusal_rate.before),
        false_refusal_rate=BeforeAfter(before=full.metrics.false_refusal_rate.before),
        harmless_refusal_rate=BeforeAfter(before=full.metrics.harmless_refusal_rate.before),
    )
    return {
        "operating_point": None,
        "false_refusal_direction": None,
        "lambda_curve": curve,
        "metrics": metrics,
        "comparison": None,
        "gate": no_operating_point("No operating point removes false refusals.", margin=0.02),
    }


def test_without_an_operating_point_the_report_is_the_frontier(tmp_path):
    html, markdown = pages(tmp_path, **frontier())
    for text in (html, markdown):
        assert "No calibration of this kind frees false refusals and keeps true ones here." in text
        assert "None was chosen: the table is the frontier." in text
        assert "No operating point removes false refusals." in text
        assert "-12.0 to -4.0" in text
        assert "KL 0.31 above 0.1" in text
    assert "fail" in markdown
