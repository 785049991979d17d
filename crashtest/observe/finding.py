"""What a decoder has in hand: the stopped call, what it is made into, and the way from its arguments to a file.

Guarantees: an event carries its thread, its place in the program and how many events were there before it from the
moment it is made. What changes files elsewhere, or in a way that is not modelled, is noted here once and ends up in
the trace. Does not change anything and keeps no call.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

from crashtest.observe.listener import Stop
from crashtest.observe.places import Place, State, absolute
from crashtest.observe.process import Processes
from crashtest.trace import Op

Confirm = Callable[[bool], list[Op]]
_new = tuple.__new__  # what `Op` calls, once it has sorted out its keywords


class Call:
    """A call that has stopped. thread, where, began: what its events say (`trace.Op`)."""

    __slots__ = ("args", "began", "name", "stop", "thread", "tid", "where")

    def __init__(self, stop: Stop, name: str, thread: int, where: str, began: int) -> None:
        self.stop = stop
        self.tid = stop.thread
        self.args = stop.args
        self.name = name
        self.thread = thread
        self.where = where
        self.began = began

    def op(self, kind: str, file: int = -1, **more: Any) -> Op:
        """An event of this call; more: the other fields of `trace.Op`."""
        return Op(
            kind, file, call=self.name, thread=self.thread, where=self.where, began=self.began, **more
        )  # fmt: skip

    def write(self, file: int, path: str, offset: int, data: bytes) -> Op:
        """The event of a write: by far the most frequent one, so it is made the short way."""
        return _new(Op, (
            "write", file, -1, "", -1, "", offset, 0, data, 0, -1, -1, "", self.name, self.thread, self.where, path, "",
            self.began,
        ))  # fmt: skip

    def at(self, kind: str, place: Place, file: int = -1, **more: Any) -> Op:
        """An event of this call on a name."""
        return self.op(kind, file, dir=place.dir, name=place.name, path=place.path, **more)


class Pending:
    """A call that has been let go and not been confirmed.

    op: the change predicted (its file id may be missing). confirm(strict): the events it made, read from the disk;
    strict compares contents too, for a call that may still be under way. fd: the descriptor written to, or -1.
    """

    __slots__ = ("confirm", "fd", "op", "stop")

    def __init__(self, call: Call, op: Op, confirm: Confirm, fd: int = -1) -> None:
        self.stop = call.stop
        self.op = op
        self.confirm = confirm
        self.fd = fd


class Sync(Pending):
    """A sync: it is answered as done, and not let go."""

    __slots__ = ()


class Message:
    """A write to one of the harness's own pipes: `channel` is "ack", "step" or "quiet"."""

    __slots__ = ("channel", "data")

    def __init__(self, channel: str, data: bytes) -> None:
        self.channel = channel
        self.data = data


def signed(value: int) -> int:
    """A raw 64-bit argument as a signed number."""
    return value - (1 << 64) if value >> 63 else value


def number(value: int) -> int:
    """A raw argument as a descriptor's number."""
    return value & 0xFFFFFFFF


def lstat(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


class Finder:
    """From the arguments of a call to files of the state; `outside` and `unmodelled` are what a trace says of them."""

    def __init__(self, state: State, processes: Processes) -> None:
        self.state = state
        self.processes = processes
        self.outside: list[str] = []
        self.unmodelled: list[str] = []

    # -- what is noted -----------------------------------------------------------------------------------------

    def cannot(self, words: str) -> None:
        """Something changes files in a way that is not modelled."""
        if words not in self.unmodelled:
            self.unmodelled.append(words)

    def elsewhere(self, call: str, path: str) -> None:
        """A change outside the state. The output, HOME and TMPDIR are the harness's own; semaphores are no files."""
        bench = os.path.dirname(self.state.root)
        if path == f"{bench}/output" or path.startswith((f"{bench}/home/", f"{bench}/tmp/", "/dev/shm/sem.")):
            return
        words = f"{call} {path}"
        if words not in self.outside:
            self.outside.append(words)

    def by(self, call: Call) -> str:
        return f", by {self.processes.program(call.tid)[:60]}"

    # -- finding the file --------------------------------------------------------------------------------------

    def string(self, call: Call, address: int) -> str:
        return self.processes.string(call.tid, address)

    def path(self, file: int) -> str:
        """A file's name as events show it."""
        return self.state.path(file)

    def open_file(self, call: Call, fd: int, info: os.stat_result | None = None) -> int | None:
        """The file id of a descriptor on a file of the state; anything else is noted and gives None.

        info: its fstat, when that is known. Raises `Gone` when it is not open.
        """
        if info is None:
            info = self.processes.descriptor(call.tid, number(fd))
        file = self.state.file(info)
        if file is None and (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
            path = self.processes.path(call.tid, number(fd))
            if path.startswith(self.state.root + "/") and stat.S_ISREG(info.st_mode):
                self.cannot(f"{call.name} on {path}, a file that no recorded call made")
            elif not path.startswith("/memfd:"):
                self.elsewhere(call.name, path)
        return file

    def named_file(self, call: Call, directory: int, path: str, follow: bool) -> int | None:
        """The file id a path leads to, or None (noted when it is a file elsewhere)."""
        full = absolute(call.tid, directory, path)
        try:
            info = os.stat(full) if follow else os.lstat(full)
        except OSError:
            return None
        file = self.state.file(info)
        if file is None and not (full.startswith("/proc/") and stat.S_ISCHR(info.st_mode)):
            self.elsewhere(call.name, os.path.realpath(full))
        return file

    def place(self, call: Call, directory: int, address: int, follow: bool = False) -> Place | str | None:
        """Where a name argument leads (`State.place`)."""
        return self.state.place(call.tid, directory, self.string(call, address), follow)
