"""`result.json`: whole or not there, valid whatever it holds, and readable back."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import msgspec
import pytest
from pyfakefs.fake_filesystem import FakeFilesystem

from crashtest.report import events, json_
from crashtest.verdict import Event, Note, RunResult, RunStarted, ScenarioFinished, ScenarioResult, Violation


def result(name: str = "a.py::f", seed: int = 1) -> RunResult:
    violation = Violation(
        id=f"{name}/0/1/kill/0",
        guarantee="atomic",
        model="kill",
        expected=False,
        count=1,
        point=name,
        where=name,
        acked=0,
        wanted=name,
        observed=name,
    )
    scenario = ScenarioResult(name=name, verdict="violated", as_expected=False, violations=[violation], notes=[name])
    return RunResult(seed=seed, exit=1, seconds=0.5, observation="seccomp", scenarios=[scenario])


def test_what_is_written_can_be_read_back(tmp_path: Path) -> None:
    path = json_.write(result(), tmp_path / "deep" / "out")
    assert path == tmp_path / "deep" / "out" / "result.json"
    assert msgspec.json.decode(path.read_bytes(), type=RunResult) == result()
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("name", ["new\nline", "esc\x1b[31m", "byte\udc80", "half\ud800", "\x00", "[red]", "grün", '"'])
def test_any_name_gives_valid_json(tmp_path: Path, name: str) -> None:
    content = json_.write(result(name), tmp_path).read_bytes()
    stored = json.loads(content.decode("utf-8"))
    expected = name.encode("utf-8", "backslashreplace").decode()
    assert stored["scenarios"][0]["name"] == expected
    assert stored["scenarios"][0]["violations"][0]["id"] == f"{expected}/0/1/kill/0"
    assert b"\x1b" not in content


def test_a_result_replaces_the_one_before_it(fs: FakeFilesystem) -> None:
    out = Path("/somewhere/.crashtest")
    json_.write(result(seed=1), out)
    json_.write(result(seed=2), out)
    assert json.loads((out / "result.json").read_bytes())["seed"] == 2
    assert [path.name for path in out.iterdir()] == ["result.json"]


def test_an_earlier_result_can_be_discarded_twice(fs: FakeFilesystem) -> None:
    out = Path("/out")
    json_.write(result(), out)
    json_.discard(out)
    json_.discard(out)
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_earlier_result_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    json_.write(result(seed=1), tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space left"):
            json_.write(result(seed=2), tmp_path)
    assert json.loads((tmp_path / "result.json").read_bytes())["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_content_name_and_directory_are_durable_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def seen_fsync(fd: int) -> None:
        order.append("fsync directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "fsync file")
        fsync(fd)

    def seen_replace(source: Path, target: Path) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    json_.write(result(), tmp_path)
    assert order == ["fsync file", "rename", "fsync directory"]


def test_the_file_may_be_read_by_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        path = json_.write(result(), tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


# --- the stream of events ---------------------------------------------------------------------------------


def test_a_reader_that_fails_is_taken_off_and_the_others_go_on() -> None:
    heard: list[Event] = []

    def fail(event: Event) -> None:
        raise BrokenPipeError

    stream = events.FanOut(fail, heard.append)
    told: list[Event] = [Note("one"), Note("two")]
    for event in told:
        stream(event)
    assert heard == told
    assert [type(error) for error in stream.failures] == [BrokenPipeError]


def test_an_interrupt_passes_through_the_stream() -> None:
    def interrupt(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        events.FanOut(interrupt)(Note("one"))


def test_the_ledger_keeps_what_was_judged() -> None:
    ledger = events.Ledger()
    scenario = result().scenarios[0]
    for event in (
        RunStarted(["a.py::f", "b"], 1, 1, ["kill"], "steps", "/tmp"),
        Note("x"),
        ScenarioFinished(scenario),
    ):
        ledger(event)
    assert (ledger.names, ledger.observation, ledger.finished) == (["a.py::f", "b"], "steps", [scenario])
