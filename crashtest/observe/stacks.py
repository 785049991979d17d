"""The code line of each event: a stopped Python thread is made to write its stack, and its call is made anew.

A worker has a signal at which Python's faulthandler writes the stack of the thread that got it into a pipe.
A thread that has stopped is sent this signal and its call is failed with ERESTARTNOINTR: the handler runs, and then the
kernel makes the same call again, at which the whole stack lies in the pipe.

faulthandler writes some eighty small pieces, so these writes must not stop. The pipe's end has one fixed number, and
the filter of a run with stacks lets write(2) to that number pass (`bpf.program`). No file of the program gets it:
while the end is open, the number is taken, and a program that has been started by exec, where it is closed, gets it
only by having more than four thousand files open at once, or by asking for that very number. Such writes would not
be recorded, so that the record would not prove itself, which makes the scenario inconclusive; runs that are killed have
the whole filter. Where the number cannot be had, the end keeps its own and each piece stops.

Guarantees: one thread is asked at a time, so two stacks never mix. A stack that does not fit into the pipe is cut off
at its outer frames. Does not ask programs other than Python: they have no such handler.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import os
import signal
import sys

from crashtest.observe.listener import Stop
from crashtest.observe.process import Gone, Processes

#: the signal at which a worker writes its Python stack to the stack pipe
SIGNAL = int(getattr(signal, "SIGRTMAX", signal.SIGUSR2)) - 1 if sys.platform == "linux" else 0
#: the number of the stack pipe's end in a worker: above the 1,024 that most programs may have open, and low enough
#: that the table of open files, which every fork copies, stays small
DESCRIPTOR = 4095
#: with this error the kernel makes a call anew after the signal's handler has run (linux/errno.h, ERESTARTNOINTR)
RESTART = 513
#: frames of the user's code that are kept: two syncs in one helper are told apart by who called it
FRAMES = 8
_TGKILL = {"x86_64": 234, "aarch64": 131}
_BIT = 1 << (SIGNAL - 1) if SIGNAL else 0

_libc = ctypes.CDLL(None, use_errno=True)


def listen(pipe: int) -> int:
    """Write the stack into `pipe` at the signal, here and in what is forked. Its number from now on (`DESCRIPTOR`)."""
    import resource  # here, because it is a library more that each fork of a zygote would carry along

    os.set_blocking(pipe, False)  # a stack that does not fit is cut off; waiting for a reader would be for ever
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        if 0 <= soft <= DESCRIPTOR:
            resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTOR + 1, hard))
        os.dup2(pipe, DESCRIPTOR, inheritable=False)
        os.close(pipe)
        pipe = DESCRIPTOR
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    faulthandler.register(SIGNAL, file=pipe, all_threads=False)
    return pipe


class Stacks:
    """Asks for stacks, one at a time. pipe: the end to read, which does not block. inode: the pipe's inode number."""

    def __init__(self, pipe: int, inode: int, processes: Processes) -> None:
        self._pipe = pipe
        self._inode = inode
        self._processes = processes
        #: the thread that has been asked and has not stopped again; 0 when there is none
        self.asked = 0
        #: threads of programs that have no such handler, which an exec never brings back
        self._deaf: set[int] = set()
        self._program = os.stat("/proc/self/exe")

    def ask(self, thread: int) -> bool:
        """Send a stopped thread the signal; True when its call must be failed with `RESTART`."""
        if thread in self._deaf:
            return False
        blocked, caught, _ = self._processes.signals(thread)
        if not caught & _BIT or not self._runs_this(thread):
            self._deaf.add(thread)
            return False
        if blocked & _BIT:
            return False
        if _libc.syscall(_TGKILL[os.uname().machine], self._processes.owner(thread), thread, SIGNAL) != 0:
            return False
        self.asked = thread
        return True

    def _runs_this(self, thread: int) -> bool:
        """Whether it is of the program that this process is of: another one may handle the signal in its own way."""
        try:
            return os.path.samestat(os.stat(f"/proc/{thread}/exe"), self._program)
        except OSError:
            return False

    def writes(self, stop: Stop) -> bool:
        """Whether the thread that was asked has stopped to write its stack, and not for its call made anew."""
        try:
            return self._processes.descriptor(stop.thread, stop.args[0] & 0xFFFFFFFF).st_ino == self._inode
        except Gone:
            return False

    def told(self) -> str:
        """The call has been made anew: the code line that the stack gives, "" when no frame is the user's."""
        self.asked = 0
        text = b""
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._pipe, 1 << 16):
                text += data
        return code_line(text.decode("utf-8", "replace"))


_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


def code_line(stack: str) -> str:
    """The innermost frames of the user's code in a stack as faulthandler writes it: "app.py:12 in save < ..."."""
    frames: list[str] = []
    for line in stack.splitlines():
        frame = _frame(line)
        if frame:
            frames.append(frame)
            if len(frames) == FRAMES:
                break
    return " < ".join(frames)


@functools.lru_cache(4096)
def _frame(line: str) -> str:
    """A frame of the user's code, as a person would name it; "" for any other line."""
    head, _, rest = line.strip().partition('File "')
    file, quote, tail = rest.rpartition('", line ')
    if head or not quote:
        return ""
    library = file.startswith(_STDLIB) and "site-packages" not in file
    if file.startswith(_OWN) or library or file.startswith("<"):
        return ""
    number, _, function = tail.partition(" in ")
    file = file.rpartition("/site-packages/")[2]
    shown = os.path.relpath(file) if os.path.isabs(file) and not os.path.relpath(file).startswith("..") else file
    return f"{shown}:{number} in {function}"
