"""A power cut that breaks a promise is told with what was lost, and with the sync that is missing at its line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from crashtest.verdict import ScenarioResult, Violation

#: interpreters after the oldest leave these out (tox.ini)
pytestmark = pytest.mark.slow

Crash = Callable[..., ScenarioResult]

ROOT = Path(__file__).parents[2]
UNSYNCED = ROOT / "scenarios/known_bad/replace_unsynced.py"


def line(text: str, function: str) -> str:
    """`file:number` of the line that has the text, looked for from the beginning of the function on."""
    lines = UNSYNCED.read_text().splitlines()
    first = next(n for n, one in enumerate(lines) if one.startswith(f"def {function}("))
    return f"replace_unsynced.py:{next(n for n, one in enumerate(lines) if n >= first and text in one) + 1} "


def told(crash: Crash, function: str, guarantee: str) -> Violation:
    """The one violation of a scenario: of that guarantee, by a power cut, and of nothing else under any model."""
    made = crash(UNSYNCED, function, models=("kill", "posix"))
    assert (made.verdict, made.as_expected) == ("violated", True)
    assert "violated" not in made.models["kill"].guarantees.values()
    broken = {name for name, verdict in made.models["posix"].guarantees.items() if verdict == "violated"}
    assert broken == {guarantee}
    (violation,) = made.violations
    assert (violation.guarantee, violation.model) == (guarantee, "posix")
    return violation


def test_the_textbook_replacement_holds_under_a_power_cut(crash: Crash) -> None:
    made = crash(ROOT / "scenarios/textbook/atomic_replace.py", models=("kill", "posix"), losses=60)
    assert (made.verdict, made.as_expected) == ("held", True)
    claimed = {"recovers", "atomic", "durable", "ordered", "idempotent", "live", "clean", "visible"}
    assert {name for name, verdict in made.models["posix"].guarantees.items() if verdict == "held"} == claimed


def test_the_fsync_of_the_file_that_is_missing_is_told(crash: Crash) -> None:
    violation = told(crash, "file_not_synced", "atomic")
    assert [one.partition(", in ")[0] for one in violation.lost] == ["the data of settings.new (13 bytes at 0)"]
    assert line("file.flush()", "write") in violation.lost[0]
    assert line("os.replace", "file_not_synced") in violation.kept[0]
    assert violation.barrier == "fsync of settings.new"
    assert line("file.flush()", "write") in violation.where.partition(" and before ")[0]


def test_the_fsync_of_the_directory_that_is_missing_is_told(crash: Crash) -> None:
    violation = told(crash, "directory_not_synced", "durable")
    assert [one.partition(", in ")[0] for one in violation.lost] == ["the name settings.new -> settings (rename)"]
    assert violation.kept == [f"ack 1, in {_place('run.ack', 'directory_not_synced', violation.kept[0])}"]
    assert violation.barrier == "fsync of the directory ."
    after, _, before = violation.where.partition(" and before ")
    assert line("os.replace", "directory_not_synced") in after
    assert line("run.ack", "directory_not_synced") in before


def test_an_ack_before_the_fsync_of_the_directory_is_told(crash: Crash) -> None:
    violation = told(crash, "directory_synced_too_late", "durable")
    assert violation.acked == 1 and violation.barrier == "fsync of the directory ."
    after, _, before = violation.where.partition(" and before ")
    assert line("os.replace", "directory_synced_too_late") in after
    assert line("run.ack", "directory_synced_too_late") in before


def test_a_kill_just_before_the_last_sync_is_among_the_few_that_are_cut_again(crash: Crash) -> None:
    """SQLite with EXTRA: a reader sees the journal deleted, which nobody synced, and the power goes when it has ended.
    One crash point of 37 shows it, and recovery after a kill is cut in turn at no more than eight of them here."""
    file = ROOT / "scenarios/software/sqlite_delete.py"
    made = crash(file, "delete_extra_read_after_kill", models=("posix",), losses=128)
    (violation,) = made.violations
    assert made.harness_error == "" and violation.guarantee == "durable"
    assert "then the power was cut after the end in recovery" in violation.point
    assert violation.lost[0].startswith("the removal of the name shop.db-journal, in ")
    assert violation.kept == ["the end of recovery"] and violation.barrier == "fsync of the directory ."


def _place(text: str, function: str, said: str) -> str:
    """What was said of a place, if it is the line that is meant."""
    assert line(text, function) in said
    return said.partition(", in ")[2]
