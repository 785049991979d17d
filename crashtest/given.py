"""The directory that a command's first state is a copy of: looked through before anything runs, and copied.

Guarantees: reads only; what would lead a command in the copy to files outside of it, and what cannot be copied with
what is in it, is refused with its name. Does not keep hard links, times or holes. Standard library only: the zygote
loads it.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from crashtest.errors import UsageError, quoted

#: more than this makes a run slow, and is said: a command with five crash points, which takes a second under `kill` on
#: an empty state, takes 15 with 100 MiB in ten files, and 10 with 1,000 small files (two cores)
LARGE_BYTES, LARGE_NUMBER = 64 << 20, 1000

_SPECIAL = {
    stat.S_IFIFO: "a named pipe (FIFO)", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"
}  # fmt: skip


def examine(source: Path, allowed: Sequence[str]) -> str:
    """What a user has to know of a state that is about to be copied, "" when that is nothing. Raises `UsageError`.

    allowed: globs of absolute paths outside of it that commands may change.
    """
    if not source.is_dir():
        raise UsageError(f"the state {quoted(source)} is no directory; give an existing one with --state")
    size = number = 0
    top = os.path.realpath(source)
    for at, folders, files in os.walk(top):
        for name in [*folders, *files]:
            path = os.path.join(at, name)
            info = os.lstat(path)
            _refuse(top, path, info, allowed)
            number += 1
            size += info.st_size if stat.S_ISREG(info.st_mode) else 0
    if size <= LARGE_BYTES and number <= LARGE_NUMBER:
        return ""
    return (
        f"the state {quoted(os.path.normpath(source))} is large: {size / (1 << 20):,.1f} MiB in {number:,} files and "
        "directories. Each crash state holds and compares all of it, which takes long, and much memory; give a state "
        "with less in it (a shallow clone, no build results), or take --model kill alone"
    )


def copy(source: Path, directory: Path, allowed: Sequence[str]) -> None:
    """The content of `source`, with modes, symbolic links and extended attributes. Raises `UsageError`."""
    source = Path(os.path.normpath(source))
    examine(source, allowed)
    try:
        shutil.copytree(source, directory, symlinks=True, dirs_exist_ok=True)
    except (OSError, shutil.Error) as error:
        words = error.args[0][0][2] if isinstance(error, shutil.Error) else error
        raise UsageError(f"the state directory {quoted(source)} cannot be copied: {quoted(words)}") from None


def _refuse(top: str, path: str, info: os.stat_result, allowed: Sequence[str]) -> None:
    shown = quoted(os.path.relpath(path, top))
    special = _SPECIAL.get(stat.S_IFMT(info.st_mode))
    if special is not None:
        raise UsageError(
            f"{shown} in the state is {special}, which cannot be copied with what is behind it; take it away, or let "
            "--setup make it"
        )
    if os.path.basename(path) == ".git" and stat.S_ISREG(info.st_mode):
        raise UsageError(
            f"{shown} in the state is a file that names a repository elsewhere, which a command would change "
            "(a linked work tree, or a submodule); give a clone"
        )
    if not stat.S_ISLNK(info.st_mode):
        return
    target = os.path.realpath(path)
    inside = not os.path.isabs(os.readlink(path)) and os.path.commonpath([top, target]) == top
    free = not os.path.exists(target) or any(fnmatch.fnmatchcase(target, glob) for glob in allowed)
    if not inside and not free:
        raise UsageError(
            f"{shown} in the state is a link out of it, to {quoted(target)}, which a command might change; "
            "take it away, make it relative, or say --allow-outside"
        )
