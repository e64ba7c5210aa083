"""A run that was killed goes on where it was, and ends as if nothing had happened."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    seed = random.randrange(10**6)
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_runs.py")), str(folder), str(seed)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"seed {seed}:\n{done.stdout}\n{done.stderr}"
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_the_kills_came_in_the_middle(runs):
    _, told = runs
    assert sum(each["killed"] for each in told["moments"]) >= 2, told
    assert told["moments"][-1]["sizes"], told


def test_the_result_is_the_same_apart_from_provenance(runs):
    folder, told = runs
    one, two = (json.loads((folder / name / "summary.json").read_text()) for name in ("whole", "torn"))
    assert one.pop("provenance").keys() == two.pop("provenance").keys()
    assert one == two, told


@pytest.mark.parametrize(
    "name",
    [
        *(
            "completions.jsonl",
            "scores.jsonl",
            "score_pieces.jsonl",
            "candidates.json",
            "projections.json",
            "mechanism.json",
        ),
        *("directions.safetensors", "run.json"),
    ],
)
def test_every_other_file_is_the_same_to_the_byte(runs, name):
    folder, told = runs
    assert (folder / "torn" / name).read_bytes() == (folder / "whole" / name).read_bytes(), told
