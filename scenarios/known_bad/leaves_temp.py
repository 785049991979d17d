"""A correct atomic replace that nobody cleans up after: only `clean` is violated.

Temporary file, fsync, rename, fsync of the directory: the content is always the old one or the new one. But
each crash before the rename leaves one more file with a fresh random name, and starting again never looks
for them, so a program that is killed often fills its disk. (It does sync the directory, so that a rename
that a killed run left in the cache is not lost again after it was seen.) The cure: names that recovery can
recognise as its own, and a recovery that removes them while no other process can be writing one.
"""

import os
import tempfile
from pathlib import Path

from crashtest import DEFAULT, Run, scenario


@scenario(setup={"settings": "colour = blue\n"}, guarantees=DEFAULT | {"clean"}, expect={"clean"})
def leaves_temp(run: Run) -> None:
    for text in run.ops:
        with tempfile.NamedTemporaryFile("w", dir=run.dir, prefix="settings.", delete=False) as temp:
            temp.write(text)
            temp.flush()
            os.fsync(temp.fileno())
        os.replace(temp.name, run.dir / "settings")
        sync(run.dir)
        run.ack()


@leaves_temp.recover
def sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


@leaves_temp.ops
def texts() -> list[str]:
    return ["colour = red\n", "colour = green\n"]


@leaves_temp.observe
def settings(directory: Path) -> str:
    return (directory / "settings").read_text()
