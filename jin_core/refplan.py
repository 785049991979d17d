"""What a transaction means to do to git refs, looked at before anything is touched.

Guarantees: `plan` changes nothing; what it returns names every lock file and every directory that git may
make.
Does not guarantee: that it stays true; git verifies the old values again under its locks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jin_core import disk, gitlocks
from jin_core.errors import ObjectMissing, RefLocked, RefMoved, RefNameTaken, RefRefused, escape
from jin_core.gitlocks import PACKED_LOCK, PACKED_NEW, Lock
from jin_core.names import is_zero
from jin_core.repository import Refs as Reader
from jin_core.repository import Repository

AGAIN = "look at the ref, then run the transaction again with the value it has"


@dataclass(frozen=True, slots=True)
class WantedRef:
    """What the caller asked for: `new` None deletes; `old` None does not care, all zeros must not exist."""

    new: str | None
    old: str | None


@dataclass(frozen=True, slots=True)
class RefChange:
    """One ref from `old` to `new` (None: not there); `packed` is the value in packed-refs before."""

    name: str
    old: str | None
    new: str | None
    packed: str | None

    def command(self, old: str | None) -> bytes:
        """The lines for git, which verifies that the ref has the value `old`."""
        name = os.fsencode(self.name)
        first = b"option no-deref\0"
        if self.new is None:
            return first + b"delete %s\0%s\0" % (name, (old or "").encode())
        if old is None:
            return first + b"create %s\0%s\0" % (name, self.new.encode())
        return first + b"update %s\0%s\0%s\0" % (name, self.new.encode(), old.encode())


@dataclass(frozen=True, slots=True)
class RefsPlan:
    """All there is to know about the refs of a transaction before it touches them; stands in BEGIN."""

    changes: tuple[RefChange, ...]
    locks: tuple[Lock, ...]
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "changes": [[c.name, c.old, c.new, c.packed] for c in self.changes],
            "locks": [[lock.path, lock.content] for lock in self.locks],
            "missing": list(self.missing),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RefsPlan:
        return cls(
            tuple(RefChange(*row) for row in value["changes"]),
            tuple(Lock(*row) for row in value["locks"]),
            tuple(value["missing"]),
        )


def plan(repository: Repository, wanted: Mapping[str, WantedRef], patience: float) -> RefsPlan:
    """Look at everything that can be looked at without a lock.

    Raises `RefMoved`, `RefLocked`, `RefNameTaken`, `RefRefused`, `ObjectMissing`; nothing has been changed
    then.
    """
    reader = Reader(repository)
    changes = tuple(_change(reader, name, want) for name, want in sorted(wanted.items()))
    _check_names(reader, changes)
    for change in changes:
        if change.new is not None:
            _check_object(repository, change.new)
    locks = locks_for(reader, changes)
    held = gitlocks.wait_free(repository.path, locks, patience)
    if held:
        raise RefLocked(
            "refs",
            f"{', '.join(map(escape, held))} exists: another git command is at work, or one was killed",
            "try again; if no git command runs any more, remove that file",
        )
    return RefsPlan(changes, locks, _missing_dirs(repository, changes))


def locks_for(reader: Reader, changes: Sequence[RefChange]) -> tuple[Lock, ...]:
    """Every lock file that git makes for `changes`, with its content."""
    locks = [Lock(f"{c.name}.lock", "" if c.new is None else f"{c.new}\n") for c in changes]
    if reader.head() in {c.name for c in changes}:
        locks.append(Lock("HEAD.lock"))
    if any(c.new is None for c in changes):
        locks += [Lock(PACKED_LOCK), Lock(PACKED_NEW)]
    return tuple(locks)


def _change(reader: Reader, name: str, want: WantedRef) -> RefChange:
    now = reader.read(name)
    if now.damaged:
        raise RefRefused(f"{escape(name)} is an empty or zeroed file", "repair or remove that ref with git")
    if want.new is None and now.value is None:
        raise RefMoved("refs", f"{escape(name)} does not exist and cannot be deleted", AGAIN)
    if want.old is not None and (None if is_zero(want.old) else want.old) != now.value:
        expected = "not to exist" if is_zero(want.old) else f"to be {want.old}"
        raise RefMoved("refs", f"{escape(name)} was expected {expected} and is {now.value or 'not there'}", AGAIN)
    return RefChange(name, now.value, want.new, now.packed)


def _check_names(reader: Reader, changes: Sequence[RefChange]) -> None:
    """git keeps refs as files, so `a` and `a/b` exclude each other."""
    created = {c.name for c in changes if c.old is None}
    named = {c.name for c in changes}
    for name in sorted(created):
        parts = name.split("/")
        for depth in range(2, len(parts)):
            above = "/".join(parts[:depth])
            if above in named or reader.read(above).value is not None:
                raise _taken(name, above)
        other = reader.below(name)
        if other is not None:
            raise _taken(name, other)


def _taken(name: str, other: str) -> RefNameTaken:
    reason = f"{escape(name)} cannot exist beside {escape(other)}"
    return RefNameTaken("refs", reason, "delete the other one first, in a transaction of its own")


def _check_object(repository: Repository, value: str) -> None:
    """A loose object is looked at here; git itself looks for one that is packed."""
    found = disk.look(loose_object(repository, value))
    if found is not None and found.st_size == 0:
        raise ObjectMissing(f"object {value} is an empty file", "remove that file and write the object again")
    if found is None and not _may_be_packed(repository):
        raise ObjectMissing(f"object {value} does not exist", "write the object before the ref")


def loose_object(repository: Repository, value: str) -> str:
    return repository.path(f"objects/{value[:2]}/{value[2:]}")


def _may_be_packed(repository: Repository) -> bool:
    packs = any(name.endswith(".pack") for name in disk.names(repository.path("objects/pack")))
    return packs or disk.look(repository.path("objects/info/alternates")) is not None


def _missing_dirs(repository: Repository, changes: Iterable[RefChange]) -> tuple[str, ...]:
    """Directories that git will have to make for the lock files, outermost first."""
    missing: list[str] = []
    for change in changes:
        parts = change.name.split("/")
        for depth in range(1, len(parts)):
            directory = "/".join(parts[:depth])
            if directory not in missing and not disk.is_dir(repository.path(directory)):
                missing.append(directory)
    return tuple(missing)
