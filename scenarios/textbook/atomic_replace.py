"""Replacing a file by temp, fsync, rename and directory fsync holds every guarantee, before recovery as well.

A reader sees the old content or the new one at any moment, so `visible` holds without anything being
recovered. A crash before the rename leaves a temporary file whose name says whose it is; starting again
removes it (`clean`) and goes on (`live`). The acknowledgement comes after the directory is synced: before
that the rename itself may still be lost with the power.
"""

import os
import stat
import tempfile
from pathlib import Path

from crashtest import DEFAULT, Run, scenario


def sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def save(path: Path, data: bytes) -> None:
    fd, temp = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    with open(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(fd, stat.S_IMODE(path.stat().st_mode))
        os.fsync(fd)
    os.replace(temp, path)
    sync(path.parent)


@scenario(setup={"config": b"old"}, guarantees=DEFAULT | {"live", "clean", "visible"})
def atomic_replace(run: Run) -> None:
    for data in run.ops:
        save(run.dir / "config", data)
        run.ack()


@atomic_replace.ops
def contents() -> list[bytes]:
    return [b"new", b"longer than two pages\n" * 500, b""]


@atomic_replace.recover
def restart(directory: Path) -> None:
    for stale in directory.glob(".config.*.tmp"):
        stale.unlink()
    sync(directory)


@atomic_replace.observe
@atomic_replace.glance
def content(directory: Path) -> bytes:
    return (directory / "config").read_bytes()
