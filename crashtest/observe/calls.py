"""From a stopped call to the change it is about to make, and from the disk afterwards to the change it made.

Guarantees: each call that the filter stops (`bpf.py`) is decoded in one room: `data.py`, `names.py`, `attributes.py`,
`syncs.py`, or here, where it changes no file itself. A call's effect is confirmed on disk when its thread stops
again, not predicted: a call that failed makes no event (setting times, and syncs, are taken as done). What is known
to change files but cannot be put into an event is listed as unmodelled, so that the verdict becomes inconclusive.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from crashtest.observe import attributes, bpf, data, names, privilege, syncs
from crashtest.observe.attributes import Attributes
from crashtest.observe.data import Data
from crashtest.observe.finding import Call, Finder, Message, Pending, number
from crashtest.observe.listener import Stop
from crashtest.observe.names import Names
from crashtest.observe.places import AT_FDCWD, State, absolute
from crashtest.observe.process import Gone, Processes
from crashtest.observe.syncs import Syncs

#: what decodes a call in its room
Handler = Callable[[Any, Call], Pending | Message | None]


class Calls:
    """Decodes the stops of one run. `channels` maps a pipe's inode number to what it is."""

    def __init__(self, state: State, processes: Processes, channels: dict[int, str]) -> None:
        self.finder = finder = Finder(state, processes)
        self.data = Data(finder, channels)
        #: in the order of `_TABLES`
        self._rooms = (self.data, Names(finder, self.data.resized), Attributes(finder), Syncs(finder), self)
        self._decoders = _decoders()
        self._arch = bpf.native_arch()

    def decode(self, stop: Stop, thread: int, where: str, began: int) -> Pending | Message | None:
        """What the stopped call is about to do to the state; None when nothing.

        thread, where, began: what its events are to say (`trace.Op`).
        """
        known = self._decoders.get(stop.number)
        if known is None or stop.arch != self._arch:
            by = self.finder.by(Call(stop, "", thread, where, began))
            self.finder.cannot(f"calls of a foreign (32-bit or x32) architecture{by}")
            return None
        name, handler, room = known
        try:
            return handler(self._rooms[room], Call(stop, name, thread, where, began))
        except Gone:
            return None

    # -- what changes no file of the state itself --------------------------------------------------------------

    def _exec(self, call: Call) -> None:
        try:
            self._unprivileged(call)
        finally:
            self.finder.processes.forget(call.tid)

    def _unprivileged(self, call: Call) -> None:
        """A program that observation takes a privilege from is not the program that it would be."""
        at, name = (call.args[0], call.args[1]) if call.name == "execveat" else (AT_FDCWD, call.args[0])
        path = self.finder.string(call, name)
        full = absolute(call.tid, at, path) if path else f"/proc/{call.tid}/fd/{number(at)}"
        lost = privilege.lost_at_exec(full, call.tid, self.finder.processes)
        if lost:
            shown = path or self.finder.processes.path(call.tid, number(at))
            self._cannot(call, f"{shown} runs under observation without being {lost}")

    def _io_uring(self, call: Call) -> None:
        if privilege.io_uring_allowed():  # else the call fails, and what the program does instead is recorded
            self._cannot(call, "io_uring, whose writes cannot be recorded")

    def _leads_elsewhere(self, call: Call) -> None:
        """Names mean other files from here on than they do for the supervisor, unless the call is refused."""
        needed = privilege.CAP_SYS_CHROOT if call.name == "chroot" else privilege.CAP_SYS_ADMIN
        if self.finder.processes.identity(call.tid)[2] & (1 << needed):
            self._cannot(call, f"{call.name}, after which names lead to other files")

    def _cannot(self, call: Call, words: str) -> None:
        self.finder.cannot(f"{words}{self.finder.by(call)}")


HANDLERS: dict[str, Callable[[Calls, Call], None]] = {
    "execve": Calls._exec,
    "execveat": Calls._exec,
    "io_uring_setup": Calls._io_uring,
    "io_submit": lambda o, c: o._cannot(c, "native asynchronous I/O, whose writes are not recorded"),
    **dict.fromkeys(("mount", "umount2", "move_mount", "pivot_root", "chroot", "setns"), Calls._leads_elsewhere),
    "flock": lambda o, c: None,
    "fcntl": lambda o, c: None,
}
_TABLES: list[Mapping[str, Handler]] = [
    data.HANDLERS, names.HANDLERS, attributes.HANDLERS, syncs.HANDLERS, HANDLERS,
]  # fmt: skip


@functools.cache
def _decoders() -> dict[int, tuple[str, Handler, int]]:
    """Number of a call -> its name, its decoder, and the room of that; for each call that the filter stops."""
    found = {name: (handler, room) for room, table in enumerate(_TABLES) for name, handler in table.items()}
    return {number: (name, *found[name]) for number, name in bpf.call_names().items()}
