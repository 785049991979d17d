"""Drawn operation sequences: the same seed gives the same run, and a failing one is shrunk to what matters."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from crashtest.config import Settings
from crashtest.explore.generate import Source
from crashtest.scale import local, shrinking
from crashtest.scenario import Scenario, load
from crashtest.verdict import Event, RunResult, ScenarioResult, Shrinking

#: interpreters after the oldest leave these out (tox.ini)
pytestmark = pytest.mark.slow

Write = Callable[[str], Path]

HEAD = "import os\nfrom pathlib import Path\nfrom crashtest import DEFAULT, Run, scenario\n"
#: a store that rewrites its file in place when `drop` follows `freeze` follows `put`; else it replaces it
STORE = """
import json

@scenario(setup={{"state": "[]"}}, guarantees={{"atomic"}}, expect={expect})
def store(run: Run) -> None:
    for number, name in enumerate(run.ops):
        text = json.dumps([*json.loads((run.dir / "state").read_text()), name])
        if run.ops[max(number - 2, 0) : number + 1] == ["put", "freeze", "drop"]:
            (run.dir / "state").write_text(text)
        else:
            (run.dir / "new").write_text(text)
            os.replace(run.dir / "new", run.dir / "state")
        run.ack(name)

@store.ops
def operations() -> object:
    from hypothesis import strategies as st

    return st.lists(st.sampled_from(["get", "put", "freeze", "drop"]), min_size=1, max_size=8)

@store.observe
def look(directory: Path) -> object:
    return (directory / "state").read_text()
"""
EXACTLY = ["'put'", "'freeze'", "'drop'"]
#: with it, one of the first five sequences fails
SEED = 18


def settings(report: Path, **more: Any) -> Settings:
    return Settings(**{"models": ("kill",), "seed": SEED, "jobs": 2, "depth": 1, "report_dir": report, **more})


def run_once(file: Path, report: Path, emit: Callable[[Event], None] = lambda event: None, **more: Any) -> RunResult:
    return local.run(load(file), {str(file): file}, settings(report, **more), emit)


def seen(made: RunResult) -> object:
    """What two runs have to agree in."""
    return [
        (one.name, one.verdict, one.models, [(v.id, v.guarantee, v.point, v.count, v.shrunk) for v in one.violations])
        for one in made.scenarios
    ]


class Shown(NamedTuple):
    file: Path
    report: Path
    told: list[Event]
    made: RunResult


@pytest.fixture(scope="module")
def shrunk(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """One run of the store, from its first sequence to the smallest; its report directory is not to be changed."""
    place = tmp_path_factory.mktemp("store")
    file = place / "story.py"
    file.write_text(f"{HEAD}{STORE.format(expect='()')}")
    told: list[Event] = []
    return Shown(file, place / "report", told, run_once(file, place / "report", told.append))


def test_a_bug_that_needs_three_operations_in_a_row_is_shrunk_to_exactly_those(shrunk: Shown) -> None:
    first = shrunk.made.scenarios[0].violations[0]
    assert (first.guarantee, first.operations) == ("atomic", EXACTLY)
    assert first.shrunk.startswith("shrunk from 5 operations to 3 in ") and "stopped" not in first.shrunk
    assert first.acked == 2 and "write(state" in first.point
    runs = [event.runs for event in shrunk.told if isinstance(event, Shrinking)]
    assert runs == list(range(1, len(runs) + 1)) and f" in {len(runs)} runs" in first.shrunk


def test_the_same_seed_gives_the_same_cells_ids_and_verdicts_with_any_number_of_workers(
    shrunk: Shown, tmp_path: Path
) -> None:
    again = run_once(shrunk.file, tmp_path / "report", jobs=3)
    assert seen(again) == seen(shrunk.made)
    assert again.scenarios[0].violations
    assert os.listdir(tmp_path / "report/violations") == os.listdir(shrunk.report / "violations")


def test_what_failed_is_tried_first_needs_no_shrinking_again_and_is_forgotten_when_mended(
    shrunk: Shown, write_scenario: Write, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    shutil.copytree(shrunk.report, report)
    told: list[Event] = []
    (made,) = run_once(shrunk.file, report, told.append, examples=1).scenarios
    assert made.violations[0].operations == EXACTLY
    assert made.violations[0].shrunk == "remembered from an earlier run"
    assert [event for event in told if isinstance(event, Shrinking)] == []
    mended = load(write_scenario(STORE.format(expect="()").replace('"drop"]:', '"mended"]:')), str(shrunk.file))
    assert len(Source(mended[0], SEED, 1, report / "examples").sequences()) > 1
    (held,) = local.run(
        mended, {str(shrunk.file): tmp_path / "story.py"}, settings(report, examples=1), print
    ).scenarios
    assert held.verdict == "held"
    assert Source(mended[0], SEED, 1, report / "examples").sequences() == [['"get"']]


def test_a_seed_alone_decides_when_nothing_is_to_be_remembered(shrunk: Shown) -> None:
    (scenario,) = load(shrunk.file, str(shrunk.file))
    fresh = Source(scenario, SEED, 5).sequences()
    assert Source(scenario, SEED, 5, shrunk.report / "examples", again=False).sequences() == fresh
    assert Source(scenario, SEED, 5, shrunk.report / "examples").sequences() != fresh


def test_shrinking_that_is_cut_short_says_so_and_goes_on_next_time(
    write_scenario: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the violation is expected."""
    file = write_scenario(STORE.format(expect='{"atomic"}'))
    monkeypatch.setattr(shrinking, "RUNS", 2)
    (made,) = run_once(file, tmp_path / "report").scenarios
    assert (made.verdict, made.as_expected) == ("violated", True)
    assert made.violations[0].shrunk.endswith("shrinking stopped there: 2 runs are the limit")
    assert made.violations[0].operations != EXACTLY
    monkeypatch.undo()
    (made,) = run_once(file, tmp_path / "report", examples=1).scenarios
    assert made.violations[0].operations == EXACTLY


def test_what_only_a_power_cut_breaks_is_shrunk_to_the_same_three_operations(
    write_scenario: Write, tmp_path: Path
) -> None:
    """A kill loses nothing of the file that is replaced without a sync, so the candidates are walked under `posix`."""
    synced = """
        fd = os.open(run.dir / "new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, text.encode())
        if run.ops[max(number - 2, 0) : number + 1] != ["put", "freeze", "drop"]:
            os.fsync(fd)
        os.close(fd)
        os.replace(run.dir / "new", run.dir / "state")
        run.ack(name)
"""
    head, rest = STORE.format(expect="()").split("        if run.ops[max", 1)
    file = write_scenario(f"{head.rstrip()}{synced}{rest.partition('run.ack(name)')[2]}")
    (made,) = run_once(file, tmp_path / "report", models=("kill", "posix")).scenarios
    first = made.violations[0]
    assert [(one.guarantee, one.model) for one in made.violations] == [("atomic", "posix")]
    assert first.operations == EXACTLY
    assert first.shrunk.startswith("shrunk from 5 operations to 3 in ") and "stopped" not in first.shrunk


def test_without_time_for_it_the_drawn_sequence_is_reported(shrunk: Shown, tmp_path: Path) -> None:
    told: list[Event] = []
    (made,) = run_once(shrunk.file, tmp_path / "report", told.append, shrink=0.0).scenarios
    assert made.verdict == "violated" and len(made.violations[0].operations) == 5
    assert [event for event in told if isinstance(event, Shrinking)] == []


def test_the_first_failure_ends_a_run_with_x_and_is_shrunk(shrunk: Shown, tmp_path: Path) -> None:
    made = run_once(shrunk.file, tmp_path / "report", stop_on_first=True)
    assert (made.stopped, made.exit) == ("-x", 1)
    assert made.scenarios[0].violations[0].operations == EXACTLY


def test_a_killed_fork_server_is_no_failure_of_its_sequence(write_scenario: Write, tmp_path: Path) -> None:
    """Its scenario has a harness error and nothing of it is counted as passed; it is not shrunk."""
    zygote = "int(Path(f'/proc/{os.getppid()}/stat').read_text().rpartition(')')[2].split()[1])"  # the forker's parent
    kill = f"    if len(run.ops) > 3: os.kill({zygote}, 9)\n    for number"
    (made,) = run_once(
        write_scenario(STORE.format(expect="()").replace("    for number", kill)), tmp_path / "report"
    ).scenarios
    assert "the zygote of this scenario died" in made.harness_error
    assert not made.as_expected


def drawn(scenario: Scenario) -> list[list[str] | None]:
    return Source(scenario, 7, 200).sequences()


def test_what_is_drawn_does_not_depend_on_the_modules_that_are_loaded(
    write_scenario: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hypothesis takes constants from the source of every local module."""
    (scenario,) = load(
        write_scenario(
            STORE.format(expect="()").replace('st.sampled_from(["get", "put", "freeze", "drop"])', "st.integers()")
        )
    )
    before = drawn(scenario)
    path = tmp_path / "stranger.py"
    path.write_text("".join(f"x{number} = {number}\n" for number in range(10**9, 10**9 + 400)))
    module = ModuleType("stranger")
    module.__file__ = str(path)
    monkeypatch.setitem(sys.modules, "stranger", module)
    assert drawn(scenario) == before


def test_a_scenario_that_cannot_be_judged_as_written_leaves_the_others_theirs(
    write_scenario: Write, tmp_path: Path
) -> None:
    file = write_scenario(
        STORE.format(expect="()").replace('"drop"]:', '"mended"]:')
        + """
@scenario(setup={"a": "0"})
def odd(run: Run) -> None:
    (run.dir / "a").write_text("1")
    run.ack()

@odd.observe
def no_plain_value(directory: Path) -> object:
    return object()
"""
    )
    made = run_once(file, tmp_path / "report")
    by_name: dict[str, ScenarioResult] = {one.name.rpartition("::")[2]: one for one in made.scenarios}
    assert (by_name["store"].verdict, by_name["odd"].verdict) == ("held", "inconclusive")
    assert by_name["odd"].usage_error and "no plain value" in by_name["odd"].reason.replace("not a plain", "no plain")
    assert made.exit == 2
