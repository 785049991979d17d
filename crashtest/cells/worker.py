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
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from crashtest.cells import ending
from crashtest.errors import CommandFailed, UsageError, quoted
from crashtest.observe import bpf, steps
from crashtest.observe.stacks import listen
from crashtest.scenario import Run
from crashtest.values import canonical, parse

#: the answer of most runs, made before the fork
_DONE = b'{"value": "null"}\n'


class Pipes:
    """What a worker is given, as descriptors. blocking: every step and ack waits for the word to go on."""

    def __init__(self, result: int, output: int, ack: int, step: int, stack: int, go: int, blocking: bool) -> None:
        self.result = result
        self.output = output
        self.ack = ack
        self.step = step
        self.stack = stack
        self.go = go
        self.blocking = blocking

    def keep(self) -> set[int]:
        return {self.result, self.ack, self.step, self.stack, self.go}


#: what a worker does: its answer is what it returns
Body = Callable[[Pipes], Any]


def _close_others(keep: set[int]) -> None:
    low = 3
    for fd in sorted(keep):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 16)


def settle(pipes: Pipes, more: int, steps: bool, builtin: bool, stacks: bool) -> None:
    """What is the same for every worker, done once in the process that forks them. more: a descriptor it needs."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(pipes.output, 1)
    os.dup2(pipes.output, 2)
    _close_others({*pipes.keep(), more})
    if stacks:
        pipes.stack = listen(pipes.stack)
    if steps:
        _watch_steps(pipes, builtin)


def live(pipes: Pipes, cwd: str, end: str, body: Body, parent: int, handlers: int) -> int:
    """The whole life of a worker, and its exit status where it has to end orderly.

    Ends are "orderly" (as Python programs end), "quick" (at once where that leaves every file the same, `ending.py`),
    and "at once" (the part only looks). handlers: what `ending.mark` returned before the fork. All that is touched
    here for the first time is a page to copy, which is what a worker costs.
    """
    os.setsid()
    bpf.die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(75)
    os.chdir(cwd)
    gc.enable()
    status = _answer(pipes, body)
    if end == "at once":
        os._exit(status)
    if end == "quick" and not ending.orderly_after(handlers):
        ending.exit_c(status)
    ending.prepare()
    return status


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


def _answer(pipes: Pipes, body: Body) -> int:
    """Run the body, send what it gave, and say how to end."""
    answer, status = _tried(body, pipes)
    _send(pipes, answer)
    return status


def _send(pipes: Pipes, answer: dict[str, Any]) -> None:
    data = _DONE if answer == {"value": "null"} else json.dumps(answer).encode() + b"\n"
    while data:
        data = data[os.write(pipes.result, data) :]


def _tried(body: Body, pipes: Pipes) -> tuple[dict[str, Any], int]:
    """What the body gave or how it failed, and the exit status that says so."""
    status = 0
    try:
        answer: dict[str, Any] = {"value": body(pipes)}
    except UsageError as error:
        answer, status = {"usage": str(error)}, 70
    except CommandFailed as error:
        answer, status = {"failed": str(error)}, 70
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


def workload(function: Callable[[Any], object], directory: Path, ops: list[str]) -> Body:
    """The user's workload, with acks going to the ack pipe. ops: operations as canonical text."""

    def body(pipes: Pipes) -> str:
        def tell(data: bytes) -> None:
            while data:
                data = data[os.write(pipes.ack, data) :]
            if pipes.blocking:
                os.read(pipes.go, 1)

        _refuse_unrun(function(Run(directory, [parse(text) for text in ops], tell, pipes.ack)), "the workload")
        return "null"

    return body


def _refuse_unrun(value: Any, name: str) -> None:
    """A part that gave back something to be run has not run, and one that says False means something by it."""
    if value is None:
        return
    if value is False or hasattr(value, "__await__") or hasattr(value, "__next__") or hasattr(value, "__anext__"):
        raise UsageError(
            f"{name} returned {quoted(repr(value), 80)}; it must do its work itself and return None (a check says no "
            "with assert)"
        )


def part(function: Callable[..., Any], directory: Path, name: str, *more: Any) -> Body:
    """A part that is given the directory; its return value as canonical text (observe, glance) or null."""

    def body(pipes: Pipes) -> str:
        value = function(directory, *more)
        if name in ("observe", "glance"):
            return canonical(value, f"what {name} returned")
        _refuse_unrun(value, name)
        return "null"

    return body


def serving(parts: dict[bytes, Body], cwd: str) -> Body:
    """Run parts one after the other as they are asked for by their letters, in this one process.

    Each answer says whether something was `left`: then ending this process now would still change a file, so a process
    of its own might have shown another state.
    """
    handlers = ending.mark()

    def body(pipes: Pipes) -> str:
        while letter := os.read(pipes.go, 1):
            os.chdir(cwd)
            answer, status = _tried(parts[letter], pipes)
            answer["left"] = bool(status) or ending.orderly_after(handlers)
            ending.pass_over()
            _send(pipes, answer)
        return "null"

    return body
