"""Where a repository keeps its things, and what its refs are worth, read by hand.

Guarantees: no process is spawned and nothing is changed; a loose ref hides the packed one, as in git; a
loose ref that is empty or all NUL is reported as damaged, never as a value.
Does not guarantee: a consistent view of several refs while others change them, nor anything for the
reftable format, which is refused.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from jin_core import disk
from jin_core.errors import NotARepository, RefRefused, escape

_ID_LINE = re.compile(rb"([0-9a-f]{40}(?:[0-9a-f]{24})?)\s*")
_PACKED_LINE = re.compile(rb"([0-9a-f]{40}(?:[0-9a-f]{24})?)$")


@dataclass(frozen=True, slots=True)
class Repository:
    """Absolute paths: a work tree, its git directory, and the directory all its work trees share."""

    worktree: str
    git_dir: str
    common_dir: str

    @property
    def engine_dir(self) -> str:
        return os.path.join(self.common_dir, "jin")

    def path(self, name: str) -> str:
        """A path inside the common directory."""
        return os.path.join(self.common_dir, name)


def locate(path: str | os.PathLike[str]) -> Repository:
    """The repository whose work tree is `path`. Raises `NotARepository`."""
    worktree = os.path.realpath(os.fsdecode(path))
    dot_git = os.path.join(worktree, ".git")
    git_dir = dot_git
    if not os.path.isdir(dot_git):
        content = disk.read(dot_git) or b""
        if not content.startswith(b"gitdir:"):
            raise NotARepository(
                f"{escape(worktree)} is not the top of a git work tree",
                "give the directory that has .git in it",
            )
        git_dir = os.path.normpath(os.path.join(worktree, os.fsdecode(content[7:].strip())))
    common = git_dir
    content = disk.read(os.path.join(git_dir, "commondir")) or b""
    if content.strip():
        common = os.path.normpath(os.path.join(git_dir, os.fsdecode(content.strip())))
    if not (os.path.isdir(os.path.join(common, "objects")) and disk.look(os.path.join(git_dir, "HEAD"))):
        raise NotARepository(f"{escape(common)} is not a git directory", "check it with git fsck")
    return Repository(worktree, os.path.realpath(git_dir), os.path.realpath(common))


@dataclass(frozen=True, slots=True)
class RefValue:
    """What one ref is: `loose` and `packed` ids (None: not there), and whether the loose file is damaged."""

    loose: str | None
    packed: str | None
    damaged: bool = False

    @property
    def value(self) -> str | None:
        return self.loose or self.packed


class Refs:
    """Reader of the refs of one repository, as they are when it is asked; packed-refs is read once."""

    def __init__(self, repository: Repository) -> None:
        if disk.is_dir(repository.path("reftable")):
            raise RefRefused("this repository keeps its refs in a reftable", "only the files format is supported")
        self._repository = repository
        self._packed = b"\n" + (disk.read(repository.path("packed-refs")) or b"")

    def read(self, name: str) -> RefValue:
        """The values of `name`. Raises `RefRefused` when it is a symbolic ref or not readable as a ref."""
        path = self._repository.path(name)
        packed = self._read_packed(name)
        if disk.is_dir(path):
            return RefValue(None, packed)
        content = disk.read(path)
        if content is None:
            return RefValue(None, packed)
        if not content.strip(b"\0"):
            return RefValue(None, packed, damaged=True)
        if content.startswith(b"ref:"):
            raise RefRefused(f"{escape(name)} is a symbolic ref", "change the ref that it points to")
        match = _ID_LINE.match(content)
        if match is None:
            raise RefRefused(f"{escape(name)} holds {escape(content, 60)}", "repair or delete that ref with git")
        return RefValue(match[1].decode(), packed)

    def _read_packed(self, name: str) -> str | None:
        at = self._packed.find(b" " + os.fsencode(name) + b"\n")
        if at < 0:
            return None
        match = _PACKED_LINE.search(self._packed, max(0, at - 64), at)
        return match[1].decode() if match else None

    def below(self, name: str) -> str | None:
        """Some ref whose name begins with `name` and a slash, or None."""
        at = self._packed.find(b" " + os.fsencode(name) + b"/")
        if at >= 0:
            end = self._packed.find(b"\n", at)
            return os.fsdecode(self._packed[at + 1 : end if end > 0 else None])
        for directory, _, files in os.walk(self._repository.path(name)):
            for file in sorted(files):
                if not file.endswith(".lock"):
                    return os.path.relpath(os.path.join(directory, file), self._repository.common_dir)
        return None

    def head(self) -> str | None:
        """The ref that HEAD points to, or None when HEAD is detached."""
        content = disk.read(self._repository.path("HEAD")) or b""
        return os.fsdecode(content[4:].strip()) if content.startswith(b"ref:") else None
