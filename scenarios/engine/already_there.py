"""A ref that another program has set already is acknowledged only when it is durable.

Somebody writes the new value into the ref's file, in place and without a sync. A transaction then sets the ref to that
same value: git finds nothing to write, and the engine syncs what the other one wrote before it writes anything down. It
cannot know of what nobody told it, so who starts again and shows that value to the world syncs it first.
"""

import os
from pathlib import Path

from crashtest import Run, scenario

from . import _store
from ._store import CLAIMED, IDS


def overwrite(directory: Path, commit: str) -> None:
    """What another program does: as many bytes as there were, so that the ref names one commit or the other."""
    with open(directory / ".git/refs/heads/main", "r+b") as file:
        file.write(IDS[commit].encode())


@scenario(setup=_store.opened_before, guarantees=CLAIMED)
def already_there(run: Run) -> None:
    with _store.open_store(run.dir) as jin:
        for commit in run.ops:
            overwrite(run.dir, commit)
            _store.commit(jin, [("ref", "main", commit, None)])
            run.ack(commit)


@already_there.ops
def commits() -> list[str]:
    return ["2", "3"]


@already_there.recover
def restart(directory: Path) -> None:
    _store.restart(directory)
    fd = os.open(directory / ".git/refs/heads/main", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


already_there.observe(_store.everything)
