"""The participant for work-tree files: staged beside the target, renamed over it.

Guarantees: after `prepare`, the new content of every file is on the disk under a temporary name in the
target's own directory, and the targets are what they were when the transaction looked; `apply` and `redo`
return only when every directory in which a name changed is synced; `undo` leaves no temporary name and no
empty directory of ours; `redo` changes a file only from its old state to its new one. No directory is
entered through a symbolic link.
Does not guarantee: that a reader sees all files change at once; that work another program does on the same
file between the commit point and the rename is kept (git's index has no lock for that either); owner and
group are kept only as far as this process may set them; access control lists and extended attributes are
not carried over.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jin_core import disk
from jin_core.errors import FileChanged, IoFailed, NotAFile, PathRefused, RecoveryConflict, escape
from jin_core.steps import step
from jin_core.tree import ABSENT, FileState, Tree, above

_AGAIN = "look at the file, then run the transaction again"


@dataclass(frozen=True, slots=True)
class WantedFile:
    """What the caller asked for: `data` None deletes; `mode` None keeps the mode, or takes the usual one."""

    data: bytes | None
    mode: int | None = None


@dataclass(frozen=True, slots=True)
class FileChange:
    """One file from `old` to `new`; `temp` is the name of its staged content, "" for a deletion."""

    path: str
    temp: str
    old: FileState
    new: FileState


@dataclass(frozen=True, slots=True)
class FilesPlan:
    """All there is to know about the files of a transaction before it touches them; stands in BEGIN.

    `made`: directories that the transaction makes, outermost first.
    """

    changes: tuple[FileChange, ...]
    made: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        rows = [
            [c.path, c.temp, [c.old.kind, c.old.mode, c.old.digest], [c.new.kind, c.new.mode, c.new.digest]]
            for c in self.changes
        ]
        return {"changes": rows, "made": list(self.made)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FilesPlan:
        changes = tuple(
            FileChange(path, temp, FileState(*old), FileState(*new)) for path, temp, old, new in value["changes"]
        )
        return cls(changes, tuple(value["made"]))


def _signature(found: os.stat_result | None) -> tuple[int, ...] | None:
    if found is None:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode)


@dataclass(slots=True)
class Planned:
    """A plan with what only the living process needs: new contents, and how the targets looked."""

    plan: FilesPlan
    data: dict[str, bytes] = field(default_factory=dict)
    looks: dict[str, os.stat_result | None] = field(default_factory=dict)


def plan(tree: Tree, wanted: Mapping[str, WantedFile], transaction: int) -> Planned:
    """Look at every target and change nothing. Raises `FileChanged`, `NotAFile`, `PathRefused`."""
    changes: list[FileChange] = []
    made: list[str] = []
    planned = Planned(FilesPlan((), ()))
    _check_nesting(wanted)
    mask: int | None = None
    for number, (path, want) in enumerate(sorted(wanted.items())):
        old, found = tree.state(path)
        if old.kind == "other":
            raise NotAFile("files", f"{escape(path)} is a directory or a special file", "name a file")
        planned.looks[path] = found
        if want.data is None:
            if old == ABSENT:
                raise FileChanged("files", f"{escape(path)} does not exist and cannot be deleted", _AGAIN)
            changes.append(FileChange(path, "", old, ABSENT))
            continue
        mode = want.mode
        if mode is None and old.kind == "file":
            mode = old.mode
        elif mode is None:
            mask = disk.umask() if mask is None else mask
            mode = 0o666 & ~mask
        new = FileState("file", mode, hashlib.sha256(want.data).hexdigest())
        temp = _temp_name(tree, path, transaction, number)
        changes.append(FileChange(path, temp, old, new))
        planned.data[path] = want.data
        _add_missing(tree, above(path), made)
    planned.plan = FilesPlan(tuple(changes), tuple(made))
    return planned


def _check_nesting(wanted: Mapping[str, WantedFile]) -> None:
    for path in wanted:
        directory = above(path)
        while directory:
            if directory in wanted:
                raise PathRefused(
                    f"{escape(directory)} cannot be a file and the directory of {escape(path)} at once",
                    "use two transactions",
                )
            directory = above(directory)


def _temp_name(tree: Tree, path: str, transaction: int, number: int) -> str:
    directory = above(path)
    suffix = ""
    while True:
        name = f"{directory}/.jin-{transaction:x}-{number:x}{suffix}".lstrip("/")
        if tree.state(name)[0] == ABSENT:
            return name
        suffix += "x"


def _add_missing(tree: Tree, directory: str, made: list[str]) -> None:
    if not directory or directory in made:
        return
    try:
        tree.directory(directory)
    except FileNotFoundError:
        _add_missing(tree, above(directory), made)
        made.append(directory)


class FilesParticipant:
    """Files of one transaction, live (prepare, apply, undo) or found in the log (check, redo, undo)."""

    name = "files"

    def __init__(self, tree: Tree, planned: Planned) -> None:
        self._tree = tree
        self._plan = planned.plan
        self._planned = planned
        self._todo: list[FileChange] = []
        #: temps made by this process; None in recovery, where the log alone says what may be ours
        self._staged: set[str] | None = None
        self.removed: list[str] = []

    def prepare(self) -> None:
        """Make directories, stage contents, sync both, and look whether the targets are still the same.

        Raises `FileChanged`, `OSError`.
        """
        self._staged = set()
        for directory in self._plan.made:
            step("jin_core.files.mkdir", directory)
            disk.make_dir(directory.rpartition("/")[2], self._tree.directory(above(directory)))
        for change in self._plan.changes:
            if change.temp:
                self._stage(change)
        self._sync("jin_core.files.sync_stage", (c.temp for c in self._plan.changes if c.temp))
        for change in self._plan.changes:
            self._check_same(change)

    def _stage(self, change: FileChange) -> None:
        step("jin_core.files.stage", change.path)
        name = change.temp.rpartition("/")[2]
        fd = disk.create_new(name, self._tree.directory(above(change.temp)))
        assert self._staged is not None
        self._staged.add(change.temp)
        try:
            disk.write_all(fd, self._planned.data[change.path])
            before = self._planned.looks[change.path]
            if before is not None and change.old.kind == "file":
                disk.set_owner(fd, before.st_uid, before.st_gid)
            disk.set_mode(fd, change.new.mode)
            if stat.S_IMODE(disk.stat_fd(fd).st_mode) != change.new.mode:
                raise IoFailed(
                    f"the system does not give {escape(change.path)} mode {change.new.mode:04o}",
                    "use a mode that this user and file system can have",
                )
            disk.sync(fd)
        finally:
            disk.close(fd)

    def _check_same(self, change: FileChange) -> None:
        name = change.path.rpartition("/")[2]
        now = disk.look(name, self._tree.directory(above(change.path)))
        if _signature(now) != _signature(self._planned.looks[change.path]):
            raise FileChanged("files", f"{escape(change.path)} was changed by another program meanwhile", _AGAIN)

    def apply(self) -> None:
        """Rename and remove, and make it durable. Raises `OSError`."""
        self._todo = list(self._plan.changes)
        self._apply()

    def _apply(self) -> None:
        for change in self._todo:
            name = change.path.rpartition("/")[2]
            directory = self._tree.directory(above(change.path))
            if change.temp:
                step("jin_core.files.rename", change.path)
                disk.rename(change.temp.rpartition("/")[2], name, directory)
            else:
                step("jin_core.files.unlink", change.path)
                disk.unlink(name, directory)
        self._sync("jin_core.files.sync", (c.path for c in self._plan.changes))

    def undo(self) -> None:
        """Remove staged contents and the directories that were made for them. Raises `OSError`."""
        for change in self._plan.changes:
            if change.temp and (self._staged is None or change.temp in self._staged):
                self._discard(change.temp)
        for directory in reversed(self._plan.made):
            self._remove_dir(directory)
        self._sync("jin_core.files.sync", (c.temp for c in self._plan.changes if c.temp))

    def _discard(self, temp: str) -> None:
        name = temp.rpartition("/")[2]
        try:
            directory = self._tree.directory(above(temp))
        except FileNotFoundError:
            return
        if disk.look(name, directory) is not None:
            step("jin_core.files.discard", temp)
            disk.unlink(name, directory)
            self.removed.append(temp)

    def _remove_dir(self, path: str) -> None:
        name = path.rpartition("/")[2]
        try:
            directory = self._tree.directory(above(path))
        except FileNotFoundError:
            return
        if disk.look(name, directory) is not None:
            step("jin_core.files.rmdir", path)
            self._tree.forget(path)
            disk.remove_dir(name, directory)

    def release(self) -> None:
        """Nothing is held outside the disk."""

    def check(self) -> None:
        """Find out what redo has to do, and change nothing. Raises `RecoveryConflict`.

        A staged content that is still there takes its place even where the target looks like it already: the target
        may be a file that nobody has synced.
        """
        self._todo = []
        for change in self._plan.changes:
            try:
                now, _ = self._tree.state(change.path)
                staged = self._tree.state(change.temp)[0] if change.temp else change.new
                if now == change.new and (staged != change.new or not change.temp):
                    continue
            except PathRefused as error:
                raise RecoveryConflict("files", str(error.args[0]), "put the directory back, recover again") from error
            if now not in (change.old, change.new):
                raise RecoveryConflict(
                    "files",
                    f"{escape(change.path)} is {now}, and neither {change.old} nor {change.new}",
                    "save it elsewhere, put one of the two back, and run recovery again",
                )
            if staged != change.new:
                raise RecoveryConflict(
                    "files",
                    f"the staged content {escape(change.temp)} of {escape(change.path)} is {staged}",
                    f"write the new content (sha256 {change.new.digest}) to the file and run recovery again",
                )
            self._todo.append(change)

    def redo(self) -> None:
        """Finish what `check` found to be unfinished."""
        done = {change.path for change in self._plan.changes} - {change.path for change in self._todo}
        for change in self._plan.changes:
            if change.temp and change.path in done:
                self._discard(change.temp)
        self._apply()

    def _sync(self, name: str, paths: Iterable[str]) -> None:
        """fsync the directories of `paths`, and those in which a directory of ours came or went."""
        directories = {above(path) for path in paths} | {above(path) for path in self._plan.made}
        if directories:
            step(name)
            self._tree.sync(directories)
