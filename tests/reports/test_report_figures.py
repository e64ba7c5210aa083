"""The figures as SVG: literal text, no bitmap, colours that follow the page."""

import re
from importlib.resources import files
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
import report_records

from demur.records import LambdaPoint, ProjectionRecord
from demur.reports._figures import draw_figures
from demur.reports._records import RunRecords

PANELS = ("bypass", "induce", "kl")


def run(**changes):
    records = {
        "summary": report_records.calibration_summary(),
        "candidates": report_records.candidates(),
        "projections": report_records.projections(),
        **changes,
    }
    return RunRecords(**records)


@pytest.fixture(scope="module")
def figures():
    return draw_figures(run())


def texts(svg):
    return ["".join(element.itertext()) for element in ElementTree.fromstring(svg).iter("text")]


def ids(svg):
    return [element.get("id") for element in ElementTree.fromstring(svg).iter() if element.get("id")]


def test_all_are_drawn_and_labelled(figures):
    assert list(figures) == ["rates", "candidates", "projections", "lambda"]
    for svg in figures.values():
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert root.get("aria-label")
        assert not list(root.iter("image")), "a bitmap would not follow the page's colours"
        assert not list(root.iter("style")), "a style sheet in a figure would reach the whole page"


def test_tokens_are_literal_text(figures):
    drawn = texts(figures["candidates"])
    for label in ("-5 <|im_end|>", "-4 \\n", "-2 $x$ <script>_^", "-1 <\uff5cAssistant\uff5c>"):
        assert drawn.count(label) == len(PANELS)


def test_every_candidate_is_a_cell_with_a_tooltip(figures):
    found = ids(figures["candidates"])
    for panel in PANELS:
        assert sum(name.startswith(f"candidates-cell-{panel}-") for name in found) == 30
        assert f"candidates-selected-{panel}" in found
    titles = [element.text for element in ElementTree.fromstring(figures["candidates"]).iter("title")]
    assert len(titles) == 90
    assert any(re.fullmatch(r"layer 3, position -1 <.Assistant.>: bypass -5\.\d+, selected", text) for text in titles)
    assert any("rejected: kl" in text for text in titles)
    assert any("bypass not a number, rejected:" in text for text in titles)


def test_numbers_are_printed_only_where_they_fit():
    many = draw_figures(run(candidates=report_records.candidates(48)))["candidates"]
    assert sum(name.startswith("candidates-cell-kl-") for name in ids(many)) == 240
    assert len(texts(many)) < 70


def test_colours_are_those_of_the_page(figures):
    styles = files("demur.reports").joinpath("report.css").read_text(encoding="utf-8")
    defined = set(re.findall(r"(--chart-[a-z0-9-]+):", styles))
    for svg in figures.values():
        assert set(re.findall(r"var\((--chart-[a-z0-9-]+)\)", svg)) <= defined
        assert not re.search("#010[1-3][0-9a-f]{2}", svg), "a stand-in colour was left"


def test_light_and_dark_define_the_same_colours():
    styles = files("demur.reports").joinpath("report.css").read_text(encoding="utf-8")
    light, dark = (set(re.findall(r"(--[a-z0-9-]+):", part)) for part in styles.split("@media", 2)[:2])
    assert light == dark


def test_users_matplotlib_settings_neither_matter_nor_change(figures):
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "yellow", "svg.fonttype": "path"}):
        assert draw_figures(run()) == figures
        assert mpl.rcParams["font.size"] == 20


def test_one_value_one_prompt_and_gaps_can_be_drawn():
    one = report_records.candidates(1, selected=(0, -1))
    flat = tuple(score.model_copy(update={"bypass_score": 0.0, "kl_score": 0.0}) for score in one.refusal)
    point = ProjectionRecord(position=-1, layer=3, before={"harmful": (1.0,), "harmless": ()}, after={})
    summary = report_records.calibration_summary()
    gap = LambdaPoint(lambda_=2.0, position=None, layer=None, note="nothing left")
    alone = summary.model_copy(update={"lambda_curve": (summary.lambda_curve[-2], gap)})
    drawn = draw_figures(run(summary=alone, candidates=one.model_copy(update={"refusal": flat}), projections=point))
    assert "Before" in texts(drawn["projections"])
    assert "After" not in texts(drawn["projections"])
    nothing = draw_figures(run(summary=summary.model_copy(update={"lambda_curve": (gap,)})))
    assert "lambda" not in nothing


def test_scores_that_were_not_needed_are_cells_without_a_number():
    candidates = report_records.candidates()
    first, *others = candidates.refusal
    rejected = first.model_copy(
        update={"bypass_score": None, "kl_score": None, "rejected_by": ("induce",), "selected": False}
    )
    outscored = next(one for one in others if not one.rejected_by and not one.selected)
    stopped = outscored.model_copy(update={"bypass_score": None})
    rows = (rejected, *(stopped if one is outscored else one for one in others))
    svg = draw_figures(run(candidates=candidates.model_copy(update={"refusal": rows})))["candidates"]
    for panel, one in (("bypass", rejected), ("kl", rejected), ("bypass", stopped)):
        assert f"candidates-cell-{panel}-{one.layer}-{one.position}" in ids(svg)
    titles = [element.text for element in ElementTree.fromstring(svg).iter("title")]
    assert sum("not measured, as it was decided without" in title for title in titles) == 3
