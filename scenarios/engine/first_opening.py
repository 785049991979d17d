"""The very first opening of a repository, and the first transactions behind it, survive a crash anywhere.

The engine's own directory, its lock and its log do not exist yet: a crash may leave any part of them, and
the next opening has to go on from there as if it were the first.
"""

from crashtest import Run, scenario
from jin_core import STEPS

from . import _store
from ._store import CLAIMED, Change


@scenario(setup=_store.repository, guarantees=CLAIMED, steps=STEPS)
def first_opening(run: Run) -> None:
    _store.commit_each(run)


@first_opening.ops
def transactions() -> list[list[Change]]:
    return [
        [("write", "config", b"colour = red\n", None), ("ref", "main", "2", "1")],
        [("ref", "topic", "3", "0")],
    ]


first_opening.recover(_store.restart)
first_opening.observe(_store.everything)
