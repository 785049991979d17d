"""The atomic replace with one sync left out or too late: right under any kill, and each wrong after a power cut.

Temporary file, fsync, rename, fsync of the directory, ack: `textbook/atomic_replace.py` has them all and holds.

- Without the fsync of the file its new name may outlive its content, and the file is there with zeros in it: `atomic`.
  It holds on ext4 only where that is mounted with `dioread_lock`; on ext4 as it is by default the file may be its full
  length in zeros, and on xfs, btrfs and ext4 with `noauto_da_alloc` it may be empty.
- Without the fsync of the directory the old content may be back after the ack: `durable`, and nothing else.
- With that fsync after the ack, the same is possible in between: `durable`.

No kill can show any of this, because what was written survives the process.
"""

import os
from pathlib import Path

from crashtest import Run, scenario

POWER = ["ext4-lock", "ext4", "ext4-noda", "xfs", "btrfs", "posix"]
OLD = {"settings": "colour = blue\n"}


def write(path: Path, text: str, synced: bool = True) -> None:
    with open(path, "w") as file:
        file.write(text)
        file.flush()
        if synced:
            os.fsync(file.fileno())


def sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


@scenario(setup=OLD, expect={key: {"atomic"} for key in ["ext4", "ext4-noda", "xfs", "btrfs", "posix"]})
def file_not_synced(run: Run) -> None:
    for text in run.ops:
        write(run.dir / "settings.new", text, synced=False)
        os.replace(run.dir / "settings.new", run.dir / "settings")
        sync(run.dir)
        run.ack()


@scenario(setup=OLD, expect={key: {"durable"} for key in POWER})
def directory_not_synced(run: Run) -> None:
    for text in run.ops:
        write(run.dir / "settings.new", text)
        os.replace(run.dir / "settings.new", run.dir / "settings")
        run.ack()


@scenario(setup=OLD, expect={key: {"durable"} for key in POWER})
def directory_synced_too_late(run: Run) -> None:
    for text in run.ops:
        write(run.dir / "settings.new", text)
        os.replace(run.dir / "settings.new", run.dir / "settings")
        run.ack()
        sync(run.dir)


def restart(directory: Path) -> None:
    """What a killed run renamed may be in the cache only; whoever reads it next must not lose it again."""
    sync(directory)


def texts() -> list[str]:
    return ["colour = red\n", "colour = green\n"]


def settings(directory: Path) -> str:
    return (directory / "settings").read_text()


for one in (file_not_synced, directory_not_synced, directory_synced_too_late):
    one.ops(texts)
    one.recover(restart)
    one.observe(settings)
