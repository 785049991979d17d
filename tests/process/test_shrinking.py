"""Drawn operation sequences: the same seed gives the same run, and a failing one is shrunk to what matters."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from crashtest.config import Settings
from crashtest.explore.generate import Source
from crashtest.scale import local, shrinking
from crashtest.scenario import Scenario, load
from crashtest.verdict import Event, RunResult, ScenarioResult, Shrinking

Write = Callable[[str], Path]

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


def run_once(file: Path, report: Path, emit: Callable[[Event], None] = lambda event: None, **more: object) -> RunResult:
    settings = Settings(**{"seed": SEED, "jobs": 2, "depth": 1, "report_dir": report, **more})  # type: ignore[arg-type]
    return local.run(load(file), {str(file): file}, settings, emit)


def seen(made: RunResult) -> object:
    """What two runs have to agree in."""
    return [
        (one.name, one.verdict, one.models, [(v.id, v.guarantee, v.point, v.count, v.shrunk) for v in one.violations])
        for one in made.scenarios
    ]


@pytest.fixture
def store(write_scenario: Write) -> Path:
    return write_scenario(STORE.format(expect="()"))


def test_a_bug_that_needs_three_operations_in_a_row_is_shrunk_to_exactly_those(store: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    (made,) = run_once(store, tmp_path / "report", told.append).scenarios
    first = made.violations[0]
    assert (first.guarantee, first.operations) == ("atomic", EXACTLY)
    assert first.shrunk.startswith("shrunk from ") and "stopped" not in first.shrunk
    assert first.acked == 2 and "write(state" in first.point
    runs = [event.runs for event in told if isinstance(event, Shrinking)]
    assert runs == list(range(1, len(runs) + 1)) and f" in {len(runs)} runs" in first.shrunk


def test_what_failed_is_tried_first_and_needs_no_shrinking_again(store: Path, tmp_path: Path) -> None:
    run_once(store, tmp_path / "report")
    told: list[Event] = []
    (made,) = run_once(store, tmp_path / "report", told.append, examples=1).scenarios
    assert made.violations[0].operations == EXACTLY
    assert made.violations[0].shrunk == "remembered from an earlier run"
    assert [event for event in told if isinstance(event, Shrinking)] == []
    store.write_text(store.read_text().replace('"drop"]:', '"mended"]:'))
    (mended,) = run_once(store, tmp_path / "report", examples=1).scenarios
    assert mended.verdict == "held"
    assert Source(load(store)[0], SEED, 1, tmp_path / "report/examples").sequences() == [['"get"']]


def test_the_same_seed_gives_the_same_cells_ids_and_verdicts(store: Path, tmp_path: Path) -> None:
    one = run_once(store, tmp_path / "one")
    two = run_once(store, tmp_path / "two")
    assert seen(one) == seen(two)
    assert one.scenarios[0].violations


def test_an_expected_violation_is_shrunk_too(write_scenario: Write, tmp_path: Path) -> None:
    (made,) = run_once(write_scenario(STORE.format(expect='{"atomic"}')), tmp_path / "report").scenarios
    assert (made.verdict, made.as_expected) == ("violated", True)
    assert made.violations[0].operations == EXACTLY


def test_shrinking_that_is_cut_short_says_so_and_goes_on_next_time(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shrinking, "RUNS", 2)
    (made,) = run_once(store, tmp_path / "report").scenarios
    assert made.violations[0].shrunk.endswith("shrinking stopped there: 2 runs are the limit")
    assert made.violations[0].operations != EXACTLY
    monkeypatch.undo()
    (made,) = run_once(store, tmp_path / "report", examples=1).scenarios
    assert made.violations[0].operations == EXACTLY


def test_without_time_for_it_the_drawn_sequence_is_reported(store: Path, tmp_path: Path) -> None:
    told: list[Event] = []
    (made,) = run_once(store, tmp_path / "report", told.append, shrink=0.0).scenarios
    assert made.verdict == "violated" and len(made.violations[0].operations) >= 3
    assert [event for event in told if isinstance(event, Shrinking)] == []


def test_the_first_failure_ends_a_run_with_x_and_is_shrunk(store: Path, tmp_path: Path) -> None:
    made = run_once(store, tmp_path / "report", stop_on_first=True)
    assert (made.stopped, made.exit) == ("-x", 1)
    assert made.scenarios[0].violations[0].operations == EXACTLY


def test_a_killed_zygote_loses_no_choice(store: Path, tmp_path: Path) -> None:
    """Its scenario has a harness error, the other sequences and the run go on, nothing is counted as passed."""
    source = store.read_text().replace(
        "    for number", "    if len(run.ops) > 3: os.kill(os.getppid(), 9)\n    for number"
    )
    store.write_text(source)
    (made,) = run_once(store, tmp_path / "report").scenarios
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


def test_ids_and_verdicts_do_not_depend_on_how_many_work(store: Path, tmp_path: Path) -> None:
    made = [
        local.run(
            load(store),
            {str(store): store},
            Settings(seed=SEED, jobs=jobs, depth=1, report_dir=tmp_path / str(jobs)),
            print,
        )
        for jobs in (1, 3)
    ]
    assert seen(made[0]) == seen(made[1])
    assert os.listdir(tmp_path / "1/violations") == os.listdir(tmp_path / "3/violations")


def test_a_scenario_that_cannot_be_judged_as_written_leaves_the_others_theirs(
    write_scenario: Write, tmp_path: Path
) -> None:
    file = write_scenario(
        STORE.format(expect="()").replace('"drop"]', '"mended"]')
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
