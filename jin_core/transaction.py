"""A transaction: collects changes in memory, then drives the two-phase commit.

Guarantees: until `commit` nothing is touched; when it returns, all changes are durable and visible; when it
raises, nothing of them is kept and nothing is left behind, except for `OutcomeUnknown` and `NotFinished`,
which say so and leave the rest to recovery. An exception inside the `with` block discards everything.
Does not guarantee: isolation from readers and writers that do not use the engine; what they may see and
what is noticed is said in `files` and `refs`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

from jin_core import files, refplan
from jin_core.engine import Engine
from jin_core.errors import IoFailed, JinError, Misuse, NotFinished, OutcomeUnknown, escape
from jin_core.files import FilesParticipant, Planned, WantedFile
from jin_core.names import check_id, check_path, check_ref, is_zero
from jin_core.protocol import Action, Command, Kind, Machine, Outcome, Result, drive
from jin_core.refplan import RefsPlan, WantedRef
from jin_core.refs import RefsParticipant
from jin_core.steps import step
from jin_core.tree import Tree


class Transaction:
    """Changes that will all be made, or none. Use it in a `with` block.

    A second change of the same path or ref replaces the first. `id` is the transaction's number in the log
    once it is committed; it stays None for an empty transaction.
    """

    def __init__(self, commit: Callable[[Mapping[str, WantedFile], Mapping[str, WantedRef]], int]) -> None:
        self._commit = commit
        self._files: dict[str, WantedFile] = {}
        self._refs: dict[str, WantedRef] = {}
        self._open = True
        self.id: int | None = None

    def write(self, path: str | bytes | os.PathLike[str], data: bytes, mode: int | None = None) -> None:
        """Make `data` the content of the file `path`, relative to the top of the work tree.

        Directories on the way are made. `mode`: permission bits; None keeps those of the file, or takes the
        usual ones for a new file. A hard link or symbolic link at `path` is replaced, not followed.
        Raises `PathRefused`, `Misuse`.
        """
        self._check_open()
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise Misuse(f"file content is bytes, not {type(data).__name__}", "encode it first")
        if mode is not None and not 0 <= mode <= 0o7777:
            raise Misuse(f"{mode} is not a file mode", "give permission bits such as 0o644")
        self._files[check_path(path)] = WantedFile(bytes(data), mode)

    def delete(self, path: str | bytes | os.PathLike[str]) -> None:
        """Remove the file or symbolic link `path`; its directory stays. Raises `PathRefused`, `Misuse`."""
        self._check_open()
        self._files[check_path(path)] = WantedFile(None)

    def update_ref(self, name: str, new: str, old: str | None = None) -> None:
        """Set the ref `name` (full name) to the object id `new`.

        `old`: the id it must have now; None: any; all zeros: it must not exist. Raises `RefRefused`,
        `Misuse`.
        """
        self._check_open()
        value = check_id(new)
        if is_zero(value):
            raise Misuse("the new value of a ref cannot be all zeros", "use delete_ref")
        self._refs[check_ref(name)] = WantedRef(value, None if old is None else check_id(old))

    def delete_ref(self, name: str, old: str | None = None) -> None:
        """Delete the ref `name`; `old`: the id it must have now, None: any. Raises `RefRefused`, `Misuse`."""
        self._check_open()
        value = None if old is None else check_id(old)
        if value is not None and is_zero(value):
            raise Misuse("a ref that must not exist cannot be deleted", "leave it out of the transaction")
        self._refs[check_ref(name)] = WantedRef(None, value)

    def commit(self) -> None:
        """Make all changes. The `with` block does this at its end. Raises any `JinError`."""
        self._check_open()
        self._open = False
        if self._files or self._refs:
            self.id = self._commit(self._files, self._refs)

    def discard(self) -> None:
        """Forget all changes."""
        self._open = False
        self._files.clear()
        self._refs.clear()

    def _check_open(self) -> None:
        if not self._open:
            raise Misuse("the transaction has ended", "begin another one")

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is not None or not self._open:
            self.discard()
        else:
            self.commit()


class Commit:
    """One run of the protocol for a transaction that has something to change."""

    def __init__(
        self, engine: Engine, wanted_files: Mapping[str, WantedFile], wanted_refs: Mapping[str, WantedRef]
    ) -> None:
        self._engine = engine
        self._wanted_files = wanted_files
        self._wanted_refs = wanted_refs
        self._number = engine.wal.next_transaction()
        self._participants: list[FilesParticipant | RefsParticipant] = []
        self._refs: RefsParticipant | None = None
        self._begin: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._aborting = False

    def run(self) -> int:
        """Commit; returns the number of the transaction."""
        tree = Tree(self._engine.repository.worktree) if self._wanted_files else None
        try:
            self._plan(tree)
            outcome = drive(Machine.start(len(self._participants)), self._perform)
        except OSError as error:
            raise _io_failed(error) from error
        finally:
            if tree is not None:
                tree.close()
        if outcome is not Outcome.COMMITTED:
            self._fail(outcome)
        self._engine.wal.reset_if_large()
        step("jin_core.transaction.done", self._number)
        return self._number

    def _plan(self, tree: Tree | None) -> None:
        """Everything before BEGIN: look, refuse, and make durable what it stands on."""
        engine = self._engine
        repository = engine.repository
        planned: Planned | None = None
        refs_plan: RefsPlan | None = None
        if tree is not None:
            planned = files.plan(tree, self._wanted_files, self._number)
            self._participants.append(FilesParticipant(tree, planned))
        if self._wanted_refs:
            refs_plan = refplan.plan(repository, self._wanted_refs, engine.patience)
            self._refs = RefsParticipant(repository, refs_plan, engine.lock.fd, engine.patience, self._number)
            self._participants.append(self._refs)
            self._refs.sync_ground()
        self._begin = {
            "worktree": os.path.relpath(repository.worktree, repository.common_dir),
            "place": list(engine.lock.place),
            "files": planned.plan.to_json() if planned else None,
            "refs": refs_plan.to_json() if refs_plan else None,
        }

    def _perform(self, command: Command) -> Result:
        try:
            self._do(command)
        except BaseException as error:
            if self._error is None:
                self._error = error
            return Result.UNKNOWN if self._engine.wal.poisoned else Result.REFUSED
        return Result.DONE

    def _do(self, command: Command) -> None:
        log = self._engine.wal
        match command.action:
            case Action.LOG_BEGIN:
                log.append(Kind.BEGIN, self._number, self._begin)
            case Action.LOG_COMMIT:
                held = self._refs.held if self._refs else {}
                payload = {path: identity.to_json() for path, identity in held.items()}
                log.append(Kind.COMMIT, self._number, {"held": payload})
            case Action.LOG_CLEANUP:
                log.append(Kind.CLEANUP, self._number, {})
            case Action.LOG_ABORT:
                log.append(Kind.ABORT, self._number, {})
            case Action.LOG_REDO:
                raise AssertionError("a living transaction is not redone")
            case Action.PREPARE | Action.APPLY | Action.UNDO:
                assert command.participant is not None
                self._ask(self._participants[command.participant], command.action)

    def _ask(self, participant: FilesParticipant | RefsParticipant, action: Action) -> None:
        if action is Action.PREPARE:
            participant.prepare()
        elif action is Action.APPLY:
            participant.apply()
        else:
            if not self._aborting:
                step("jin_core.transaction.abort", self._number)
                self._aborting = True
            participant.undo()

    def _fail(self, outcome: Outcome) -> None:
        """Raise what the caller has to know about a transaction that did not simply succeed."""
        error = self._error
        assert error is not None
        if outcome is not Outcome.ABORTED:
            self._engine.unfinished = f"transaction {self._number} is {outcome.value}"
            for participant in self._participants:
                participant.release()
        if not isinstance(error, Exception):
            error.add_note(f"jin: transaction {self._number} is {outcome.value}")
            raise error
        if outcome is Outcome.UNKNOWN:
            raise OutcomeUnknown(
                f"transaction {self._number} may or may not be committed: {_words(error)}",
                "call recover() or open the store again: recovery decides",
            ) from error
        if outcome is Outcome.APPLY_LEFT:
            raise NotFinished(
                f"transaction {self._number} is committed but could not be finished: {_words(error)}",
                "call recover() or open the store again to finish it",
            ) from error
        if isinstance(error, OSError):
            raise _io_failed(error) from error
        raise error


def _words(error: Exception) -> str:
    """What happened, without the remedy."""
    return str(error.args[0]) if isinstance(error, JinError) else escape(str(error))


def _io_failed(error: OSError) -> JinError:
    reason = error.strerror or str(error)
    what = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
    return IoFailed(
        f"the system refused: {reason} {what!a}" if what else f"the system refused: {reason}",
        "nothing was changed; remove the cause and try again",
    )
