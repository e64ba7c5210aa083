"""`demur monitor` from the command line."""

import json
from types import SimpleNamespace

import pytest
from cli_runs import call, error_of, prompt_files

from demur.monitoring import RefusalMonitor
from demur.testing import TOY_MODEL, load_toy_chat_model


@pytest.fixture(scope="module")
def monitored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("monitor")
    options = prompt_files(folder)
    prompts = [json.loads(line)["prompt"] for line in (folder / "harmful.jsonl").read_text().splitlines()]
    given = folder / "suppressed.txt"
    given.write_text("\n".join(f"{prompt} does keep wants pangolins" for prompt in prompts[-10:]))
    words = ["monitor", TOY_MODEL, *options, "--out", folder / "out", "--answers", "4", "--batch-size", "64"]
    words += ["--suppressed", given, "--false-positive-rate", "0.1", "--json"]
    return SimpleNamespace(folder=folder, options=options, prompts=prompts, called=call(*words))


def test_a_monitor_is_written_with_its_page(monitored):
    called, out = monitored.called, monitored.folder / "out"
    assert called.code == 0, called.err
    record = json.loads(called.out)
    assert record == json.loads((out / "monitor.json").read_text())
    assert record["schema"] == "demur.monitor/1"
    assert {path.name for path in out.iterdir()} == {
        "monitor.json", "monitor.safetensors", "monitor.html", "monitor.md", "log.txt",
    }  # fmt: skip
    suppressed = [each for each in record["evidence"]["rates"] if each["population"] == "suppressed"]
    assert {each["n"] for each in suppressed} == {10}
    assert "of the prompts given; of ordinary test prompts it flags at most" in called.err
    readings = RefusalMonitor.load(out).read(load_toy_chat_model(), monitored.prompts[:3])
    assert all("harm" in reading.scores for reading in readings)


def test_no_text_of_a_prompt_reaches_the_terminal_or_the_files(monitored):
    files = [path for path in (monitored.folder / "out").iterdir() if path.suffix != ".safetensors"]
    said = monitored.called.out + monitored.called.err + "".join(path.read_text() for path in files)
    assert not [prompt for prompt in monitored.prompts if prompt in said]


def test_a_rate_that_the_prompts_cannot_hold_is_said(monitored, tmp_path):
    words = ("monitor", TOY_MODEL, *monitored.options, "--out", tmp_path / "out", "--json")
    called = call(*words, "--false-positive-rate", "0.02")
    error = error_of(called)
    assert (called.code, error["type"]) == (2, "InputError")
    assert "32 validation harmful prompts cannot hold a false-positive rate of 0.02" in error["message"]
    assert "Give 49 or more" in error["message"]
    assert not (tmp_path / "out").exists()
    wrong = call(*words, "--false-positive-rate", "5")
    assert "lies between 0 and 1, such as 0.05; got 5" in error_of(wrong)["message"]
