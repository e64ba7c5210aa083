"""`demur check` from the command line, and the documented workflow, which is run step by step as it stands."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import yaml
from cli_runs import call, error_of

from demur.assurance import read_policy

DOCS = Path(__file__).parents[2] / "docs"
WORKFLOW, POLICY = DOCS / "examples" / "release-gate.yml", DOCS / "examples" / "release-policy.toml"


@pytest.fixture(autouse=True)
def no_ci(monkeypatch):
    """The tests themselves may run on GitHub."""
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY", "GITHUB_ENV"):
        monkeypatch.delenv(name, raising=False)


def workflow_steps():
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["gate"]["steps"]
    return {step["name"]: step for step in steps if "run" in step}


def run_step(step, folder, *, inputs):
    """One step as GitHub runs it: bash -e, variables of GITHUB_ENV, expressions of `env` filled in."""
    env_file, summary = folder / ".github-env", folder / ".github-summary"
    set_before = dict(line.split("=", 1) for line in env_file.read_text().splitlines()) if env_file.exists() else {}
    own = {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda match: inputs.get(match[1], ""), str(value))
        for name, value in step.get("env", {}).items()
    }
    environment = os.environ | set_before | own
    environment |= {
        "GITHUB_ACTIONS": "true",
        "GITHUB_ENV": str(env_file),
        "GITHUB_STEP_SUMMARY": str(summary),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    """The documented workflow, all steps but the installation, first without a baseline."""
    folder = tmp_path_factory.mktemp("workflow")
    shutil.copy(POLICY, folder)
    done = {}
    for name, step in workflow_steps().items():
        if name != "Install":
            done[name] = run_step(step, folder, inputs={"new_baseline": "true"})
            assert done[name].returncode == 0, done[name].stderr
    return SimpleNamespace(folder=folder, done=done, gate=workflow_steps()["Gate"], run=folder / "run")


def test_the_first_run_of_the_workflow_writes_a_baseline(workflow):
    gate = workflow.folder / "gate"
    assert {"baseline.json", "check.json", "check.html", "check.md", "junit.xml"} == {
        one.name for one in gate.iterdir()
    }
    assert "::notice title=demur release gate::The model may be released" in workflow.done["Gate"].stdout
    record = json.loads((gate / "check.json").read_text())
    assert record["decision"] == "pass"
    skipped = {rule["name"] for rule in record["rules"] if rule["decision"] == "skipped"}
    assert "baseline.comparable" in skipped
    assert (workflow.folder / ".github-summary").read_text().startswith("# Release gate: toy")


def test_with_the_baseline_committed_the_next_run_is_compared(workflow, tmp_path):
    shutil.copytree(workflow.folder / "run", tmp_path / "run")
    shutil.copy(POLICY, tmp_path)
    shutil.copy(workflow.folder / "gate" / "baseline.json", tmp_path)
    done = run_step(workflow.gate, tmp_path, inputs={})
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "gate" / "check.json").read_text())
    assert {rule["decision"] for rule in record["rules"]} == {"pass"}
    assert (tmp_path / "gate" / "baseline.json").read_bytes() == (tmp_path / "baseline.json").read_bytes()
    suite = ElementTree.parse(tmp_path / "gate" / "junit.xml").getroot().find("testsuite")
    assert (suite.get("failures"), suite.get("errors"), suite.get("skipped")) == ("0", "0", "0")


def test_without_the_baseline_the_workflow_stops(workflow, tmp_path):
    shutil.copytree(workflow.folder / "run", tmp_path / "run")
    shutil.copy(POLICY, tmp_path)
    done = run_step(workflow.gate, tmp_path, inputs={})
    assert done.returncode == 2
    assert "cannot read baseline.json" in done.stderr


def test_a_stricter_policy_stops_the_workflow(workflow, tmp_path):
    shutil.copytree(workflow.folder / "run", tmp_path / "run")
    text = POLICY.read_text()
    assert "max = 0.70" in text
    (tmp_path / POLICY.name).write_text(text.replace("max = 0.70", "max = 0.20"))
    done = run_step(workflow.gate, tmp_path, inputs={"new_baseline": "true"})
    assert done.returncode == 100
    assert "::error title=limits.false_refusal_rate.max::" in done.stdout
    assert not (tmp_path / "gate" / "baseline.json").exists()
    assert "only a run that passes becomes a baseline" in done.stderr


def test_the_workflow_uploads_no_harmful_prompt(workflow):
    lines = (workflow.folder / "prompts" / "harmful.jsonl").read_text().splitlines()
    harmful = [json.loads(line)["prompt"] for line in lines]
    uploaded = "".join(path.read_text() for path in (workflow.folder / "gate").iterdir())
    spoken = "".join(done.stdout + done.stderr for done in workflow.done.values())
    assert len(harmful) == 100
    assert [text for text in harmful if text in uploaded or text in spoken] == []


def test_exit_codes_and_json(workflow, tmp_path):
    """In this process: pass, inconclusive, bad input."""
    text = POLICY.read_text()
    policy = tmp_path / "policy.toml"
    policy.write_text(text.split("[baseline.true_refusal_rate]")[0])
    passed = call("check", workflow.run, "--policy", policy, "--json")
    document = json.loads(passed.out)
    assert (passed.code, document["decision"], document["schema"]) == (0, "pass", "demur.check/1")
    assert "The model may be released" in passed.err
    policy.write_text(text)
    missing = call("check", workflow.run, "--policy", policy, "--json", "--github")
    assert (missing.code, json.loads(missing.out)["exit_code"]) == (101, 101)
    assert "::error title=baseline.comparable::" in missing.err
    policy.write_text(text.replace("[limits.false_refusal_rate]", "[limits.false_refusals_rate]"))
    error = error_of(call("check", workflow.run, "--policy", policy, "--json"))
    assert (error["type"], error["exit_code"]) == ("InputError", 2)
    assert "did you mean 'false_refusal_rate'?" in error["message"]
    assert call("check", workflow.run, "--policy", policy, "--side", "both").code == 2
    assert call("check", workflow.run).code == 2


def test_outputs_are_written_where_they_are_asked_for(workflow, tmp_path, monkeypatch):
    policy = tmp_path / "policy.toml"
    policy.write_text(POLICY.read_text().split("[baseline.true_refusal_rate]")[0])
    summary, step = tmp_path / "deep" / "summary.md", tmp_path / "step.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    words = ("check", workflow.run, "--policy", policy, "--summary", summary)
    quiet = call(*words)
    assert quiet.code == 0
    assert "::" not in quiet.out
    assert not step.exists()
    assert not (workflow.run / "check.json").exists()
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    loud = call(*words)
    assert "::notice title=demur release gate::" in loud.out
    assert step.read_text() == summary.read_text()[: len(summary.read_text()) // 2], "both are added to the end"
    assert "::" not in call(*words, "--no-github").out
    assert call("check", workflow.run, "--policy", policy, "--summary", tmp_path).code == 2


def test_the_page_is_rebuilt_by_demur_report(workflow):
    page = workflow.folder / "gate" / "check.html"
    before = page.read_bytes()
    page.unlink()
    assert call("report", workflow.folder / "gate").code == 0
    assert page.read_bytes() == before


def test_the_documents_agree_with_the_code():
    policy = read_policy(POLICY).policy
    text = (DOCS / "release-gate.md").read_text()
    for model, prefix in (
        (policy.limits, "limits"),
        (policy.baseline, "baseline"),
        (policy.validity, "validity"),
        (policy.expect, "expect"),
        (policy.evidence, "evidence"),
    ):
        for name in type(model).model_fields:
            assert f"{prefix}.{name}" in text, f"{prefix}.{name} is not documented"
    waiver = re.search(r"```toml\n(\[\[waiver\]\].*?)```", text, re.DOTALL)[1]
    assert set(tomllib.loads(waiver)["waiver"][0]) == {"rule", "owner", "reason", "expires"}
    commented = "\n".join(
        line.removeprefix("# ") for line in POLICY.read_text().splitlines() if "=" in line or "[" in line
    )
    assert tomllib.loads(waiver) == {"waiver": tomllib.loads(commented)["waiver"]}
