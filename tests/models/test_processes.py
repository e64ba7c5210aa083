"""Two processes give what one gives, bit for bit, and only the first writes the run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from demur.errors import InputError
from demur.models import join_processes, process_folder, world

WORKER = str(Path(__file__).with_name("process_worker.py"))
LAUNCHERS = {
    1: [sys.executable],
    2: [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """By number of processes: the folder with what each of them reported."""
    folders = {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for count, launcher in LAUNCHERS.items():
        folders[count] = out = tmp_path_factory.mktemp(f"processes{count}")
        (out / "run").mkdir()
        (out / "run" / "kept.txt").write_text("kept")
        (out / "run" / ".lock").touch()
        result = subprocess.run(
            [*launcher, WORKER, str(out), str(out / "run")], env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
    return folders


def report(folder, rank):
    return json.loads((folder / f"{rank}.json").read_text())


def test_means_and_rows_of_two_processes_are_those_of_one(runs):
    alone = load_file(runs[1] / "0.safetensors")
    assert alone["means"].abs().max() > 0
    for rank in (0, 1):
        shared = load_file(runs[2] / f"{rank}.safetensors")
        assert all(torch.equal(shared[name], alone[name]) for name in ("means", "rows"))


def test_work_is_shared_and_every_process_gets_all_of_it_in_order(runs):
    reports = [report(runs[2], rank) for rank in (0, 1)]
    assert [each["alone"] for each in reports] == [1, 1]  # nothing is shared before it is asked for
    assert [each["size"] for each in reports] == [2, 2]
    assert [each["five"][0] for each in reports] == [list("ace"), list("bd")]
    assert [each["one"][0] for each in reports] == [["ä"], []]
    for each in reports:
        assert each["five"][1] == [f"<{item}>" for item in "abcde"]
        assert each["one"][1] == ["<ä>"]
        assert each["none"] == [[], []]


def test_an_error_is_raised_where_it_happened_and_told_elsewhere(runs):
    assert report(runs[2], 1)["error"] == ["ValueError", "no such item"]
    assert report(runs[2], 0)["error"] == ["ModelError", "process 1 of 2 failed: no such item"]


def test_only_the_first_process_writes_the_run(runs):
    run = runs[2] / "run"
    first, second = report(runs[2], 0), report(runs[2], 1)
    assert first["own"] == str(run)
    assert second["own"] != str(run)
    assert first["found"] == second["found"] == "kept"
    assert (run / "new.txt").read_text() == "0"
    assert not Path(second["own"]).exists()


def test_one_process_is_a_world_of_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_processes() == world()
    assert world().size == 1
    assert world().is_first
    with process_folder(tmp_path / "run") as own:
        assert own == tmp_path / "run"


@pytest.mark.parametrize(
    "given",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "localhost"},
        {"WORLD_SIZE": "two", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
    ],
)
def test_half_a_launch_is_refused(monkeypatch, given):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="torchrun --nproc-per-node N -m demur"):
        join_processes()
    assert world().size == 1


def test_a_process_that_dies_is_no_bug_of_the_others():
    program = (
        "import os, sys\n"
        "from demur.errors import ModelError\n"
        "from demur.models import in_order, join_processes, world\n"
        "join_processes()\n"
        "if not world().is_first: os._exit(9)\n"
        "try:\n"
        "    list(in_order(str, [1, 2], pack=str.encode, unpack=bytes.decode))\n"
        "except ModelError as error:\n"
        "    sys.stdout.write(str(error)); sys.stdout.flush()\n"
        "os._exit(0)\n"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **meeting, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said, _ = started[0].communicate(timeout=120)
    started[1].communicate(timeout=60)
    assert [each.returncode for each in started] == [0, 9]
    assert said.startswith("another of the 2 processes that share this work has ended (")
    assert said.endswith("What is computed is kept: give the same command again.")
