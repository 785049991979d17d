"""The recorder: turns the stops of one run into its trace, call by call.

Guarantees: events stand in the order in which their effects became visible; at most one change of the whole process
tree is under way at a time, because the next one is held until the first is on disk or its thread has moved on; a
sync is recorded when its thread stops again (a sync in flight covers nothing). The recorder keeps its own picture of
the state (`Shadow`); comparing that with the disk is the record's proof of itself.
"""

from __future__ import annotations

from typing import Protocol

from crashtest.observe.calls import Calls, Message, Pending
from crashtest.observe.listener import Stop
from crashtest.observe.places import Shadow, State
from crashtest.observe.process import Processes, alive
from crashtest.trace import SYNCS, Ack, Event, Op, Step, Trace


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
        self.events: list[Event] = []
        self.acks = 0
        self._flight: Pending | None = None
        self._flight_where = ""
        self._syncs: dict[int, tuple[Pending, int, str]] = {}
        self._threads: dict[int, int] = {}
        self._began = 0

    def close(self) -> None:
        self.state.close()
        self.processes.close()

    def thread_number(self, thread: int) -> int:
        return self._threads.setdefault(thread, len(self._threads))

    def ready(self, stop: Stop, give_up: bool = False) -> bool:
        """Settle what is under way, so that `stop` can be decoded. False: another thread's change is still on its
        way; hold this stop and ask again (`give_up`: take that change as failed)."""
        waiting = self._syncs.pop(stop.thread, None)
        if waiting is not None:
            pending, began, where = waiting
            self._append(pending.confirm(False), pending.stop.thread, where, began)
        flight = self._flight
        if flight is not None:
            own = flight.stop.thread == stop.thread
            # ask first whether it is over and then look: the other way round a call that ends in between is missed
            over = own or give_up or not _under_way(flight.stop)
            made = flight.confirm(not own)
            if not made and not over:
                return False
            self._flight = None
            self._append(made, flight.stop.thread, self._flight_where, self._began)
        self._mapped()
        return True

    def _mapped(self) -> None:
        for file in sorted(self.calls.mapped):
            self._append(self.calls.compare(file, "mmap"), -1, "a store into a shared mapping", len(self.events))

    def decode(self, stop: Stop) -> Pending | Message | None:
        return self.calls.decode(stop)

    def let_go(self, pending: Pending, where: str) -> None:
        """The call is about to be answered with 'continue'."""
        if pending.op.kind in SYNCS:
            self._syncs[pending.stop.thread] = (pending, len(self.events), where)
        else:
            self._flight, self._flight_where, self._began = pending, where, len(self.events)

    def step(self, stop: Stop, data: bytes, where: str) -> None:
        name = data.decode("utf-8", "replace").rstrip("\n")
        self.events.append(Step(name, self.thread_number(stop.thread), where))

    def ack(self, stop: Stop, data: bytes, where: str) -> None:
        for line in data.splitlines():
            self.acks += 1
            text = line[1:].decode("utf-8", "replace")
            self.events.append(Ack(self.acks, line[:1] == b"1", text, self.thread_number(stop.thread), where))

    def torn(self, pending: Pending, size: int, where: str) -> None:
        """A prefix of `size` bytes of a write went through."""
        op = pending.op._replace(data=pending.op.data[:size])
        self._append([op], pending.stop.thread, where, len(self.events))

    def finish(self, killed: bool) -> Trace:
        """All processes are gone: settle what was under way. The trace."""
        if self._flight is not None:
            flight, self._flight = self._flight, None
            self._append(flight.confirm(True), flight.stop.thread, self._flight_where, self._began)
        if not killed:
            for pending, began, where in self._syncs.values():
                self._append(pending.confirm(False), pending.stop.thread, where, began)
        self._syncs.clear()
        self._mapped()
        return Trace(self.events, self.calls.outside, self.calls.unmodelled)

    def _append(self, ops: list[Op], thread: int, where: str, began: int) -> None:
        number = self.thread_number(thread) if thread >= 0 else -1
        for op in ops:
            placed = op._replace(thread=number, where=where, began=began)
            self.shadow.apply(placed)
            self.events.append(placed)


def _under_way(stop: Stop) -> bool:
    """Whether the thread may still be inside the call it was let into (proc(5), /proc/PID/syscall)."""
    try:
        with open(f"/proc/{stop.thread}/syscall", "rb") as file:
            words = file.read().split()
    except OSError:
        return False
    if words and words[0] == b"running":
        return alive(stop.thread)
    return bool(words) and words[0] == str(stop.number).encode()
