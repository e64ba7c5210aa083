"""`demur audit` from the command line: output, JSON, page, errors before a model is loaded."""

import json
from types import SimpleNamespace

import pytest
from cli_runs import call, error_of, prompt_files

from demur.records import Audit, read_record
from demur.testing import TOY_MODEL

FAST = ("--quick", "--n-test", "12", "--n-curve", "8", "--max-new-tokens", "16", "--ranks", "1")


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    options = prompt_files(folder)
    at = options.index("--borderline")
    options = [*options[:at], *options[at + 2 :]]
    words = ("audit", TOY_MODEL, *options, "--out", folder / "out", *FAST, "--only", "ladder,depth")
    return SimpleNamespace(folder=folder, options=options, words=words, first=call(*words))


def test_findings_are_printed_and_the_page_is_written(audited):
    code, out, _ = audited.first
    assert code == 0
    flat = " ".join(out.split())
    record = read_record(audited.folder / "out" / "audit.json", Audit)
    for finding in record.findings:
        assert f"{finding.severity}" in flat
        assert finding.title in flat
        assert " ".join(finding.evidence.split()) in flat
    assert str(audited.folder / "out" / "audit.html") in out.replace("\n", "")
    page = (audited.folder / "out" / "audit.md").read_text()
    assert record.findings[0].title in page
    assert record.settings["ranks"] == [1]


def test_json_is_the_record_and_no_prompt_gets_out(audited):
    code, out, err = call(*audited.words, "--json")
    assert code == 0
    assert json.loads(out) == json.loads((audited.folder / "out" / "audit.json").read_text())
    assert "climbing" not in err  # the section is in the folder
    texts = [
        json.loads(line)["prompt"]
        for label in ("harmful", "harmless")
        for line in (audited.folder / f"{label}.jsonl").read_text().splitlines()
    ]
    everything = out + err + "".join((audited.folder / "out" / f"audit.{end}").read_text() for end in ("html", "md"))
    assert not any(text in everything for text in texts)


def test_an_unknown_section_is_told_before_a_model_is_loaded(audited, tmp_path):
    words = ("audit", "no/such-model", *audited.options, "--out", tmp_path / "out", "--json", "--only", "ladders")
    called = call(*words)
    assert called.code == 2
    assert error_of(called)["message"].startswith("there is no section 'ladders'; give one or more of ladder, learned")
    assert "loading" not in called.err


def test_a_number_that_is_none_is_told(audited, tmp_path):
    words = ("audit", "no/such-model", *audited.options, "--out", tmp_path / "out", "--json", "--ranks", "1,x")
    assert error_of(call(*words))["message"] == "--ranks takes numbers separated by commas; got '1,x'."
