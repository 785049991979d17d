"""Whatever crashtest starts it ends: also when it is interrupted, killed, or its zygote is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from crashtest.scale import slot
from crashtest.scale.rundir import BASE, RunDirectory
from crashtest.verdict import ScenarioResult

ROOT = Path(__file__).parents[2]

#: recovery says when it has begun (in a file outside the state) and then waits for ever
WAITS = """
import os, subprocess, sys, time
from pathlib import Path
from crashtest import Run, scenario

@scenario(setup={"a": b"old"}, timeout=600)
def waits(run: Run) -> None:
    (run.dir / "a").write_text("new")
    run.ack()

@waits.recover
def recover(directory: Path) -> None:
    if not (directory / "a").read_text():
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        with open(os.environ["STORY_FIFO"], "w") as fifo:
            fifo.write("begun")
        time.sleep(600)

@waits.observe
def look(directory: Path) -> str:
    return (directory / "a").read_text()
"""


class Running:
    """A crashtest whose cell is in the middle of recovery, and the processes it has."""

    def __init__(self, directory: Path, command: list[str]) -> None:
        self.directory = directory
        fifo = directory / "fifo"
        os.mkfifo(fifo)
        (directory / "story.py").write_text(WAITS)
        # a place of its own: other runs of this user clean up what is nobody's, which is what is tested here
        self.base = directory / "states"
        self.base.mkdir()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "STORY_FIFO": str(fifo), BASE: str(self.base)}
        # a signal that is ignored stays ignored in a child: be sure that Ctrl-C is not
        self.process = subprocess.Popen(
            [sys.executable, "-m", "crashtest", *command],
            cwd=directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert fifo.read_text() == "begun"  # an event, not a time: recovery is running now
        self.below = psutil.Process(self.process.pid).children(recursive=True)

    def all_gone(self) -> list[psutil.Process]:
        """The processes that are still there when all should have ended."""
        _, alive = psutil.wait_procs(self.below, timeout=30)
        return alive


@pytest.fixture
def running(tmp_path: Path) -> Running:
    return Running(tmp_path, ["run", "story.py", "-j", "1", "--report", "json"])


def states_of(running: Running) -> list[Path]:
    return list(running.base.glob("crashtest-*/run-*"))


def test_ctrl_c_ends_everything_and_still_writes_the_report(running: Running) -> None:
    assert len(running.below) >= 3  # zygote, recovery, and the daemon it started
    assert states_of(running) != []
    running.process.send_signal(signal.SIGINT)
    output, _ = running.process.communicate(timeout=60)
    assert running.process.returncode == 130, output
    assert running.all_gone() == []
    assert states_of(running) == []
    report = json.loads((running.directory / ".crashtest/result.json").read_text())
    assert (report["exit"], report["stopped"]) == (130, "interrupted")
    assert [one["verdict"] for one in report["scenarios"]] == ["inconclusive"]


def test_sigkill_of_crashtest_leaves_no_process_and_no_state(running: Running) -> None:
    assert states_of(running) != []
    running.process.kill()
    running.process.communicate(timeout=60)
    assert running.all_gone() == []
    assert states_of(running) == []


def test_sigkill_of_a_zygote_is_a_harness_error_and_leaves_nothing(running: Running) -> None:
    zygote = next(p for p in running.below if p.ppid() == running.process.pid)
    zygote.kill()
    output, _ = running.process.communicate(timeout=60)
    assert running.process.returncode == 3, output
    assert "the zygote of this scenario died" in " ".join(output.split())
    assert running.all_gone() == []
    assert states_of(running) == []


def test_a_zygote_that_is_stopped_is_a_harness_error_and_leaves_nothing(
    crash: Callable[..., ScenarioResult], write_scenario: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "STOPPED_FOR", 0.1)
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    made = crash(
        write_scenario(
            """
            import signal

            @scenario(setup={"a": b"old"})
            def stops_its_zygote(run: Run) -> None:
                forker = Path(f"/proc/{os.getppid()}/stat").read_text()
                os.kill(int(forker.rpartition(")")[2].split()[1]), signal.SIGSTOP)

            @stops_its_zygote.observe
            def look(directory: Path) -> str:
                return (directory / "a").read_text()
            """
        ),
        jobs=1,
    )
    assert "the zygote of this scenario was stopped by a signal" in made.harness_error
    assert {process.pid for process in psutil.Process().children(recursive=True)} == before


def test_sigkill_of_crashtest_and_zygote_together_is_cleaned_up_by_the_next_run(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    for process in running.below:
        process.suspend()  # or the zygote would clean up as soon as its parent is gone
    for process in [psutil.Process(running.process.pid), *running.below]:
        process.kill()
    running.process.communicate(timeout=60)
    assert running.all_gone() == []
    left = states_of(running)
    assert left != []
    monkeypatch.setenv(BASE, str(running.base))
    next_run = RunDirectory()
    try:
        assert set(left[0].name.split()) <= set(next_run.cleaned)
        assert not left[0].exists()
    finally:
        next_run.close()


def test_a_directory_in_use_is_never_cleaned_up() -> None:
    one, other = RunDirectory(), RunDirectory()
    try:
        assert Path(one.path).is_dir()
        assert one.path not in other.cleaned
    finally:
        one.close()
        other.close()
    assert not Path(one.path).exists() and not Path(other.path).exists()
