"""Each line of the engine that syncs is dropped in turn, from the run and from recovery: some scenario is broken by it.

Lines are found in the source, so that a new one is missed here; docs/adr/0016 says why those that nothing catches stay.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crashtest.cells.example import Example
from crashtest.config import Settings
from crashtest.explore.generate import sequences
from crashtest.explore.syncs import Judging
from crashtest.scale import local
from crashtest.scale.jobs import Job
from crashtest.scale.rundir import RunDirectory
from crashtest.scale.team import Team
from crashtest.scenario import load

ROOT = Path(__file__).parents[2]
#: functions that sync for others: their callers are the places that are meant
HELPERS = {("tree", "sync"), ("files", "_sync"), ("refs", "_sync"), ("refs", "_sync_values")}
CALLS = {"sync", "sync_data", "sync_dir", "sync_file", "_sync", "_sync_values"}
#: the scenario that each line breaks when it does not sync: (module, function, how manieth there)
CAUGHT_BY = {
    ("files", "prepare", 1): "torn_log",
    ("files", "_stage", 1): "torn_log",
    ("files", "_apply", 1): "first_opening",
    ("files", "undo", 1): "first_opening",
    ("refs", "sync_ground", 1): "new_objects",
    ("refs", "sync_ground", 2): "already_there",
    ("refs", "sync_ground", 3): "new_objects",
    ("refs", "_keep_locks", 1): "first_opening",
    ("refs", "undo", 1): "first_opening",
    ("refs", "_sync_names", 1): "first_opening",
    ("store", "open", 1): "first_opening",
    ("store", "open", 2): "first_opening",
    ("wal", "load", 1): "goes_on",
    ("wal", "_create", 1): "first_opening",
    ("wal", "append", 1): "first_opening",
    ("wal", "reset", 1): "torn_log",
}
#: why they stay: docs/adr/0016
KEPT = {("wal", "rewrite", 1), ("wal", "_take_back", 1), ("refs", "redo", 1)}


def lines() -> dict[tuple[str, str, int], int]:
    """The lines of the engine that sync, by module, function, and how manieth there."""
    found: dict[tuple[str, str, int], int] = {}
    for path in sorted((ROOT / "jin_core").glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if path.stem == "disk" or not isinstance(function, ast.FunctionDef):
                continue
            calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
            numbers = sorted(call.lineno for call in calls if isinstance(call, ast.Attribute) and call.attr in CALLS)
            if (path.stem, function.name) not in HELPERS:
                found.update({(path.stem, function.name, at): number for at, number in enumerate(numbers, 1)})
    return found


def test_every_line_of_the_engine_that_syncs_is_accounted_for() -> None:
    assert set(lines()) == set(CAUGHT_BY) | KEPT
    decision = (ROOT / "docs/adr/0016-syncs-of-the-engine-that-stay.md").read_text()
    for module, function, _ in KEPT:
        assert f"`{module}.py`, `{function}`" in decision


@pytest.fixture
def judging(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Judging]:
    """A scenario of the engine, recorded and ready to have syncs dropped."""
    path = ROOT / "scenarios/engine" / f"{request.param}.py"
    (scenario,) = load(path)
    settings = Settings(models=("posix",), jobs=2, seed=1, losses=1000, timeout=20, report_dir=tmp_path)
    with local.guarded():
        directory = RunDirectory()
        job = Job(scenario, path, sequences(scenario, 1, 1), depth=2, models=settings.models)
        team = Team(settings.jobs, directory, job, settings)
        try:
            example = Example(scenario, job.sequences[0], team.prepare(job.sequences[0]), True)
            assert example.reason == ""
            yield Judging(team, example, settings, lambda words: None)
        finally:
            team.close()
            directory.close()


@pytest.mark.slow
@pytest.mark.parametrize("judging", sorted(set(CAUGHT_BY.values())), indirect=True)
def test_a_line_of_the_engine_that_does_not_sync_is_caught(judging: Judging, request: pytest.FixtureRequest) -> None:
    places = judging.open()
    numbers = lines()
    mine = [line for line, scenario in CAUGHT_BY.items() if scenario == request.node.callspec.params["judging"]]

    def issued_by(*wanted: tuple[str, str, int]) -> list[list[Any]]:
        """All syncs that come from these lines, of the run and of recovery."""
        frames = [f"jin_core/{line[0]}.py:{numbers[line]} in {line[1]}" for line in wanted]
        keys = [(p["key"], p["count"]) for p in places if any(frame in p["where"].split(" < ") for frame in frames)]
        return [[key, ordinal] for key, count in keys for ordinal in range(1, count + 1)]

    # the log as it was read, and as it was written again: either does for the other
    both = [issued_by(("wal", "load", 1), ("wal", "rewrite", 1))] if "first_opening" in request.node.name else []
    asked = [issued_by(line) for line in mine]
    assert all(asked), f"not reached: {[line for line, syncs in zip(mine, asked, strict=True) if not syncs]}"
    common = {"do": "syncs_drop", "model": "posix", "dropped": [], "weakened": [], "weaker": False}
    answers = judging.team.ask([{**common, "asked": syncs} for syncs in [*asked, *both]])
    missed = [line for line, answer in zip([*mine, "both"], answers, strict=False) if answer["proof"] is None]
    assert missed == []
