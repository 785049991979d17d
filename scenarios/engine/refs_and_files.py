"""Refs and files that are created, updated and deleted together are never split by a crash.

Three transactions in a row over one open store; the last one does all six kinds of change at once. Killed
before the commit point, all of it is taken back; after it, opening the store again brings the rest. The
index of git and the objects play no part: the commits are there before.
"""

from crashtest import Run, scenario
from jin_core import STEPS

from . import _store
from ._store import CLAIMED, Change


@scenario(setup=_store.opened_before, guarantees=CLAIMED, steps=STEPS)
def refs_and_files(run: Run) -> None:
    _store.commit_each(run)


@refs_and_files.ops
def transactions() -> list[list[Change]]:
    return [
        [("write", "config", b"colour = red\n", None), ("ref", "topic", "2", "0"), ("ref", "main", "2", "1")],
        [("write", "config", b"colour = blue\n", None), ("write", "readme", b"second\n", None)],
        [
            ("write", "readme", b"third\n", None),
            ("write", "news", b"a new file\n", None),
            ("delete", "config"),
            ("ref", "main", "3", "2"),
            ("ref", "next", "1", "0"),
            ("unref", "topic", "2"),
        ],
    ]


refs_and_files.recover(_store.restart)
refs_and_files.observe(_store.everything)
