"""Directories that a transaction needs are made with it and are gone when it is taken back.

Files and refs lie several levels deep, so that a crash leaves new directories half filled. The second
transaction deletes the only ref below `team/`, and the third one makes a ref of that very name, which git
can only do when no empty directory is in its place.
"""

from crashtest import Run, scenario
from jin_core import STEPS

from . import _store
from ._store import CLAIMED, Change


@scenario(setup=_store.opened_before, guarantees=CLAIMED, steps=STEPS)
def nested_directories(run: Run) -> None:
    _store.commit_each(run)


@nested_directories.ops
def transactions() -> list[list[Change]]:
    return [
        [
            ("write", "a/b/c/deep", b"1\n", None),
            ("write", "a/shallow", b"2\n", None),
            ("ref", "team/x/one", "2", "0"),
        ],
        [("delete", "a/b/c/deep"), ("write", "a/b/d/other", b"3\n", None), ("unref", "team/x/one", "2")],
        [("ref", "team", "3", "0"), ("write", "a/b/c/deep", b"4\n", None)],
    ]


nested_directories.recover(_store.restart)
nested_directories.observe(_store.everything)
