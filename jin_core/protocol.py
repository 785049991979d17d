"""Two-phase commit as a state machine: it decides what is done next and does nothing itself.

Guarantees, for any number of participants and any sequence of answers (all of them are walked in the
tests): no participant applies anything before the commit record is durable; none undoes anything after it
may be; the participants prepare in order and apply and undo in the reverse order; every sequence ends; and
what `decide` reads in the log after a crash anywhere agrees with what had been done: applied work is
redone, unapplied work is undone.
Does not guarantee: that the driver tells the truth about an answer. `Result.UNKNOWN` must be given whenever
a log record may or may not have reached the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum, IntEnum
from itertools import pairwise


class Kind(IntEnum):
    """Kind of a log record; the number is what stands in the log."""

    BEGIN = 1
    COMMIT = 2
    CLEANUP = 3
    ABORT = 4
    REDO = 5


class Action(Enum):
    """What the driver is asked to do."""

    LOG_BEGIN = "log begin"
    PREPARE = "prepare"
    LOG_COMMIT = "log commit"
    LOG_REDO = "log redo"
    APPLY = "apply"
    LOG_CLEANUP = "log cleanup"
    UNDO = "undo"
    LOG_ABORT = "log abort"


class Result(Enum):
    """How it went. REFUSED: it surely did not happen. UNKNOWN: it may have."""

    DONE = "done"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Outcome(Enum):
    """How a transaction ended for this process."""

    COMMITTED = "committed"
    ABORTED = "aborted"
    UNDO_LEFT = "aborted, and recovery has to clean up"
    UNKNOWN = "unknown until recovery"
    APPLY_LEFT = "committed, and recovery has to finish it"


class Decision(Enum):
    """What recovery does with the last transaction of the log."""

    NOTHING = "nothing"
    ROLL_BACK = "roll back"
    REDO = "redo"


@dataclass(frozen=True, slots=True)
class Command:
    """One thing to do; `participant` is an index, or None when the log is meant."""

    action: Action
    participant: int | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """A state of the coordinator. `outcome` is None until it has ended."""

    participants: int
    action: Action
    position: int = 0
    outcome: Outcome | None = None

    @classmethod
    def start(cls, participants: int) -> Machine:
        """A new transaction."""
        return cls(participants, Action.LOG_BEGIN)

    @classmethod
    def recover(cls, participants: int, decision: Decision) -> Machine:
        """An old transaction, after a crash. `decision` must not be NOTHING."""
        if decision is Decision.REDO:
            return cls(participants, Action.LOG_REDO)
        if decision is Decision.ROLL_BACK:
            return cls(participants, Action.LOG_ABORT)._downwards(Action.UNDO, Action.LOG_ABORT)
        raise ValueError("there is nothing to recover")

    def command(self) -> Command | None:
        """The next thing to do, or None at the end."""
        if self.outcome is not None:
            return None
        own = self.action in (Action.PREPARE, Action.APPLY, Action.UNDO)
        return Command(self.action, self.position if own else None)

    def after(self, result: Result) -> Machine:
        """The state that follows when the command of this state ended with `result`."""
        if self.outcome is not None:
            raise ValueError("the transaction has ended")
        return self._good() if result is Result.DONE else self._bad(result)

    def _good(self) -> Machine:
        match self.action:
            case Action.LOG_BEGIN:
                return self._upwards(0)
            case Action.PREPARE:
                return self._upwards(self.position + 1)
            case Action.LOG_COMMIT | Action.LOG_REDO:
                return self._downwards(Action.APPLY, Action.LOG_CLEANUP)
            case Action.APPLY:
                return self._next_down(Action.LOG_CLEANUP)
            case Action.UNDO:
                return self._next_down(Action.LOG_ABORT)
            case Action.LOG_CLEANUP:
                return replace(self, outcome=Outcome.COMMITTED)
            case Action.LOG_ABORT:
                return replace(self, outcome=Outcome.ABORTED)

    def _bad(self, result: Result) -> Machine:
        match self.action:
            case Action.LOG_BEGIN:
                left = result is Result.UNKNOWN
                return replace(self, outcome=Outcome.UNDO_LEFT if left else Outcome.ABORTED)
            case Action.PREPARE:
                # The one that refused may have left something as well, so it undoes first.
                return replace(self, action=Action.UNDO)
            case Action.LOG_COMMIT:
                if result is Result.UNKNOWN:
                    return replace(self, outcome=Outcome.UNKNOWN)
                return self._downwards(Action.UNDO, Action.LOG_ABORT)
            case Action.LOG_REDO | Action.APPLY | Action.LOG_CLEANUP:
                return replace(self, outcome=Outcome.APPLY_LEFT)
            case Action.UNDO | Action.LOG_ABORT:
                return replace(self, outcome=Outcome.UNDO_LEFT)

    def _upwards(self, position: int) -> Machine:
        if position < self.participants:
            return replace(self, action=Action.PREPARE, position=position)
        return replace(self, action=Action.LOG_COMMIT, position=0)

    def _downwards(self, action: Action, end: Action) -> Machine:
        if self.participants:
            return replace(self, action=action, position=self.participants - 1)
        return replace(self, action=end, position=0)

    def _next_down(self, end: Action) -> Machine:
        if self.position:
            return replace(self, position=self.position - 1)
        return replace(self, action=end, position=0)


def drive(machine: Machine, perform: Callable[[Command], Result]) -> Outcome:
    """Do what `machine` asks for through `perform` until it ends."""
    while (command := machine.command()) is not None:
        machine = machine.after(perform(command))
    assert machine.outcome is not None
    return machine.outcome


def decide(kinds: Sequence[Kind]) -> Decision:
    """What the records of one transaction, in log order, ask of recovery."""
    if not kinds or kinds[-1] in (Kind.CLEANUP, Kind.ABORT):
        return Decision.NOTHING
    return Decision.REDO if Kind.COMMIT in kinds else Decision.ROLL_BACK


def problem(kinds: Sequence[Kind]) -> str | None:
    """Why these records cannot have been written by one transaction, or None when they can."""
    if not kinds or kinds[0] is not Kind.BEGIN:
        return "it does not start with BEGIN"
    for before, now in pairwise(kinds):
        if now not in _FOLLOWS[before]:
            return f"{now.name} follows {before.name}"
    return None


_FOLLOWS: dict[Kind, frozenset[Kind]] = {
    Kind.BEGIN: frozenset({Kind.COMMIT, Kind.ABORT}),
    Kind.COMMIT: frozenset({Kind.REDO, Kind.CLEANUP}),
    Kind.REDO: frozenset({Kind.REDO, Kind.CLEANUP}),
    Kind.CLEANUP: frozenset(),
    Kind.ABORT: frozenset(),
}
