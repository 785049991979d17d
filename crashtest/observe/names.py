"""Calls that change names: opening to create, making, linking, renaming and removing.

Guarantees: an event is made from what is found under the name afterwards, so a call that failed makes none. Does not
see what a name held before it was looked at; another thread's rename of a directory above it at the same moment can
make a place wrong, which the record's own proof finds.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable

from crashtest.observe import bpf
from crashtest.observe.finding import Call, Finder, Pending, lstat, number
from crashtest.observe.places import AT_FDCWD, Place, absolute
from crashtest.trace import Op

_AT_REMOVEDIR, _AT_SYMLINK_FOLLOW, _AT_EMPTY_PATH = 0x200, 0x400, 0x1000
_NOREPLACE, _EXCHANGE, _WHITEOUT = 1, 2, 4


class Names:
    """Decodes calls on names. resized(call, file, size): how a file that is opened to be emptied is decoded."""

    def __init__(self, finder: Finder, resized: Callable[[Call, int, int], Pending | None]) -> None:
        self.finder = finder
        self.state = finder.state
        self._resized = resized

    # -- opening -----------------------------------------------------------------------------------------------

    def _opened(self, call: Call, directory: int, address: int, flags: int) -> Pending | None:
        path = self.finder.string(call, address)
        if flags & bpf.O_TMPFILE_BIT:
            return self._tmpfile(call, directory, path)
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        place = self.state.place(call.tid, directory, path, not exclusive and not flags & os.O_NOFOLLOW)
        if isinstance(place, str):
            info = lstat(place)
            if (info is None and flags & os.O_CREAT) or (
                info is not None and stat.S_ISREG(info.st_mode) and flags & os.O_TRUNC and not exclusive
            ):
                self.finder.elsewhere(call.name, place)
        if not isinstance(place, Place):
            return None
        info = place.look()
        if info is None:
            return self._appears(call, "create", place) if flags & os.O_CREAT else None
        file = self.state.file(info)
        if not flags & os.O_TRUNC or exclusive or not stat.S_ISREG(info.st_mode) or not info.st_size or file is None:
            return None
        return self._resized(call, file, 0)

    def _openat2(self, call: Call) -> Pending | None:
        how = self.finder.processes.read(call.tid, call.args[2], 8)
        (flags,) = struct.unpack("<Q", how.ljust(8, b"\0"))
        if not flags & (os.O_CREAT | os.O_TRUNC | bpf.O_TMPFILE_BIT):
            return None
        return self._opened(call, call.args[0], call.args[1], flags)

    def _tmpfile(self, call: Call, directory: int, path: str) -> Pending | None:
        try:
            info = os.stat(absolute(call.tid, directory, path))
        except OSError:
            return None
        parent = self.state.file(info)
        if parent is None:
            return None  # a file that never has a name elsewhere changes nothing there
        op = call.op("tmpfile", path=f"{self.finder.path(parent)}/(unnamed)")

        def confirm(strict: bool) -> list[Op]:
            listing = f"/proc/{call.tid}/fd"
            try:
                fds = os.listdir(listing)
            except OSError:
                return []
            for fd in fds:
                try:
                    made = os.stat(f"{listing}/{fd}")
                except OSError:
                    continue
                if (
                    made.st_dev == self.state.device
                    and made.st_nlink == 0
                    and made.st_ino not in self.state.inodes
                    and stat.S_ISREG(made.st_mode)
                    and os.readlink(f"{listing}/{fd}").startswith(self.state.root)
                ):
                    return [_as_made(op, self.state.register(made), made)]
            return []

        return Pending(call, op, confirm)

    # -- new names for new files -------------------------------------------------------------------------------

    def _appears(self, call: Call, kind: str, place: Place, text: str = "") -> Pending:
        """A call that makes a new name for a new file."""
        op = call.at(kind, place, text=text)

        def confirm(strict: bool) -> list[Op]:
            now = place.look()
            if now is None:
                return []
            return [_as_made(op, self.state.register(now), now)]

        return Pending(call, op, confirm)

    def _made(self, call: Call, kind: str, directory: int, address: int, text: str = "") -> Pending | None:
        return self._made_at(call, kind, self.finder.place(call, directory, address), text)

    def _made_at(self, call: Call, kind: str, place: Place | str | None, text: str) -> Pending | None:
        if isinstance(place, str) and lstat(place) is None:
            self.finder.elsewhere(call.name, place)
        if not isinstance(place, Place) or place.look() is not None:
            return None
        return self._appears(call, kind, place, text)

    def _special(self, call: Call, directory: int, address: int, mode: int) -> Pending | None:
        kind = stat.S_IFMT(mode & 0xFFFF)
        if kind in (0, stat.S_IFREG):
            return self._made(call, "create", directory, address)
        if kind in (stat.S_IFIFO, stat.S_IFSOCK):
            return self._made(call, "mknod", directory, address, "p" if kind == stat.S_IFIFO else "s")
        self.finder.cannot(f"mknod of a device by {self.finder.processes.program(call.tid)}")
        return None

    def _bind(self, call: Call) -> Pending | None:
        raw = self.finder.processes.read(call.tid, call.args[1], min(call.args[2], 110))
        if len(raw) < 4 or raw[:2] != b"\x01\0" or raw[2] == 0:
            return None
        path = os.fsdecode(raw[2:].split(b"\0")[0])
        return self._made_at(call, "mknod", self.state.place(call.tid, AT_FDCWD, path, False), "s")

    # -- removing and renaming ---------------------------------------------------------------------------------

    def _removed(self, call: Call, directory: int, address: int, is_directory: bool) -> Pending | None:
        place = self.finder.place(call, directory, address)
        if isinstance(place, str) and lstat(place) is not None:
            self.finder.elsewhere(call.name, place)
        if not isinstance(place, Place):
            return None
        info = place.look()
        if info is None or stat.S_ISDIR(info.st_mode) != is_directory:
            return None
        file = self._known(info, place)
        if file is None:
            return None
        op = call.at("rmdir" if is_directory else "unlink", place, file)
        return Pending(call, op, lambda strict: [op] if _moved(place, info) else [])

    def _known(self, info: os.stat_result, place: Place) -> int | None:
        file = self.state.file(info)
        if file is None:
            self.finder.cannot(f"{place.path}, a file that no recorded call made")
        return file

    def _renamed(
        self, call: Call, old_directory: int, old_name: int, new_directory: int, new_name: int, flags: int
    ) -> Pending | None:
        """directories: descriptors; names: the addresses of paths."""
        old = self.finder.place(call, old_directory, old_name)
        new = self.finder.place(call, new_directory, new_name)
        if old is None or new is None:
            return None
        before = old.look() if isinstance(old, Place) else lstat(old)
        if before is None:
            return None
        replaced = new.look() if isinstance(new, Place) else lstat(new)
        if (flags & _NOREPLACE and replaced is not None) or (flags & _EXCHANGE and replaced is None):
            return None
        if replaced is not None and replaced.st_ino == before.st_ino and replaced.st_dev == before.st_dev:
            return None
        if flags & _WHITEOUT:
            self.finder.cannot("renameat2 with RENAME_WHITEOUT")
            return None
        if not isinstance(old, Place):
            self.finder.elsewhere(call.name, old)
            return self._arrives(call, before, new) if isinstance(new, Place) else None
        if not isinstance(new, Place):
            self.finder.elsewhere(call.name, new)
        file = self._known(before, old)
        if file is None:
            return None
        if not isinstance(new, Place):
            op = call.at("depart", old, file, path2=new)
            return Pending(call, op, lambda strict: [op] if _moved(old, before) else [])
        kind = "exchange" if flags & _EXCHANGE else "rename"
        op = call.at(kind, old, file, dir2=new.dir, name2=new.name, path2=new.path)

        def confirm(strict: bool) -> list[Op]:
            now = new.look()
            return [op] if now is not None and now.st_ino == before.st_ino and _moved(old, before) else []

        return Pending(call, op, confirm)

    def _arrives(self, call: Call, before: os.stat_result, new: Place) -> Pending | None:
        """A file moved in from outside the state, with whatever it held."""
        if not stat.S_ISREG(before.st_mode):
            self.finder.cannot(f"{new.path} was moved in from outside the state, and is not a plain file")
            return None
        op = call.at("arrive", new, path2=new.path)

        def confirm(strict: bool) -> list[Op]:
            now = new.look()
            if now is None or now.st_ino != before.st_ino:
                return []
            with open(os.open(new.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=new.fd), "rb") as file:
                data = file.read()
            return [_as_made(op, self.state.register(now), now)._replace(data=data)]

        return Pending(call, op, confirm)

    # -- further names -----------------------------------------------------------------------------------------

    def _link(self, call: Call) -> Pending | None:
        source = absolute(call.tid, AT_FDCWD, self.finder.string(call, call.args[0]))
        return self._linked(call, source, False, self.finder.place(call, AT_FDCWD, call.args[1]))

    def _linkat(self, call: Call) -> Pending | None:
        from_directory, from_address, directory, address, flags, _ = call.args
        path = self.finder.string(call, from_address)
        new = self.finder.place(call, directory, address)
        if not path and flags & _AT_EMPTY_PATH:
            return self._linked(call, f"/proc/{call.tid}/fd/{number(from_directory)}", True, new)
        return self._linked(call, absolute(call.tid, from_directory, path), bool(flags & _AT_SYMLINK_FOLLOW), new)

    def _linked(self, call: Call, source: str, follow: bool, new: Place | str | None) -> Pending | None:
        try:
            info = os.stat(source) if follow else os.lstat(source)
        except OSError:
            return None
        if isinstance(new, str) and lstat(new) is None:
            self.finder.elsewhere(call.name, new)
        if not isinstance(new, Place) or new.look() is not None:
            return None
        file = self.state.file(info)
        shown = "" if file is None else self.finder.path(file)
        op = call.op(
            "link", -1 if file is None else file, dir2=new.dir, name2=new.name, path=shown, path2=new.path
        )  # fmt: skip

        def confirm(strict: bool) -> list[Op]:
            now = new.look()
            if now is None or now.st_ino != info.st_ino:
                return []
            if file is None:
                self.finder.cannot(f"{new.path} was made a second name of {source}, a file outside the state")
                return []
            return [op]

        return Pending(call, op, confirm)


HANDLERS: dict[str, Callable[[Names, Call], Pending | None]] = {
    "open": lambda n, c: n._opened(c, AT_FDCWD, c.args[0], c.args[1]),
    "openat": lambda n, c: n._opened(c, c.args[0], c.args[1], c.args[2]),
    "openat2": Names._openat2,
    "creat": lambda n, c: n._opened(c, AT_FDCWD, c.args[0], os.O_CREAT | os.O_TRUNC | os.O_WRONLY),
    "mkdir": lambda n, c: n._made(c, "mkdir", AT_FDCWD, c.args[0]),
    "mkdirat": lambda n, c: n._made(c, "mkdir", c.args[0], c.args[1]),
    "symlink": lambda n, c: n._made(c, "symlink", AT_FDCWD, c.args[1], n.finder.string(c, c.args[0])),
    "symlinkat": lambda n, c: n._made(c, "symlink", c.args[1], c.args[2], n.finder.string(c, c.args[0])),
    "mknod": lambda n, c: n._special(c, AT_FDCWD, c.args[0], c.args[1]),
    "mknodat": lambda n, c: n._special(c, c.args[0], c.args[1], c.args[2]),
    "bind": Names._bind,
    "unlink": lambda n, c: n._removed(c, AT_FDCWD, c.args[0], False),
    "rmdir": lambda n, c: n._removed(c, AT_FDCWD, c.args[0], True),
    "unlinkat": lambda n, c: n._removed(c, c.args[0], c.args[1], bool(c.args[2] & _AT_REMOVEDIR)),
    "rename": lambda n, c: n._renamed(c, AT_FDCWD, c.args[0], AT_FDCWD, c.args[1], 0),
    "renameat": lambda n, c: n._renamed(c, c.args[0], c.args[1], c.args[2], c.args[3], 0),
    "renameat2": lambda n, c: n._renamed(c, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4] & 0xFFFFFFFF),
    "link": Names._link,
    "linkat": Names._linkat,
}


def _as_made(op: Op, file: int, info: os.stat_result) -> Op:
    return op._replace(file=file, mode=stat.S_IMODE(info.st_mode), uid=info.st_uid, gid=info.st_gid)


def _moved(place: Place, before: os.stat_result) -> bool:
    """Whether the name is gone, or another file's."""
    now = place.look()
    return now is None or now.st_ino != before.st_ino
