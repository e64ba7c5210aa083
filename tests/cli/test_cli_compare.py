"""`demur compare-methods` on the toy: a few cheap rows, calibrated on the way, printed with intervals."""

import json
import re
from types import SimpleNamespace

import pytest
from cli_runs import call, error_of, prompt_files

from demur.records import MethodsTable, read_record
from demur.testing import TOY_MODEL

LENIENT = ("--margin", "0.05", "--gate-kl-limit", "1", "--kl-limit", "2", "--induce-minimum", "-15")
FAST = ("--max-new-tokens", "12", "--batch-size", "64", "--near-duplicates", "off")
METHODS = "none,system-relaxing,ablate-r,random"


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    options = prompt_files(folder)
    words = ("compare-methods", TOY_MODEL, *options, "--out", folder / "out", *LENIENT, *FAST, "--methods", METHODS)
    return SimpleNamespace(folder=folder, options=options, words=words, first=call(*words))


def test_all_rows_are_printed_with_intervals(compared):
    code, out, _ = compared.first
    assert code == 0
    table = read_record(compared.folder / "out" / "methods.json", MethodsTable)
    assert [row.method for row in table.rows] == METHODS.split(",")
    flat = " ".join(out.split())
    for row in table.rows:
        assert f"{row.method}: {row.title}. {' '.join(row.what.split())}" in flat
        assert f"inference: {row.cost}, in weights: {'yes' if row.exportable else 'no'}" in flat
    rates, differences = out.split("Points with 95 % intervals")
    assert len(re.findall(r"\d+/\d+", rates)) >= 3 * len(table.rows)
    assert len(re.findall(r"[\d.]+ to", rates)) >= 4 * len(table.rows)
    assert len(re.findall(r"[+-]?[\d.]+ to", differences)) >= 3 * (len(table.rows) - 1)


def test_the_report_has_every_row_and_no_prompt(compared):
    report = (compared.folder / "out" / "methods.md").read_text()
    assert f"report: {compared.folder / 'out' / 'methods.md'}" in compared.first.out.replace("\n", "")
    table = read_record(compared.folder / "out" / "methods.json", MethodsTable)
    for row in table.rows:
        assert row.title in report
        rate = row.false_refusal_rate
        assert f"({rate.k}/{rate.n}, {100 * rate.low:.1f} to {100 * rate.high:.1f} %)" in report
    for label in ("harmful", "borderline", "harmless"):
        for line in (compared.folder / f"{label}.jsonl").read_text().splitlines():
            assert json.loads(line)["prompt"] not in report


def test_the_same_command_answers_at_once_with_one_json_document(compared):
    code, out, err = call(*compared.words, "--json")
    assert code == 0
    assert json.loads(out) == json.loads((compared.folder / "out" / "methods.json").read_text())
    assert "answering test prompts" not in err


def test_options_reach_the_settings(compared):
    settings = json.loads((compared.folder / "out" / "run.json").read_text())["settings"]
    assert (settings["margin"], settings["gate_kl_limit"], settings["kl_limit"]) == (0.05, 1.0, 2.0)
    assert (settings["induce_minimum"], settings["max_new_tokens"], settings["batch_size"]) == (-15.0, 12, 64)
    assert (settings["n_train"], settings["operating_point"]) == (128, None)


def test_an_unknown_method_is_told_before_a_model_is_loaded(compared, tmp_path):
    words = (
        "compare-methods",
        "no/such-model",
        *compared.options,
        "--out",
        tmp_path / "out",
        "--json",
        "--near-duplicates",
        "off",
    )
    called = call(*words, "--methods", "demur,dro")
    assert called.code == 2
    assert error_of(called)["message"].startswith("there is no method 'dro'; give one or more of none, system-relaxing")
    assert "loading" not in called.err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_is_refused(compared, tmp_path):
    words = (
        "compare-methods",
        TOY_MODEL,
        *compared.options,
        "--out",
        tmp_path / "out",
        "--json",
        "--near-duplicates",
        "off",
    )
    called = call(*words, "--run", tmp_path / "nothing")
    assert called.code == 2
    assert error_of(called)["type"] == "RunFolderError"
