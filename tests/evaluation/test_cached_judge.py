"""The cache of judgements: nothing is asked twice, whatever ends the process, and no text is kept."""

import json
import signal
import subprocess
import sys
import threading
import time

import pytest

from chat_server import ChatServer, error, in_turn, label
from demur.errors import InputError, RunFolderError
from demur.evaluation import CachedJudge, ChatJudge, Judgement
from demur.records import JsonLines, JudgementRecord

PAIRS = [("?", f"This is answer {number}.") for number in range(10)]


class Counting:
    """Judges by the length of the text, batch by batch, and may fail at one."""

    id = "counting"

    def __init__(self, *, version="1", fails_at=None):
        self.version = version
        self.fails_at = fails_at
        self.batches = []

    def judge_batch(self, pairs):
        if self.fails_at == len(self.batches):
            raise InputError("the disk of the judge is full")
        self.batches.append(list(pairs))
        return [Judgement("full_refusal", len(text) / 100, len(text) % 2 == 0, len(text) / 200) for _, text in pairs]

    @property
    def asked(self):
        return [pair for batch in self.batches for pair in batch]


@pytest.fixture
def store(tmp_path):
    return JsonLines(tmp_path / "cache" / "judgements.jsonl")


def test_the_second_time_nothing_is_asked_and_the_same_is_said(store):
    plain = Counting().judge_batch(PAIRS)
    first, second = Counting(), Counting()
    cached = CachedJudge(first, store)
    assert cached.judge_batch(PAIRS) == plain
    assert cached.judge_batch(PAIRS[::-1]) == plain[::-1]
    assert CachedJudge(second, store).judge_batch(PAIRS) == plain
    assert (first.asked, second.asked) == (PAIRS, [])


def test_only_what_is_missing_is_asked_and_each_once(store):
    CachedJudge(Counting(), store).judge_batch(PAIRS[:4])
    inner = Counting()
    judged = CachedJudge(inner, store).judge_batch([*PAIRS, *PAIRS])
    assert inner.asked == PAIRS[4:]
    assert judged == Counting().judge_batch([*PAIRS, *PAIRS])
    assert len(store.read(JudgementRecord)) == len(PAIRS)
    assert CachedJudge(inner, store).judge_batch([]) == []


@pytest.mark.parametrize("change", ["id", "version", "prompt", "completion", "border"])
def test_every_part_of_the_key_matters(change, store):
    CachedJudge(Counting(), store).judge_batch([("ab", "c")])
    inner = Counting()
    pair = {"prompt": ("aB", "c"), "completion": ("ab", "C"), "border": ("a", "bc")}.get(change, ("ab", "c"))
    if change in {"id", "version"}:
        setattr(inner, change, "other")
    CachedJudge(inner, store).judge_batch([pair])
    assert inner.asked == [pair]


def test_batches_before_a_failure_are_kept(store):
    failing = Counting(fails_at=2)
    with pytest.raises(InputError, match="disk of the judge"):
        CachedJudge(failing, store, batch_size=3).judge_batch(PAIRS)
    inner = Counting()
    assert CachedJudge(inner, store, batch_size=3).judge_batch(PAIRS) == Counting().judge_batch(PAIRS)
    assert failing.batches == [PAIRS[:3], PAIRS[3:6]]
    assert inner.batches == [PAIRS[6:9], PAIRS[9:]]


def test_no_text_is_kept(store):
    secret = [("a prompt of zebras", "an answer of zebras \ud800")]
    assert CachedJudge(Counting(), store).judge_batch(secret) == CachedJudge(Counting(), store).judge_batch(secret)
    (line,) = store.path.read_text().splitlines()
    assert "zebra" not in line
    assert set(json.loads(line)) == {"key", "verdict", "score", "degenerate", "harm"}


def test_it_speaks_for_the_judge_inside(store):
    class HarmOnly(Counting):
        judges_refusal, judges_harm = False, True

    plain, harm = CachedJudge(Counting(), store), CachedJudge(HarmOnly(), store)
    assert (plain.id, plain.version, plain.judges_refusal, plain.judges_harm) == ("counting", "1", True, False)
    assert (harm.judges_refusal, harm.judges_harm, plain.cost) == (False, True, None)


def test_another_file_is_refused(store):
    store.path.parent.mkdir()
    store.path.write_text('{"colour": "red"}\n')
    with pytest.raises(RunFolderError, match="line 1 is not a JudgementRecord"):
        CachedJudge(Counting(), store)


# With a server --------------------------------------------------------------------------------------------------------


def numbers(server):
    """The numbers of the answers that a server was asked about."""
    return sorted(int(asked.material.partition("This is answer ")[2].partition(".")[0]) for asked in server.asked)


def test_the_cost_is_that_of_what_was_asked(store):
    with ChatServer(in_turn(label("full_refusal"))) as server:
        CachedJudge(ChatJudge("m", base_url=server.url), store).judge_batch(PAIRS[:6])
        judge = CachedJudge(ChatJudge("m", base_url=server.url), store)
        judge.judge_batch(PAIRS)
    assert (judge.cost.questions, judge.cost.input_tokens) == (4, 400)
    assert numbers(server) == list(range(10))


def test_answers_before_a_failure_in_the_middle_are_kept_one_by_one(store):
    broken = threading.Event()

    def say(asked, _):
        return error(401) if broken.is_set() and "answer 7." in asked.material else label("partial_refusal")

    broken.set()
    with ChatServer(say) as server:
        with pytest.raises(InputError, match="does not accept the key"):
            CachedJudge(ChatJudge("m", base_url=server.url, concurrency=1), store).judge_batch(PAIRS)
        kept = len(store.read(JudgementRecord))
        assert kept == len(server.asked) - 1 >= 7  # all but the refused one; another may have been under way
        broken.clear()
        server.asked.clear()
        judged = CachedJudge(ChatJudge("m", base_url=server.url), store).judge_batch(PAIRS)
    assert [each.verdict for each in judged] == ["partial_refusal"] * 10
    assert len(server.asked) == 10 - kept
    assert 7 in numbers(server)


def test_a_failed_write_ends_the_asking(store):
    with ChatServer(in_turn(label("full_refusal"))) as server:
        judge = CachedJudge(ChatJudge("m", base_url=server.url, concurrency=1), store)
        store.path.mkdir(parents=True)
        with pytest.raises(RunFolderError, match="cannot write") as caught:
            judge.judge_batch([("?", f"This is answer {number}.") for number in range(300)])
        before = len(server.asked)
        threading.Event().wait(0.5)
        assert caught.value is not None  # its frames are still alive
        assert len(server.asked) <= before + 1 < 300


KILLED = """
import sys
from pathlib import Path
from demur.evaluation import CachedJudge, ChatJudge
from demur.records import JsonLines
pairs = [("?", f"This is answer {number}.") for number in range(10)]
CachedJudge(ChatJudge("m", base_url=sys.argv[1], concurrency=2), JsonLines(Path(sys.argv[2]))).judge_batch(pairs)
"""


def test_a_killed_process_has_asked_nothing_in_vain(store):
    killed = threading.Event()

    def say(_, number):
        if number >= 4:
            killed.wait(60)  # under way when the process is killed
        return label("full_compliance")

    with ChatServer(say) as server:
        process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, str(store.path)])
        deadline = time.monotonic() + 60
        while len(store.read(JudgementRecord)) < 4 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.kill()
        assert process.wait(30) == -signal.SIGKILL
        killed.set()
        kept = {record.key for record in store.read(JudgementRecord)}
        server.asked.clear()
        judged = CachedJudge(ChatJudge("m", base_url=server.url), store).judge_batch(PAIRS)
    assert len(kept) == 4
    assert [each.verdict for each in judged] == ["full_compliance"] * 10
    assert len(server.asked) == 6
    assert kept < {record.key for record in store.read(JudgementRecord)}
