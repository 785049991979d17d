"""The lean process in which everything is measured: crashtest's zygote, which can also call functions of this package.

Guarantees: hand-written loops fork from the process that crashtest's forkers were forked from, on the same core, so
that they differ in what they do and in nothing else. Ends, with all it started, when its `Lean` is closed.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from crashtest import wire
from crashtest.cells import zygote

SUBJECTS = Path(__file__).with_name("subjects.py")
_START = (
    "import sys, json; sys.path[:0] = json.loads(sys.argv[3]); from benchmarks.lean import main; "
    "main(int(sys.argv[1]), sys.argv[2])"
)


class Server(zygote.Zygote):
    def do_call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Call `function` ("module:name") with this zygote and the arguments given."""
        module, _, name = request["function"].partition(":")
        return {"made": getattr(importlib.import_module(module), name)(self, **request["arguments"])}


def main(fd: int, root: str) -> None:
    zygote.main(fd, root, kind=Server)


class Lean:
    """The main process's end of it. root: a directory of its own on tmpfs; core: where it and its children run."""

    def __init__(self, root: str, core: int) -> None:
        # here, because what the lean process loads is in each fork
        import subprocess

        from crashtest.scale.slot import zygote_environment

        self.root, self.core = root, core
        os.mkdir(root, 0o700)
        self._sock, theirs = socket.socketpair()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("GIT_", "PYTHON"))}
        environment.update(zygote_environment())
        paths = json.dumps([os.path.abspath(path or ".") for path in sys.path])
        command = [sys.executable, "-S", "-s", "-P", "-c", _START, str(theirs.fileno()), root, paths]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, start_new_session=True)
        theirs.close()
        self.ask({"do": "load", "file": str(SUBJECTS), "label": "subjects", "core": core})

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        wire.send(self._sock, request)
        answer = wire.receive(self._sock)
        for kind in ("usage", "harness"):
            if kind in answer:
                raise RuntimeError(answer[kind])
        return answer

    def call(self, function: str, **arguments: Any) -> Any:
        """Call `function` ("benchmarks.module:name") there."""
        return self.ask({"do": "call", "function": function, "arguments": arguments})["made"]

    def close(self) -> None:
        self._sock.close()
        self._process.wait(60)
