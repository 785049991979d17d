"""The recorder: turns the stops of one run into its trace, call by call.

Guarantees: events stand in the order in which their effects became visible; at most one change of the whole process
tree is under way at a time, because the next one is held until the first is on disk or its thread has moved on; a
sync is at its place, because it is answered for the kernel and takes no time (docs/adr/0013). The recorder keeps its
own picture of the state (`Shadow`); comparing that with the disk is the record's proof of itself.
"""

from __future__ import annotations

from typing import Protocol

from crashtest.observe.calls import Calls
from crashtest.observe.finding import Call, Message, Pending
from crashtest.observe.listener import Stop
from crashtest.observe.places import Shadow, State
from crashtest.observe.process import Processes, alive
from crashtest.trace import SYNCS, Ack, Event, Op, Step, Trace

#: kinds that give a file that has a path another one
_RENAMING = frozenset({"exchange", "link", "rename"})
_NOBODY = Stop(0, -1, -1, 0)


class Recorded(Shadow, Protocol):
    """What the recorder needs of the state in memory besides reading it."""

    def apply(self, op: Op) -> None: ...


class Recorder:
    """Records one run over the state directory `root`, whose files have the ids in `inodes` (inode -> id).

    channels: inode numbers of the harness's own pipes -> "ack", "step" or "quiet".
    """

    def __init__(self, root: str, shadow: Recorded, inodes: dict[int, int], channels: dict[int, str]) -> None:
        self.shadow = shadow
        self.state = State(root, shadow, inodes)
        self.processes = Processes()
        self.calls = Calls(self.state, self.processes, channels)
        self._mapped_files = self.calls.data.mapped
        self.events: list[Event] = []
        self.acks = 0
        #: the change that has been let go and not been confirmed
        self._flight: Pending | None = None
        self._threads: dict[int, int] = {}

    def close(self) -> None:
        self.state.close()
        self.processes.close()

    def thread_number(self, thread: int) -> int:
        known = self._threads.get(thread)
        if known is None:
            known = self._threads[thread] = len(self._threads)
        return known

    def ready(self, stop: Stop, give_up: bool = False) -> bool:
        """Settle what is under way, so that `stop` can be decoded. False: another thread's change is still on its
        way; hold this stop and ask again (`give_up`: take that change as failed)."""
        flight = self._flight
        if flight is not None:
            own = flight.stop.thread == stop.thread
            # ask first whether it is over and then look: the other way round a call that ends in between is missed
            over = own or give_up or not self._under_way(flight.stop)
            made = flight.confirm(not own)
            if not made and not over:
                return False
            self._flight = None
            self._append(made)
        if self._mapped_files:
            self._mapped(stop)
        return True

    def _mapped(self, stop: Stop) -> None:
        """Enter what was stored into shared mappings; no thread is known to have done it."""
        for file in sorted(self._mapped_files):
            call = Call(stop, "mmap", -1, "a store into a shared mapping", len(self.events))
            self._append(self.calls.data.compare(file, call))

    def decode(self, stop: Stop, where: str) -> Pending | Message | None:
        """What the call is about to do. where: the place in the program, for its events."""
        thread = self._threads.get(stop.thread)
        if thread is None:
            thread = self.thread_number(stop.thread)
        return self.calls.decode(stop, thread, where, len(self.events))

    def let_go(self, pending: Pending) -> None:
        """A change has been answered with 'continue'."""
        self._flight = pending

    def synced(self, pending: Pending) -> None:
        """A sync has been answered as done."""
        self._append(pending.confirm(False))

    def step(self, stop: Stop, data: bytes, where: str) -> None:
        name = data.decode("utf-8", "replace").rstrip("\n")
        self.events.append(Step(name, self.thread_number(stop.thread), where))

    def ack(self, stop: Stop, lines: list[bytes], where: str) -> None:
        for line in lines:
            self.acks += 1
            text = line[1:].decode("utf-8", "replace")
            self.events.append(Ack(self.acks, line[:1] == b"1", text, self.thread_number(stop.thread), where))

    def torn(self, pending: Pending, size: int) -> None:
        """A prefix of `size` bytes of a write went through."""
        self._append([pending.op._replace(data=pending.op.data[:size])])

    def finish(self) -> Trace:
        """All processes are gone: settle what was under way. The trace."""
        if self._flight is not None:
            flight, self._flight = self._flight, None
            self._append(flight.confirm(True))
        self._mapped(_NOBODY)
        return Trace(self.events, self.calls.finder.outside, self.calls.finder.unmodelled)

    def _append(self, ops: list[Op]) -> None:
        for op in ops:
            kind = op[0]
            self.shadow.apply(op)
            if kind in _RENAMING:
                self.state.renamed()
            elif kind in SYNCS and ops[0].changes:
                self.events.append(op._replace(began=len(self.events)))  # the write that it comes with is covered
                continue
            self.events.append(op)

    def _under_way(self, stop: Stop) -> bool:
        """Whether the thread may still be inside the call it was let into."""
        words = self.processes.current_call(stop.thread).split(None, 1)
        if words and words[0] == b"running":
            return alive(stop.thread)
        return bool(words) and words[0] == b"%d" % stop.number
