"""Recovery applies a log of relative changes and does not say so: only `idempotent` is violated.

A lamp is switched by appending one line to a log for each press; starting again folds the log into the file
`lamp`. That is right the first time. But the log is emptied only when the next session begins to write, so
a second start, or a start after a crash in the middle of the first one, folds the same presses in again,
and a lamp that was pressed once goes out. The cure: say in `lamp` itself, in the same rename, how much of
the log it contains; or log what the state becomes ("on") instead of how it changes ("press").

Two presses, so that every state that comes out wrong is still one that the lamp was once in, and a line
that is never half there: nothing but recovering twice can show this bug.
"""

import os
from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"lamp": "off", "log": ""}, expect={"idempotent"})
def recovery_not_idempotent(run: Run) -> None:
    with open(run.dir / "log", "wb", buffering=0) as log:  # the last session was folded in when we started
        for _ in run.ops:
            log.write(b"press\n")
            os.fsync(log.fileno())
            run.ack()


@recovery_not_idempotent.ops
def presses() -> list[str]:
    return ["press", "press"]


@recovery_not_idempotent.recover
def restart(directory: Path) -> None:
    lamp, temp = directory / "lamp", directory / "lamp.new"
    with open(directory / "log", "rb") as log:
        pressed = log.read().count(b"press\n")
        os.fsync(log.fileno())  # a killed run may have left the last press in the cache only
    lit = (lamp.read_text() == "on") ^ (pressed % 2 == 1)
    with open(temp, "w") as file:
        file.write("on" if lit else "off")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temp, lamp)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


@recovery_not_idempotent.observe
def light(directory: Path) -> str:
    return (directory / "lamp").read_text()
