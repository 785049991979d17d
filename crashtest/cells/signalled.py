"""A run that is ended by a signal which the program may handle: who gets it, what stopped calls are told, what follows.

Guarantees: every process group of the run gets the signal at once, as from a service manager or a terminal, and what
only starts the program does not. A call that was stopped when the signal came is made anew after a handler has run, as
if the signal had come just before it, and is not made at all where the signal ends the program; a program that ignores
the signal goes on with it. A call of a thread that does not take the signal, because another one does or because it
blocks it, waits until nothing more has come for a while (`QUIET`), so that what is done about the signal is done first
and with what was there. Needs a kernel that keeps signals back from stopped threads (`bpf.holds_signals`).

Does not try the other order of two threads. A group that is made at the very moment of the signal may be passed over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

from crashtest.observe import bpf
from crashtest.observe.process import Processes, alive

#: how long nothing may come before a call goes on whose thread did not take the signal, in seconds
QUIET = 0.2
_EXECS = frozenset(number for number, name in bpf.call_names().items() if name.startswith("exec"))


class Grace:
    """The time from the signal to the end of the run.

    number: the signal. worker: the run's first process; driven: it only starts the program, so that it gets no signal,
    and starts nothing more. left: what the run has left behind, when asked. seconds: how long all of it may take.
    """

    def __init__(
        self,
        number: int,
        worker: int,
        driven: bool,
        processes: Processes,
        left: Callable[[], list[int]],
        seconds: float,
    ) -> None:
        self._number = number
        self._worker = worker
        self._driven = driven
        self._processes = processes
        self._left = left
        self.until = time.monotonic() + seconds
        self._had = self._all()
        self._groups = self._groups_of(self._had)
        #: the worker has begun to start something more, which waits
        self.ahead = 0

    def send(self) -> None:
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, self._number)

    def what_of(self, thread: int) -> str:
        """What becomes of a stopped call (asked before `send`): "anew" where its thread runs a handler first, or ends;
        "aside" where another thread may take the signal; "on" where nobody does."""
        process = self._processes.owner(thread)
        if process not in self._had or not self._groups & self._groups_of({process}):
            return "on"
        bit = 1 << (self._number - 1)
        blocked, caught, ignored = self._processes.signals(thread)
        if ignored & bit:
            return "on"
        # of several threads that do not block it the first one takes it; blocked, it may be waited for (sigwait(3))
        return "aside" if blocked & bit or (caught & bit and thread != process) else "anew"

    def comes_after(self, thread: int, call: int) -> bool:
        """Whether the worker is about to start something more: the signal has ended what it was there for."""
        process = self._processes.owner(thread)
        if not self._driven or call not in _EXECS or process in self._had:
            return False
        if process not in self._processes.children(self._worker):
            return False
        self.ahead = process
        return True

    def outlasted(self) -> list[str]:
        """The programs that have not ended."""
        but = {self.ahead, self._worker if self._driven else 0}
        return [self._processes.program(pid) for pid in sorted(self._all() - but) if alive(pid)]

    def _all(self) -> set[int]:
        """The processes of the run."""
        found, found_last = set[int](), {self._worker, *self._left()}
        while found_last - found:
            found |= found_last
            found_last = {child for pid in found for child in self._processes.children(pid)}
        return found

    def _groups_of(self, processes: set[int]) -> set[int]:
        """Their process groups, without that of a worker which only starts the program, and this process's own."""
        groups = set()
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                groups.add(os.getpgid(pid))
        return groups - {os.getpgrp(), *([self._worker] if self._driven else [])}


def number_of(name: str) -> int:
    """The number of a signal by its name (`scenario.SIGNALS`)."""
    return int(signal.Signals[f"SIG{name}"])
