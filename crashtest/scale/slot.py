"""A slot: the place of one zygote at a time, as the main process sees it.

Guarantees: a zygote is asked one thing at a time and its answer is taken whole; what it reports comes back as the
exception it stands for; `close` ends it and all below it. Used by one thread, but for `hang_up`. Knows nothing of
the order of the work.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from crashtest import wire
from crashtest.cells.example import Example
from crashtest.cells.recoveries import Unbatchable
from crashtest.cells.zygote import BIND_NOW
from crashtest.errors import HarnessError, UsageError
from crashtest.persist.realfs import Disks
from crashtest.scale.rundir import TOKEN, RunDirectory
from crashtest.scenario import Scenario
from crashtest.trace import to_plain

#: seconds after which a zygote that says nothing is looked at, and one that was stopped by a signal twice then ended
STOPPED_FOR = 5.0
#: variables of the caller that would make a program behave differently here and there; the last four are of test runs
_NOT_HANDED_ON = ("GIT_", "PYTHON", "PYTEST_", "COV_CORE_", "COVERAGE_", "TOX_")
_START = (
    "import sys, json; sys.path[:0] = json.loads(sys.argv[3]); from crashtest.cells.zygote import main; "
    "main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[4]))"
)


class Stopped(wire.Closed):
    """The zygote was stopped by a signal (SIGSTOP), and nobody let it go on."""


class Slot:
    """One zygote at a time, used by one thread. Raises `wire.Closed` when the zygote dies."""

    def __init__(self, number: int, directory: RunDirectory, seccomp: bool, first_core: int = 0) -> None:
        self.number = number
        self._core = first_core + number
        self._directory = directory
        self._seccomp = seccomp
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._file = ""
        self._serving: Example | None = None
        self._starts = 0
        #: nothing more is asked: also of a zygote that was just being started when the line was closed
        self._over = False
        #: real file systems, mounted for the thread that uses this slot
        self.disks = Disks()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request and its answer. Raises what the zygote reports: `UsageError`, `HarnessError`."""
        if self._sock is None or self._over:
            raise wire.Closed("no zygote")
        wire.send(self._sock, request)
        self._await_answer(self._sock)
        answer = wire.receive(self._sock)
        if "usage" in answer:
            raise UsageError(answer["usage"])
        if "unbatchable" in answer:
            raise Unbatchable(answer["unbatchable"])
        if "harness" in answer:
            raise HarnessError(answer["harness"])
        return answer

    def _await_answer(self, sock: socket.socket) -> None:
        """Until there is something to read. Each part has its own time limit, but a stopped zygote keeps none."""
        stopped = False
        while not select.select([sock], [], [], STOPPED_FOR)[0]:
            before, stopped = stopped, self._is_stopped()
            if before and stopped:
                raise Stopped("stopped by a signal")

    def _is_stopped(self) -> bool:
        try:
            return self._process is not None and psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:
            return False

    def open(self, scenario: Scenario, file: Path) -> None:
        """Have a zygote that has loaded the scenario's file."""
        if self._process is not None and self._process.poll() is None and self._file == str(file):
            return
        self.close()
        self._starts += 1
        root = f"{self._directory.path}/slot-{self.number}-{self._starts}"
        os.mkdir(root, 0o700)
        ours, theirs = socket.socketpair()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_HANDED_ON)}
        environment.update({TOKEN: self._directory.token, **zygote_environment()})
        paths = json.dumps([os.path.abspath(path or ".") for path in sys.path])
        command = [sys.executable, "-S", "-s", "-P", "-c", _START, str(theirs.fileno()), root, paths, finders()]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno(), self._directory.owner],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._sock, self._file, self._serving = ours, str(file), None
        core = None
        if hasattr(os, "sched_getaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            core = cores[self._core % len(cores)]
        self.ask({"do": "load", "file": str(file), "label": scenario.file, "core": core})

    def serve(self, example: Example, timeout: float, depth: int) -> None:
        """Have the zygote know the example's first and expected states."""
        if self._serving is not example:
            request = self.request("expect", example.scenario, example.ops, timeout)
            expected = {"first": example.prepared["first"], "states": example.states, "depth": depth}
            events = [to_plain(event) for event in example.events]
            self.ask({**request, **expected, "batches": not example.remembers, "events": events})
            self._serving = example

    def prepare(self, scenario: Scenario, ops: list[str] | None, timeout: float, once: bool = False) -> dict[str, Any]:
        """The runs without a crash (`cells.prepare`); what the zygote knew of an example is forgotten."""
        self._serving = None
        return self.ask({**self.request("prepare", scenario, ops, timeout), "once": once})

    def request(self, do: str, scenario: Scenario, ops: list[str] | None, timeout: float) -> dict[str, Any]:
        return {"do": do, "scenario": scenario.function, "ops": ops, "timeout": timeout, "seccomp": self._seccomp}

    def hang_up(self) -> None:
        """Close the line from another thread: the zygote ends what it does, and itself."""
        self._over = True
        self.disks.stop()
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError, wire.Closed):
                wire.send(sock, {"do": "end"})
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the zygote and all below it."""
        if self._process is None:
            return
        if self._sock is not None:
            with contextlib.suppress(wire.Closed):
                wire.send(self._sock, {"do": "end"})
            self._sock.close()
        try:
            self._process.wait(0 if self._is_stopped() else 10)
        except subprocess.TimeoutExpired:
            below: list[psutil.Process] = []
            with contextlib.suppress(psutil.Error):
                below = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            self._process.wait()
            psutil.wait_procs(below, 10)  # they die with it, as children of this process now
        self._process = self._sock = None


def zygote_environment() -> dict[str, str]:
    """What a zygote is started with, so that its forks are cheap and its runs alike.

    Its own bytecode is kept, because what compiling leaves behind in memory would be copied with each fork; and the
    dynamic linker looks up all names at once, because each fork would look up the same ones (ld.so(8)). The zygote
    hands neither on.
    """
    given = {"PYTHONHASHSEED": "0", **({"PYTHONDONTWRITEBYTECODE": "1"} if sys.dont_write_bytecode else {})}
    return given if "LD_BIND_NOW" in os.environ else {**given, "LD_BIND_NOW": BIND_NOW}


def finders() -> str:
    """Modules that find editable installs here (setuptools), as JSON: without `site` a zygote would not have them."""
    names = [str(getattr(finder, "__module__", "")) for finder in sys.meta_path]
    return json.dumps([name for name in dict.fromkeys(names) if name.startswith("__editable__")])
