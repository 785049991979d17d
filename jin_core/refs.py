"""The participant for git refs: real git takes the locks and makes the changes, one child per transaction.

Guarantees: after `prepare`, git holds the locks of all refs with the old values verified under them, and
the new values are on the disk in the lock files; refs that had their new value already are synced by
`sync_ground` or `redo`; `apply` and `redo` return only when the directories in which names came and went are
synced; `undo` leaves no lock and no empty directory of ours; `redo` changes a ref only from the old value to
the new one. Reflogs follow the configuration of the repository, as with any git command.
Does not guarantee: that a reader sees all refs change at once (git renames them one by one); that a reflog
entry survives a power cut, or stands there only once after recovery; that objects reachable from the named
ones are durable (only the named ones are synced); that the reflog of another linked work tree's HEAD is
written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from jin_core import disk, gitlocks
from jin_core.errors import (
    GitFailed,
    JinError,
    ObjectMissing,
    RecoveryConflict,
    RefLocked,
    RefMoved,
    escape,
)
from jin_core.git import UpdateRefs
from jin_core.gitlocks import PACKED_NEW, Evidence, Identity, Lock, Swept
from jin_core.refplan import AGAIN, RefChange, RefsPlan, locks_for, loose_object
from jin_core.repository import Refs as Reader
from jin_core.repository import RefValue, Repository
from jin_core.steps import step


class RefsParticipant:
    """Refs of one transaction, live (prepare, apply, undo) or found in the log (check, redo, undo)."""

    name = "refs"

    def __init__(
        self,
        repository: Repository,
        plan: RefsPlan,
        lock_fd: int,
        patience: float,
        transaction: int,
        evidence: Evidence | None = None,
    ) -> None:
        """`patience` in seconds; `evidence`, given by recovery: what the log says about locks of ours."""
        self._reason = f"jin: transaction {transaction}"
        self._repository = repository
        self._plan = plan
        self._lock_fd = lock_fd
        self._patience = patience
        self._evidence = evidence
        self._git: UpdateRefs | None = None
        self._todo: list[tuple[RefChange, RefValue]] = []
        self.held: dict[str, Identity] = {}
        self.swept = Swept()

    def sync_ground(self) -> None:
        """Make durable what BEGIN stands on: the objects that the refs will name, with the directories they stand in,
        and refs that have their new value already, because who wrote it may not have synced it.

        Before BEGIN, not with the other refs: a log that says "from this value to the same" of a ref that went back to
        an older one leaves recovery no value that it may put there.
        """
        step("jin_core.refs.objects")
        directories: set[str] = set()
        for value in sorted({c.new for c in self._plan.changes if c.new is not None}):
            path = loose_object(self._repository, value)
            try:
                disk.sync_file(path)
                directories |= {os.path.dirname(path), self._repository.path("objects")}
            except FileNotFoundError:
                directories.add(self._repository.path("objects/pack"))
        same = [c.name for c in self._plan.changes if c.new is not None and c.new == c.old]
        directories |= {self._repository.path(os.path.dirname(file)) for file in self._sync_values(same)}
        self._sync(directories)

    def prepare(self) -> None:
        """Have git lock and verify. Raises `RefLocked`, `RefMoved`, `GitFailed`."""
        step("jin_core.refs.prepare", *(c.name for c in self._plan.changes))
        self._git = UpdateRefs(self._repository.common_dir, self._lock_fd, self._reason)
        try:
            self._git.prepare([c.command(c.old) for c in self._plan.changes])
        except GitFailed as error:
            if self._git.code is not None and self._git.code < 0:
                raise
            raise self._explain(error) from error
        self._keep_locks(self._plan.locks)

    def _explain(self, error: GitFailed) -> JinError:
        """What git refused, said in our own kinds of errors where the repository shows the reason."""
        if "nonexistent object" in error.reason:
            return ObjectMissing(f"a ref would name a missing object ({error.reason})", "write the object first")
        if held := [lock.path for lock in self._plan.locks if disk.look(self._repository.path(lock.path))]:
            return RefLocked("refs", f"{escape(held[0])} is held by somebody else ({error.reason})", "try again")
        reader = Reader(self._repository)
        for change in self._plan.changes:
            now = reader.read(change.name).value
            if now != change.old:
                return RefMoved("refs", f"{escape(change.name)} became {now or 'deleted'} meanwhile", AGAIN)
        return error

    def _keep_locks(self, locks: Iterable[Lock]) -> None:
        """Sync the lock files, whose content becomes the refs, and keep what proves that they are ours."""
        step("jin_core.refs.prepared")
        for lock in locks:
            path = self._repository.path(lock.path)
            try:
                found = disk.sync_file(path) if lock.content or lock.path == PACKED_NEW else disk.look(path)
            except FileNotFoundError:
                found = None
            if found is not None:
                self.held[lock.path] = Identity.of(found)

    def apply(self) -> None:
        """Have git make the changes, and make them durable. Raises `GitFailed`, `OSError`."""
        assert self._git is not None
        step("jin_core.refs.commit")
        self._git.commit()
        self._git = None
        self._sync_names()

    def undo(self) -> None:
        """Give the locks back, or take stale ones away, and remove directories that were made for them."""
        if self._git is not None and self._git.close() < 0:
            self._evidence = Evidence(self.held or None, True, self._patience)
        if self._evidence is not None:
            self.swept = gitlocks.sweep(self._repository.path, self._plan.locks, self._evidence)
        for directory in reversed(self._plan.missing):
            self._remove_dir(directory)
        self._sync(self._repository.path(os.path.dirname(lock.path)) for lock in self._plan.locks)

    def release(self) -> None:
        """Let a child go that must not commit any more; recovery decides about everything else."""
        if self._git is not None:
            self._git.close()
            self._git = None

    def check(self) -> None:
        """Find out what redo has to do, and change nothing. Raises `RecoveryConflict`."""
        reader = Reader(self._repository)
        self._todo = []
        for change in self._plan.changes:
            now = reader.read(change.name)
            if now.value == change.new and not now.damaged:
                continue
            halfway = change.new is None and now.loose is None and now.packed == change.packed
            if not (now.damaged or now.value == change.old or halfway):
                raise RecoveryConflict(
                    "refs",
                    f"{escape(change.name)} is {now.value or 'not there'}, and neither "
                    f"{change.old or 'not there'} nor {change.new or 'deleted'}",
                    "set it to one of the two with git update-ref, then run recovery again",
                )
            self._todo.append((change, now))

    def redo(self, announce: Callable[[Sequence[Lock]], None]) -> None:
        """Finish what `check` found to be unfinished; `announce` records the locks about to be taken."""
        assert self._evidence is not None
        self.swept = gitlocks.sweep(self._repository.path, self._plan.locks, self._evidence)
        if self._todo:
            self._redo_with_git(announce)
        for change in self._plan.changes:
            if change.new is None:
                self._prune(change.name)
        todo = {change.name for change, _ in self._todo}
        self._sync_values(c.name for c in self._plan.changes if c.new is not None and c.name not in todo)
        self._sync_names()

    def _redo_with_git(self, announce: Callable[[Sequence[Lock]], None]) -> None:
        locks = locks_for(Reader(self._repository), [change for change, _ in self._todo])
        held = gitlocks.wait_free(self._repository.path, locks, self._patience)
        if held:
            raise RecoveryConflict(
                "refs",
                f"{', '.join(escape(path) for path in held)} is a lock of somebody else",
                "let that git command end; if none runs any more, remove the file; then run recovery again",
            )
        announce(locks)
        commands = []
        for change, now in self._todo:
            if now.damaged:
                disk.unlink(self._repository.path(change.name))
            if change.new is not None or now.value is not None:
                commands.append(change.command(now.value))
        git = UpdateRefs(self._repository.common_dir, self._lock_fd, self._reason, hooks=False)
        try:
            step("jin_core.refs.prepare", *(change.name for change, _ in self._todo))
            git.prepare(commands)
            self._keep_locks(locks)
            step("jin_core.refs.commit")
            git.commit()
        except GitFailed as error:
            raise RecoveryConflict("refs", error.reason, "repair what git complains about, then recover") from error
        finally:
            git.close()

    def _prune(self, name: str) -> None:
        """Remove the directories that git would have removed after deleting the ref."""
        for root in ("", "logs/"):
            parts = name.split("/")
            for depth in range(len(parts) - 1, 2, -1):
                self._remove_dir(root + "/".join(parts[:depth]))

    def _remove_dir(self, directory: str) -> None:
        if disk.is_dir(self._repository.path(directory)):
            step("jin_core.refs.rmdir", directory)
            disk.remove_dir(self._repository.path(directory))

    def _sync_values(self, names: Iterable[str]) -> set[str]:
        """Sync the values of refs that have the new one without our writing it; the files in which they stand."""
        reader = Reader(self._repository)
        files = {name if reader.read(name).loose else "packed-refs" for name in names}
        for file in sorted(files):
            disk.sync_file(self._repository.path(file))
        return files

    def _sync_names(self) -> None:
        step("jin_core.refs.sync")
        directories = {os.path.dirname(lock.path) for lock in self._plan.locks}
        directories |= {os.path.dirname(directory) for directory in self._plan.missing}
        directories |= {f"logs/{os.path.dirname(c.name)}" for c in self._plan.changes if c.new is None}
        self._sync(self._repository.path(directory) for directory in directories)

    def _sync(self, directories: Iterable[str]) -> None:
        """fsync each directory once, or the nearest one above it that is still there."""
        for directory in sorted({_nearest(os.path.normpath(directory)) for directory in directories}):
            disk.sync_dir(directory)


def _nearest(directory: str) -> str:
    while not disk.is_dir(directory):
        directory = os.path.dirname(directory)
    return directory
