"""The command line, with an engine that returns what a test wants: exit codes, messages, reports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import crashtest.scale
from crashtest import HarnessError, UsageError, cli, options
from crashtest.config import Settings
from crashtest.verdict import (
    Emit,
    ModelResult,
    RunFinished,
    RunResult,
    RunStarted,
    ScenarioFinished,
    ScenarioResult,
    Verdict,
    Violation,
    exit_code,
)

ROOT = Path(__file__).resolve().parents[2]
GOOD = """
from crashtest import scenario

@scenario(setup={"config": b"old"})
def replace(run):
    run.ack()

@replace.observe
def content(dir):
    return (dir / "config").read_bytes()

@scenario(expect={"atomic"})
def in_place(run):
    run.ack()

@in_place.recover
def restart(dir):
    pass

@in_place.observe
def bytes_of_it(dir):
    return 1
"""

Engine = Callable[..., RunResult]


def judged(name: str, verdict: Verdict = "held", as_expected: bool = True, **more: Any) -> ScenarioResult:
    return ScenarioResult(name=name, verdict=verdict, as_expected=as_expected, **more)


def broken(name: str, expected: bool = False) -> ScenarioResult:
    violation = Violation(
        id=f"{name}/0/3/kill/0",
        guarantee="atomic",
        model="kill",
        expected=expected,
        count=2,
        point="before write(config)",
        where="app.py:3 in save",
        acked=0,
        wanted="b'old'",
        observed="b''",
    )
    return judged(name, "violated", expected, violations=[violation])


def ending(*results: ScenarioResult, stopped: str = "") -> Engine:
    """An engine that finds `results`."""

    def run(scenarios: Any, files: Any, settings: Settings, emit: Emit) -> RunResult:
        emit(RunStarted([one.name for one in scenarios], settings.seed, settings.jobs, ["kill"], "seccomp", "/dev/shm"))
        for one in results:
            emit(ScenarioFinished(one))
        code = exit_code(list(results), stopped, settings.allow_partial)
        result = RunResult(
            seed=settings.seed,
            exit=code,
            seconds=1.0,
            observation="seccomp",
            scenarios=list(results),
            stopped=stopped,
        )
        emit(RunFinished(result))
        return result

    return run


class Bench:
    """A directory with scenarios, an engine to replace, and what came out."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys
        self.called: list[tuple[list[str], dict[str, Path], Settings]] = []
        self.replayed: list[tuple[Path, Settings]] = []
        self.engine: Engine = ending(judged("good.py::replace"))
        self.again: Engine = ending(broken("good.py::replace"))
        fake = types.ModuleType("crashtest.scale.local")
        fake.run = self._run  # type: ignore[attr-defined]
        fake.replay = self._replay  # type: ignore[attr-defined]
        for name in ("local", "replay"):
            patch.setitem(sys.modules, f"crashtest.scale.{name}", fake)
            patch.setattr(crashtest.scale, name, fake, raising=False)
        patch.setattr(sys, "path", list(sys.path))
        patch.chdir(root)
        self.write("good.py", GOOD)

    def write(self, name: str, text: str) -> None:
        (self.root / name).parent.mkdir(parents=True, exist_ok=True)
        (self.root / name).write_text(text)

    def _run(self, scenarios: Any, files: dict[str, Path], settings: Settings, emit: Emit) -> RunResult:
        self.called.append(([one.name for one in scenarios], files, settings))
        return self.engine(scenarios, files, settings, emit)

    def _replay(self, record: Path, settings: Settings, emit: Emit) -> RunResult:
        self.replayed.append((record, settings))
        return self.again([], {}, settings, emit)

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        code = cli.main(list(arguments))
        out, err = self._capsys.readouterr()
        return code, out, err

    @property
    def settings(self) -> Settings:
        return self.called[-1][2]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Bench]:
    before = set(sys.modules)
    yield Bench(tmp_path, monkeypatch, capsys)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


# --- the exit codes ---------------------------------------------------------------------------------------


def test_everything_held_is_exit_0(bench: Bench) -> None:
    code, out, err = bench("run", "good.py")
    assert (code, err) == (0, "")
    assert "exit 0: every guarantee held" in out


def test_a_violation_is_exit_1_and_tells_its_story(bench: Bench) -> None:
    bench.engine = ending(broken("good.py::replace"))
    code, out, _ = bench("run", "good.py")
    assert code == 1
    assert "replay: crashtest replay 'good.py::replace/0/3/kill/0'" in out
    assert "exit 1: a guarantee is violated" in out


def test_an_expected_violation_that_is_caught_is_exit_0(bench: Bench) -> None:
    bench.engine = ending(broken("good.py::in_place", expected=True))
    code, out, _ = bench("run", "good.py")
    assert code == 0
    assert "every expected violation was caught" in out


def test_an_expected_violation_that_does_not_come_is_exit_1(bench: Bench) -> None:
    bench.engine = ending(judged("good.py::in_place", "held", as_expected=False))
    code, out, _ = bench("run", "good.py")
    assert code == 1
    assert "NOT CAUGHT" in out
    assert "exit 1: an expected violation was not caught" in out


@pytest.mark.parametrize("verdict", ["inconclusive", "not reached"])
def test_what_is_unknown_is_exit_3(bench: Bench, verdict: Verdict) -> None:
    bench.engine = ending(judged("good.py::replace", verdict, as_expected=False, reason="nothing was changed"))
    code, out, _ = bench("run", "good.py")
    assert code == 3
    assert "nothing was changed" in out


def test_a_harness_error_in_one_scenario_is_exit_3(bench: Bench) -> None:
    bench.engine = ending(judged("good.py::replace", "inconclusive", False, harness_error="the record is wrong"))
    code, out, _ = bench("run", "good.py")
    assert code == 3
    assert "crashtest itself failed here: the record is wrong" in out


def test_a_run_out_of_time_is_exit_3_unless_partial_is_allowed(bench: Bench) -> None:
    bench.engine = ending(judged("good.py::replace"), stopped="--max-time")
    code, out, _ = bench("run", "good.py", "--max-time", "1")
    assert code == 3
    assert "--allow-partial accepts that" in out
    assert bench("run", "good.py", "--max-time", "1", "--allow-partial")[0] == 0


def test_an_interrupted_run_is_exit_130_and_still_writes_the_report(bench: Bench) -> None:
    bench.engine = ending(judged("good.py::replace"), stopped="interrupted")
    code, out, _ = bench("run", "good.py", "--report", "json")
    assert code == 130
    assert "1 not run" in out
    stored = json.loads((bench.root / ".crashtest/result.json").read_bytes())
    assert (stored["exit"], stored["stopped"], len(stored["scenarios"])) == (130, "interrupted", 1)


def test_a_keyboard_interrupt_that_the_engine_lets_through_still_writes_the_report(bench: Bench) -> None:
    def run(scenarios: Any, files: Any, settings: Settings, emit: Emit) -> RunResult:
        emit(ScenarioFinished(broken("good.py::replace")))
        raise KeyboardInterrupt

    bench.engine = run
    code, out, _ = bench("run", "good.py", "--report", "json")
    assert code == 130
    stored = json.loads((bench.root / ".crashtest/result.json").read_bytes())
    assert [one["verdict"] for one in stored["scenarios"]] == ["violated"]
    assert "exit 130: interrupted" in out


def test_a_keyboard_interrupt_while_files_are_loaded_is_exit_130(bench: Bench) -> None:
    bench.write("ctrl_c.py", "raise KeyboardInterrupt")
    code, _, err = bench("run", "ctrl_c.py")
    assert (code, err.strip()) == (130, "crashtest: interrupted")
    assert bench.called == []


# --- usage errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "nothing to run"),
        (["run", "nowhere"], "nowhere does not exist"),
        (["run", ""], "a path is empty"),
        (["run", "good.py", "--model", "ext5"], "not a persistence model; known: kill"),
        (["run", "good.py", "--signal", "TERM,KILL"], "'KILL' is not a signal that a run can be ended by; known: TERM"),
        (["run", "good.py", "--report", "json,word"], "'word' is not a report; known: json"),
        (["run", "good.py", "--report", "json,"], "'' is not a report"),
        (["run", "good.py", "-j", "0"], "not a number of workers"),
        (["run", "good.py", "-j", "many"], "not a number of workers"),
        (["run", "good.py", "--max-time", "soon"], "not a time"),
        (["run", "good.py", "--max-time", "0"], "not a time"),
        (["run", "good.py", "--max-time", ""], "not a time"),
        (["run", "good.py", "--timeout", "-1"], "not a time"),
        (["run", "good.py", "--timeout", "nan"], "not a time"),
        (["run", "good.py", "--seed", "x"], "--seed"),
        (["run", "good.py", "--seed", "-1"], "--seed"),
        (["run", "good.py", "--observation", "guess"], "--observation"),
        (["run", "good.py", "--unknown"], "--unknown"),
        (["run", "good.py", "-k", "("], "is not an expression"),
        (["run", "good.py", "-k", ""], "is not an expression: it is empty"),
        (["list", "nowhere"], "nowhere does not exist"),
        (["replay"], "Missing argument"),
        (["replay", "good.py::replace/0/3/kill/0"], "give the report directory of the run with --from DIR"),
        (["explode"], "explode"),
    ],
)
def test_a_usage_error_is_exit_2_with_one_paragraph(bench: Bench, arguments: list[str], words: str) -> None:
    code, out, err = bench(*arguments)
    assert code == 2
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert "Traceback" not in out + err
    assert bench.called == []


def test_all_broken_files_are_reported_before_the_end(bench: Bench) -> None:
    bench.write("sub/a.py", "def (:\n")
    bench.write("sub/b.py", "import no_such_module_anywhere\n")
    bench.write("sub/c.py", "1 / 0\n")
    bench.write("sub/d.py", GOOD.replace('{"atomic"}', '{"atomik"}'))
    code, _, err = bench("run", "sub", "good.py")
    assert code == 2
    lines = err.splitlines()
    assert len(lines) == 4
    assert "sub/a.py has a syntax error" in lines[0]
    assert "sub/b.py needs the module 'no_such_module_anywhere'" in lines[1]
    assert "sub/c.py could not be loaded: ZeroDivisionError" in lines[2]
    assert "unknown guarantees ['atomik']" in lines[3]
    assert "Traceback" not in err
    assert bench.called == []


def test_a_usage_error_of_the_engine_is_exit_2(bench: Bench) -> None:
    def run(*_: Any) -> RunResult:
        raise UsageError("ops of good.py::replace gave a set; give a list")

    bench.engine = run
    code, _, err = bench("run", "good.py")
    assert (code, err) == (2, "crashtest: ops of good.py::replace gave a set; give a list\n")


def test_a_report_directory_that_cannot_be_written_is_found_before_the_run(bench: Bench) -> None:
    bench.write("taken/file", "")
    code, _, err = bench("run", "good.py", "--report", "json", "--report-dir", "taken/file/below")
    assert code == 2
    assert "give another --report-dir" in err
    assert bench.called == []


def test_an_error_message_shows_no_control_code_of_an_argument(bench: Bench) -> None:
    code, _, err = bench("run", "evil\x1b[31m\npath")
    assert code == 2
    assert "\x1b" not in err
    assert len(err.strip().splitlines()) == 1


# --- nothing selected -------------------------------------------------------------------------------------


def test_a_selection_of_nothing_is_exit_5_and_names_the_expression_and_the_number(bench: Bench) -> None:
    code, _, err = bench("run", "good.py", "-k", "repalce")
    assert code == 5
    assert "-k 'repalce' matches none of the 2 scenarios in good.py" in err
    assert bench.called == []


def test_an_expression_is_read_before_a_file_is_loaded(bench: Bench) -> None:
    bench.write("loaded.py", "open('loaded', 'w').close()\n" + GOOD)
    assert bench("run", "loaded.py", "-k", "a b")[0] == 2
    assert not (bench.root / "loaded").exists()


def test_a_terminal_that_fails_at_the_end_keeps_a_violation_and_is_never_exit_0(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crashtest.report.terminal import Terminal

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Terminal, "finish", fail)
    code, _, err = bench("run", "good.py")
    assert code == 3
    assert "the report could not be shown: [Errno 28]" in err
    bench.engine = ending(broken("good.py::replace"))
    assert bench("run", "good.py")[0] == 1


def test_a_reader_of_the_output_that_has_gone_changes_no_verdict(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any, **__: Any) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    bench.engine = ending(broken("good.py::replace"))
    monkeypatch.setattr(sys.stdout, "write", gone)
    assert cli.main(["run", "good.py", "--report", "json"]) == 1
    bench.engine = ending(judged("good.py::replace"))
    assert cli.main(["run", "good.py", "--report", "json"]) == 0
    assert json.loads((bench.root / ".crashtest/result.json").read_bytes())["exit"] == 0


def test_no_scenario_at_all_is_exit_5(bench: Bench) -> None:
    bench.write("empty/nothing.py", "x = 1\n")
    for command in ("run", "list"):
        code, _, err = bench(command, "empty")
        assert code == 5
        assert "there is no scenario in empty" in err


def test_only_what_is_selected_is_run(bench: Bench) -> None:
    bench.write("other.py", GOOD)
    assert bench("run", "good.py", "other.py", "-k", "good and replace")[0] == 0
    names, files, _ = bench.called[0]
    assert names == ["good.py::replace"]
    assert files == {"good.py": bench.root / "good.py"}


# --- faults of crashtest ----------------------------------------------------------------------------------


def test_a_harness_error_is_exit_3_and_keeps_what_was_judged(bench: Bench) -> None:
    def run(scenarios: Any, files: Any, settings: Settings, emit: Emit) -> RunResult:
        emit(ScenarioFinished(judged("good.py::replace")))
        raise HarnessError("seccomp is not available here; use --observation steps")

    bench.engine = run
    code, out, err = bench("run", "good.py", "--report", "json")
    assert (code, err) == (3, "crashtest: seccomp is not available here; use --observation steps\n")
    stored = json.loads((bench.root / ".crashtest/result.json").read_bytes())
    assert stored["exit"] == 3
    assert stored["stopped"].startswith("crashtest failed: seccomp")
    assert len(stored["scenarios"]) == 1
    assert "exit 3" in out


def test_an_unforeseen_error_is_exit_3_and_its_traceback_is_in_a_file(bench: Bench) -> None:
    def run(*_: Any) -> RunResult:
        raise RuntimeError("boom \x1b[31m")

    bench.engine = run
    code, out, err = bench("run", "good.py", "--report-dir", "out")
    assert code == 3
    assert "RuntimeError: boom \\x1b[31m" in err
    assert "the traceback is in out/traceback.txt" in err
    assert "Traceback" not in out + err
    assert "\x1b" not in out + err
    assert 'raise RuntimeError("boom' in (bench.root / "out/traceback.txt").read_text()


def test_a_violation_outranks_a_later_fault_of_crashtest(bench: Bench) -> None:
    def run(scenarios: Any, files: Any, settings: Settings, emit: Emit) -> RunResult:
        emit(ScenarioFinished(broken("good.py::replace")))
        raise OSError(32, "Broken pipe")

    bench.engine = run
    assert bench("run", "good.py")[0] == 1


def test_a_broken_pipe_inside_the_engine_is_never_exit_0(bench: Bench) -> None:
    def run(*_: Any) -> RunResult:
        raise BrokenPipeError(32, "Broken pipe")

    bench.engine = run
    assert bench("run", "good.py")[0] == 3
    bench.again = run
    bench.write("record.json", "{}")
    assert bench("replay", "record.json")[0] == 3


def test_an_unforeseen_error_outside_the_engine_is_exit_3(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(cli, "gather", fail)
    code, _, err = bench("list", "good.py")
    assert code == 3
    assert "the traceback is in .crashtest/traceback.txt" in err


def test_a_traceback_goes_elsewhere_when_the_report_directory_cannot_be_made(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(bench.root / "tmp"))
    bench.write("file", "")

    def run(*_: Any) -> RunResult:
        raise RuntimeError("no")

    bench.engine = run
    code, _, err = bench("run", "good.py", "--report-dir", "file/below")
    assert code == 3
    assert f"the traceback is in {bench.root}/tmp/traceback.txt" in err


def test_a_report_that_cannot_be_written_is_never_exit_0(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    from crashtest.report import json_

    def fail(*_: Any) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json_, "write", fail)
    code, _, err = bench("run", "good.py", "--report", "json")
    assert code == 3
    assert ".crashtest/result.json could not be written: [Errno 28] No space left on device" in err
    bench.engine = ending(broken("good.py::replace"))
    assert bench("run", "good.py", "--report", "json")[0] == 1


def test_a_reader_that_fails_does_not_stop_the_engine_and_is_never_exit_0(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from crashtest.report import story

    def fail(*_: Any) -> Any:
        raise ValueError("cannot be told")

    monkeypatch.setattr(story, "scenario_story", fail)
    code, out, _ = bench("run", "good.py", "--report", "json")
    assert code == 3
    assert "a reader of the run failed: ValueError: cannot be told" in out
    assert json.loads((bench.root / ".crashtest/result.json").read_bytes())["exit"] == 3


# --- settings and reports ---------------------------------------------------------------------------------


def test_the_options_reach_the_engine(bench: Bench) -> None:
    code, out, _ = bench(
        "run",
        "good.py",
        "--model",
        "kill,kill",
        "--model",
        "kill",
        "--seed",
        "7",
        "-j",
        "3",
        "-x",
        "--timeout",
        "1.5",
        "--max-time",
        "1h2m3s",
        "--allow-partial",
        "--observation",
        "steps",
        "--examples",
        "20",
        "--shrink",
        "0",
        "--signal",
        "SIGTERM, int,TERM",
        "--grace",
        "3",
        "--report-dir",
        "out",
    )
    assert code == 0
    assert bench.settings == Settings(
        models=("kill",),
        seed=7,
        jobs=3,
        stop_on_first=True,
        timeout=1.5,
        max_time=3723.0,
        allow_partial=True,
        observation="steps",
        examples=20,
        shrink=0.0,
        signals=("TERM", "INT"),
        grace=3.0,
        remember=False,
        report_dir=Path("out"),
    )
    assert "seed 7" in out


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90.0), ("90s", 90.0), ("5m", 300.0), ("1h", 3600.0), ("1.5h", 5400.0), ("0.5", 0.5)],
)
def test_a_time_may_be_given_in_seconds_minutes_or_hours(bench: Bench, text: str, seconds: float) -> None:
    bench("run", "good.py", "--max-time", text)
    assert bench.settings.max_time == seconds


def test_a_seed_that_is_not_given_is_random_and_printed(bench: Bench) -> None:
    _, first, _ = bench("run", "good.py")
    _, second, _ = bench("run", "good.py")
    seeds = [bench.called[0][2].seed, bench.called[1][2].seed]
    assert seeds[0] != seeds[1]
    for seed, out in zip(seeds, (first, second), strict=True):
        assert set(re.findall(r"seed (\d+)", out)) == {str(seed)}


def test_auto_jobs_are_the_usable_cores(bench: Bench) -> None:
    bench("run", "good.py", "-j", "auto")
    assert bench.settings.jobs == options.usable_cores()
    bench("run", "good.py")
    assert bench.settings.jobs == options.usable_cores()


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", 8), ("150000 100000", 1), ("400000 100000", 4), ("50000 100000", 1), ("?", 8)],
)
def test_usable_cores_heed_the_limit_of_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    (tmp_path / "cpu.max").write_text(quota)
    assert options.usable_cores(tmp_path / "cpu.max") == cores


def test_the_result_has_the_names_of_the_contract(bench: Bench) -> None:
    one = broken("good.py::replace")
    one.models = {"kill": ModelResult(guarantees={"atomic": "violated"})}
    bench.engine = ending(one)
    code, out, _ = bench("run", "good.py", "--report", "json", "--report-dir", "a/b", "--seed", "4")
    assert code == 1
    assert "report: a/b/result.json" in out
    stored = json.loads((bench.root / "a/b/result.json").read_bytes())
    assert {"schema", "seed", "exit", "seconds", "observation", "scenarios"} <= stored.keys()
    assert (stored["schema"], stored["seed"], stored["exit"]) == (1, 4, 1)
    scenario = stored["scenarios"][0]
    assert {
        "name",
        "verdict",
        "as_expected",
        "reason",
        "operations",
        "models",
        "nested",
        "violations",
    } <= scenario.keys()
    assert {
        "crash_points",
        "cells",
        "trees",
        "unique_states",
        "skipped",
        "exhaustive",
        "guarantees",
    } <= scenario["models"]["kill"].keys()
    assert {"depth", "cells"} <= scenario["nested"].keys()
    assert {
        "id",
        "guarantee",
        "model",
        "expected",
        "count",
        "point",
        "where",
        "acked",
        "wanted",
        "observed",
        "lost",
        "hint",
    } <= scenario["violations"][0].keys()


def test_no_report_is_written_that_was_not_asked_for(bench: Bench) -> None:
    assert bench("run", "good.py")[0] == 0
    assert not (bench.root / ".crashtest").exists()


def test_the_result_of_an_earlier_run_is_never_taken_for_this_one(bench: Bench) -> None:
    bench("run", "good.py", "--report", "json")
    bench.write("bad.py", "def (:")
    assert bench("run", "bad.py", "--report", "json")[0] == 2
    assert not (bench.root / ".crashtest/result.json").exists()


def test_a_replay_line_names_a_report_directory_that_is_not_the_default(bench: Bench) -> None:
    bench.engine = ending(broken("good.py::replace"))
    _, out, _ = bench("run", "good.py", "--report-dir", "my out")
    assert "replay: crashtest replay 'good.py::replace/0/3/kill/0' --from 'my out'" in out


# --- list -------------------------------------------------------------------------------------------------


def test_list_shows_names_claims_expectations_and_parts(bench: Bench) -> None:
    code, out, _ = bench("list", "good.py")
    assert code == 0
    assert out == (
        "good.py::replace\n"
        "    claims  recovers, atomic, durable, ordered, idempotent\n"
        "    parts   setup, observe\n"
        "good.py::in_place\n"
        "    claims  recovers, atomic, durable, ordered, idempotent\n"
        "    expects atomic violated under every model\n"
        "    parts   recover, observe\n"
        "2 of 2 scenarios\n"
    )


def test_list_selects(bench: Bench) -> None:
    code, out, _ = bench("list", ".", "-k", "not place")
    assert code == 5
    code, out, _ = bench("list", ".", "-k", "in_place")
    assert code == 0
    assert "::replace" not in out


# --- replay -----------------------------------------------------------------------------------------------


def stored_violation(bench: Bench, identity: str, folder: str = ".crashtest") -> Path:
    bench.write(f"{folder}/violations/abc.json", json.dumps({"schema": 1, "id": identity}))
    return Path(folder) / "violations/abc.json"


def test_replay_finds_the_record_by_its_id_and_tells_the_story(bench: Bench) -> None:
    record = stored_violation(bench, "good.py::replace/0/3/kill/0")
    bench.write(".crashtest/violations/aaa.json", "not json")
    bench.write(".crashtest/violations/aab.json", '{"id": "another"}')
    code, out, _ = bench("replay", "good.py::replace/0/3/kill/0")
    assert code == 1
    assert bench.replayed[0][0] == record
    assert "the violation came again in good.py::replace" in out
    assert "died    before write(config)" in out
    assert "wanted  b'old'" in out
    assert "found   b''" in out


def test_replay_takes_another_report_directory_or_a_file(bench: Bench) -> None:
    record = stored_violation(bench, "x", "elsewhere")
    assert bench("replay", "x")[0] == 2
    assert bench("replay", "x", "--from", "elsewhere")[0] == 1
    assert bench("replay", str(record), "--timeout", "3")[0] == 1
    assert [one[0] for one in bench.replayed] == [record, record]
    assert bench.replayed[0][1].report_dir == Path("elsewhere")
    assert bench.replayed[1][1].timeout == 3.0


def test_replay_of_an_expected_violation_tells_it_in_full(bench: Bench) -> None:
    stored_violation(bench, "x")
    bench.again = ending(broken("good.py::in_place", expected=True))
    code, out, _ = bench("replay", "x")
    assert code == 0
    assert "acked   0 operations" in out


def test_replay_says_when_the_violation_did_not_come_again(bench: Bench) -> None:
    stored_violation(bench, "x")
    bench.again = ending(judged("good.py::replace"))
    code, out, _ = bench("replay", "x")
    assert code == 0
    assert "the violation did not come again in good.py::replace" in out


def test_replay_that_cannot_be_judged_does_not_claim_that_it_is_gone(bench: Bench) -> None:
    stored_violation(bench, "x")
    bench.again = ending(judged("good.py::replace", "inconclusive", False, reason="the program has changed"))
    code, out, _ = bench("replay", "x")
    assert code == 3
    assert "did not come again" not in out
    assert "the program has changed" in out


def test_an_id_that_is_not_stored_names_the_nearest(bench: Bench) -> None:
    stored_violation(bench, "good.py::replace/0/3/kill/0")
    code, _, err = bench("replay", "good.py::replace/0/4/kill/0")
    assert code == 2
    assert "the nearest is good.py::replace/0/3/kill/0" in err


@pytest.mark.parametrize("error", [UsageError("the file has gone"), HarnessError("the disk has gone")])
def test_replay_errors_have_their_exit_codes(bench: Bench, error: Exception) -> None:
    stored_violation(bench, "x")

    def fail(*_: Any) -> RunResult:
        raise error

    bench.again = fail
    code, _, err = bench("replay", "x")
    assert code == (2 if isinstance(error, UsageError) else 3)
    assert err == f"crashtest: {error}\n"


# --- the process ------------------------------------------------------------------------------------------


def start(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = "import sys; from crashtest.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], text=True, env=environ, timeout=60, check=False, **options
    )


def test_version_and_help_end_in_0() -> None:
    assert re.fullmatch(r"crashtest \d+\.\d+\.\d+\n", start("--version", capture_output=True).stdout)
    shown = start("--help", capture_output=True)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("run", "list", "replay", "doctor"))


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from crashtest.cli import main; main(['--help'])\n"
        "print('LOADED', *sorted({'rich', 'msgspec', 'hypothesis', 'psutil'} & set(sys.modules)))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=True,
    )
    assert shown.stdout.splitlines()[-1].strip() == "LOADED"


def test_a_reader_that_has_gone_leaves_no_error_and_no_120(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    reading, writing = os.pipe()
    os.close(reading)
    done = start("list", "good.py", cwd=tmp_path, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_output_that_cannot_be_written_is_never_exit_0(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    with open("/dev/full", "w") as full:
        done = start("list", "good.py", cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 3
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_closed_standard_streams_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text(GOOD)
    code = "from crashtest.cli import main; raise SystemExit(main())"
    for redirection, path, expected in ((">&-", "good.py", 0), (">&- 2>&-", "nowhere", 2)):
        done = subprocess.run(
            ["bash", "-c", f'"$0" -c "$1" list {path} {redirection}', sys.executable, code],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            timeout=60,
            check=False,
        )
        assert done.returncode == expected


def test_output_is_never_refused_by_the_encoding_of_the_stream(tmp_path: Path) -> None:
    (tmp_path / "grün.py").write_text(GOOD)
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    code = "import sys; from crashtest.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "list", "grün.py"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert b"gr\\xfcn.py::replace" in done.stdout
