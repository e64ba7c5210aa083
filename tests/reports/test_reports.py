"""What the two files say, and what they never say."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import report_records

import demur.reports
from demur.errors import RunFolderError
from demur.records import BeforeAfter, JsonLines, Rate, Summary, read_record, write_record
from demur.reports import summary_table, write_reports

SECTIONS = ["results", "gate", "mechanism", "candidates", "projections", "lambda", "examples", "provenance"]


def read(folder, name):
    return (folder / name).read_text(encoding="utf-8")


def section_names(html):
    return re.findall(r'<section id="([a-z]+)"', html)


def test_the_door_lists_what_it_has():
    assert demur.reports.__all__ == sorted(demur.reports.__all__)
    assert all(hasattr(demur.reports, name) for name in demur.reports.__all__)


def test_writes_both_files_and_says_where(run_folder):
    html, markdown = write_reports(run_folder)
    assert (html, markdown) == (run_folder / "report.html", run_folder / "report.md")
    assert section_names(html.read_text(encoding="utf-8")) == SECTIONS
    leftovers = {path.name for path in run_folder.iterdir()} - {
        *("summary.json", "candidates.json", "projections.json", "completions.jsonl"),
        *("report.html", "report.md"),
    }
    assert not leftovers


def test_same_records_give_the_same_bytes(run_folder, tmp_path_factory):
    first = [path.read_bytes() for path in write_reports(run_folder)]
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "run"
    shutil.copytree(run_folder, elsewhere, ignore=shutil.ignore_patterns("report.*"))
    assert [path.read_bytes() for path in write_reports(run_folder)] == first
    assert [path.read_bytes() for path in write_reports(elsewhere)] == first


def test_no_torch_and_a_light_door(run_folder):
    code = (
        "import sys, pathlib, demur.reports\n"
        "assert 'matplotlib' not in sys.modules, 'importing the door draws'\n"
        f"demur.reports.write_reports(pathlib.Path({str(run_folder)!r}))\n"
        "assert 'matplotlib' in sys.modules, 'this test sees modules that are loaded'\n"
        "heavy = {'torch', 'transformers', 'datasets', 'scipy', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_harmful_text_is_nowhere(written, name):
    folder = written["calibration"]
    assert report_records.HARMFUL_MARKER in read(folder, "completions.jsonl")
    text = read(folder, name)
    assert report_records.HARMFUL_MARKER not in text
    assert "harmful prompt 0:" not in text
    assert "4 harmful prompts refused before and answered after" in text
    for number in range(4):
        prompt = report_records.completion("harmful", number, "none")
        assert prompt.prompt_sha256[:12] in text
        assert prompt.prompt_sha256 not in text


@pytest.mark.parametrize(
    "change",
    [{"prompt_sha256": "f" * 64}, {"prompt": f"{report_records.HARMFUL_MARKER}, in other words"}],
    ids=["same text", "same hash"],
)
def test_borderline_prompt_that_is_also_harmful_is_not_shown(tmp_path, change):
    write_record(tmp_path / "summary.json", report_records.calibration_summary())
    harmful = report_records.completion("harmful", 0, "none")
    twin = harmful.model_copy(update={"label": "borderline", **change})
    after = twin.model_copy(update={"intervention": "operating_point", "verdict": "full_compliance"})
    JsonLines(tmp_path / "completions.jsonl").append([harmful, twin, after])
    for path in write_reports(tmp_path):
        assert report_records.HARMFUL_MARKER not in path.read_text(encoding="utf-8")


def test_html_asks_for_nothing_outside_itself(written):
    html = read(written["calibration"], "report.html")
    assert "default-src 'none'" in html
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)""", html)
    assert not re.search(r"<script|@import|url\((?!#)|https?:", html)


class _Checker(HTMLParser):
    """Counts ids and holds start tags against end tags."""

    VOID = ("meta", "link", "br", "hr", "img")

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references = [], [], []

    def handle_starttag(self, tag, attrs):
        self.note(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, _, attrs):
        self.note(dict(attrs))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def note(self, attributes):
        if "id" in attributes:
            self.ids.append(attributes["id"])
        for name in ("href", "aria-labelledby", "clip-path"):
            self.references.extend(re.findall(r"#([^)]+)", attributes.get(name) or ""))
        self.references.extend(re.findall(r"url\(#([^)]+)\)", attributes.get("style") or ""))


@pytest.mark.parametrize("kind", ["calibration", "evaluation"])
def test_html_is_well_formed_and_ids_are_unique(written, kind):
    checker = _Checker()
    checker.feed(read(written[kind], "report.html"))
    assert not checker.open
    assert len(checker.ids) == len(set(checker.ids))
    assert set(checker.references) <= set(checker.ids)


def test_foreign_text_is_escaped_in_both(written):
    html, markdown = (read(written["calibration"], name) for name in ("report.html", "report.md"))
    assert "&lt;script&gt;window.hacked=1&lt;/script&gt;" in html
    assert r"&lt;script&gt;window.hacked=1&lt;/script&gt; \| \`kill -9\` \*\*now\*\*" in markdown
    assert "<script" not in html + markdown


def test_control_characters_do_not_reach_the_files(tmp_path):
    summary = report_records.calibration_summary()
    write_record(tmp_path / "summary.json", summary.model_copy(update={"warnings": ("a\x00b\x1b[31mc",)}))
    for path in write_reports(tmp_path):
        text = path.read_text(encoding="utf-8")
        assert not re.search("[\x00-\x08\x0b-\x1f]", text)
        assert "a\ufffdb\ufffd" in text


def test_summary_table_has_percent_counts_and_intervals():
    rows = {row.measure: row for row in summary_table(report_records.calibration_summary())}
    assert list(rows) == [
        "True refusal rate",
        "False refusal rate",
        "Harmless refusal rate",
        "Task accuracy",
        "KL from the base model",
    ]
    row = rows["False refusal rate"]
    assert str(row.before) == "41.3 % (186/450, 36.9 to 45.9 %)"
    assert str(row.after) == "12.0 % (54/450, 9.3 to 15.3 %)"
    assert str(row.difference) == "-29.3 points (-33.8 to -24.9, 3 gained, 135 lost)"
    assert (row.p_value, row.better, row.notes) == ("< 0.001", "lower", "2 unjudged after")
    kl = rows["KL from the base model"]
    assert str(kl.after) == "0.031 nats (n 450, 0.027 to 0.036, largest 0.412)"
    assert kl.before is None
    assert kl.difference is None


def test_a_rate_of_nothing_is_not_zero(tmp_path):
    nothing = Rate(k=0, n=0, rate=None, low=0, high=1, unjudged=7)
    summary = report_records.evaluation_summary()
    metrics = summary.metrics.model_copy(update={"false_refusal_rate": BeforeAfter(before=nothing)})
    summary = summary.model_copy(update={"metrics": metrics})
    row = summary_table(summary)[1]
    assert str(row.before) == "not measured (0/0)"
    assert row.notes == "7 unjudged before"
    write_record(tmp_path / "summary.json", summary)
    _, markdown = write_reports(tmp_path)
    assert "an unmeasured share of borderline prompts" in markdown.read_text(encoding="utf-8")


def test_markdown_tables(written):
    markdown = read(written["calibration"], "report.md")
    assert "**Gate: pass.** After calibration the model refuses 12.0 % of borderline prompts" in markdown
    assert "| Measure | Before | After | Difference | McNemar p |\n| --- | ---: | ---: | ---: | ---: |" in markdown
    assert (
        "| False refusal rate (lower is better, 2 unjudged after) | 41.3 % (186/450, 36.9 to 45.9 %) "
        "| 12.0 % (54/450, 9.3 to 15.3 %) | -29.3 points (-33.8 to -24.9, 3 gained, 135 lost) | &lt; 0.001 |"
    ) in markdown
    assert "| true refusals kept | -1.7 % | -2.0 % | pass | Kept: on 450" in markdown
    assert "- All 3 rules of the gate passed." in markdown
    assert "| 1.25 | - | - | - | - | - | no candidate met the constraints |" in markdown
    assert r"| 3 | -2 | \$x\$ &lt;script&gt;\_^ |" in markdown
    for line in markdown.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_markdown_rows_have_as_many_cells_as_their_heading(written):
    for block in read(written["calibration"], "report.md").split("\n\n"):
        if block.startswith("|"):
            widths = {len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(widths) == 1, block


def test_evaluation_leaves_out_what_it_has_not(written):
    html, markdown = (read(written["evaluation"], name) for name in ("report.html", "report.md"))
    assert section_names(html) == ["results", "examples", "provenance"]
    assert "Nothing was applied to this model" in markdown
    assert (
        "the gate, true refusals under pressure, fidelity, the noise floor, the random control, candidate scores, "
        "projections, the lambda curve" in markdown
    )
    assert "Borderline prompts that are refused" in markdown
    assert "gate:" not in html
    assert html.count("<svg") == 1


def test_summary_alone_is_enough(tmp_path):
    write_record(tmp_path / "summary.json", report_records.calibration_summary())
    html, _ = write_reports(tmp_path)
    assert section_names(html.read_text(encoding="utf-8")) == ["results", "gate", "mechanism", "lambda", "provenance"]


def test_examples_are_counted_and_limited(written):
    markdown = read(written["calibration"], "report.md")
    assert "135 prompts; 12 shown, taken by hash." in markdown
    assert "51 prompts; 4 shown, taken by hash." in markdown
    assert "3 prompts, all shown." in markdown
    assert markdown.count("| borderline prompt ") == 12 - 1 + 4 + 3  # one of the twelve has a text of its own


@pytest.mark.parametrize(
    ("mechanism", "words"),
    [
        ({}, "the direction causes refusal and does not merely go along with it"),
        ({"harmless_refusal_rate_r_added": report_records.rate(8)}, "Only removing it goes clearly beyond"),
        ({"true_refusal_rate_r_ablated": report_records.rate(440)}, "Only adding it goes clearly beyond"),
        (
            {
                "harmless_refusal_rate_r_added": report_records.rate(8),
                "true_refusal_rate_r_ablated": report_records.rate(440),
            },
            "does not show that the direction is a cause",
        ),
    ],
)
def test_cause_is_claimed_only_beyond_the_control(tmp_path, mechanism, words):
    summary = report_records.calibration_summary()
    changed = summary.mechanism.model_copy(update=mechanism)
    write_record(tmp_path / "summary.json", summary.model_copy(update={"mechanism": changed}))
    _, markdown = write_reports(tmp_path)
    assert words in markdown.read_text(encoding="utf-8")


@pytest.mark.parametrize("decision", ["fail", "inconclusive"])
def test_gate_that_did_not_pass_says_why_at_the_top(tmp_path, decision):
    summary = report_records.calibration_summary()
    write_record(tmp_path / "summary.json", summary.model_copy(update={"gate": report_records.gate(decision)}))
    html, markdown = (path.read_text(encoding="utf-8") for path in write_reports(tmp_path))
    assert f"**Gate: {decision}.**" in markdown
    assert "- Kept: on 450 harmful prompts" in markdown
    assert "- False refusals went down" not in markdown
    assert f'<span class="badge {decision}">gate: {decision}</span>' in html


def test_no_summary_says_what_to_type(tmp_path):
    with pytest.raises(RunFolderError, match=r"no summary\.json.*demur calibrate MODEL") as caught:
        write_reports(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_broken_summary_says_what_to_type(tmp_path):
    (tmp_path / "summary.json").write_text('{"schema": "demur.summary/99"}')
    with pytest.raises(RunFolderError, match=r"is not a Summary that this version of demur reads.*again"):
        write_reports(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_synthetic_summary_survives_the_disk(run_folder):
    assert read_record(run_folder / "summary.json", Summary) == report_records.calibration_summary()
