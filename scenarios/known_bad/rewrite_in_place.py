"""A file is saved with `open(path, "w")`, and a crash destroys it: `atomic` is violated.

Opening for writing empties the file at once; the new text comes later, a page at a time. Killed in between,
the program finds neither the old text nor the new one but nothing, or the beginning of the new one. Syncing
does not help, because the old text is gone before there is anything to sync. The cure: write a temporary
file beside it, sync it, rename it over the old one, sync the directory (see `textbook/atomic_replace.py`).
"""

import os
from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"settings": "colour = blue\n"}, expect={"atomic"})
def rewrite_in_place(run: Run) -> None:
    for text in run.ops:
        with open(run.dir / "settings", "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        run.ack()


@rewrite_in_place.recover
def restart(directory: Path) -> None:
    """Syncs what it goes on to show: a killed run may have left it in the cache only."""
    fd = os.open(directory / "settings", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


@rewrite_in_place.ops
def texts() -> list[str]:
    return ["colour = red\n", "colour = green\n" * 500]


@rewrite_in_place.observe
def settings(directory: Path) -> str:
    return (directory / "settings").read_text()
