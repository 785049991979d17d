"""The store's lock: `flock` on one file, held while a store is open.

Guarantees: two holders never overlap, not even a dead process and its recovery while a git child of the
dead one still lives, because that child holds the same open file description; the kernel releases the lock
when the last holder is gone, so there is nothing to be found stale. A second opening in the same process is
refused instead of waiting for itself for ever.
Does not guarantee: anything on file systems without a working flock, and nothing about programs that do not
ask.
"""

from __future__ import annotations

import fcntl
import os
import threading

from jin_core import disk
from jin_core.errors import Busy, escape
from jin_core.steps import step

_held: set[tuple[int, int, int]] = set()
_guard = threading.Lock()


class StoreLock:
    """A held lock. `fd` is to be passed on to children; `place` tells this lock file from any copy of it."""

    def __init__(self, path: str, wait: bool) -> None:
        """Take the lock; with `wait`, for as long as it takes. Raises `Busy`, `OSError`."""
        self.path = path
        self._key: tuple[int, int, int] | None = None
        step("jin_core.lock.acquire", path)
        self.fd = disk.open_keep(path)
        found = disk.stat_fd(self.fd)
        self.place = (found.st_dev, found.st_ino, found.st_ctime_ns)
        key = (os.getpid(), found.st_dev, found.st_ino)
        with _guard:
            mine = key in _held
            if not mine:
                _held.add(key)
                self._key = key
        try:
            if mine:
                raise Busy(f"this process has {escape(path)} open already", "close the other store first")
            self._take(wait)
        except BaseException:
            self.close()
            raise

    def _take(self, wait: bool) -> None:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise Busy(
                f"another process, or a git child of one, holds {escape(self.path)}",
                "wait for it to end, or open with wait=True",
            ) from error

    def close(self) -> None:
        """Let go. A child that still holds the descriptor keeps the lock until it ends."""
        if self.fd >= 0:
            disk.close(self.fd)
            self.fd = -1
        if self._key is not None and self._key[0] == os.getpid():
            with _guard:
                _held.discard(self._key)
        self._key = None

    def __del__(self) -> None:
        if getattr(self, "fd", -1) >= 0:
            self.close()
