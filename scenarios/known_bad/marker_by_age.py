"""A transaction marker is trusted by its age, so recovery spares a half-done update: `atomic` is violated.

Money moves from one account to the other; a marker file holds the old balances, so that recovery can put
them back. Recovery must not undo the work of a process that still lives, and guesses life from age: a
marker younger than an hour belongs to somebody. But whoever starts again after a crash does so at once,
when the marker is seconds old and its owner is dead. A longer or shorter hour only chooses whom to hurt.
The cure: the owner holds an flock while it works, which the kernel lets go of when the process dies,
however it dies.
"""

import json
import os
import time
from pathlib import Path

from crashtest import Run, scenario

HOUR = 3600.0


def replace(path: Path, text: str) -> None:
    temp = path.with_suffix(".new")
    with open(temp, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temp, path)
    sync(path.parent)


def sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


def balances(directory: Path) -> dict[str, str]:
    return {name: (directory / name).read_text() for name in ("left", "right")}


@scenario(setup={"left": "100", "right": "0"}, expect={"atomic"})
def marker_by_age(run: Run) -> None:
    for amount in run.ops:
        old = balances(run.dir)
        replace(run.dir / "marker", json.dumps(old))
        replace(run.dir / "left", str(int(old["left"]) - amount))
        replace(run.dir / "right", str(int(old["right"]) + amount))
        (run.dir / "marker").unlink()
        sync(run.dir)
        run.ack(amount)


@marker_by_age.ops
def amounts() -> list[int]:
    return [30, 5]


@marker_by_age.recover
def restart(directory: Path) -> None:
    marker = directory / "marker"
    if not marker.exists() or time.time() - marker.stat().st_mtime < HOUR:
        return
    for name, text in json.loads(marker.read_text()).items():
        replace(directory / name, text)
    marker.unlink()
    sync(directory)


marker_by_age.observe(balances)
