"""The forker: a process between the zygote and its workers that does nothing but fork.

After a fork every page that a process writes to is copied first. The zygote restores, records and compares between
two forks and would pay for some 400 pages each time; the forker touches next to nothing. Guarantees: what a worker
inherits is made once (its pipes, the filter and its listener, its signals, its output), so that no worker has to; a
worker is reaped only when the zygote has heard of its end, so its process id is never another's while the zygote may
signal it; the forker and its worker die with the zygote. One worker at a time; the pipes of one forker are shared by
its workers one after the other, so each has to be gone with all it started before the next.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from crashtest.cells import ending, worker
from crashtest.cells.worker import Body, Pipes
from crashtest.errors import HarnessError, quoted
from crashtest.observe import bpf
from crashtest.observe.listener import Listener, Stop

#: process ids of the forkers of this process, which are nobody's leftovers
forkers: set[int] = set()
#: seconds that a forker may take to start, to fork, or to hear of an end
_PROMPTLY = 60
_LOST = (
    f"the process that forks the workers was killed, or said nothing for {_PROMPTLY} seconds; look for what kills or "
    "stops processes here (memory?), and run again"
)


class BecomeForker(BaseException):
    """Raised in a forked child to leave every frame of the zygote; `serve` is what the child does then.

    Not an error: having left them, a worker can end as an ordinary Python process, which is what "ends normally"
    means, and nothing of the zygote is alive in it.
    """

    def __init__(self, serve: Callable[[], int]) -> None:
        super().__init__()
        self.serve = serve


def become(serve: Callable[[], int]) -> NoReturn:
    """Be a forker; in its workers: end the way a Python program ends, with the worker's exit status."""
    try:
        status = serve()
    except BaseException:
        traceback.print_exc()
        os._exit(70)  # a worker never goes on as its forker
    sys.exit(status)


class Forker:
    """The zygote's end of one. make_body: from a part's name and its texts to what a worker does; called in the forker.

    output: a descriptor for what workers print. program: the filter to run them under, or None. steps: they tell their
    named steps (builtin: Python's own as well). stacks: they write their stacks when asked, and the program lets that
    pass. Descriptors are plain numbers here: an object that is freed late in a
    worker would close the file that the user has under the same number by then. Raises `HarnessError` where the
    filter is refused.
    """

    def __init__(
        self,
        make_body: Callable[[str, list[str]], Body],
        *,
        cwd: str,
        output: int,
        program: bytes | None = None,
        steps: bool = False,
        builtin: bool = False,
        stacks: bool = False,
    ) -> None:
        pairs = [os.pipe() for _ in range(4)]
        self.result, self.ack, self.step, self.stack = (reading for reading, _ in pairs)
        result, ack, step, stack = (writing for _, writing in pairs)
        self.go, self._go = (end.detach() for end in socket.socketpair())
        self._line, line = (end.detach() for end in socket.socketpair())
        self.output = output
        #: without a filter every step and ack waits for the word to go on
        self.blocking = steps and program is None
        self.steps = steps
        self.stacks = stacks
        #: a worker was forked and not all of its run has been cleared away
        self.in_use = False
        self.channels = {
            os.fstat(fd).st_ino: name
            for fd, name in ((ack, "ack"), (step, "step"), (stack, "quiet"), (result, "quiet"))
        }
        self.stack_inode = os.fstat(stack).st_ino
        pipes = Pipes(result, output, ack, step, stack, self._go, self.blocking)
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            forkers.clear()  # they are the zygote's, whatever is closed on the way out of its frames
            raise BecomeForker(lambda: _serve(line, pipes, make_body, cwd, program, steps, builtin, stacks, parent))
        forkers.add(self.pid)
        for fd in (result, ack, step, stack, line):
            os.close(fd)
        for fd in (self.result, self.ack, self.step, self.stack):
            os.set_blocking(fd, False)
        self.listener: Listener | None = None
        #: stops of the worker that came before its process id was known
        self.early: list[Stop] = []
        try:
            self._meet()
        except HarnessError:
            self.close()
            raise

    def _meet(self) -> None:
        """Take the listener over."""
        with socket.socket(fileno=os.dup(self._line)) as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _PROMPTLY, 0))
            try:
                word, fds, _, _ = socket.recv_fds(line, 4096, 1)
            except OSError:
                word, fds = b"", []
        if word[:1] != b"L":
            raise HarnessError(f"the run could not be observed: {quoted(word[1:].decode(), 500)}" if word else _LOST)
        if fds:
            self.listener = Listener(fds[0])

    @property
    def told(self) -> int:
        """Readable when the worker has ended: `ended` then says how."""
        return self._line

    def fork(self, part: str, texts: list[str], end: str) -> int:
        """Start a worker (`worker.live`); its process id. No text may hold a NUL."""
        data = "\0".join([part, end, *texts]).encode()
        data = len(data).to_bytes(8, "little") + data
        self.in_use = True
        os.ftruncate(self.output, 0)
        os.lseek(self.output, 0, os.SEEK_SET)
        try:
            while data:
                data = data[os.write(self._line, data) :]
        except OSError:
            raise HarnessError(_LOST) from None
        self._answer_itself()
        return self._word()

    def _answer_itself(self) -> None:
        """Let the forker's own calls go until it has forked: the user's handlers run there (os.register_at_fork)."""
        poller = select.poll()
        poller.register(self._line, select.POLLIN)
        if self.listener is not None:
            poller.register(self.listener.fd, select.POLLIN)
        while True:
            ready = poller.poll(1000 * _PROMPTLY)
            if self.listener is None or not ready or any(fd == self._line for fd, _ in ready):
                return
            stop = self.listener.receive()
            if stop is not None and stop.thread == self.pid:
                self.listener.let_go(stop)
            elif stop is not None:
                self.early.append(stop)

    def _word(self) -> int:
        try:
            word = os.read(self._line, 8)
        except OSError:
            word = b""
        if len(word) != 8:
            raise HarnessError(_LOST)
        return int.from_bytes(word, "little", signed=True)

    def ended(self) -> int:
        """Wait for the worker to end; its exit status, or minus the signal that killed it. Once for each worker."""
        code = self._word()
        try:
            os.write(self._line, b"r")
        except OSError:
            raise HarnessError(_LOST) from None
        return code

    def clear(self) -> None:
        """After `ended`, with all else of the run gone: the worker is reaped, what is left in the pipes is dropped.

        The result and ack pipes have been read to their end by then. Under a filter a step is answered and not written.
        """
        if not self.in_use:
            return
        self._word()
        if self.stacks:
            _empty(self.stack)
        if self.blocking:
            _empty(self.step)
            os.set_blocking(self._go, False)
            _empty(self._go)
            os.set_blocking(self._go, True)
        self.early.clear()
        self.in_use = False

    def close(self) -> None:
        """End it, and the worker it has."""
        if self.pid not in forkers:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        forkers.discard(self.pid)
        for fd in (self.result, self.ack, self.step, self.stack, self.go, self._go, self._line):
            os.close(fd)
        if self.listener is not None:
            os.close(self.listener.fd)


def end_all() -> None:
    """SIGKILL and reap every forker of this process; what its worker had started becomes this process's own."""
    while forkers:
        pid = forkers.pop()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _empty(fd: int) -> None:
    with contextlib.suppress(BlockingIOError):
        while os.read(fd, 1 << 16):
            pass


# -- the forker's own life ------------------------------------------------------------------------------------------


def _serve(
    line_fd: int,
    pipes: Pipes,
    make_body: Callable[[str, list[str]], Body],
    cwd: str,
    program: bytes | None,
    steps: bool,
    builtin: bool,
    stacks: bool,
    parent: int,
) -> int:
    """Fork a worker for each request. Returns in a worker only, with its exit status."""
    bpf.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(75)
    worker.settle(pipes, line_fd, steps, builtin, stacks)
    line = socket.socket(fileno=line_fd)
    if program is None:
        line.send(b"L")
    else:
        try:
            listener = bpf.install(program)
        except bpf.Unavailable as error:
            line.send(b"E" + str(error).encode())
            os._exit(76)
        bpf.send_descriptor(line, listener)
        os.close(listener)

    @functools.lru_cache(8)  # made before the fork, and once: in a worker it would copy pages
    def asked(request: bytes) -> tuple[str, Body]:
        part, end, *texts = request.decode().split("\0")
        return end, make_body(part, texts)

    handlers = ending.mark()  # last: what is made after it counts as made by the worker
    # from here on nothing that the filter stops: no write(2), which send(2) is not; else only fork is answered for
    me = os.getpid()
    while True:
        size = line.recv(8, socket.MSG_WAITALL)
        if len(size) != 8:
            os._exit(0)
        end, body = asked(line.recv(int.from_bytes(size, "little"), socket.MSG_WAITALL))
        pid = os.fork()
        if pid == 0:
            os.close(line.detach())
            return worker.live(pipes, cwd, end, body, me, handlers)
        line.send(pid.to_bytes(8, "little"))
        line.send(_end_of(pid).to_bytes(8, "little", signed=True))
        line.recv(1)  # the zygote knows: now the process id may be used again
        os.waitpid(pid, 0)
        line.send(bytes(8))


def _end_of(pid: int) -> int:
    """Wait for a child without reaping it; its exit status, or minus the signal that killed it."""
    end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert end is not None
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
