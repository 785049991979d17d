"""From a stopped call to the change it is about to make, and from the disk afterwards to the change it made.

Guarantees: a call's effect is confirmed on disk when its thread stops again, not predicted: a call that failed
makes no event (setting times, and syncs, are taken as done). What is known to change files but cannot be put into
an event is listed as unmodelled, so that the verdict becomes inconclusive. Does not see exit values; a write that
changed neither size nor (for another thread) content is taken as done, and the record's proof is the judge of that.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable

from crashtest.observe import bpf
from crashtest.observe.listener import Stop
from crashtest.observe.places import AT_FDCWD, Place, State, absolute
from crashtest.observe.process import Gone, Processes
from crashtest.trace import Op

_AT_REMOVEDIR, _AT_SYMLINK_FOLLOW, _AT_SYMLINK_NOFOLLOW, _AT_EMPTY_PATH = 0x200, 0x400, 0x100, 0x1000
_NOREPLACE, _EXCHANGE, _WHITEOUT = 1, 2, 4
_KEEP_SIZE, _PUNCH, _ZERO = 0x01, 0x02, 0x10
_RWF_APPEND = 0x10
_MAP_LIMIT = 64 << 20
_WRITE_LIMIT = 1 << 30

Confirm = Callable[[bool], list[Op]]


class Pending:
    """A call that has been let go and not been confirmed.

    op: the change predicted (its file id may be missing). confirm(strict): the events it made, read from the disk;
    strict compares contents too, for a call that may still be under way. fd: the descriptor written to, or -1.
    """

    __slots__ = ("call", "confirm", "fd", "op", "stop")

    def __init__(self, stop: Stop, call: str, op: Op, confirm: Confirm, fd: int = -1) -> None:
        self.stop = stop
        self.call = call
        self.op = op
        self.confirm = confirm
        self.fd = fd


class Message:
    """A write to one of the harness's own pipes: `channel` is "ack", "step" or "quiet"."""

    __slots__ = ("channel", "data")

    def __init__(self, channel: str, data: bytes) -> None:
        self.channel = channel
        self.data = data


def signed(value: int) -> int:
    """A raw 64-bit argument as a signed number."""
    return value - (1 << 64) if value >> 63 else value


class Calls:
    """Decodes the stops of one run. `channels` maps a pipe's inode number to what it is."""

    def __init__(self, state: State, processes: Processes, channels: dict[int, str]) -> None:
        self.state = state
        self.processes = processes
        self.channels = channels
        self.outside: list[str] = []
        self.unmodelled: list[str] = []
        #: files mapped shared and writable, compared at each stop
        self.mapped: set[int] = set()
        self._names = bpf.call_names()
        self._arch = bpf.native_arch()

    def name(self, stop: Stop) -> str:
        return self._names.get(stop.number, f"call {stop.number}") if stop.arch == self._arch else "foreign"

    def decode(self, stop: Stop) -> Pending | Message | None:
        """What the stopped call is about to do to the state; None when nothing."""
        call = self.name(stop)
        if call == "foreign" or call.startswith("call "):
            self._cannot(f"calls of a foreign (32-bit or x32) architecture{self._by(stop)}")
            return None
        try:
            made: Pending | Message | None = getattr(self, f"_{call}")(stop, stop.args)
        except Gone:
            return None
        return made

    def _by(self, stop: Stop) -> str:
        return f", by {self.processes.program(stop.thread)[:60]}"

    def _cannot(self, words: str) -> None:
        if words not in self.unmodelled:
            self.unmodelled.append(words)

    def _elsewhere(self, call: str, path: str) -> None:
        """A change outside the state. The output, HOME and TMPDIR are the harness's own; semaphores are no files."""
        bench = os.path.dirname(self.state.root)
        if path == f"{bench}/output" or path.startswith((f"{bench}/home/", f"{bench}/tmp/", "/dev/shm/sem.")):
            return
        words = f"{call} {path}"
        if words not in self.outside:
            self.outside.append(words)

    # -- finding the file --------------------------------------------------------------------------------------

    def _open_file(
        self, stop: Stop, call: str, fd: int, info: os.stat_result | None = None
    ) -> tuple[int, os.stat_result] | None:
        """(file id, fstat) of a descriptor on a file of the state; anything else is noted and gives None.

        info: its fstat, when that is known.
        """
        if info is None:
            info = self.processes.descriptor(stop.thread, fd & 0xFFFFFFFF)
        file = self.state.file(info)
        if file is not None:
            return file, info
        if stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode):
            path = self.processes.path(stop.thread, fd & 0xFFFFFFFF)
            if path.startswith(self.state.root + "/") and stat.S_ISREG(info.st_mode):
                self._cannot(f"{call} on {path}, a file that no recorded call made")
            elif not path.startswith("/memfd:"):
                self._elsewhere(call, path)
        return None

    def _named_file(self, stop: Stop, call: str, directory: int, path: str, follow: bool) -> int | None:
        """The file id a path leads to, or None (noted when it is a file elsewhere)."""
        full = absolute(stop.thread, directory, path)
        try:
            info = os.stat(full) if follow else os.lstat(full)
        except OSError:
            return None
        file = self.state.file(info)
        if (file is None and not full.startswith("/proc/")) or (file is None and not stat.S_ISCHR(info.st_mode)):
            self._elsewhere(call, os.path.realpath(full))
        return file

    def _place(self, stop: Stop, call: str, directory: int, address: int, follow: bool = False) -> Place | str | None:
        return self.state.place(stop.thread, directory, self.processes.string(stop.thread, address), follow)

    def _op(self, stop: Stop, kind: str, file: int = -1, place: Place | None = None, **more: object) -> Op:
        if place is not None:
            return Op(kind, file, place.dir, place.name, call=self.name(stop), path=place.path, **more)  # type: ignore[arg-type]
        if "path" not in more:
            more["path"] = self.state.shadow.path(file) if file >= 0 else ""
        return Op(kind, file, call=self.name(stop), **more)  # type: ignore[arg-type]

    # -- data --------------------------------------------------------------------------------------------------

    def _data(
        self, stop: Stop, fd: int, parts: list[tuple[int, int]], offset: int | None, append: bool = False
    ) -> Pending | Message | None:
        thread, fd = stop.thread, fd & 0xFFFFFFFF
        info = self.processes.descriptor(thread, fd)
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFIFO:
            channel = self.channels.get(info.st_ino)
            if channel is None:
                return None
            return Message(channel, b"".join(self.processes.read(thread, at, size) for at, size in parts))
        if kind != stat.S_IFREG:
            return None
        found = self._open_file(stop, self.name(stop), fd, info)
        if found is None:
            return None
        file = found[0]
        position, flags = self.processes.position(thread, fd)
        if flags & os.O_ACCMODE == os.O_RDONLY:
            return None
        at = info.st_size if flags & os.O_APPEND or append else position if offset is None else offset
        if sum(size for _, size in parts) > _WRITE_LIMIT:
            self._cannot(f"{self.name(stop)} of more than {_WRITE_LIMIT} bytes at once")
            return None
        data = b"".join(self.processes.read(thread, address, size) for address, size in parts)
        if not data or at < 0:
            return None
        op = self._op(stop, "write", file, offset=at, data=data)
        before = info.st_size

        def confirm(strict: bool) -> list[Op]:
            now = self.state.stat(file)
            end = at + len(data)
            if now is not None and end > before and now.st_size < end:
                done = now.st_size - at
                return [op._replace(data=data[:done])] if done > 0 and now.st_size > before else []
            if strict:
                content = self.state.read(file)
                if content is not None and content[at:end] != data:
                    return []
            return [op]

        return Pending(stop, op.call, op, confirm, fd)

    def _write(self, stop: Stop, a: tuple[int, ...]) -> Pending | Message | None:
        return self._data(stop, a[0], [(a[1], a[2])], None)

    def _pwrite64(self, stop: Stop, a: tuple[int, ...]) -> Pending | Message | None:
        return self._data(stop, a[0], [(a[1], a[2])], signed(a[3]))

    def _writev(self, stop: Stop, a: tuple[int, ...]) -> Pending | Message | None:
        return self._data(stop, a[0], self.processes.vector(stop.thread, a[1], a[2]), None)

    def _pwritev(self, stop: Stop, a: tuple[int, ...]) -> Pending | Message | None:
        return self._data(stop, a[0], self.processes.vector(stop.thread, a[1], a[2]), signed(a[3]))

    def _pwritev2(self, stop: Stop, a: tuple[int, ...]) -> Pending | Message | None:
        offset = None if signed(a[3]) == -1 else signed(a[3])
        parts = self.processes.vector(stop.thread, a[1], a[2])
        return self._data(stop, a[0], parts, offset, bool(a[5] & _RWF_APPEND))

    def _copied(self, stop: Stop, fd: int) -> Pending | None:
        """A call that moves bytes inside the kernel: what it wrote is read back from the file."""
        if not stat.S_ISREG(self.processes.descriptor(stop.thread, fd & 0xFFFFFFFF).st_mode):
            return None
        found = self._open_file(stop, self.name(stop), fd)
        if found is None:
            return None
        return self._read_back(stop, found[0], fd)

    def _read_back(self, stop: Stop, file: int, fd: int) -> Pending:
        """What the call writes is known only afterwards: from the file, by its name or else by its descriptor."""
        name = self.name(stop)
        unnamed = f"/proc/{stop.thread}/fd/{fd & 0xFFFFFFFF}"

        def confirm(strict: bool) -> list[Op]:
            return self.compare(file, name, unnamed)

        return Pending(stop, name, self._op(stop, "write", file), confirm)

    def compare(self, file: int, call: str, unnamed: str = "") -> list[Op]:
        """The events that turn the recorded content of `file` into what is on disk now.

        unnamed: another way to the file, for one that has no name.
        """
        content = self.state.read(file)
        if content is None:
            content = _read_if_same(unnamed, self.state, file)
        if content is None:
            return []
        old = self.state.shadow.content(file)
        path = self.state.shadow.path(file)
        events: list[Op] = []
        if len(content) < len(old):
            events.append(Op("truncate", file, size=len(content), call=call, path=path))
        if content == old:
            return events
        short = min(len(content), len(old))
        if content[:short] == old[:short]:
            first, last = short, len(content)
        else:
            first = _first_difference(content, old, short)
            last = len(content)
            if len(content) <= len(old):
                while last > first and content[last - 1] == old[last - 1]:
                    last -= 1
        if last > first:
            events.append(Op("write", file, offset=first, data=content[first:last], call=call, path=path))
        return events

    def _sendfile(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._copied(stop, a[0])

    def _copy_file_range(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._copied(stop, a[2])

    _splice = _copy_file_range

    def _ioctl(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._copied(stop, a[0])

    def _resized(self, stop: Stop, file: int, size: int) -> Pending | None:
        if size == self.state.shadow.size(file) or size < 0:
            return None
        op = self._op(stop, "truncate", file, size=size)

        def confirm(strict: bool) -> list[Op]:
            now = self.state.stat(file)
            return [op] if now is None or now.st_size == size else []

        return Pending(stop, op.call, op, confirm)

    def _ftruncate(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        found = self._open_file(stop, "ftruncate", a[0])
        return None if found is None else self._resized(stop, found[0], signed(a[1]))

    def _truncate(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        path = self.processes.string(stop.thread, a[0])
        file = self._named_file(stop, "truncate", AT_FDCWD, path, True)
        return None if file is None else self._resized(stop, file, signed(a[1]))

    def _fallocate(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        found = self._open_file(stop, "fallocate", a[0])
        if found is None:
            return None
        file, mode, offset, length = found[0], a[1] & 0xFFFFFFFF, signed(a[2]), signed(a[3])
        size = self.state.shadow.size(file)
        if mode & ~(_KEEP_SIZE | _PUNCH | _ZERO):
            self._cannot(f"fallocate with mode {mode:#x} on {self.state.shadow.path(file)}")
            return None
        end = offset + length
        if mode & (_PUNCH | _ZERO):
            end = min(end, size) if mode & _KEEP_SIZE else end
            if end <= offset:
                return None
            return self._read_back(stop, file, a[0])
        if mode & _KEEP_SIZE or end <= size:
            return None
        op = self._op(stop, "allocate", file, size=end)

        def confirm(strict: bool) -> list[Op]:
            now = self.state.stat(file)
            return [op] if now is None or now.st_size >= end else []

        return Pending(stop, "fallocate", op, confirm)

    def _mmap(self, stop: Stop, a: tuple[int, ...]) -> None:
        if a[4] & 0xFFFFFFFF == 0xFFFFFFFF:
            return
        info = self.processes.descriptor(stop.thread, a[4] & 0xFFFFFFFF)
        file = self.state.file(info)
        if file is None:
            path = self.processes.path(stop.thread, a[4] & 0xFFFFFFFF)
            if stat.S_ISREG(info.st_mode) and not path.startswith(("/memfd:", "/SYSV", "/dev/shm/sem.")):
                self._elsewhere("mmap", path)
        elif info.st_size > _MAP_LIMIT:
            self._cannot(f"a shared mapping of {self.state.shadow.path(file)}, larger than {_MAP_LIMIT} bytes")
        elif self.state.stat(file) is None:
            self._cannot("a shared mapping of a file without a name")
        else:
            self.mapped.add(file)

    # -- names -------------------------------------------------------------------------------------------------

    def _opened(self, stop: Stop, directory: int, address: int, flags: int) -> Pending | None:
        path = self.processes.string(stop.thread, address)
        if flags & bpf.O_TMPFILE_BIT:
            return self._tmpfile(stop, directory, path)
        exclusive = flags & os.O_CREAT and flags & os.O_EXCL
        place = self.state.place(stop.thread, directory, path, not exclusive and not flags & os.O_NOFOLLOW)
        if isinstance(place, str):
            info = _lstat(place)
            if (info is None and flags & os.O_CREAT) or (
                info is not None and stat.S_ISREG(info.st_mode) and flags & os.O_TRUNC and not exclusive
            ):
                self._elsewhere(self.name(stop), place)
        if not isinstance(place, Place):
            return None
        info = place.look()
        if info is None:
            return self._appears(stop, "create", place) if flags & os.O_CREAT else None
        file = self.state.file(info)
        if not flags & os.O_TRUNC or exclusive or not stat.S_ISREG(info.st_mode) or not info.st_size or file is None:
            return None
        return self._resized(stop, file, 0)

    def _open(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._opened(stop, AT_FDCWD, a[0], a[1])

    def _openat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._opened(stop, a[0], a[1], a[2])

    def _creat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._opened(stop, AT_FDCWD, a[0], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)

    def _openat2(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        (flags,) = struct.unpack("<Q", self.processes.read(stop.thread, a[2], 8).ljust(8, b"\0"))
        if not flags & (os.O_CREAT | os.O_TRUNC | bpf.O_TMPFILE_BIT):
            return None
        return self._opened(stop, a[0], a[1], flags)

    def _tmpfile(self, stop: Stop, directory: int, path: str) -> Pending | None:
        try:
            info = os.stat(absolute(stop.thread, directory, path))
        except OSError:
            return None
        parent = self.state.file(info)
        if parent is None:
            return None  # a file that never has a name elsewhere changes nothing there
        op = self._op(stop, "tmpfile", path=f"{self.state.shadow.path(parent)}/(unnamed)")

        def confirm(strict: bool) -> list[Op]:
            listing = f"/proc/{stop.thread}/fd"
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

        return Pending(stop, op.call, op, confirm)

    def _appears(self, stop: Stop, kind: str, place: Place, text: str = "") -> Pending:
        """A call that makes a new name for a new file."""
        op = self._op(stop, kind, -1, place, text=text)

        def confirm(strict: bool) -> list[Op]:
            now = place.look()
            if now is None:
                return []
            return [_as_made(op, self.state.register(now), now)]

        return Pending(stop, op.call, op, confirm)

    def _made(self, stop: Stop, kind: str, directory: int, address: int, text: str = "") -> Pending | None:
        place = self._place(stop, kind, directory, address)
        if isinstance(place, str) and _lstat(place) is None:
            self._elsewhere(self.name(stop), place)
        if not isinstance(place, Place) or place.look() is not None:
            return None
        return self._appears(stop, kind, place, text)

    def _mkdir(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._made(stop, "mkdir", AT_FDCWD, a[0])

    def _mkdirat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._made(stop, "mkdir", a[0], a[1])

    def _symlink(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._made(stop, "symlink", AT_FDCWD, a[1], self.processes.string(stop.thread, a[0]))

    def _symlinkat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._made(stop, "symlink", a[1], a[2], self.processes.string(stop.thread, a[0]))

    def _special(self, stop: Stop, directory: int, address: int, mode: int) -> Pending | None:
        kind = stat.S_IFMT(mode & 0xFFFF)
        if kind in (0, stat.S_IFREG):
            return self._made(stop, "create", directory, address)
        if kind in (stat.S_IFIFO, stat.S_IFSOCK):
            return self._made(stop, "mknod", directory, address, "p" if kind == stat.S_IFIFO else "s")
        self._cannot(f"mknod of a device by {self.processes.program(stop.thread)}")
        return None

    def _mknod(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._special(stop, AT_FDCWD, a[0], a[1])

    def _mknodat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._special(stop, a[0], a[1], a[2])

    def _bind(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        raw = self.processes.read(stop.thread, a[1], min(a[2], 110))
        if len(raw) < 4 or raw[:2] != b"\x01\0" or raw[2] == 0:
            return None
        path = os.fsdecode(raw[2:].split(b"\0")[0])
        place = self.state.place(stop.thread, AT_FDCWD, path, False)
        if isinstance(place, str) and _lstat(place) is None:
            self._elsewhere("bind", place)
        if not isinstance(place, Place) or place.look() is not None:
            return None
        return self._appears(stop, "mknod", place, "s")

    def _removed(self, stop: Stop, directory: int, address: int, is_directory: bool) -> Pending | None:
        place = self._place(stop, "unlink", directory, address)
        if isinstance(place, str) and _lstat(place) is not None:
            self._elsewhere(self.name(stop), place)
        if not isinstance(place, Place):
            return None
        info = place.look()
        if info is None or stat.S_ISDIR(info.st_mode) != is_directory:
            return None
        file = self._known(info, place)
        if file is None:
            return None
        op = self._op(stop, "rmdir" if is_directory else "unlink", file, place)

        def confirm(strict: bool) -> list[Op]:
            now = place.look()
            return [op] if now is None or now.st_ino != info.st_ino else []

        return Pending(stop, op.call, op, confirm)

    def _known(self, info: os.stat_result, place: Place) -> int | None:
        file = self.state.file(info)
        if file is None:
            self._cannot(f"{place.path}, a file that no recorded call made")
        return file

    def _unlink(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._removed(stop, AT_FDCWD, a[0], False)

    def _rmdir(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._removed(stop, AT_FDCWD, a[0], True)

    def _unlinkat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._removed(stop, a[0], a[1], bool(a[2] & _AT_REMOVEDIR))

    def _renamed(self, stop: Stop, old: Place | str | None, new: Place | str | None, flags: int) -> Pending | None:
        if old is None or new is None:
            return None
        before = old.look() if isinstance(old, Place) else _lstat(old)
        if before is None:
            return None
        replaced = new.look() if isinstance(new, Place) else _lstat(new)
        if (flags & _NOREPLACE and replaced is not None) or (flags & _EXCHANGE and replaced is None):
            return None
        if replaced is not None and replaced.st_ino == before.st_ino and replaced.st_dev == before.st_dev:
            return None
        if flags & _WHITEOUT:
            self._cannot("renameat2 with RENAME_WHITEOUT")
            return None
        if not isinstance(old, Place):
            self._elsewhere(self.name(stop), old)
            return self._arrives(stop, before, new) if isinstance(new, Place) else None
        if not isinstance(new, Place):
            self._elsewhere(self.name(stop), new)
        file = self._known(before, old)
        if file is None:
            return None
        if not isinstance(new, Place):
            op = self._op(stop, "depart", file, old, path2=new)
            return Pending(stop, op.call, op, lambda strict: [op] if _moved(old, before) else [])
        kind = "exchange" if flags & _EXCHANGE else "rename"
        op = self._op(stop, kind, file, old, dir2=new.dir, name2=new.name, path2=new.path)

        def confirm(strict: bool) -> list[Op]:
            now = new.look()
            return [op] if now is not None and now.st_ino == before.st_ino and _moved(old, before) else []

        return Pending(stop, op.call, op, confirm)

    def _arrives(self, stop: Stop, before: os.stat_result, new: Place) -> Pending | None:
        """A file moved in from outside the state, with whatever it held."""
        if not stat.S_ISREG(before.st_mode):
            self._cannot(f"{new.path} was moved in from outside the state, and is not a plain file")
            return None
        op = self._op(stop, "arrive", -1, new, path2=new.path)

        def confirm(strict: bool) -> list[Op]:
            now = new.look()
            if now is None or now.st_ino != before.st_ino:
                return []
            with open(os.open(new.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=new.fd), "rb") as file:
                data = file.read()
            return [_as_made(op, self.state.register(now), now)._replace(data=data)]

        return Pending(stop, op.call, op, confirm)

    def _rename(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        old, new = self._place(stop, "rename", AT_FDCWD, a[0]), self._place(stop, "rename", AT_FDCWD, a[1])
        return self._renamed(stop, old, new, 0)

    def _renameat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        old, new = self._place(stop, "rename", a[0], a[1]), self._place(stop, "rename", a[2], a[3])
        return self._renamed(stop, old, new, 0)

    def _renameat2(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        old, new = self._place(stop, "rename", a[0], a[1]), self._place(stop, "rename", a[2], a[3])
        return self._renamed(stop, old, new, a[4] & 0xFFFFFFFF)

    def _linked(self, stop: Stop, source: str, follow: bool, new: Place | str | None) -> Pending | None:
        try:
            info = os.stat(source) if follow else os.lstat(source)
        except OSError:
            return None
        if isinstance(new, str) and _lstat(new) is None:
            self._elsewhere(self.name(stop), new)
        if not isinstance(new, Place) or new.look() is not None:
            return None
        file = self.state.file(info)
        op = self._op(stop, "link", -1 if file is None else file, dir2=new.dir, name2=new.name, path2=new.path)

        def confirm(strict: bool) -> list[Op]:
            now = new.look()
            if now is None or now.st_ino != info.st_ino:
                return []
            if file is None:
                self._cannot(f"{new.path} was made a second name of {source}, a file outside the state")
                return []
            return [op]

        return Pending(stop, op.call, op, confirm)

    def _link(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        source = absolute(stop.thread, AT_FDCWD, self.processes.string(stop.thread, a[0]))
        return self._linked(stop, source, False, self._place(stop, "link", AT_FDCWD, a[1]))

    def _linkat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        path = self.processes.string(stop.thread, a[1])
        new = self._place(stop, "link", a[2], a[3])
        if not path and a[4] & _AT_EMPTY_PATH:
            return self._linked(stop, f"/proc/{stop.thread}/fd/{a[0] & 0xFFFFFFFF}", True, new)
        return self._linked(stop, absolute(stop.thread, a[0], path), bool(a[4] & _AT_SYMLINK_FOLLOW), new)

    # -- attributes --------------------------------------------------------------------------------------------

    def _target(self, stop: Stop, directory: int, address: int, flags: int = 0, empty: bool = False) -> int | None:
        """The file a path argument names; `empty`: an absent or empty path means the descriptor itself."""
        path = self.processes.string(stop.thread, address) if address else ""
        if not path:
            if not empty:
                return None
            found = self._open_file(stop, self.name(stop), directory)
            return None if found is None else found[0]
        return self._named_file(stop, self.name(stop), directory, path, not flags & _AT_SYMLINK_NOFOLLOW)

    def _looker(self, stop: Stop, file: int) -> Callable[[], os.stat_result | None]:
        """How to look at a file now and later: by its name, or by its descriptor when it has none."""
        if self.state.stat(file) is not None or self.name(stop) not in ("fchmod", "fchown"):
            return lambda: self.state.stat(file)

        def through_descriptor() -> os.stat_result | None:
            try:
                return self.processes.descriptor(stop.thread, stop.args[0] & 0xFFFFFFFF)
            except Gone:
                return None

        return through_descriptor

    def _attributes(self, stop: Stop, kind: str, file: int | None) -> Pending | None:
        """chmod or chown: the new mode and owner are read back."""
        if file is None:
            return None
        look = self._looker(stop, file)
        before = look()
        op = self._op(stop, kind, file)

        def confirm(strict: bool) -> list[Op]:
            now = look()
            if now is None or before is None or _owner_and_mode(now) == _owner_and_mode(before):
                return []
            return [op._replace(mode=stat.S_IMODE(now.st_mode), uid=now.st_uid, gid=now.st_gid)]

        return Pending(stop, op.call, op, confirm)

    def _chmod(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._attributes(stop, "chmod", self._target(stop, AT_FDCWD, a[0]))

    def _fchmod(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._attributes(stop, "chmod", self._target(stop, a[0], 0, empty=True))

    def _fchmodat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._attributes(stop, "chmod", self._target(stop, a[0], a[1]))

    def _fchmodat2(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._attributes(stop, "chmod", self._target(stop, a[0], a[1], a[3], bool(a[3] & _AT_EMPTY_PATH)))

    def _chown(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._attributes(stop, "chown", self._target(stop, AT_FDCWD, a[0]))

    def _lchown(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._attributes(stop, "chown", self._target(stop, AT_FDCWD, a[0], _AT_SYMLINK_NOFOLLOW))

    def _fchown(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._attributes(stop, "chown", self._target(stop, a[0], 0, empty=True))

    def _fchownat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._attributes(stop, "chown", self._target(stop, a[0], a[1], a[4], bool(a[4] & _AT_EMPTY_PATH)))

    def _times(self, stop: Stop, file: int | None) -> Pending | None:
        if file is None:
            return None
        op = self._op(stop, "utimes", file)
        return Pending(stop, op.call, op, lambda strict: [op])

    def _utime(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._times(stop, self._target(stop, AT_FDCWD, a[0]))

    _utimes = _utime

    def _futimesat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._times(stop, self._target(stop, a[0], a[1], 0, empty=True))

    def _utimensat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._times(stop, self._target(stop, a[0], a[1], a[3], empty=True))

    def _xattr(self, stop: Stop, file: int | None, address: int) -> Pending | None:
        """Set or remove: the value is read back afterwards."""
        key = self.processes.string(stop.thread, address)
        if file is None or key.startswith(("security.", "trusted.")):
            return None
        if key == "system.posix_acl_access":
            return self._access_list(stop, file)
        if not key.startswith("user."):
            self._cannot(f"the extended attribute {key} of {self.state.shadow.path(file)}")
            return None
        path = f"{self.state.root}/{self.state.shadow.path(file)}"
        before = _getxattr(path, key)

        def confirm(strict: bool) -> list[Op]:
            now = _getxattr(path, key)
            if now == before:
                return []
            if now is None:
                return [self._op(stop, "removexattr", file, text=key)]
            return [self._op(stop, "setxattr", file, text=key, data=now)]

        kind = "setxattr" if "set" in self.name(stop) else "removexattr"
        return Pending(stop, self.name(stop), self._op(stop, kind, file, text=key), confirm)

    def _access_list(self, stop: Stop, file: int) -> Pending | None:
        """An access list that says no more than the mode becomes the mode (acl(5)); a longer one is not modelled."""
        changed = self._attributes(stop, "chmod", file)
        if changed is None:
            return None
        path = f"{self.state.root}/{self.state.shadow.path(file)}"
        confirm = changed.confirm

        def checked(strict: bool) -> list[Op]:
            if _getxattr(path, "system.posix_acl_access") is not None:
                self._cannot(f"the access list of {self.state.shadow.path(file)}")
            return confirm(strict)

        changed.confirm = checked
        return changed

    def _setxattr(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._xattr(stop, self._target(stop, AT_FDCWD, a[0]), a[1])

    _removexattr = _setxattr

    def _lsetxattr(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._xattr(stop, self._target(stop, AT_FDCWD, a[0], _AT_SYMLINK_NOFOLLOW), a[1])

    _lremovexattr = _lsetxattr

    def _fsetxattr(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._xattr(stop, self._target(stop, a[0], 0, empty=True), a[1])

    _fremovexattr = _fsetxattr

    def _setxattrat(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._xattr(stop, self._target(stop, a[0], a[1], a[2], bool(a[2] & _AT_EMPTY_PATH)), a[3])

    _removexattrat = _setxattrat

    # -- syncs and the rest ------------------------------------------------------------------------------------

    def _synced(self, stop: Stop, kind: str, fd: int) -> Pending | None:
        info = self.processes.descriptor(stop.thread, fd & 0xFFFFFFFF)
        file = self.state.file(info)
        if kind == "syncfs":
            file = -1 if info.st_dev == self.state.device else None
        if file is None:
            return None
        op = self._op(stop, kind, file)
        return Pending(stop, kind, op, lambda strict: [op])

    def _fsync(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._synced(stop, "fsync", a[0])

    def _fdatasync(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._synced(stop, "fdatasync", a[0])

    def _syncfs(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._synced(stop, "syncfs", a[0])

    def _sync_file_range(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        return self._synced(stop, "sync_file_range", a[0])

    def _sync(self, stop: Stop, a: tuple[int, ...]) -> Pending:
        op = self._op(stop, "sync")
        return Pending(stop, "sync", op, lambda strict: [op])

    def _msync(self, stop: Stop, a: tuple[int, ...]) -> Pending | None:
        file = self._mapped_at(stop.thread, a[0])
        if file is None:
            return None
        op = self._op(stop, "msync", file)
        return Pending(stop, "msync", op, lambda strict: [op])

    def _mapped_at(self, thread: int, address: int) -> int | None:
        """The file of the state that is mapped at an address (proc(5), /proc/PID/maps)."""
        try:
            with open(f"/proc/{thread}/maps") as maps:
                for line in maps:
                    span, _, _, _, inode, *_ = line.split()
                    first, _, last = span.partition("-")
                    if int(first, 16) <= address < int(last, 16):
                        return self.state.inodes.get(int(inode))
        except OSError:
            pass
        return None

    def _execve(self, stop: Stop, a: tuple[int, ...]) -> None:
        self.processes.forget()

    _execveat = _execve

    def _io_uring_setup(self, stop: Stop, a: tuple[int, ...]) -> None:
        self._cannot(f"io_uring, whose writes cannot be recorded{self._by(stop)}")

    def _io_submit(self, stop: Stop, a: tuple[int, ...]) -> None:
        self._cannot(f"native asynchronous I/O, whose writes are not recorded{self._by(stop)}")

    def _flock(self, stop: Stop, a: tuple[int, ...]) -> None:
        return None

    _fcntl = _flock


def _as_made(op: Op, file: int, info: os.stat_result) -> Op:
    return op._replace(file=file, mode=stat.S_IMODE(info.st_mode), uid=info.st_uid, gid=info.st_gid)


def _owner_and_mode(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_uid, info.st_gid, info.st_mode


def _moved(old: Place, before: os.stat_result) -> bool:
    now = old.look()
    return now is None or now.st_ino != before.st_ino


def _lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def _getxattr(path: str, key: str) -> bytes | None:
    try:
        return os.getxattr(path, key, follow_symlinks=False)
    except OSError:
        return None


def _read_if_same(path: str, state: State, file: int) -> bytes | None:
    """The content of what `path` leads to, when that is `file`."""
    try:
        if not path or state.file(os.stat(path)) != file:
            return None
        with open(path, "rb", buffering=0) as opened:
            return opened.readall()
    except OSError:
        return None


def _first_difference(one: bytes, other: bytearray, short: int) -> int:
    """The first index below `short` at which they differ, found by halving."""
    low, high = 0, short
    while low < high:
        middle = (low + high) // 2
        if one[low : middle + 1] == other[low : middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low
