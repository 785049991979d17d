"""The child's side of a run: from the fork to the user's function, and its answer back.

Guarantees: the function runs in a process of its own that leads its own session, has nothing of the harness open but
the pipes it needs, dies with its zygote, and ends the way Python programs end (exit handlers and buffers included),
or at once where that leaves every file the same (`ending.py`).
Its answer (value or error) arrives before that end, so "returned" and "ended normally" are two facts.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from crashtest.cells import ending
from crashtest.errors import UsageError, quoted
from crashtest.observe import bpf, stacks, steps
from crashtest.values import canonical


class BecomeChild(BaseException):
    """Raised in a forked child to leave every frame of the zygote; `entry` is what the child does then.

    Not an error: leaving the frames lets the child end as an ordinary Python process, which is what "ends
    normally" means, and keeps no object of the zygote alive in it.
    """

    def __init__(self, entry: Callable[[], int]) -> None:
        super().__init__()
        self.entry = entry


class Pipes:
    """What a child is given, as descriptors: -1 where a part does not need one."""

    def __init__(
        self, result: int, output: int, ack: int = -1, step: int = -1, stack: int = -1, go: int = -1, ask: int = -1
    ) -> None:
        self.result = result
        self.output = output
        self.ack = ack
        self.step = step
        self.stack = stack
        self.go = go
        #: where the names of the parts to run come from, one byte each, when there are several (`serving`)
        self.ask = ask
        #: without a filter, every step and ack waits for the word to go on
        self.blocking = False

    def keep(self) -> set[int]:
        return {fd for fd in (self.result, self.ack, self.step, self.stack, self.go, self.ask) if fd >= 0}


def _close_others(keep: set[int]) -> None:
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 16)


def child(
    pipes: Pipes,
    cwd: str,
    environment: dict[str, str],
    filter_program: bytes | None,
    body: Callable[[Pipes], Any],
    parent: int,
    builtin_steps: bool = False,
    end: str = "orderly",
) -> Callable[[], int]:
    """What a forked child does, as an entry for `BecomeChild`; its return value is the exit status.

    end: "orderly" (as Python programs end), "quick" (at once where that leaves every file the same, `ending.py`),
    or "at once" (the part only looks).
    """
    handlers = ending.mark()

    def entry() -> int:
        os.setsid()
        bpf.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            return 75
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(pipes.output, 1)
        os.dup2(pipes.output, 2)
        _close_others(pipes.keep())
        for name, value in environment.items():
            if os.environ.get(name) != value:
                os.environ[name] = value
        os.chdir(cwd)
        gc.enable()
        if pipes.stack >= 0:
            pipes.stack = stacks.listen(pipes.stack)
        if pipes.step >= 0:
            pipes.blocking = filter_program is None
            _watch_steps(pipes, builtin_steps)
        if filter_program is not None and not _observe(pipes, filter_program):
            return 76
        status = _answer(pipes, body)
        if end == "quick" and not ending.orderly_after(handlers):
            ending.exit_c(status)
        if end == "at once":
            os._exit(status)
        ending.prepare()
        return status

    return entry


def _observe(pipes: Pipes, filter_program: bytes) -> bool:
    """Install the filter, hand the listener over, wait for the word to go."""
    go = socket.socket(fileno=pipes.go)
    try:
        listener = bpf.install(filter_program)
    except bpf.Unavailable as error:
        go.send(b"E" + str(error).encode())
        return False
    bpf.send_descriptor(go, listener)
    os.close(listener)
    ready = go.recv(1) == b"g"
    go.close()
    return ready


def _watch_steps(pipes: Pipes, builtin: bool) -> None:
    fd = pipes.step

    def tell(name: str) -> None:
        try:
            os.write(fd, name.encode("utf-8", "replace")[:1024] + b"\n")
            if pipes.blocking:
                os.read(pipes.go, 1)  # the word to go on, or nothing ever again
        except OSError:
            pass

    steps.install(tell, builtin)


def _answer(pipes: Pipes, body: Callable[[Pipes], Any]) -> int:
    """Run the body, send what it gave, and say how to end."""
    answer, status = _tried(body, pipes)
    _send(pipes, answer)
    return status


def _send(pipes: Pipes, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode() + b"\n"
    while data:
        data = data[os.write(pipes.result, data) :]


def _tried(body: Callable[[Pipes], Any], pipes: Pipes) -> tuple[dict[str, Any], int]:
    """What the body gave or how it failed, and the exit status that says so."""
    status = 0
    try:
        answer: dict[str, Any] = {"value": body(pipes)}
    except UsageError as error:
        answer, status = {"usage": str(error)}, 70
    except SystemExit as error:
        answer, status = {"exit": str(error.code)}, error.code if isinstance(error.code, int) else 1
        if not status:
            answer = {"value": "null", "left": True}
    except BaseException as error:
        answer, status = {"error": _last_lines(error), "assertion": isinstance(error, AssertionError)}, 70
    return answer, status


def _last_lines(error: BaseException) -> str:
    """The error in one line with its place, and the frames of the user's code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "/crashtest/cells/" not in f.filename]
    place = f" (at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name})" if frames else ""
    text = "".join(traceback.format_exception_only(error)).strip()
    return f"{text}{place}"


# -- the bodies: what each part of a scenario does in its child ---------------------------------------------------


def workload(
    function: Callable[[Any], object], make_run: Callable[[Callable[[bytes], None]], Any]
) -> Callable[[Pipes], str]:
    """The user's workload, with acks going to the ack pipe."""

    def body(pipes: Pipes) -> str:
        def tell(data: bytes) -> None:
            while data:
                data = data[os.write(pipes.ack, data) :]
            if pipes.blocking:
                os.read(pipes.go, 1)

        _refuse_unrun(function(make_run(tell)), "the workload")
        return "null"

    return body


def _refuse_unrun(value: Any, name: str) -> None:
    """A part that gave back something to be run has not run, and one that says False means something by it."""
    if value is False or hasattr(value, "__await__") or hasattr(value, "__next__") or hasattr(value, "__anext__"):
        raise UsageError(
            f"{name} returned {quoted(repr(value), 80)}; it must do its work itself and return None (a check says no "
            "with assert)"
        )


def part(function: Callable[..., Any], directory: str, name: str, *more: Any) -> Callable[[Pipes], str]:
    """A part that is given the directory; its return value as canonical text (observe, glance) or null."""

    def body(pipes: Pipes) -> str:
        value = function(Path(directory), *more)
        if name in ("observe", "glance"):
            return canonical(value, f"what {name} returned")
        _refuse_unrun(value, name)
        return "null"

    return body


def serving(parts: dict[bytes, Callable[[Pipes], Any]], cwd: str) -> Callable[[Pipes], str]:
    """Run parts one after the other as they are asked for by their letters, in this one process.

    Each answer says whether something was `left`: then ending this process now would still change a file, so a process
    of its own might have shown another state.
    """
    handlers = ending.mark()

    def body(pipes: Pipes) -> str:
        while letter := os.read(pipes.ask, 1):
            os.chdir(cwd)
            answer, status = _tried(parts[letter], pipes)
            answer["left"] = bool(status) or ending.orderly_after(handlers)
            ending.pass_over()
            _send(pipes, answer)
        return "null"

    return body


def become(entry: Callable[[], int]) -> NoReturn:
    """End this process the way a Python program ends, with the status of `entry`."""
    sys.exit(entry())
