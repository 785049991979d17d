"""Calls that make changes durable: fsync and its kind, and msync.

Guarantees: a call that must fail makes no event: on a descriptor that is not open, that was opened with O_PATH, or
that is no plain file or directory of the state, or with arguments that are refused. Any other sync succeeds, as if the
disk never reported an error: the supervisor answers it, and the kernel does nothing. Of msync(2), what is mapped shared
and writable at that moment counts; a mapping made read-only before it was synced does not.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable

from crashtest.observe.finding import Call, Finder, Pending, Sync, number, signed
from crashtest.observe.listener import Stop
from crashtest.trace import PAGE, Op

_ALL_SYNC_FLAGS = 0x07  # SYNC_FILE_RANGE_WAIT_BEFORE, _WRITE, _WAIT_AFTER
_MS_ASYNC, _MS_INVALIDATE, _MS_SYNC = 1, 2, 4


class Syncs:
    """Decodes syncs."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder
        self.state = finder.state

    def _synced(self, call: Call) -> int | None:
        """The file of the state that the descriptor can sync."""
        fd = number(call.args[0])
        _, flags, mount, inode = self.finder.processes.opened(call.tid, fd)
        if flags & os.O_PATH:
            return None
        file = self.state.regular(mount, inode)
        if file is None:
            info = self.finder.processes.descriptor(call.tid, fd)
            file = self.state.file(info) if stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode) else None
        return file

    def _file(self, call: Call) -> Pending | None:
        file = self._synced(call)
        return None if file is None else _done(call, [call.op(call.name, file, path=self.finder.path(file))])

    def _range(self, call: Call) -> Pending | None:
        file, offset, size = self._synced(call), signed(call.args[1]), signed(call.args[2])
        if file is None or offset < 0 or size < 0 or offset + size >= 1 << 63 or call.args[3] & ~_ALL_SYNC_FLAGS:
            return None
        path = self.finder.path(file)
        return _done(call, [call.op("sync_file_range", file, offset=offset, size=size, path=path)])

    def _file_system(self, call: Call) -> Pending | None:
        fd = number(call.args[0])
        if self.finder.processes.opened(call.tid, fd)[1] & os.O_PATH:
            return None
        info = self.finder.processes.descriptor(call.tid, fd)
        return _done(call, [call.op("syncfs")]) if info.st_dev == self.state.device else None

    def _msync(self, call: Call) -> Pending | None:
        """A sync for each part of a file of the state that is mapped there."""
        first, flags = call.args[0], call.args[2] & 0xFFFFFFFF
        end = first + -(-call.args[1] // PAGE) * PAGE
        if first % PAGE or flags & ~(_MS_INVALIDATE | _MS_SYNC) or not flags & _MS_SYNC or end >= 1 << 64:
            return None
        ops = []
        for start, stop, at, file in self._mapped(call.tid):
            low, high = max(start, first), min(stop, end)
            if low < high:
                path = self.finder.path(file)
                ops.append(call.op("msync", file, offset=at + low - start, size=high - low, path=path))
        return _done(call, ops) if ops else None

    def _mapped(self, thread: int) -> list[tuple[int, int, int, int]]:
        """(first address, end, offset in the file, file id) of what is mapped shared and writable (proc(5), maps)."""
        found = []
        device = f"{os.major(self.state.device):02x}:{os.minor(self.state.device):02x}"
        try:
            with open(f"/proc/{thread}/maps", encoding="utf-8", errors="surrogateescape") as maps:
                for line in maps:
                    span, rights, offset, on, inode, *path = line.split(None, 5)
                    file = self.state.inodes.get(int(inode)) if rights[1::2] == "ws" else None
                    # some file systems show another device here than to stat(2); the path tells as well
                    if file is not None and (on == device or (path and path[0].startswith(f"{self.state.root}/"))):
                        first, _, end = span.partition("-")
                        found.append((int(first, 16), int(end, 16), int(offset, 16), file))
        except OSError:
            pass
        return found


def time_sync(stop: Stop, kind: str) -> float | None:
    """Make the fsync or fdatasync of a stopped thread in its place, on the same file; the seconds it took.

    None for other calls, and when the file cannot be opened for reading.
    """
    make = {"fsync": os.fsync, "fdatasync": os.fdatasync}.get(kind)
    if make is None:
        return None
    try:
        fd = os.open(f"/proc/{stop.thread}/fd/{number(stop.args[0])}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        began = time.perf_counter()
        make(fd)
        return time.perf_counter() - began
    except OSError:
        return None
    finally:
        os.close(fd)


HANDLERS: dict[str, Callable[[Syncs, Call], Pending | None]] = {
    "fsync": Syncs._file,
    "fdatasync": Syncs._file,
    "sync_file_range": Syncs._range,
    "syncfs": Syncs._file_system,
    "sync": lambda s, c: _done(c, [c.op("sync")]),
    "msync": Syncs._msync,
}


def _done(call: Call, ops: list[Op]) -> Sync:
    return Sync(call, ops[0], lambda strict: ops)
