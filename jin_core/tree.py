"""The work tree seen through directory descriptors: what stands where, and syncing of directories.

Guarantees: no directory below the top is entered through a symbolic link; what is looked at, renamed and
removed is in the very directory that was opened. Does not guarantee: that a name still means the same a
moment later.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

from jin_core import disk
from jin_core.errors import PathRefused, escape

_OPEN_DIRS = 64


@dataclass(frozen=True, slots=True)
class FileState:
    """What stands under a name: kind "absent", "file", "link" or "other"; permission bits; SHA-256 in hex."""

    kind: str
    mode: int = 0
    digest: str = ""

    def __str__(self) -> str:
        return f"a {self.kind} of mode {self.mode:04o}, sha256 {self.digest[:12]}" if self.digest else self.kind


ABSENT = FileState("absent")


def above(path: str) -> str:
    return path.rpartition("/")[0]


class Tree:
    """Directories of a work tree by descriptor, none of them entered through a symbolic link."""

    def __init__(self, root: str) -> None:
        self._open: dict[str, int] = {"": disk.open_dir(root, follow=True)}

    def directory(self, path: str) -> int:
        """Descriptor of the directory `path`. Raises `FileNotFoundError`, `PathRefused`."""
        if path in self._open:
            return self._open[path]
        parent, _, name = path.rpartition("/")
        try:
            fd = disk.open_dir(name, self.directory(parent))
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise PathRefused(
                    f"{escape(path)} is a file or a symbolic link where a directory is needed",
                    "use the path that it really has",
                ) from error
            raise
        if len(self._open) >= _OPEN_DIRS:
            self._forget(other for other in list(self._open) if other)
        self._open[path] = fd
        return fd

    def forget(self, path: str) -> None:
        """Close the descriptor of a directory that is about to be removed."""
        self._forget([path] if path in self._open else [])

    def _forget(self, paths: Iterable[str]) -> None:
        for path in paths:
            disk.close(self._open.pop(path))

    def state(self, path: str) -> tuple[FileState, os.stat_result | None]:
        """What stands at `path` now; absent as well when its directory is not there."""
        parent, _, name = path.rpartition("/")
        try:
            fd = self.directory(parent)
        except FileNotFoundError:
            return ABSENT, None
        found = disk.look(name, fd)
        if found is None:
            return ABSENT, None
        if stat.S_ISREG(found.st_mode):
            return FileState("file", stat.S_IMODE(found.st_mode), disk.digest(name, fd)), found
        if stat.S_ISLNK(found.st_mode):
            return FileState("link", 0, hashlib.sha256(disk.link_target(name, fd)).hexdigest()), found
        return FileState("other"), found

    def sync(self, paths: Iterable[str]) -> None:
        """fsync each directory once, or the nearest one above it that is still there."""
        for path in sorted({self._nearest(path) for path in paths}):
            disk.sync(self.directory(path))

    def _nearest(self, path: str) -> str:
        while True:
            try:
                self.directory(path)
                return path
            except FileNotFoundError:
                path = above(path)

    def close(self) -> None:
        self._forget(list(self._open))
