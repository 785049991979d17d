"""Calls that change modes, owners, times and extended attributes.

Guarantees: what an attribute has become is read back from the disk; one that is as before makes no event. Setting
times is taken as done, because times are no part of a tree. Does not model access lists that say more than the mode,
nor attributes that are neither `user.*` nor ignored: they are named as unmodelled.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from crashtest.observe.finding import Call, Finder, Pending, number
from crashtest.observe.places import AT_FDCWD
from crashtest.observe.process import Gone
from crashtest.trace import Op

_AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = 0x100, 0x1000


class Attributes:
    """Decodes calls on attributes."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder
        self.state = finder.state

    def _target(self, call: Call, directory: int, address: int, flags: int = 0, empty: bool = False) -> int | None:
        """The file a path argument names; `empty`: an absent or empty path means the descriptor itself."""
        path = self.finder.string(call, address) if address else ""
        if not path:
            return self.finder.open_file(call, directory) if empty else None
        return self.finder.named_file(call, directory, path, not flags & _AT_SYMLINK_NOFOLLOW)

    def _target_at(self, call: Call, flags: int) -> int | None:
        """The file of a call that begins with a directory, a path, and has flags."""
        return self._target(call, call.args[0], call.args[1], flags, bool(flags & _AT_EMPTY_PATH))

    # -- mode and owner ----------------------------------------------------------------------------------------

    def _changed(self, call: Call, kind: str, file: int | None) -> Pending | None:
        """chmod or chown: the new mode and owner are read back."""
        if file is None:
            return None
        look = self._looker(call, file)
        before = look()
        op = call.op(kind, file, path=self.finder.path(file))

        def confirm(strict: bool) -> list[Op]:
            now = look()
            if now is None or before is None or _owner_and_mode(now) == _owner_and_mode(before):
                return []
            return [op._replace(mode=stat.S_IMODE(now.st_mode), uid=now.st_uid, gid=now.st_gid)]

        return Pending(call, op, confirm)

    def _looker(self, call: Call, file: int) -> Callable[[], os.stat_result | None]:
        """How to look at a file now and later: by its name, or by its descriptor when it has none."""
        if self.state.stat(file) is not None or call.name not in ("fchmod", "fchown"):
            return lambda: self.state.stat(file)

        def through_descriptor() -> os.stat_result | None:
            try:
                return self.finder.processes.descriptor(call.tid, number(call.args[0]))
            except Gone:
                return None

        return through_descriptor

    # -- times -------------------------------------------------------------------------------------------------

    def _times(self, call: Call, file: int | None) -> Pending | None:
        if file is None:
            return None
        op = call.op("utimes", file, path=self.finder.path(file))
        return Pending(call, op, lambda strict: [op])

    # -- extended attributes -----------------------------------------------------------------------------------

    def _xattr(self, call: Call, kind: str, file: int | None, address: int) -> Pending | None:
        """Set or remove: the value is read back afterwards."""
        key = self.finder.string(call, address)
        if file is None or key.startswith(("security.", "trusted.")):
            return None
        if key == "system.posix_acl_access":
            return self._access_list(call, file)
        shown = self.finder.path(file)
        if not key.startswith("user."):
            self.finder.cannot(f"the extended attribute {key} of {shown}")
            return None
        path = f"{self.state.root}/{shown}"
        before = _getxattr(path, key)
        op = call.op(kind, file, text=key, path=shown)

        def confirm(strict: bool) -> list[Op]:
            now = _getxattr(path, key)
            if now == before:
                return []
            if now is None:
                return [op._replace(kind="removexattr")]
            return [op._replace(kind="setxattr", data=now)]

        return Pending(call, op, confirm)

    def _access_list(self, call: Call, file: int) -> Pending | None:
        """An access list that says no more than the mode becomes the mode (acl(5)); a longer one is not modelled."""
        changed = self._changed(call, "chmod", file)
        if changed is None:
            return None
        path = f"{self.state.root}/{self.finder.path(file)}"
        confirm = changed.confirm

        def checked(strict: bool) -> list[Op]:
            if _getxattr(path, "system.posix_acl_access") is not None:
                self.finder.cannot(f"the access list of {self.finder.path(file)}")
            return confirm(strict)

        changed.confirm = checked
        return changed


HANDLERS: dict[str, Callable[[Attributes, Call], Pending | None]] = {
    "chmod": lambda a, c: a._changed(c, "chmod", a._target(c, AT_FDCWD, c.args[0])),
    "fchmod": lambda a, c: a._changed(c, "chmod", a._target(c, c.args[0], 0, empty=True)),
    "fchmodat": lambda a, c: a._changed(c, "chmod", a._target(c, c.args[0], c.args[1])),
    "fchmodat2": lambda a, c: a._changed(c, "chmod", a._target_at(c, c.args[3])),
    "chown": lambda a, c: a._changed(c, "chown", a._target(c, AT_FDCWD, c.args[0])),
    "lchown": lambda a, c: a._changed(c, "chown", a._target(c, AT_FDCWD, c.args[0], _AT_SYMLINK_NOFOLLOW)),
    "fchown": lambda a, c: a._changed(c, "chown", a._target(c, c.args[0], 0, empty=True)),
    "fchownat": lambda a, c: a._changed(c, "chown", a._target_at(c, c.args[4])),
    "utime": lambda a, c: a._times(c, a._target(c, AT_FDCWD, c.args[0])),
    "utimes": lambda a, c: a._times(c, a._target(c, AT_FDCWD, c.args[0])),
    "futimesat": lambda a, c: a._times(c, a._target(c, c.args[0], c.args[1], 0, empty=True)),
    "utimensat": lambda a, c: a._times(c, a._target(c, c.args[0], c.args[1], c.args[3], empty=True)),
    "setxattr": lambda a, c: a._xattr(c, "setxattr", a._target(c, AT_FDCWD, c.args[0]), c.args[1]),
    "lsetxattr": lambda a, c: a._xattr(
        c, "setxattr", a._target(c, AT_FDCWD, c.args[0], _AT_SYMLINK_NOFOLLOW), c.args[1]
    ),
    "fsetxattr": lambda a, c: a._xattr(c, "setxattr", a._target(c, c.args[0], 0, empty=True), c.args[1]),
    "setxattrat": lambda a, c: a._xattr(c, "setxattr", a._target_at(c, c.args[2]), c.args[3]),
    "removexattr": lambda a, c: a._xattr(c, "removexattr", a._target(c, AT_FDCWD, c.args[0]), c.args[1]),
    "lremovexattr": lambda a, c: a._xattr(
        c, "removexattr", a._target(c, AT_FDCWD, c.args[0], _AT_SYMLINK_NOFOLLOW), c.args[1]
    ),
    "fremovexattr": lambda a, c: a._xattr(c, "removexattr", a._target(c, c.args[0], 0, empty=True), c.args[1]),
    "removexattrat": lambda a, c: a._xattr(c, "removexattr", a._target_at(c, c.args[2]), c.args[3]),
}


def _owner_and_mode(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_uid, info.st_gid, info.st_mode


def _getxattr(path: str, key: str) -> bytes | None:
    try:
        return os.getxattr(path, key, follow_symlinks=False)
    except OSError:
        return None
