"""Whose a git lock file is: which stale ones recovery may take away. The rule is stated in `recovery`.

Guarantees: only names on the given list are looked at; a lock is removed when it is proven ours by
identity, or, where no identity was recorded or it cannot be compared, when its content is what our git
child writes and it did not change or vanish while it was watched.
Does not guarantee: that a lock taken by somebody else between BEGIN and our own prepare, with a content
that ours would have and held without a change for the whole watch, is told from ours.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from jin_core import disk
from jin_core.steps import step

REF_PATIENCE = 0.1
_POLL = 0.005
PACKED_LOCK = "packed-refs.lock"
PACKED_NEW = "packed-refs.new"


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock path in the common directory and the whole content that our git child gives it."""

    path: str
    content: str = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """One very file: device, inode, time of last change of content in nanoseconds, size in bytes."""

    device: int
    inode: int
    mtime_ns: int
    size: int

    @classmethod
    def of(cls, found: os.stat_result) -> Identity:
        return cls(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)

    def to_json(self) -> list[int]:
        return [self.device, self.inode, self.mtime_ns, self.size]


class _Verdict(Enum):
    OURS = 1
    UNSURE = 2
    FOREIGN = 3


@dataclass(slots=True)
class _Seen:
    lock: Lock
    identity: Identity
    verdict: _Verdict


@dataclass(slots=True)
class Swept:
    """Lock paths that were removed, and those that were left because they are somebody else's."""

    removed: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about our locks.

    `known`: identities recorded while our git child held them, or None when none were. `same_place`:
    whether this is the very directory they were recorded in and not a copy. `patience`: seconds to watch
    what is not proven.
    """

    known: Mapping[str, Identity] | None
    same_place: bool
    patience: float


def sweep(full: Callable[[str], str], locks: Sequence[Lock], evidence: Evidence) -> Swept:
    """Remove those of `locks` that are ours; `full` turns a lock path into one the system understands."""
    seen = [found for lock in locks if (found := _judge(full, lock, evidence)) is not None]
    _settle_packed(seen)
    _watch(full, seen, evidence)
    swept = Swept()
    for one in seen:
        if one.verdict is _Verdict.FOREIGN:
            swept.foreign.append(one.lock.path)
            continue
        step("jin_core.refs.unlock", one.lock.path)
        if disk.unlink(full(one.lock.path)):
            swept.removed.append(one.lock.path)
    return swept


def wait_free(full: Callable[[str], str], locks: Sequence[Lock], patience: float) -> list[str]:
    """Wait for locks that others hold, as long as git itself would; the paths that are still there."""
    start = time.monotonic()
    while held := [lock.path for lock in locks if disk.look(full(lock.path)) is not None]:
        passed = time.monotonic() - start
        if passed >= max(_patience(path, patience) for path in held):
            return held
        time.sleep(_POLL)
    return []


def _patience(path: str, patience: float) -> float:
    return patience if path in (PACKED_LOCK, PACKED_NEW) else min(patience, REF_PATIENCE)


def _judge(full: Callable[[str], str], lock: Lock, evidence: Evidence) -> _Seen | None:
    found = disk.look(full(lock.path))
    if found is None:
        return None
    identity = Identity.of(found)
    if evidence.known is not None and evidence.same_place:
        ours = evidence.known.get(lock.path) == identity
        return _Seen(lock, identity, _Verdict.OURS if ours else _Verdict.FOREIGN)
    verdict = _by_content(full(lock.path), lock)
    if verdict is _Verdict.UNSURE and not evidence.same_place:
        # Nobody can have taken a lock in one directory and hold it in a copy of that directory.
        verdict = _Verdict.OURS
    return _Seen(lock, identity, verdict)


def _by_content(path: str, lock: Lock) -> _Verdict:
    if lock.path == PACKED_NEW:
        return _Verdict.UNSURE
    wanted = lock.content.encode()
    content = disk.read(path) or b""
    if wanted and content == wanted:
        return _Verdict.OURS
    fits = len(content) <= len(wanted) and all(have in (0, want) for have, want in zip(content, wanted, strict=False))
    return _Verdict.UNSURE if fits else _Verdict.FOREIGN


def _settle_packed(seen: list[_Seen]) -> None:
    """packed-refs.new is only ever written under packed-refs.lock, so it belongs to whoever has that."""
    owners = [one.verdict for one in seen if one.lock.path == PACKED_LOCK]
    for one in seen:
        if one.lock.path == PACKED_NEW and owners and owners[0] is _Verdict.FOREIGN:
            one.verdict = _Verdict.FOREIGN


def _watch(full: Callable[[str], str], seen: list[_Seen], evidence: Evidence) -> None:
    """What is not proven is watched: a live holder ends, a dead one does not change."""
    start = time.monotonic()
    while waiting := [one for one in seen if one.verdict is _Verdict.UNSURE]:
        passed = time.monotonic() - start
        for one in waiting:
            found = disk.look(full(one.lock.path))
            if found is None:
                seen.remove(one)
            elif Identity.of(found) != one.identity:
                one.verdict = _Verdict.FOREIGN
            elif passed >= _patience(one.lock.path, evidence.patience):
                one.verdict = _Verdict.OURS
        if any(one.verdict is _Verdict.UNSURE for one in seen):
            time.sleep(_POLL)
