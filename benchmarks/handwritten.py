"""The loops one would write by hand for three small files, with no more in them than they need.

The fork loop has the forks, the restore and the listener of crashtest; it knows no modes, links or directories, records
nothing, proves nothing, and counts stops. The spawn loop starts `python -I -S` for the workload and for recovery.
Both recover each distinct state once, as crashtest does. Run in the lean process.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import subjects
from crashtest.cells.forker import Forker
from crashtest.cells.zygote import Zygote
from crashtest.observe import bpf
from crashtest.observe.listener import Listener

Content = dict[str, bytes]
SPAWNED = str(Path(__file__).with_name("spawned.py"))
#: S0 to S3
STATES: list[Content] = [
    {name: b"%s %s\n" % (b"new" if at < done else b"old", name.encode()) for at, name in enumerate(subjects.FILES)}
    for done in range(len(subjects.FILES) + 1)
]


_forks = 0


def forks(zygote: Zygote) -> int:
    """How often this process, or a forker of it, has forked since this was first asked."""
    global _forks
    if not _forks:
        os.register_at_fork(after_in_parent=_one_more)
        fork = Forker.fork

        def counted(self: Forker, *request: Any) -> int:
            _one_more()
            return fork(self, *request)

        Forker.fork = counted  # type: ignore[assignment,method-assign]
        _forks = 1
    return _forks


def _one_more() -> None:
    global _forks
    _forks += 1


def restore(directory: str, content: Content) -> None:
    for name in os.listdir(directory):
        os.unlink(f"{directory}/{name}")
    for name, data in content.items():
        fd = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, data)
        os.close(fd)


def forked(body: Callable[[], object]) -> bytes:
    """Run `body` in a child of its own; what it returned, as text."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(theirs, repr(body()).encode())
            os._exit(0)
        finally:
            os._exit(1)
    os.close(theirs)
    data = os.read(ours, 1 << 16)
    os.close(ours)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("a child failed")
    return data


def watched(program: bytes, body: Callable[[int], object], kill_at: int) -> tuple[int, bytes]:
    """Run `body` (given the ack pipe) under the filter and kill it at a stop; (stops, what came from the pipe)."""
    go, theirs = socket.socketpair()
    ack, ack_theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            listening = bpf.install(program)
            bpf.send_descriptor(theirs, listening)
            os.close(listening)
            go.close()
            theirs.recv(1)
            body(ack_theirs)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(ack_theirs)
    theirs.close()
    _, fds, _, _ = socket.recv_fds(go, 64, 1)
    listener = Listener(fds[0])
    go.send(b"g")
    poller = select.poll()
    poller.register(listener.fd, select.POLLIN)
    stops = 0
    while True:
        if not poller.poll()[0][1] & select.POLLIN:
            break
        stop = listener.receive()
        if stop is None:
            continue
        if stops == kill_at:
            os.kill(pid, signal.SIGKILL)
            break
        stops += 1
        listener.let_go(stop)
    os.waitpid(pid, 0)
    acks = os.read(ack, 1 << 16)
    for fd in (ack, listener.fd):
        os.close(fd)
    go.close()
    return stops, acks


class _Judge:
    """Recovers each distinct state once, looks at each distinct recovered state once, recovers that once more."""

    def __init__(self, recover: Callable[[], object], look: Callable[[], Any], capture: Callable[[], Content]) -> None:
        self._recover, self._look, self._capture = recover, look, capture
        self._recovered: dict[tuple[tuple[str, bytes], ...], Content] = {}
        self._seen: dict[tuple[tuple[str, bytes], ...], bytes] = {}

    def cell(self, found: Content, acked: int) -> None:
        key = tuple(sorted(found.items()))
        if key not in self._recovered:
            self._recover()
            recovered = self._recovered[key] = self._capture()
            then = tuple(sorted(recovered.items()))
            if then not in self._seen:
                self._seen[then] = self._look()
                self._recover()
                if self._capture() != recovered:
                    raise RuntimeError("recovery is not idempotent")
        if self._recovered[key] not in STATES[acked : acked + 2]:
            raise RuntimeError(f"after {acked} acks: {self._recovered[key]}")


def fork_round(zygote: Zygote, cuts: list[int], stops: int) -> None:
    """A cell for each cut: kill at that stop, recover, judge. stops: how many a whole run has."""
    directory = f"{zygote.root}/by-hand"
    os.makedirs(directory, exist_ok=True)
    program = bpf.program()
    judge = _Judge(
        lambda: forked(lambda: subjects.drop_temporaries(directory)),
        lambda: forked(lambda: subjects.contents(directory)),
        lambda: subjects.contents(directory),
    )
    for cut in cuts:
        restore(directory, subjects.OLD)
        made, acks = watched(
            program, lambda pipe: subjects.replace_three(directory, lambda: os.write(pipe, b"0null\n")), cut
        )
        if made != min(cut, stops):
            raise RuntimeError(f"stopped {made} times, not {min(cut, stops)}")
        judge.cell(subjects.contents(directory), acks.count(b"\n"))


def spawn_round(zygote: Zygote, cuts: list[int]) -> None:
    """The same with a new interpreter for each workload and each recovery; what it kills itself before is counted."""
    directory = f"{zygote.root}/spawned"
    os.makedirs(directory, exist_ok=True)

    import subprocess

    def python(*words: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-I", "-S", SPAWNED, *words]
        return subprocess.run(command, stdout=subprocess.PIPE, close_fds=False, check=False)

    judge = _Judge(
        lambda: python("recover", directory), lambda: b"seen by recovery", lambda: subjects.contents(directory)
    )
    for cut in cuts:
        restore(directory, subjects.OLD)
        done = python("work", directory, str(cut))
        judge.cell(subjects.contents(directory), done.stdout.count(b"\n"))
