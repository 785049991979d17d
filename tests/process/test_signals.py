"""Signals that a program may handle: what it does then is part of the run, and its end is judged like any other."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashtest.cells.example import Example
from crashtest.cells.plan import Cell
from crashtest.config import Settings
from crashtest.errors import UsageError
from crashtest.observe import bpf
from crashtest.scale import replay
from crashtest.scale.slot import Slot
from crashtest.scenario import load
from crashtest.verdict import ScenarioResult

#: interpreters after the oldest leave these out (tox.ini)
pytestmark = pytest.mark.slow

Crash = Callable[..., ScenarioResult]
Declare = Callable[..., Path]

SORT = "trap '{}' TERM; sort names > names.new; mv names.new names"
#: fails if any call does, so it would show a call that got an error where it should have been made anew
HANDLES = """
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void got(int number) {
    int fd = open("got", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || close(fd)) _exit(8);
}

static void *save(void *unused) {
    int fd = open("n", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, "new", 3) != 3 || close(fd) || rename("n", "a")) _exit(9);
    return 0;
}

int main(void) {
    struct sigaction action = {.sa_handler = got};
    sigset_t term;
    sigemptyset(&term);
    sigaddset(&term, SIGTERM);
    sigaction(SIGTERM, &action, 0);
#ifdef THREAD
    pthread_t thread;
    if (pthread_create(&thread, 0, save, 0)) _exit(7);
    pthread_join(thread, 0);
#else
#ifdef BLOCKED
    sigprocmask(SIG_BLOCK, &term, 0);
#endif
    save(0);
    sigprocmask(SIG_UNBLOCK, &term, 0);
#endif
    return 0;
}
"""

#: the handler runs in the first thread, and the file is written by another one
THREADED = """
import os, signal, threading

def got(number, frame):
    if os.path.exists("a.new"):
        os.rename("a.new", "a")
    os._exit(3)

def save():
    fd = os.open("a.new", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"new\\n")
    os.close(fd)
    os.rename("a.new", "a")

signal.signal(signal.SIGTERM, got)
thread = threading.Thread(target=save)
thread.start()
thread.join()
"""


@pytest.fixture
def declare(tmp_path: Path) -> Declare:
    """declare(**parts): a declaration file of one command, in a state with the files `names` and `a`."""

    def write(**parts: Any) -> Path:
        setup = "printf 'b\\na\\n' > names; printf old > a"
        path = tmp_path / "declared.json"
        path.write_text(json.dumps({"commands": {"one": {"setup": setup, **parts}}}))
        return path

    return write


@pytest.fixture
def got_before(slot: Slot, declare: Declare) -> Callable[..., dict[str, Any]]:
    """got_before(call, **parts): what came of a run that got SIGTERM before that call (its first words)."""

    def run(call: str, **parts: Any) -> dict[str, Any]:
        file = declare(**parts)
        (scenario,) = load(file)
        ops = None if scenario.make_ops is None else [json.dumps(one) for one in scenario.make_ops()]
        slot.open(scenario, file)
        example = Example(scenario, ops, slot.prepare(scenario, ops, 10.0), True)
        assert example.reason == ""
        slot.serve(example, 10.0, 1)
        cut = next(at for at, event in enumerate(example.events) if event.describe().startswith(call))
        (found,) = slot.ask({"do": "kill", "crashes": [list(Cell(cut, "", 0, "TERM")[:4])]})["cells"]
        assert isinstance(found, dict) and found["proof"] == [] and found["problem"] == ""
        return found

    return run


def test_a_handler_that_publishes_a_half_written_file_is_caught_by_its_signal_alone(
    crash: Crash, declare: Declare, tmp_path: Path
) -> None:
    file = declare(run=SORT.format("mv names.new names; exit 143"))
    assert crash(file, depth=1).verdict == "held"
    made = crash(file, signals=("TERM",), depth=1)
    assert (made.harness_error, made.reason) == ("", "")
    (violation,) = made.violations
    assert (violation.guarantee, violation.model) == ("atomic", "kill")
    assert violation.point == "SIGTERM before write(names.new, 4 bytes at 0)"
    assert [words.partition("(")[2] for words in violation.after] == ["names.new -> names)"]
    assert "ended with status 143" in violation.ended
    assert made.models["kill"].signals == {"TERM": 3}
    (stored,) = (tmp_path / "report/violations").glob("*.json")
    again = replay.replay(stored, Settings(report_dir=tmp_path / "report"), lambda event: None)
    assert (again.exit, [v.id for v in again.scenarios[0].violations]) == (1, [violation.id])


def test_a_handler_that_publishes_what_another_thread_has_half_written_is_caught(
    crash: Crash, declare: Declare, tmp_path: Path
) -> None:
    (tmp_path / "save.py").write_text(THREADED)
    file = declare(run=[sys.executable, str(tmp_path / "save.py")])
    assert crash(file, depth=1).verdict == "held"
    made = crash(file, signals=("TERM",), depth=1)
    assert (made.harness_error, made.reason) == ("", "")
    assert ("atomic", "SIGTERM before write(a.new, 4 bytes at 0)") in {(v.guarantee, v.point) for v in made.violations}


def test_a_handler_that_takes_away_what_is_half_written_is_held(crash: Crash, declare: Declare) -> None:
    file = declare(run=SORT.format("rm -f names.new; exit 143"), signals=["TERM", "INT", "HUP"])
    made = crash(file, depth=1)
    assert (made.verdict, made.reason) == ("held", "")
    assert made.models["kill"].signals == {"TERM": 3, "INT": 3, "HUP": 3}
    assert made.notes == []


def test_a_program_that_does_not_end_after_its_signal_is_killed_and_counted(crash: Crash, declare: Declare) -> None:
    made = crash(declare(run=SORT.format("exec sleep 1000")), signals=("TERM",), grace=0.3, depth=1)
    assert made.verdict == "held"
    (note,) = made.notes
    assert note.startswith("in 3 of 3 cells that sent a signal, something had not ended when its grace was over")
    assert "killed: sleep 1000 after SIGTERM" in note


def test_a_program_that_ignores_its_signal_ends_as_it_would_have(got_before: Callable[..., dict[str, Any]]) -> None:
    found = got_before("rename", run=SORT.format(""))
    assert (found["ended"], found["acks"], found["outlasted"]) == ("the program ended normally", 1, [])


def test_a_stopped_call_is_made_anew_after_the_handler_has_run(
    got_before: Callable[..., dict[str, Any]], compiled: Callable[..., str]
) -> None:
    found = got_before("write(n", run=[compiled(HANDLES)], observe="cat a")
    calls = ["openat(got)", "write(n, 3 bytes at 0)", "rename(n -> a)", "ack 1"]
    assert (found["before"], found["after"], found["ended"]) == (calls[1], calls, "the program ended normally")


def test_a_signal_that_is_blocked_or_for_another_thread_disturbs_no_call(
    got_before: Callable[..., dict[str, Any]], compiled: Callable[..., str]
) -> None:
    rest = ["write(n, 3 bytes at 0)", "rename(n -> a)"]
    found = got_before("write(n", run=[compiled(HANDLES, "-DBLOCKED")], observe="cat a")
    assert (found["after"], found["ended"]) == ([*rest, "openat(got)", "ack 1"], "the program ended normally")
    found = got_before("write(n", run=[compiled(HANDLES, "-DTHREAD")], observe="cat a")
    assert [call for call in found["after"] if call != "openat(got)"] == [*rest, "ack 1"]
    assert (len(found["after"]), found["ended"]) == (4, "the program ended normally")


def test_nothing_more_is_started_when_a_command_has_ended_after_its_signal(
    got_before: Callable[..., dict[str, Any]],
) -> None:
    commands = ["trap : TERM; echo 1 > n; mv n a", "echo 2 > n; mv n a"]
    found = got_before("write(n", commands=commands)
    assert (found["acks"], found["outlasted"]) == (1, [])
    assert found["after"][-1] == "ack 1"


def test_a_workload_in_python_can_handle_its_signal(crash: Crash, write_scenario: Callable[[str], Path]) -> None:
    source = """
        import signal, sys

        @scenario(setup={{"a": "old"}}, signals=["TERM"])
        def save(run: Run) -> None:
            def stop(*_: object) -> None:
                {handler}
                sys.exit(3)

            signal.signal(signal.SIGTERM, stop)
            (run.dir / "n").write_text("new")
            (run.dir / "n").rename(run.dir / "a")
            run.ack()

        @save.observe
        def look(directory: Path) -> str:
            return (directory / "a").read_text()
        """
    made = crash(write_scenario(source.format(handler='(run.dir / "n").unlink(missing_ok=True)')))
    assert (made.verdict, made.models["kill"].signals) == ("held", {"TERM": 4})
    made = crash(write_scenario(source.format(handler='(run.dir / "n").rename(run.dir / "a")')))
    assert {v.guarantee for v in made.violations} == {"atomic"}
    assert made.violations[0].ended == "ended with sys.exit(3)"


def test_where_signals_reach_stopped_calls_they_are_refused(
    crash: Crash, declare: Declare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf, "holds_signals", lambda: False)
    with pytest.raises(UsageError, match=r"--signal needs Linux 5\.19"):
        crash(declare(run="mv names a"), signals=("TERM",))
