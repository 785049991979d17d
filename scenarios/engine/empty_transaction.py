"""A transaction without a change is acknowledged, changes nothing, and leaves nothing for recovery to do.

It stands first, between two others, and last, so that a crash around it meets a log that is empty, and one
that has a finished transaction.
"""

from crashtest import Run, scenario
from jin_core import STEPS

from . import _store
from ._store import CLAIMED, Change


@scenario(setup=_store.opened_before, guarantees=CLAIMED, steps=STEPS)
def empty_transaction(run: Run) -> None:
    _store.commit_each(run)


@empty_transaction.ops
def transactions() -> list[list[Change]]:
    return [
        [],
        [("write", "config", b"colour = red\n", None), ("ref", "main", "2", "1")],
        [],
        [("ref", "main", "3", "2")],
        [],
    ]


empty_transaction.recover(_store.restart)
empty_transaction.observe(_store.everything)
