"""git's own locks never outlive a crash: what is left of them is removed, and git can go on.

Every update here takes many of git's locks: of each ref, of HEAD (`main` is checked out), and of
`packed-refs`, which is rewritten because the deleted refs are packed. A git child that is killed leaves
them all behind, and each one left would block every later update (`live`, `clean`).
"""

from pathlib import Path

from crashtest import Run, scenario
from jin_core import STEPS

from . import _store
from ._store import CLAIMED, Change


def packed(directory: Path) -> None:
    _store.opened_before(directory)
    for name in "ab":
        _store.git(directory, "update-ref", f"refs/heads/{name}", "main")
    _store.git(directory, "pack-refs", "--all")


@scenario(setup=packed, guarantees=CLAIMED, steps=STEPS)
def stale_locks(run: Run) -> None:
    _store.commit_each(run)


@stale_locks.ops
def transactions() -> list[list[Change]]:
    return [
        [("ref", "main", "2", "1"), ("ref", "a", "2", "1"), ("unref", "b", "1")],
        [("unref", "a", None), ("ref", "b", "3", "0"), ("write", "config", b"colour = red\n", None)],
        [("ref", "main", "1", None), ("ref", "a", "1", None), ("ref", "b", "1", "3")],
    ]


stale_locks.recover(_store.restart)
stale_locks.observe(_store.everything)
