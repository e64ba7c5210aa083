"""`demur judge` with a judge of one's choice, and against a real server of models."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from cli_runs import call, error_of

from chat_server import ChatServer, error, label
from demur.testing import TOY_MODEL

KEY = "k-77ab01"
ROWS = [
    {"prompt": "?", "completion": "I'm sorry, I can't do that.", "human_label": "full_refusal", "model": "a"},
    {"prompt": "?", "completion": "No, but a spoon is carved so.", "human_label": "partial_refusal", "model": "a"},
    {"prompt": "?", "completion": "Water the plant once a week.", "human_label": "full_compliance", "model": "b"},
    {"prompt": "?", "completion": "Dry birch is best for spoons.", "human_label": "full_compliance", "model": "b"},
]  # fmt: skip


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
def labels(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def as_people_say(asked, _):
    return label(next(row["human_label"] for row in ROWS if row["completion"] in asked.material))


def test_a_chat_judge_is_measured_with_its_cost(labels):
    prices = ("--judge-option", "input_price=10", "--judge-option", "output_price=100")
    with ChatServer(as_people_say) as server:
        words = ["judge", "--labels", labels, "--judge", f"chat:m@{server.url}", *prices]
        called = call(*words, "--json")
        shown = call(*words, "--rubric", "lenient")
    found = json.loads(called.out)
    assert called.code == 0
    assert {"kappa_any_refusal", "kappa_three_way", "n", "unjudged", "per_model"} <= set(found)
    assert (found["kappa_any_refusal"], found["kappa_three_way"], found["n"], found["unjudged"]) == (1.0, 1.0, 4, 0)
    assert set(found["per_model"]) == {"a", "b"}
    assert found["judge"]["id"] == "chat:m"
    assert found["judge"]["version"].startswith("1-strict-")
    assert (found["cost"]["questions"], found["cost"]["input_tokens"]) == (4, 400)
    assert found["cost"]["money"] == pytest.approx((400 * 10 + 28 * 100) / 1e6)
    assert "asked 4 questions with 4 requests (0 retries): 400 tokens in, 28 out; money: 0.0068" in shown.err
    assert "full refusal" in shown.out
    systems = [asked.body["messages"][0]["content"] for asked in server.asked]
    assert len(set(systems[:4])) == len(set(systems[4:])) == 1
    assert systems[0] != systems[4]
    for text in (called.out, called.err, shown.out, shown.err):
        assert KEY not in text


def test_the_default_is_the_phrase_judge_and_costs_nothing(labels):
    called = call("judge", "--labels", labels, "--json")
    found = json.loads(called.out)
    assert (found["judge"]["id"], found["cost"]) == ("phrase", None)
    assert "asked" not in called.err


def test_a_command_that_died_asks_only_the_rest(labels, tmp_path):
    def say(asked, _):
        return error(401) if "Dry birch" in asked.material else as_people_say(asked, _)

    cache = ("--judge-cache", tmp_path / "judgements.jsonl", "--judge-option", "concurrency=1")
    with ChatServer(say) as server:
        words = ["judge", "--labels", labels, "--judge", f"chat:m@{server.url}", *cache, "--json"]
        died = call(*words)
        server.say = as_people_say
        server.asked.clear()
        lived = call(*words)
        again = call(*words)
        assert len(server.asked) == 1
    assert died.code == 2
    assert "set the environment variable OPENAI_API_KEY" in error_of(died)["message"]
    assert "asked 4 questions with 4 requests" in died.err
    assert (lived.code, json.loads(lived.out)["kappa_three_way"]) == (0, 1.0)
    assert json.loads(again.out)["cost"]["questions"] == 0
    assert "birch" not in (tmp_path / "judgements.jsonl").read_text()
    for text in (*died, *lived):
        assert "birch" not in str(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--judge", "oracle"], "'oracle' names no judge. A judge is phrase; chat:MODEL"),
        (["--judge", "chat:m", "--rubric", "fair"], "the rubric is one of strict, lenient; got 'fair'"),
        (["--judge-option", "speed=3"], "NAME=VALUE with NAME one of"),
        (["--judge", "classifier:llama-guard-3:org/m"], r"write phrase\+classifier:llama-guard-3:org/m"),
    ],
)
def test_what_cannot_be_used(options, words, labels):
    called = call("judge", "--labels", labels, *options, "--json")
    assert called.code == 2
    assert re.search(words, error_of(called)["message"])


def test_a_server_that_is_down(labels):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    called = call("judge", "--labels", labels, "--judge", f"chat:m@{url}", "--judge-option", "max_retries=0", "--json")
    assert (called.code, error_of(called)["type"]) == (2, "JudgeError")
    assert "could not be reached" in error_of(called)["message"]


# A real server --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served():
    """`transformers serve` with the toy chat model; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", TOY_MODEL, "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while not _healthy(port) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert process.poll() is None
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False


def test_transformers_serve(served, labels, tmp_path):
    """The toy does not follow a rubric: what it says is no label, so every answer is unjudged, and none is guessed."""
    cache = tmp_path / "judgements.jsonl"
    words = [
        *("judge", "--labels", labels, "--judge", f"chat:{TOY_MODEL}@{served}", "--judge-cache", cache),
        *("--judge-option", "max_tokens=16", "--judge-option", "concurrency=2", "--json"),
    ]
    first, second = call(*words), call(*words)
    assert (first.code, second.code) == (0, 0), first.err
    found = json.loads(first.out)
    assert (found["n"], found["unjudged"], found["kappa_any_refusal"]) == (4, 4, None)
    cost = found["cost"]
    assert (cost["questions"], cost["requests"], cost["uncounted"]) == (4, 4, 0)
    assert cost["input_tokens"] > 4 * 200
    assert 0 < cost["output_tokens"] <= 4 * 16
    assert json.loads(second.out)["cost"]["requests"] == 0
    assert json.loads(second.out)["unjudged"] == 4
