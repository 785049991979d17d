"""Two-phase commit: every sequence of answers, and a crash after each of them, is walked here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from jin_core.protocol import (
    Action,
    Command,
    Decision,
    Kind,
    Machine,
    Outcome,
    Result,
    decide,
    drive,
    problem,
)

PARTICIPANTS = range(4)
LOGS = {
    Action.LOG_BEGIN: Kind.BEGIN,
    Action.LOG_COMMIT: Kind.COMMIT,
    Action.LOG_CLEANUP: Kind.CLEANUP,
    Action.LOG_ABORT: Kind.ABORT,
    Action.LOG_REDO: Kind.REDO,
}
Step = tuple[Command, Result]


def walks(machine: Machine, done: tuple[Step, ...] = ()) -> Iterator[tuple[tuple[Step, ...], Machine]]:
    """Every prefix of every run: the answers so far and the state after them."""
    yield done, machine
    command = machine.command()
    if command is not None:
        for result in Result:
            yield from walks(machine.after(result), (*done, (command, result)))


def all_walks() -> list[tuple[int, tuple[Step, ...], Machine]]:
    return [(n, done, end) for n in PARTICIPANTS for done, end in walks(Machine.start(n))]


def logged(done: tuple[Step, ...]) -> list[list[Kind]]:
    """The logs that a crash may find: an unknown record is there or is not."""
    parts: list[list[list[Kind]]] = []
    for command, result in done:
        kind = LOGS.get(command.action)
        if kind is not None and result is not Result.REFUSED:
            parts.append([[kind]] if result is Result.DONE else [[kind], []])
    return [[kind for part in choice for kind in part] for choice in product(*parts)]


def did(done: tuple[Step, ...], action: Action) -> bool:
    """Whether an action was begun, with whatever result."""
    return any(command.action is action for command, _ in done)


def test_every_sequence_ends() -> None:
    ends = [done for _, done, machine in all_walks() if machine.outcome is not None]
    assert len(ends) > 50
    assert max(len(done) for done in ends) <= 3 + 3 * max(PARTICIPANTS)


def test_nothing_is_applied_before_the_commit_record_is_durable() -> None:
    for _, done, _ in all_walks():
        if did(done, Action.APPLY):
            assert (Command(Action.LOG_COMMIT), Result.DONE) in done


def test_nothing_is_undone_once_the_commit_record_may_be_durable() -> None:
    for _, done, _ in all_walks():
        committed = [result for command, result in done if command.action is Action.LOG_COMMIT]
        if did(done, Action.UNDO) or did(done, Action.LOG_ABORT):
            assert committed in ([], [Result.REFUSED])


def test_all_participants_have_prepared_before_the_commit_record() -> None:
    for count, done, _ in all_walks():
        if did(done, Action.LOG_COMMIT):
            prepared = [c.participant for c, r in done if c.action is Action.PREPARE and r is Result.DONE]
            assert prepared == list(range(count))


def test_participants_apply_in_reverse_order_and_each_one() -> None:
    for count, done, machine in all_walks():
        if machine.outcome is Outcome.COMMITTED:
            applied = [c.participant for c, _ in done if c.action is Action.APPLY]
            assert applied == list(reversed(range(count)))


def test_the_one_that_refused_is_undone_first_and_all_before_it_follow() -> None:
    for _, done, machine in all_walks():
        refused = [c.participant for c, r in done if c.action is Action.PREPARE and r is not Result.DONE]
        if refused and machine.outcome is Outcome.ABORTED:
            undone = [c.participant for c, _ in done if c.action is Action.UNDO]
            assert refused[0] is not None
            assert undone == list(range(refused[0], -1, -1))


def test_recovery_agrees_with_what_was_done_wherever_the_crash_struck() -> None:
    for _, done, machine in all_walks():
        for kinds in logged(done):
            decision = decide(kinds)
            if did(done, Action.APPLY):
                assert decision is not Decision.ROLL_BACK, kinds
            if did(done, Action.UNDO):
                assert decision is not Decision.REDO, kinds
            if machine.outcome is Outcome.COMMITTED:
                assert decision is Decision.NOTHING, kinds
            touched = did(done, Action.PREPARE) or did(done, Action.APPLY)
            if (
                decision is Decision.NOTHING
                and touched
                and machine.outcome
                not in (
                    Outcome.COMMITTED,
                    Outcome.ABORTED,
                )
            ):
                assert kinds[-1] in (Kind.CLEANUP, Kind.ABORT), kinds


def test_an_unknown_commit_ends_the_process_s_part() -> None:
    ended = [
        (done, machine.outcome)
        for _, done, machine in all_walks()
        if done and done[-1] == (Command(Action.LOG_COMMIT), Result.UNKNOWN)
    ]
    assert ended
    assert {outcome for _, outcome in ended} == {Outcome.UNKNOWN}


def test_whatever_a_run_logs_makes_sense_to_recovery() -> None:
    for _, done, _ in all_walks():
        for kinds in logged(done):
            if kinds and kinds[0] is Kind.BEGIN:
                assert problem(kinds) is None, kinds


@pytest.mark.parametrize("decision", [Decision.REDO, Decision.ROLL_BACK])
@pytest.mark.parametrize("count", PARTICIPANTS)
def test_recovery_killed_anywhere_decides_the_same_again(count: int, decision: Decision) -> None:
    before = [Kind.BEGIN, Kind.COMMIT] if decision is Decision.REDO else [Kind.BEGIN]
    seen = 0
    for done, machine in walks(Machine.recover(count, decision)):
        for kinds in logged(done):
            seen += 1
            again = decide(before + kinds)
            finished = Kind.CLEANUP in kinds or Kind.ABORT in kinds
            assert again is (Decision.NOTHING if finished else decision)
            assert problem(before + kinds) is None
        if machine.outcome in (Outcome.COMMITTED, Outcome.ABORTED):
            wanted = Action.APPLY if decision is Decision.REDO else Action.UNDO
            assert sum(command.action is wanted for command, _ in done) == count
    assert seen > count


@pytest.mark.parametrize(
    "kinds",
    [
        [Kind.COMMIT],
        [Kind.BEGIN, Kind.CLEANUP],
        [Kind.BEGIN, Kind.BEGIN],
        [Kind.BEGIN, Kind.COMMIT, Kind.ABORT],
        [Kind.BEGIN, Kind.ABORT, Kind.COMMIT],
        [Kind.BEGIN, Kind.REDO],
        [],
    ],
)
def test_records_that_no_run_can_write_are_noticed(kinds: list[Kind]) -> None:
    assert problem(kinds)


def test_an_ended_machine_asks_for_nothing_and_takes_no_answer() -> None:
    asked: list[Command] = []

    def perform(command: Command) -> Result:
        asked.append(command)
        return Result.DONE

    assert drive(Machine.start(2), perform) is Outcome.COMMITTED
    assert [command.action.value for command in asked] == [
        "log begin",
        "prepare",
        "prepare",
        "log commit",
        "apply",
        "apply",
        "log cleanup",
    ]
    ended = Machine(2, Action.LOG_CLEANUP, outcome=Outcome.COMMITTED)
    assert ended.command() is None
    with pytest.raises(ValueError, match="has ended"):
        ended.after(Result.DONE)
    with pytest.raises(ValueError, match="nothing to recover"):
        Machine.recover(2, Decision.NOTHING)
