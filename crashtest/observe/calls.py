"""From a stopped call to the change it is about to make, and from the disk afterwards to the change it made.

Guarantees: each call that the filter stops (`bpf.py`) is decoded in one room: `data.py`, `names.py`, `attributes.py`,
`syncs.py`, or here, where it changes no file itself. A call's effect is confirmed on disk when its thread stops
again, not predicted: a call that failed makes no event (setting times, and syncs, are taken as done). What is known
to change files but cannot be put into an event is listed as unmodelled, so that the verdict becomes inconclusive.
"""

from __future__ import annotations

from crashtest.observe import bpf
from crashtest.observe.attributes import Attributes
from crashtest.observe.data import Data
from crashtest.observe.finding import Call, Finder, Handler, Message, Pending
from crashtest.observe.listener import Stop
from crashtest.observe.names import Names
from crashtest.observe.places import State
from crashtest.observe.process import Gone, Processes
from crashtest.observe.syncs import Syncs

_FOREIGN: tuple[str, Handler | None] = ("", None)


class Calls:
    """Decodes the stops of one run. `channels` maps a pipe's inode number to what it is."""

    def __init__(self, state: State, processes: Processes, channels: dict[int, str]) -> None:
        self.finder = finder = Finder(state, processes)
        self.data = data = Data(finder, channels)
        handlers = {
            **data.handlers(),
            **Names(finder, data.resized).handlers(),
            **Attributes(finder).handlers(),
            **Syncs(finder).handlers(),
            **self._handlers(),
        }
        self._by_number = {number: (name, handlers[name]) for number, name in bpf.call_names().items()}
        self._arch = bpf.native_arch()

    def decode(self, stop: Stop, thread: int, where: str, began: int) -> Pending | Message | None:
        """What the stopped call is about to do to the state; None when nothing.

        thread, where, began: what its events are to say (`trace.Op`).
        """
        name, handler = self._by_number.get(stop.number, _FOREIGN)
        call = Call(stop, name, thread, where, began)
        if handler is None or stop.arch != self._arch:
            self.finder.cannot(f"calls of a foreign (32-bit or x32) architecture{self.finder.by(call)}")
            return None
        try:
            return handler(call)
        except Gone:
            return None

    # -- what changes no file of the state itself --------------------------------------------------------------

    def _handlers(self) -> dict[str, Handler]:
        cannot, by = self.finder.cannot, self.finder.by
        return {
            "execve": self._exec,
            "execveat": self._exec,
            "io_uring_setup": lambda c: cannot(f"io_uring, whose writes cannot be recorded{by(c)}"),
            "io_submit": lambda c: cannot(f"native asynchronous I/O, whose writes are not recorded{by(c)}"),
            "flock": lambda c: None,
            "fcntl": lambda c: None,
        }

    def _exec(self, call: Call) -> None:
        self.finder.processes.forget(call.tid)
