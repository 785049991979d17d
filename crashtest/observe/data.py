"""Calls that change what files hold: writes, copies inside the kernel, sizes, and shared mappings.

Guarantees: a write is an event with its bytes and its offset, followed by the sync that its descriptor or its flags
make of it; what the kernel moves or makes is read back from the file. Does not see exit values: a write that changed
neither the size nor (for another thread) the content is taken as done, and the record's proof is the judge of that.
The size before a write is the record's own, so a change that no recorded call made shows in that proof too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial

from crashtest.observe.finding import Call, Finder, Message, Pending, number, signed
from crashtest.observe.places import AT_FDCWD, State
from crashtest.trace import Op

_KEEP_SIZE, _PUNCH, _ZERO = 0x01, 0x02, 0x10
#: flags of one pwritev2(2)
_RWF_DSYNC, _RWF_SYNC, _RWF_APPEND, _RWF_NOAPPEND = 0x02, 0x04, 0x10, 0x20
_WRITABLE = os.O_WRONLY | os.O_RDWR
_APPEND = os.O_APPEND
_DSYNC = os.O_DSYNC
_SYNC = os.O_SYNC & ~os.O_DSYNC  # the bit that O_SYNC has and O_DSYNC has not
_MAP_LIMIT = 64 << 20
_WRITE_LIMIT = 1 << 30

#: (address, size)
Part = tuple[int, int]


class Data:
    """Decodes calls on contents. channels: inode numbers of the harness's own pipes -> what they are."""

    def __init__(self, finder: Finder, channels: dict[int, str]) -> None:
        self.finder = finder
        self.state = finder.state
        self.processes = finder.processes
        self.channels = channels
        #: files mapped shared and writable, compared at each stop
        self.mapped: set[int] = set()

    # -- writes ------------------------------------------------------------------------------------------------

    def _vector(self, call: Call) -> list[Part]:
        return self.processes.vector(call.tid, call.args[1], call.args[2])

    def _pwritev2(self, call: Call) -> Pending | Message | None:
        offset = None if signed(call.args[3]) == -1 else signed(call.args[3])
        return self._written(call, self._vector(call), offset, call.args[5])

    def _written(self, call: Call, parts: list[Part], offset: int | None, rwf: int = 0) -> Pending | Message | None:
        """A write of `parts`, at `offset` or where the file stands. rwf: flags of pwritev2(2)."""
        thread, fd, state = call.tid, call.args[0] & 0xFFFFFFFF, self.state
        position, flags, mount, inode = self.processes.opened(thread, fd)
        if not flags & _WRITABLE:
            return None
        file = state.regular(mount, inode)
        if file is None:
            info = self.processes.descriptor(thread, fd)
            kind = stat.S_IFMT(info.st_mode)
            if kind == stat.S_IFIFO and info.st_ino in self.channels:
                return Message(self.channels[info.st_ino], self._bytes(thread, parts))
            file = self.finder.open_file(call, fd, info) if kind == stat.S_IFREG else None
            if file is None:
                return None
            state.learn(mount, inode, info)
        before = state.shadow.size(file)
        if (flags & _APPEND and not rwf & _RWF_NOAPPEND) or rwf & _RWF_APPEND:
            offset = before
        elif offset is None:
            offset = position
        if offset < 0:
            return None
        data = self._bytes(thread, parts)
        if not data:
            if _size(parts) > _WRITE_LIMIT:
                self.finder.cannot(f"{call.name} of more than {_WRITE_LIMIT} bytes at once")
            return None
        op = call.write(file, state.path(file), offset, data)
        synced = _synced(flags, rwf) if flags & _DSYNC or rwf else ""
        return Pending(call, op, partial(self._wrote, op, before, synced), fd)

    def _wrote(self, op: Op, before: int, synced: str, strict: bool) -> list[Op]:
        """What a write has made of a file that had `before` bytes. synced: the sync that comes with it, or ""."""
        made, end = op, op.offset + len(op.data)
        if end > before:
            now = self.state.stat(op.file)
            if now is not None and now.st_size < end:
                done = now.st_size - op.offset
                if done <= 0 or now.st_size <= before:
                    return []
                made = op._replace(data=op.data[:done])
        if strict and made is op:
            content = self.state.read(op.file)
            if content is not None and content[op.offset : end] != op.data:
                return []
        return [made, _sync_of(made, synced)] if synced else [made]

    def _bytes(self, thread: int, parts: list[Part]) -> bytes:
        """What lies there; nothing, when it is more than one write may have."""
        if len(parts) == 1 and parts[0][1] <= _WRITE_LIMIT:
            return self.processes.read(thread, *parts[0])
        if _size(parts) > _WRITE_LIMIT:
            return b""
        return b"".join([self.processes.read(thread, address, size) for address, size in parts])

    # -- what the kernel moves or makes ------------------------------------------------------------------------

    def _copied(self, call: Call, fd: int) -> Pending | None:
        """A call that moves bytes inside the kernel: what it wrote is read back from the file."""
        info = self.processes.descriptor(call.tid, number(fd))
        file = self.finder.open_file(call, fd, info) if stat.S_ISREG(info.st_mode) else None
        if file is None:
            return None
        return self._read_back(call, file, fd, _synced(self.processes.opened(call.tid, number(fd))[1]))

    def _read_back(self, call: Call, file: int, fd: int, synced: str = "") -> Pending:
        """What the call writes is known only afterwards: from the file, by its name or else by its descriptor."""
        unnamed = f"/proc/{call.tid}/fd/{number(fd)}"

        def confirm(strict: bool) -> list[Op]:
            made = self.compare(file, call, unnamed)
            if synced:
                made += [_sync_of(op, synced) for op in made if op.kind == "write"]
            return made

        return Pending(call, call.op("write", file, path=self.finder.path(file)), confirm)

    def compare(self, file: int, call: Call, unnamed: str = "") -> list[Op]:
        """The events that turn the recorded content of `file` into what is on disk now.

        unnamed: another way to the file, for one that has no name.
        """
        content = self.state.read(file)
        if content is None:
            content = _read_if_same(unnamed, self.state, file)
        if content is None:
            return []
        old = self.state.shadow.content(file)
        path = self.state.path(file)
        events: list[Op] = []
        if len(content) < len(old):
            events.append(call.op("truncate", file, size=len(content), path=path))
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
            events.append(call.write(file, path, first, content[first:last]))
        return events

    # -- sizes -------------------------------------------------------------------------------------------------

    def resized(self, call: Call, file: int, size: int) -> Pending | None:
        """A call that gives a file a size; None when it has it, or the size is none."""
        if size == self.state.shadow.size(file) or size < 0:
            return None
        op = call.op("truncate", file, size=size, path=self.finder.path(file))

        def confirm(strict: bool) -> list[Op]:
            now = self.state.stat(file)
            return [op] if now is None or now.st_size == size else []

        return Pending(call, op, confirm)

    def _truncated(self, call: Call, file: int | None) -> Pending | None:
        return None if file is None else self.resized(call, file, signed(call.args[1]))

    def _fallocate(self, call: Call) -> Pending | None:
        file = self.finder.open_file(call, call.args[0])
        if file is None:
            return None
        mode, offset, length = call.args[1] & 0xFFFFFFFF, signed(call.args[2]), signed(call.args[3])
        size = self.state.shadow.size(file)
        if mode & ~(_KEEP_SIZE | _PUNCH | _ZERO):
            self.finder.cannot(f"fallocate with mode {mode:#x} on {self.finder.path(file)}")
            return None
        end = offset + length
        if mode & (_PUNCH | _ZERO):
            end = min(end, size) if mode & _KEEP_SIZE else end
            return self._read_back(call, file, call.args[0]) if end > offset else None
        if mode & _KEEP_SIZE or end <= size:
            return None
        op = call.op("allocate", file, size=end, path=self.finder.path(file))

        def confirm(strict: bool) -> list[Op]:
            now = self.state.stat(file)
            return [op] if now is None or now.st_size >= end else []

        return Pending(call, op, confirm)

    # -- mappings ----------------------------------------------------------------------------------------------

    def _mmap(self, call: Call) -> None:
        fd = number(call.args[4])
        if fd == 0xFFFFFFFF:
            return
        info = self.processes.descriptor(call.tid, fd)
        file = self.state.file(info)
        if file is None:
            path = self.processes.path(call.tid, fd)
            if stat.S_ISREG(info.st_mode) and not path.startswith(("/memfd:", "/SYSV", "/dev/shm/sem.")):
                self.finder.elsewhere("mmap", path)
        elif info.st_size > _MAP_LIMIT:
            self.finder.cannot(f"a shared mapping of {self.finder.path(file)}, larger than {_MAP_LIMIT} bytes")
        elif self.state.stat(file) is None:
            self.finder.cannot("a shared mapping of a file without a name")
        else:
            self.mapped.add(file)


HANDLERS: dict[str, Callable[[Data, Call], Pending | Message | None]] = {
    "write": lambda d, c: d._written(c, [(c.args[1], c.args[2])], None),
    "pwrite64": lambda d, c: d._written(c, [(c.args[1], c.args[2])], signed(c.args[3])),
    "writev": lambda d, c: d._written(c, d._vector(c), None),
    "pwritev": lambda d, c: d._written(c, d._vector(c), signed(c.args[3])),
    "pwritev2": Data._pwritev2,
    "sendfile": lambda d, c: d._copied(c, c.args[0]),
    "copy_file_range": lambda d, c: d._copied(c, c.args[2]),
    "splice": lambda d, c: d._copied(c, c.args[2]),
    "ioctl": lambda d, c: d._copied(c, c.args[0]),
    "ftruncate": lambda d, c: d._truncated(c, d.finder.open_file(c, c.args[0])),
    "truncate": lambda d, c: d._truncated(c, d.finder.named_file(c, AT_FDCWD, d.finder.string(c, c.args[0]), True)),
    "fallocate": Data._fallocate,
    "mmap": Data._mmap,
}


def _size(parts: list[Part]) -> int:
    return sum(size for _, size in parts)


def _synced(flags: int, rwf: int = 0) -> str:
    """The kind of sync that a write through a descriptor with these flags brings along ("" for none)."""
    if flags & _SYNC or rwf & _RWF_SYNC:
        return "fsync"
    return "fdatasync" if flags & _DSYNC or rwf & _RWF_DSYNC else ""


def _sync_of(write: Op, kind: str) -> Op:
    return write._replace(kind=kind, size=len(write.data), data=b"")


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
