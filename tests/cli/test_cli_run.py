"""The main job from the command line: interrupted, continued, evaluated, reported, exported."""

import json
from datetime import datetime, timedelta
from itertools import pairwise

from cli_runs import SIZES, call, error_of, prompt_files

from demur.records import Summary, read_record
from demur.testing import TOY_MODEL

CODES = {"pass": 0, "fail": 100, "inconclusive": 101}


def test_ctrl_c_says_what_is_kept(cli_run):
    stopped = cli_run.interrupted
    assert stopped.code == 130, stopped.err
    assert error_of(stopped) == {
        "type": "Interrupted",
        "message": "interrupted; what was computed is kept, and the same command continues from it",
        "exit_code": 130,
    }
    assert "error: interrupted; what was computed is kept" in stopped.err
    assert "Traceback" not in stopped.err
    assert stopped.kept["completions.jsonl"]


def test_an_unfinished_run_has_no_report(cli_run):
    assert cli_run.unfinished.code == 2
    assert "holds an unfinished run. Give its command again" in error_of(cli_run.unfinished)["message"]


def test_the_same_command_continues_from_it(cli_run):
    for name, kept in cli_run.interrupted.kept.items():
        whole_lines = kept[: kept.rfind(b"\n") + 1]
        assert (cli_run.run / name).read_bytes().startswith(whole_lines)


def test_the_result_is_one_json_document(cli_run):
    code, out, err = cli_run.finished
    summary = Summary.model_validate_json(out)
    assert summary == read_record(cli_run.run / "summary.json", Summary)
    assert json.loads(out) == json.loads((cli_run.run / "summary.json").read_text())
    assert code == CODES[summary.gate.decision]
    assert f"gate: {summary.gate.decision}" in err
    assert f"report: {cli_run.run / 'report.html'}" in err
    assert f"loading {TOY_MODEL}" in err
    assert "scoring refusal directions: " in err
    assert (cli_run.run / "report.md").exists()


def test_options_reach_the_settings(cli_run):
    settings = json.loads((cli_run.run / "run.json").read_text())["settings"]
    assert settings["lambdas"] == [0.7, 0.6]
    assert (settings["margin"], settings["gate_kl_limit"], settings["kl_limit"]) == (0.05, 1.0, 2.0)
    assert (settings["induce_minimum"], settings["max_new_tokens"], settings["batch_size"]) == (-15.0, 24, 32)
    assert (settings["seed"], settings["refusal_tokens"], settings["layer_fraction"]) == (0, None, 0.8)


def test_no_text_of_a_harmful_prompt_leaves_the_run_folder(cli_run):
    prompts = [json.loads(line)["prompt"] for line in (cli_run.folder / "harmful.jsonl").read_text().splitlines()]
    shown = cli_run.finished.out + cli_run.finished.err + cli_run.interrupted.out + cli_run.interrupted.err
    reports = (cli_run.run / "report.html").read_text() + (cli_run.run / "report.md").read_text()
    assert not [prompt for prompt in prompts if prompt in shown or prompt in reports]


def test_the_same_command_again_gives_the_same_at_once(cli_run):
    again = call(*cli_run.words)
    assert (again.code, again.out) == (cli_run.finished.code, cli_run.finished.out)
    assert "scoring" not in again.err


def test_without_json_the_table_is_on_stdout(cli_run):
    again = call(*cli_run.words[:-1])
    assert again.code == cli_run.finished.code
    assert "on test prompts" in again.out
    assert "gate: " in again.out
    assert "report: " in again.out
    assert "{" not in again.out


def test_other_settings_are_refused(cli_run):
    called = call(*cli_run.words, "--margin", "0.04")
    assert called.code == 2
    error = error_of(called)
    assert error["type"] == "RunFolderError"
    assert (
        "belongs to another run: its setting margin is 0.05, not 0.04. Give another folder with --out"
        in error["message"]
    )


def test_report_rebuilds_the_same_files(cli_run):
    files = [cli_run.run / "report.html", cli_run.run / "report.md"]
    before = [path.read_bytes() for path in files]
    for path in files:
        path.unlink()
    called = call("report", cli_run.run, "--json")
    assert called.code == 0
    assert json.loads(called.out) == {"html": str(files[0]), "markdown": str(files[1])}
    assert [path.read_bytes() for path in files] == before


def test_evaluate_with_the_run(cli_run, tmp_path):
    words = ["evaluate", TOY_MODEL, *cli_run.options, "--out", tmp_path / "e", "--run", cli_run.run, "--no-pressure"]
    called = call(
        *words, "--margin", "0.05", "--gate-kl-limit", "1", "--max-new-tokens", "24", "--batch-size", "32", "--json"
    )
    found, calibrated = json.loads(called.out), json.loads(cli_run.finished.out)
    assert found["kind"] == "evaluation"
    assert found["metrics"] == calibrated["metrics"]
    assert found["gate"] == calibrated["gate"]
    assert called.code == cli_run.finished.code


def test_evaluate_needs_test_prompts_only(tmp_path):
    options = prompt_files(tmp_path)
    for path in tmp_path.glob("*.jsonl"):
        tests = [line for line in path.read_text().splitlines() if json.loads(line)["split"] == "test"]
        path.write_text("\n".join(tests) + "\n")
    short = ("--no-pressure", "--max-new-tokens", "12", "--batch-size", "32")
    done = call("evaluate", TOY_MODEL, *options, "--out", tmp_path / "evaluation", *short, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["metrics"]["true_refusal_rate"]["before"]["n"] == SIZES["test"]
    refused = call("calibrate", TOY_MODEL, *options, "--out", tmp_path / "run", *short)
    assert refused.code == 2 and "32" in refused.err and "train" in refused.err


def test_evaluate_without_a_run_has_no_gate_and_is_fine(cli_run, tmp_path):
    called = call(
        "evaluate",
        TOY_MODEL,
        *cli_run.options,
        "--out",
        tmp_path / "e",
        "--max-new-tokens",
        "4",
        "--system",
        "Be brief.",
        "--json",
    )
    found = json.loads(called.out)
    assert called.code == 0
    assert found["gate"] is None
    assert json.loads((tmp_path / "e" / "run.json").read_text())["settings"]["system"] == "Be brief."


def test_export_follows_the_gate(cli_run, tmp_path):
    called = call("export", cli_run.run, "--format", "adapter", "--to", tmp_path / "out", "--json")
    if cli_run.finished.code:
        assert called.code == 100
        assert error_of(called)["type"] == "GateError"
        assert not (tmp_path / "out").exists()
    else:
        assert called.code == 0
        assert json.loads(called.out) == json.loads((tmp_path / "out" / "demur.json").read_text())
        assert "adapter written to" in called.err
        assert "Reloaded in a fresh process: largest logit difference" in called.err


def test_select_reads_the_candidates_of_a_run(cli_run):
    called = call("select", cli_run.run / "candidates.json", "--kl-limit", "2", "--induce-minimum", "-15", "--json")
    found, summary = json.loads(called.out), json.loads(cli_run.finished.out)
    card = summary["refusal_direction"]
    assert (found["position"], found["layer"]) == (card["position"], card["layer"])
    assert found["survivors"] == card["n_survivors"]


def test_the_log_lists_the_stages_and_is_never_silent_for_long(cli_run):
    lines = (cli_run.run / "log.txt").read_text().splitlines()
    moments = [datetime.fromisoformat(line.partition("  ")[0]) for line in lines]
    said = [line.partition("  ")[2] for line in lines]
    calls = [number for number, line in enumerate(said) if line.startswith("demur ") and " calibrate " in line]
    assert len(calls) >= 2  # it was interrupted, and called again
    assert "stopped: KeyboardInterrupt" in said[: calls[1]]
    for start, end in zip(calls, [*calls[1:], len(lines)], strict=True):
        gaps = [later - earlier for earlier, later in pairwise(moments[start:end])]
        assert max(gaps) < timedelta(seconds=30)
    whole = said[calls[1] :]
    for stage in ("reading options and prompts", f"loading {TOY_MODEL}"):
        assert f"begins: {stage}" in whole
    for stage in ("scoring refusal directions", "answering test prompts with the base model"):
        assert any(line.startswith(f"begins: {stage} (") for line in whole), stage
        assert any(line.startswith(f"ended: {stage}: ") for line in whole), stage
    assert f"decision: {json.loads(cli_run.finished.out)['gate']['decision']}" in whole


def test_the_log_holds_no_text_of_prompts_or_answers(cli_run):
    log = (cli_run.run / "log.txt").read_text()
    rows = [json.loads(line) for line in (cli_run.run / "completions.jsonl").read_text().splitlines()]
    texts = {row[name] for row in rows for name in ("prompt", "completion") if row[name]}
    assert not [text for text in texts if len(text) > 12 and text in log]


def test_what_comes_next_is_a_command(cli_run):
    decision = json.loads(cli_run.finished.out)["gate"]["decision"]
    expected = {
        "pass": f"demur export {cli_run.run} --format adapter --to {cli_run.run}-adapter",
        "fail": f"demur report {cli_run.run}",
        "inconclusive": f"demur power --margin 0.05 --n {SIZES['test']}",
    }[decision]
    assert cli_run.finished.err.splitlines()[-1].endswith(expected)
    if decision != "pass":
        assert call(*expected.split()[1:]).code == 0


def test_prompts_of_ones_own_are_no_first_look(cli_run):
    assert not [each for each in json.loads(cli_run.finished.out)["warnings"] if "first look" in each]
