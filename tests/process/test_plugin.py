"""The pytest plugin, seen by a project that uses it: each test is a call of pytest in a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from crashtest.observe import bpf
from crashtest.verdict import ScenarioResult

#: interpreters after the oldest leave these out (tox.ini)
pytestmark = pytest.mark.slow

pytest_plugins = ["pytester"]

Crash = Callable[..., ScenarioResult]
Write = Callable[[str], Path]

HEAD = """
from crashtest import scenario

def look(directory):
    return (directory / "a").read_text()
"""
HELD = """
@scenario(setup={"a": "old"})
def good(run):
    (run.dir / "b").write_text("new")
    (run.dir / "b").replace(run.dir / "a")
    run.ack()

good.observe(look)
"""
VIOLATED = """
@scenario(setup={"a": "old"})
def bad(run):
    (run.dir / "a").write_text("new")
    run.ack()

bad.observe(look)
"""
CAUGHT = VIOLATED.replace("bad", "known").replace('"old"}', '"old"}, expect={"atomic"}, steps=["my.step"]')
INCONCLUSIVE = """
@scenario(setup={"a": "old"})
def idle(run):
    run.ack()

idle.observe(look)
"""
UNUSABLE = (
    INCONCLUSIVE.replace("idle", "unusable")
    + """
@unusable.ops
def ops():
    raise ValueError("no such thing")
"""
)
BOMB = 'raise RuntimeError("imported")\n'
#: loaded by its entry point where crashtest is installed, by its name where it only lies on the path
LOADED = any(one.value == "crashtest.plugin" for one in entry_points(group="pytest11"))


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    plugin = [] if LOADED else ["-p", "crashtest.plugin"]

    def call(*arguments: str) -> pytest.RunResult:
        model = [] if any(one.startswith("--crashtest-model") for one in arguments) else ["--crashtest-model=kill"]
        return pytester.runpytest_subprocess(*plugin, "-p", "no:cacheprovider", *model, *arguments, timeout=120)

    return call


Run = Callable[..., pytest.RunResult]


def write(pytester: pytest.Pytester, name: str, source: str) -> None:
    path = pytester.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)


def nodes(result: pytest.RunResult) -> list[str]:
    return [line for line in result.outlines if "::" in line and " " not in line]


def test_each_scenario_is_one_test_with_its_story_and_properties(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, "scenarios/story.py", HEAD + HELD + VIOLATED + CAUGHT + INCONCLUSIVE + UNUSABLE)
    made = run("scenarios/", "--junitxml=out.xml", "--crashtest-seed=42", "-rP")
    made.assert_outcomes(passed=2, failed=2, errors=1)
    assert made.ret == pytest.ExitCode.TESTS_FAILED
    text = made.stdout.str()
    made.stdout.fnmatch_lines(
        [
            "*ERROR at setup of unusable*",
            "scenarios/story.py::unusable: ops raised ValueError: no such thing",
            "VIOLATED     scenarios/story.py::bad  4 points, 4 cells, *",
            "  atomic is violated under kill",
            "    died    before write(a, 3 bytes at 0)",
            "    in      scenarios/story.py:* in bad",
            "    replay: crashtest replay 'scenarios/story.py::bad/fixed/1/kill/none'",
            "    seed    42",
            "INCONCLUSIVE scenarios/story.py::idle *",
            "    why     the workload changed nothing in its directory; write below run.dir",
            "held         scenarios/story.py::good *",
            "caught       scenarios/story.py::known *",
            "crashtest: 4 scenarios, seed 42",
            "crashtest: steps never reached: my.step",
        ]
    )
    assert "Traceback" not in text and "plugin.py" not in text

    suite = ET.parse(pytester.path / "out.xml").getroot()[0]
    cases = {case.get("name"): case for case in suite}
    assert list(cases) == ["good", "bad", "known", "idle", "unusable"]
    assert {case.get("classname") for case in suite} == {"scenarios.story"}
    held = {p.get("name"): p.get("value") for p in cases["good"].iter("property")}
    assert held == {"verdict": "held", "cells": "5", "points": "5", "seed": "42"}
    caught = {p.get("name"): p.get("value") for p in cases["known"].iter("property")}
    assert caught["verdict"] == "caught"
    assert caught["replay"] == "crashtest replay 'scenarios/story.py::known/fixed/1/kill/none'"
    failure = cases["bad"].find("failure")
    assert failure is not None and (failure.text or "").startswith("VIOLATED     scenarios/story.py::bad")
    wanted = "VIOLATED: atomic is violated under kill, died before write(a, 3 bytes at 0)"
    assert failure.get("message") == wanted
    assert cases["idle"].find("failure") is not None
    error = cases["unusable"].find("error")
    assert error is not None and error.text == "scenarios/story.py::unusable: ops raised ValueError: no such thing"

    replayed = subprocess.run(
        [sys.executable, "-m", "crashtest", "replay", "scenarios/story.py::bad/fixed/1/kill/none"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert replayed.returncode == 1 and "came again" in replayed.stdout


def test_all_as_expected_is_exit_code_0_and_k_selects(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, "scenarios/story.py", HEAD + HELD + VIOLATED)
    made = run("scenarios", "-k", "good", "--crashtest-jobs=1", "--import-mode=importlib", "--strict-markers")
    made.assert_outcomes(passed=1, deselected=1)
    assert made.ret == pytest.ExitCode.OK
    assert run("scenarios", "-m", "not crashtest").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert nodes(run("scenarios/story.py::bad", "--collect-only", "-q")) == ["scenarios/story.py::bad"]


def test_a_file_that_cannot_be_loaded_is_an_error_with_its_message(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, "scenarios/broken.py", HEAD + "@scenario\ndef half(run):\n    pass\n")
    write(pytester, "scenarios/syntax.py", HEAD + HELD + "def (\n")
    write(pytester, "scenarios/good.py", HEAD + HELD)
    for arguments in (["scenarios"], ["scenarios/broken.py", "scenarios/syntax.py"]):
        made = run(*arguments)
        made.assert_outcomes(errors=2)
        assert made.ret == pytest.ExitCode.INTERRUPTED
        made.stdout.fnmatch_lines(
            [
                "*ERROR collecting scenarios/broken.py*",
                "scenarios/broken.py::half has no observe part; add @half.observe, which returns the state",
                "*ERROR collecting scenarios/syntax.py*",
                "scenarios/syntax.py has a syntax error at *syntax.py:*: invalid syntax",
            ]
        )
        assert "Traceback" not in made.stdout.str()


def test_what_is_collected_is_what_was_named(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, "tests/test_own.py", "def test_own(): pass\n")
    write(pytester, "tool.py", "import crashtest\n" + BOMB)
    write(pytester, "other/tool.py", HEAD + BOMB + HELD)
    write(pytester, "scenarios/test_tool.py", "def test_tool(): pass\n")
    write(pytester, "scenarios/helper.py", BOMB)
    write(pytester, "scenarios/_shared.py", HEAD + BOMB + HELD)
    write(pytester, "scenarios/story.py", HEAD + HELD)
    write(pytester, "crashes/deep/story.py", HEAD + HELD)
    write(pytester, "crashes/both.py", HEAD + HELD + "def test_too(): pass\n")
    own, tool, story = "tests/test_own.py::test_own", "scenarios/test_tool.py::test_tool", "scenarios/story.py::good"
    deep, both = "crashes/deep/story.py::good", "crashes/both.py::good"

    def found(*arguments: str) -> list[str]:
        return sorted(nodes(run("--collect-only", "-q", *arguments)))

    assert found() == sorted([own, tool])
    assert found("-p", "xdist", "-n", "0", "tests", "crashes") == [own]
    assert found(".") == sorted([own, tool, story])
    assert found("scenarios") == sorted([tool, story])
    assert found("scenarios/story.py") == [story]
    assert found("crashes/both.py") == [both, "crashes/both.py::test_too"]
    assert found("-o", "crashtest_paths=crashes/*") == sorted([own, tool, deep])
    assert found("-o", "crashtest_paths=crashes") == sorted([own, tool, deep, both])
    assert found("-o", "testpaths=scenarios") == sorted([tool, story])


def test_an_ordinary_test_runs_a_scenario(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, "story.py", HEAD + HELD + VIOLATED)
    write(
        pytester,
        "test_it.py",
        HEAD
        + CAUGHT
        + """
import signal
import pytest
from crashtest import UsageError
import story

def test_held(crashtest):
    before = signal.getsignal(signal.SIGTERM)
    result = crashtest(story.good, timeout=20, jobs=1)
    assert (result.verdict, result.name) == ("held", "story.py::good")
    assert signal.getsignal(signal.SIGTERM) is before

def test_own(crashtest):
    assert crashtest(known).verdict == "violated"

def test_violated(crashtest):
    crashtest(story.bad, seed=7)

def test_usage(crashtest):
    @scenario
    def inner(run):
        run.ack()
    with pytest.raises(UsageError, match="outside of any function"):
        crashtest(inner)
    with pytest.raises(UsageError, match="knows no settings .'sed'.; known: models, losses, seed"):
        crashtest(story.good, sed=1)
    with pytest.raises(UsageError, match="takes a scenario, not a function"):
        crashtest(test_own)
    assert story.good.allow_outside == () and story.good.file.endswith("/story.py")
""",
    )
    made = run("--junitxml=out.xml")
    made.assert_outcomes(passed=3, failed=1)
    made.stdout.fnmatch_lines(
        [
            ">       crashtest(story.bad, seed=7)",
            "E       *NotAsExpected: VIOLATED     story.py::bad *",
            "E           died    before write(a, 3 bytes at 0)",
            "E           seed    7",
        ]
    )
    assert "plugin.py" not in "\n".join(line for line in made.outlines if not line.startswith("E "))
    cases = {case.get("name"): case for case in ET.parse(pytester.path / "out.xml").getroot()[0]}
    found = {p.get("name"): p.get("value") for p in cases["test_violated"].iter("property")}
    assert found["verdict"] == "violated" and found["seed"] == "7"


def test_processes_of_xdist_collect_the_same_and_share_the_seed(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, "scenarios/story.py", HEAD + HELD + VIOLATED + CAUGHT)
    write(pytester, "scenarios/more.py", HEAD + HELD + UNUSABLE)
    write(pytester, "test_own.py", "def test_own(): pass\n")
    run("-n", "2").assert_outcomes(passed=1)
    made = run("-n", "2", "scenarios", "--junitxml=out.xml")
    made.assert_outcomes(passed=3, failed=1, errors=1)
    made.stdout.fnmatch_lines(
        [
            "scenarios/more.py::unusable: ops raised ValueError: no such thing",
            "VIOLATED     scenarios/story.py::bad *",
            "crashtest: 4 scenarios, seed *",
            "FAILED scenarios/story.py::bad - VIOLATED: atomic is*",
        ]
    )
    suite = ET.parse(pytester.path / "out.xml").getroot()[0]
    assert len({p.get("value") for p in suite.iter("property") if p.get("name") == "seed"}) == 1
    assert len([p for p in suite.iter("property") if p.get("name") == "cells"]) == 4


@pytest.mark.parametrize("option", ["--crashtest-seed=-1", "--crashtest-timeout=0", "--crashtest-jobs=0"])
def test_an_option_out_of_range_is_a_usage_error(run: Run, option: str) -> None:
    made = run(option)
    assert made.ret == pytest.ExitCode.USAGE_ERROR
    made.stderr.fnmatch_lines([f"ERROR: {option.partition('=')[0]} * is not between *"])


def test_the_plugin_imports_nothing_heavy() -> None:
    program = (
        "import sys, pytest; before = set(sys.modules); import crashtest.plugin; "
        "print(*sorted(set(sys.modules) - before - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert {name for name in done.stdout.split() if "." not in name} <= {"crashtest"}
    assert set(done.stdout.split()) <= {
        "crashtest", "crashtest.errors", "crashtest.plugin", "crashtest.scenario", "crashtest.values",
        *sys.stdlib_module_names, *(name for name in done.stdout.split() if name.startswith("importlib.")),
    }  # fmt: skip


def test_a_run_puts_back_what_it_changes_in_its_process(crash: Crash, write_scenario: Write) -> None:
    file = write_scenario("def look(directory): return (directory / 'a').read_text()\n" + HELD)

    def ours(number: int, frame: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, ours)
    was = bpf.is_subreaper()
    try:
        for subreaper in (True, False):
            bpf.become_subreaper(subreaper)
            assert crash(file).verdict == "held"
            assert signal.getsignal(signal.SIGTERM) is ours
            assert bpf.is_subreaper() is subreaper
    finally:
        signal.signal(signal.SIGTERM, before)
        bpf.become_subreaper(was)


def test_models_are_chosen_and_a_name_that_is_none_is_refused(pytester: pytest.Pytester, run: Run) -> None:
    write(pytester, "scenarios/story.py", HEAD + HELD)
    made = run("scenarios", "--crashtest-model=kill,posix", "--crashtest-losses=50")
    assert made.ret == pytest.ExitCode.TESTS_FAILED
    assert "is violated under posix" in made.stdout.str() and "fsync of b" in made.stdout.str()
    refused = run("scenarios", "--crashtest-model=ext5")
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    assert "ext5 is none; known: kill, ext4-lock, ext4, " in refused.stderr.str()
