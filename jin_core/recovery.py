"""Recovery: finish what is committed, undo what is not, and leave no name behind.

Guarantees: afterwards the last transaction of the log is wholly there or wholly not there; what was ever
acknowledged is there; it may be killed anywhere and run again with the same result; nothing is overwritten
that is neither the old nor the new state of this transaction (`RecoveryConflict` instead, with nothing
changed). What was read from the log is made durable before anything is done about it.

Which git locks are taken away. The caller holds the store's lock, and every git child of ours holds it too,
so no child of ours is alive and each lock of ours is stale. A lock is looked at only if BEGIN (or REDO)
lists its path, and it was seen not to exist just before that record was written. Of those:
  1. The log has device, inode, time and size of each lock (COMMIT is written while git holds them all): the
     same file is ours, any other is somebody else's. This is proof.
  2. The log has none (killed before COMMIT, or while redoing) or the repository is a copy, where inodes mean
     nothing: a lock with exactly the content that our child writes is ours; one with other content is not;
     an empty or half written one is ours if it did not change or go away while it was watched: as long as
     git itself waits for such a lock, 0.1 s for a ref and up to 1 s for packed-refs; in a copy, at once.
  3. `packed-refs.new` goes with `packed-refs.lock`.
Not guaranteed by rule 2: a foreign git that took an unproven lock after BEGIN, died or hangs, and left it
empty or with our very content cannot be told from our child. A foreign lock is left alone: roll-back does
not need it, redo stops and names it.

Does not guarantee: repair of damage that is no part of the last transaction; objects; reflogs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jin_core.engine import Engine
from jin_core.errors import LogCorrupt, NotARepository, RecoveryConflict, escape
from jin_core.files import FilesParticipant, FilesPlan, Planned
from jin_core.gitlocks import Evidence, Identity, Lock
from jin_core.protocol import Action, Command, Decision, Kind, Machine, Result, decide, drive, problem
from jin_core.refplan import RefsPlan
from jin_core.refs import RefsParticipant
from jin_core.repository import locate
from jin_core.steps import step
from jin_core.tree import Tree
from jin_core.wal import Record


@dataclass(frozen=True, slots=True)
class Recovery:
    """What recovery did: transaction numbers, names it removed, and locks it left to their owners."""

    rolled_back: tuple[int, ...] = ()
    redone: tuple[int, ...] = ()
    removed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rolled_back or self.redone)


def recover(engine: Engine) -> Recovery:
    """Bring the last transaction of the log to its end. The caller holds the store's lock.

    Raises `RecoveryConflict`, `LogCorrupt`, `LogFailed`, `OSError`; then it can be run again.
    """
    records = engine.wal.last()
    kinds = [record.kind for record in records]
    if records and (reason := problem(kinds)):
        raise LogCorrupt(
            f"transaction {records[0].transaction} in the log makes no sense: {reason}",
            "check refs and files by hand, then remove the log file",
        )
    decision = decide(kinds)
    if decision is Decision.NOTHING:
        return Recovery()
    engine.wal.rewrite(records)
    run = _Run(engine, records)
    try:
        return run.finish(decision)
    finally:
        run.close()


class _Run:
    """One unfinished transaction, rebuilt from its records."""

    def __init__(self, engine: Engine, records: Sequence[Record]) -> None:
        self._engine = engine
        self._number = records[0].transaction
        begin = records[0].payload()
        self._files: FilesParticipant | None = None
        self._refs: RefsParticipant | None = None
        self._tree: Tree | None = None
        if begin["files"] is not None:
            self._tree = Tree(_worktree(engine, begin))
            self._files = FilesParticipant(self._tree, Planned(FilesPlan.from_json(begin["files"])))
        if begin["refs"] is not None:
            plan = _with_locks(RefsPlan.from_json(begin["refs"]), records)
            evidence = Evidence(_known(records), begin["place"] == list(engine.lock.place), engine.patience)
            self._refs = RefsParticipant(
                engine.repository, plan, engine.lock.fd, engine.patience, self._number, evidence
            )
        self._participants = [one for one in (self._files, self._refs) if one is not None]

    def finish(self, decision: Decision) -> Recovery:
        redo = decision is Decision.REDO
        step("jin_core.recovery.redo" if redo else "jin_core.recovery.rollback", self._number)
        drive(Machine.recover(len(self._participants), decision), self._perform)
        step("jin_core.recovery.done", self._number)
        removed = self._files.removed if self._files else []
        swept = self._refs.swept if self._refs else None
        return Recovery(
            rolled_back=() if redo else (self._number,),
            redone=(self._number,) if redo else (),
            removed=(*removed, *(swept.removed if swept else ())),
            left=tuple(swept.foreign) if swept else (),
        )

    def _perform(self, command: Command) -> Result:
        """Failures are raised: recovery keeps nothing in memory that would have to be undone."""
        match command.action:
            case Action.UNDO:
                assert command.participant is not None
                self._participants[command.participant].undo()
            case Action.LOG_REDO:
                for participant in self._participants:
                    participant.check()
            case Action.APPLY:
                assert command.participant is not None
                self._redo(self._participants[command.participant])
            case Action.LOG_ABORT:
                self._engine.wal.append(Kind.ABORT, self._number, {})
            case Action.LOG_CLEANUP:
                self._engine.wal.append(Kind.CLEANUP, self._number, {})
            case Action.LOG_BEGIN | Action.PREPARE | Action.LOG_COMMIT:
                raise AssertionError(f"recovery was asked to {command.action.value}")
        return Result.DONE

    def _redo(self, participant: FilesParticipant | RefsParticipant) -> None:
        if isinstance(participant, FilesParticipant):
            participant.redo()
        else:
            participant.redo(self._announce)

    def _announce(self, locks: Sequence[Lock]) -> None:
        payload = {"locks": [[lock.path, lock.content] for lock in locks]}
        self._engine.wal.append(Kind.REDO, self._number, payload)

    def close(self) -> None:
        if self._tree is not None:
            self._tree.close()


def _worktree(engine: Engine, begin: Mapping[str, Any]) -> str:
    """The work tree of the transaction: as far from the git directory as it was then."""
    path = os.path.normpath(engine.repository.path(begin["worktree"]))
    try:
        if locate(path).common_dir == engine.repository.common_dir:
            return path
        reason = "belongs to another repository now"
    except NotARepository as error:
        reason = f"is not there any more ({error.args[0]})"
    raise RecoveryConflict("files", f"the work tree {escape(path)} {reason}", "put it back and run recovery again")


def _known(records: Sequence[Record]) -> dict[str, Identity] | None:
    """Identities of the locks our child held, if no later child may have taken others."""
    if records[-1].kind is not Kind.COMMIT:
        return None
    return {path: Identity(*row) for path, row in records[-1].payload()["held"].items()}


def _with_locks(plan: RefsPlan, records: Sequence[Record]) -> RefsPlan:
    locks = list(plan.locks)
    for record in records:
        if record.kind is Kind.REDO:
            locks += [lock for row in record.payload()["locks"] if (lock := Lock(*row)) not in locks]
    return replace(plan, locks=tuple(locks))
