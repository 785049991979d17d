"""Crashes inside recovery: found, shown shallowest first, confirmed by real kills, and replayed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from crashtest.config import Settings
from crashtest.scale.replay import replay
from crashtest.verdict import ScenarioResult

Write = Callable[[str], Path]
Crash = Callable[..., ScenarioResult]

#: two files are moved by a plan; recovery that is not killed always ends the move
MOVE = """
@scenario(setup={{"a": b"old", "b": b"old"}})
def moves(run: Run) -> None:
    for name in "ab":
        (run.dir / (name + ".new")).write_text("new")
    (run.dir / "plan.new").write_text("ab")
    os.replace(run.dir / "plan.new", run.dir / "plan")
    finish(run.dir)
    run.ack()

def finish(directory: Path) -> None:
    for name in "ab":
        if (directory / (name + ".new")).exists():
            os.replace(directory / (name + ".new"), directory / name)
    (directory / "plan").unlink()

@moves.recover
def recover(directory: Path) -> None:
    if (directory / "plan").exists():
{recovery}
    for left in directory.glob("*.new"):
        left.unlink()

@moves.observe
def look(directory: Path) -> list[str]:
    return [(directory / name).read_text() for name in "ab"]
"""
RIGHT = "        finish(directory)"
#: the plan is thrown away before it is carried out
WRONG = """\
        (directory / "plan").rename(directory / "done")
        (directory / "done").rename(directory / "plan.old")
        for name in "ab":
            if (directory / (name + ".new")).exists():
                os.replace(directory / (name + ".new"), directory / name)
        (directory / "plan.old").unlink()"""


def test_a_bug_that_shows_only_when_recovery_is_killed_is_caught(crash: Crash, write_scenario: Write) -> None:
    made = crash(write_scenario(MOVE.format(recovery=WRONG)))
    assert (made.verdict, made.harness_error) == ("violated", "")
    assert {violation.guarantee for violation in made.violations} == {"atomic", "idempotent"}
    assert all(
        ">" in violation.id and "; then recovery died before " in violation.point for violation in made.violations
    )
    assert any("story.py:" in violation.where and "in recover" in violation.where for violation in made.violations)
    assert made.nested.depth == 2 and made.nested.cells > 5


def test_the_same_recovery_holds_where_only_the_workload_is_killed(crash: Crash, write_scenario: Write) -> None:
    made = crash(write_scenario(MOVE.format(recovery=WRONG)), depth=1)
    assert (made.verdict, made.nested.cells) == ("held", 0)


def test_recovery_that_carries_its_plan_out_first_holds_and_is_closed(crash: Crash, write_scenario: Write) -> None:
    made = crash(write_scenario(MOVE.format(recovery=RIGHT)), depth=3)
    assert (made.verdict, made.harness_error) == ("held", "")
    assert made.nested.cells > 5
    assert made.nested.closed == 3
    assert made.models["kill"].cells == crash(write_scenario(MOVE.format(recovery=RIGHT)), depth=1).models["kill"].cells


def test_states_that_only_nested_crashes_lead_to_are_counted_apart(crash: Crash, write_scenario: Write) -> None:
    file = write_scenario(MOVE.format(recovery=WRONG))  # it makes names of its own
    shallow, deep = crash(file, depth=1), crash(file)
    assert shallow.nested.unique_states == 0
    assert deep.models["kill"].unique_states == shallow.models["kill"].unique_states
    assert 0 < deep.nested.unique_states < deep.nested.cells
    # every tree of the whole run was judged, with at least one number of acks
    assert deep.models["kill"].unique_states + deep.nested.unique_states >= deep.models["kill"].trees


def test_a_step_of_recovery_is_reached_though_killing_it_there_changes_nothing(
    crash: Crash, write_scenario: Write
) -> None:
    recovery = (
        '        import sys\n        sys.audit("moves.redo.begin")\n' + RIGHT + '\n        sys.audit("moves.redo.end")'
    )
    steps = 'steps=["moves.redo.begin", "moves.redo.end", "moves.never"], '
    made = crash(write_scenario(MOVE.format(recovery=recovery).replace("scenario(", f"scenario({steps}", 1)))
    assert (made.verdict, made.steps_not_reached) == ("held", ["moves.never"])
    assert made.steps_killed == ["moves.redo.begin", "moves.redo.end"]


def test_the_number_of_workers_changes_no_violation(crash: Crash, write_scenario: Write) -> None:
    file = write_scenario(MOVE.format(recovery=WRONG))
    one, two = crash(file, jobs=1), crash(file, jobs=2)
    assert [v.id for v in one.violations] == [v.id for v in two.violations] != []


def test_a_nested_violation_is_replayed(crash: Crash, write_scenario: Write, tmp_path: Path) -> None:
    made = crash(write_scenario(MOVE.format(recovery=WRONG)))
    wanted = made.violations[0]
    records = [path for path in (tmp_path / "report/violations").glob("*.json") if wanted.id in path.read_text()]
    again = replay(records[0], Settings(report_dir=tmp_path / "report", seed=3), lambda event: None)
    (result,) = again.scenarios
    assert wanted.id in [violation.id for violation in result.violations]
    assert [v.point for v in result.violations if v.id == wanted.id] == [wanted.point]
    assert again.seed == 1


def test_observation_that_recovers_is_killed_too(crash: Crash, write_scenario: Write) -> None:
    """Without a recover part, starting again is observe: it is recorded and killed like a recovery."""
    file = write_scenario(
        MOVE.format(recovery=WRONG)
        .replace("@moves.recover\ndef", "def")
        .replace("    return [(d", "    recover(directory)\n    return [(d")
    )
    made = crash(file)
    assert {violation.guarantee for violation in made.violations} >= {"atomic"}
    assert all(">" in violation.id for violation in made.violations)
