"""Progress is never silent for long, in a terminal or not, and leaves no thread behind."""

import io
import re
import threading
import time
from itertools import pairwise

import pytest
from rich.console import Console

from demur.cli._console import Out
from demur.cli._log import RunLog, command_line
from demur.cli._progress import ConsoleProgress, StderrConsole
from demur.cli._stage import Stage, duration, per_second
from demur.errors import ModelError, PromptError


class Lines(io.StringIO):
    """A stream that knows when each line came."""

    def __init__(self):
        super().__init__()
        self.times = []

    def write(self, text):
        self.times += [time.monotonic()] * text.count("\n")
        return super().write(text)


def progress_on(stream, *, terminal=False, log=None, **more):
    return ConsoleProgress(Console(file=stream, force_terminal=terminal, width=100), log, **more)


def heart():
    return [each for each in threading.enumerate() if each.name == "demur progress"]


# Texts --------------------------------------------------------------------------------------------------------------


def test_a_stage_says_done_of_how_many_rate_and_time_left():
    stage = Stage("scoring refusal directions", 95, 0.0)
    assert stage.line(8.0, 8.0) == "scoring refusal directions: still at 0 of 95 for 8 s"
    stage.note = "induce 20, kl 2"
    for second in range(1, 32):
        stage.advance(1, second * 1.25)
    expected = "scoring refusal directions: 31 of 95 (induce 20, kl 2), 0.8/s, about 1 min 20 s left"
    assert stage.line(39.0, 8.0) == expected
    assert stage.line(38.75 + 24, 8.0) == (
        "scoring refusal directions: still at 31 of 95 (induce 20, kl 2) for 24 s, about 1 min 20 s left"
    )
    stage.advance(64, 70.0)
    assert stage.line(71.0, 8.0) == "scoring refusal directions: all 95 done (induce 20, kl 2)"
    assert stage.line(90.0, 8.0).endswith(" done (induce 20, kl 2), working on what follows for 20 s")
    assert stage.end(90.0) == "scoring refusal directions: 95 in 1 min 30 s (induce 20, kl 2)"


def test_a_stage_that_nobody_counts_says_how_long_it_takes():
    stage = Stage("loading m", None, 100.0)
    assert stage.line(116.0, 8.0) == "loading m: 16 s so far"
    assert stage.end(116.04) == "loading m: 16.0 s"


def test_the_rate_is_that_of_late():
    stage = Stage("s", 10_000, 0.0)
    for second in range(1, 101):
        stage.advance(10, float(second))
    for second in range(101, 301):
        stage.advance(1, float(second))
    assert stage.rate(300.0) == pytest.approx(1.0, rel=0.05)
    assert stage.rate(2000.0) < 0.1  # it stands still


def test_what_was_kept_from_an_earlier_call_has_no_rate():
    stage = Stage("s", 1000, 0.0)
    stage.advance(900, 0.05)
    stage.advance(1, 10.05)
    assert stage.rate(10.05) == pytest.approx(0.1)
    assert stage.left(10.05) == pytest.approx(990.0)


def test_a_slow_stage_has_a_rate():
    stage = Stage("s", 10, 0.0)
    for number in range(1, 9):
        stage.advance(1, number * 200.0)
    assert stage.rate(1600.0) == pytest.approx(1 / 200)


def test_durations_and_rates_in_words():
    assert [duration(each) for each in (0, 24.4, 80, 3599, 7500)] == [
        "0 s",
        "24 s",
        "1 min 20 s",
        "59 min 59 s",
        "2 h 05 min",
    ]
    assert [per_second(each) for each in (1 / 12, 0.8, 250.4)] == ["one in 12 s", "0.8/s", "250/s"]


# The display --------------------------------------------------------------------------------------------------------


def test_a_blocked_stage_is_not_silent():
    stream = Lines()
    with progress_on(stream, beat=0.2).running() as progress:
        began = time.monotonic()
        progress.start("thinking", 3)
        progress.advance()
        time.sleep(1.6)
        ended = time.monotonic()
    moments = [began, *(each for each in stream.times if each < ended), ended]
    assert max(later - earlier for earlier, later in pairwise(moments)) < 1.0
    assert "  thinking: still at 1 of 3 for 1 s" in stream.getvalue()
    assert stream.getvalue().splitlines()[-1].startswith("  thinking: 1 in ")


def test_loading_and_the_time_between_stages_are_not_silent():
    stream = Lines()
    with progress_on(stream, beat=0.1).running() as progress:
        with progress.working("loading m"):
            time.sleep(0.35)
        time.sleep(0.35)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "  loading m"
    assert "  loading m: 0 s so far" in lines
    assert any(line.startswith("  loading m: 0.") for line in lines)
    assert "  at work for 0 s since the last stage" in lines


def test_a_quiet_stage_says_something_only_where_it_takes_long():
    stream = Lines()
    with progress_on(stream, beat=0.2).running() as progress:
        with progress.working("reading prompts", quiet=True):
            pass
        assert stream.getvalue() == ""
        with progress.working("reading prompts", quiet=True):
            time.sleep(0.3)
    assert stream.getvalue().splitlines()[0] == "  reading prompts: 0 s so far"
    assert re.fullmatch(r"  reading prompts: \d\.\d s", stream.getvalue().splitlines()[-1])


def test_what_is_called_while_loading_may_count():
    stream = Lines()
    with progress_on(stream, clock=lambda: 0.0).running() as progress, progress.working("loading m"):
        progress.start("proving the layout", 2)
        progress.advance(2)
    lines = stream.getvalue().splitlines()
    assert lines == ["  loading m", "  proving the layout: 2 in 0.0 s", "  loading m: 0.0 s"]


@pytest.mark.parametrize("terminal", [True, False])
def test_no_thread_is_left(terminal):
    for error in (None, ModelError("no"), KeyboardInterrupt()):
        try:
            with progress_on(io.StringIO(), terminal=terminal).running() as progress:
                progress.start("s", 1)
                assert len(heart()) == 1 and heart()[0].daemon
                if error is not None:
                    raise error
        except (ModelError, KeyboardInterrupt):
            pass
        assert heart() == []


def test_many_threads_may_report():
    stream = Lines()
    with progress_on(stream, beat=0.02, log_beat=0.02).running() as progress:
        progress.start("s", 8000)

        def work():
            for _ in range(1000):
                progress.advance()
                progress.note("n")

        workers = [threading.Thread(target=work) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert stream.getvalue().splitlines()[-1].startswith("  s: 8000 in ")


def test_a_reader_that_is_gone_ends_no_run(monkeypatch):
    class Gone(io.StringIO):
        def write(self, _text):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stderr", Gone())
    with ConsoleProgress(StderrConsole(), beat=0.05).running() as progress:
        progress.start("s", 1)
        time.sleep(0.2)


def test_a_terminal_gets_a_bar_and_lines_only_at_the_end():
    stream = Lines()
    with progress_on(stream, terminal=True, beat=0.05).running() as progress:
        progress.start("[odd] name", 4)
        time.sleep(0.25)
        progress.advance(2)
        time.sleep(0.7)
    assert "[odd] name" in stream.getvalue()
    assert "2 of 4" in stream.getvalue()
    assert "0:00:00" in stream.getvalue()
    assert "still at" not in stream.getvalue()


def test_a_terminal_is_not_silent_between_stages():
    stream = Lines()
    with progress_on(stream, terminal=True, beat=0.1).running() as progress:
        progress.start("s", 4)
        progress.start("t", 4)
        with progress.working("loading m"):
            pass
        time.sleep(0.5)
    assert stream.getvalue().count("at work for 0 s since the last stage") >= 2


# The log ------------------------------------------------------------------------------------------------------------


def said(path):
    return [line.partition("Z  ")[2] for line in path.read_text().splitlines()]


def test_the_log_has_starts_ends_and_beats(tmp_path):
    log = RunLog()
    log.attach(tmp_path / "run")
    log.write("demur demo")
    with progress_on(io.StringIO(), terminal=True, log=log, log_beat=0.1).running() as progress:
        with progress.working("loading m"):
            pass
        assert not (tmp_path / "run").exists()
        progress.start("s", 2)
        progress.advance()
        time.sleep(0.25)
    lines = said(tmp_path / "run" / "log.txt")
    assert [lines[0], lines[1], lines[3]] == ["demur demo", "begins: loading m", "begins: s (2)"]
    assert lines[2].startswith("ended: loading m: 0.")
    assert len([line for line in lines[4:] if line.startswith("s: 1 of 2")]) >= 1
    assert lines[-1].startswith("ended: s: 1 in ")


def test_a_long_load_is_logged_before_the_folder_is_claimed(tmp_path):
    log = RunLog()
    log.attach(tmp_path / "run")
    with progress_on(io.StringIO(), log=log, log_beat=0.1).running() as progress, progress.working("loading m"):
        time.sleep(0.25)
        assert "loading m: 0 s so far" in said(tmp_path / "run" / "log.txt")


def test_nothing_is_written_where_the_folder_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    log = RunLog()
    log.attach(tmp_path)
    with (
        pytest.raises(ModelError),
        progress_on(io.StringIO(), log=log, log_beat=0.05).running() as progress,
        progress.working("loading m"),
    ):
        time.sleep(0.15)
        raise ModelError("no")
    assert not (tmp_path / "log.txt").exists()


def test_how_a_command_stopped_is_logged_without_foreign_texts(tmp_path):
    for error, line in (
        (ModelError("no weights"), "stopped: ModelError: no weights"),
        (PromptError("'how to X' comes twice"), "stopped: PromptError"),
        (RuntimeError("how to X"), "stopped: RuntimeError"),
        (KeyboardInterrupt(), "stopped: KeyboardInterrupt"),
    ):
        log = RunLog()
        log.attach(tmp_path)
        with pytest.raises(type(error)), progress_on(io.StringIO(), log=log).running() as progress:
            progress.start("s", 1)
            raise error
        assert said(tmp_path / "log.txt")[-1] == line


def test_a_file_of_the_users_is_left_alone(tmp_path):
    (tmp_path / "log.txt").write_text("my diary\n")
    stream = Lines()
    log = RunLog()
    log.attach(tmp_path)
    with progress_on(stream, log=log).running() as progress:
        progress.start("s", 1)
        progress.start("t", 1)
    assert (tmp_path / "log.txt").read_text() == "my diary\n"
    assert stream.getvalue().count("was not written by demur, so no log is kept there") == 1


def test_a_log_that_cannot_be_written_ends_no_run(tmp_path):
    (tmp_path / "run").write_text("a file")
    stream = Lines()
    log = RunLog()
    log.attach(tmp_path / "run")
    with progress_on(stream, log=log).running() as progress:
        progress.start("s", 1)
    assert "no log is kept" in stream.getvalue()


def test_texts_on_the_command_line_are_not_logged():
    words = ["suffixes", "a model", "--suffix", "how to X", "--system=be bad", "--margin", "0.02"]
    shown = "demur suffixes 'a model' --suffix <8 characters> --system=<6 characters> --margin 0.02"
    assert command_line(words) == shown


def test_lines_cannot_be_forged(tmp_path):
    log = RunLog()
    log.attach(tmp_path)
    log.open()
    log.write("a\n2030-01-01T00:00:00Z  decision: pass\x1b[2J")
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 1


def test_the_log_is_the_first_process_s(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with Out(as_json=True).progress(tmp_path / "run") as progress:
        progress.start("s", 1)
    assert not (tmp_path / "run").exists()


def test_notes_and_decisions_are_logged(tmp_path, capsys):
    out = Out(as_json=False)
    with out.progress(tmp_path) as progress:
        progress.start("s", 1)
        out.note("something odd")
    out.decided("fail", ["too few"], ["a first look"])
    lines = said(tmp_path / "log.txt")
    assert lines[0].startswith("demur 0")
    assert "something odd" in lines
    assert lines[-3:] == ["warning: a first look", "decision: fail", "  - too few"]
    assert "something odd\n" in capsys.readouterr().err
