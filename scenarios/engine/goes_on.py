"""What starts again and goes on with a next transaction at once stands on nothing that only memory holds.

A process that is killed while it empties the log leaves a header that nobody has synced. The next one reads an empty
log from the page cache, and its first record takes the place of the old ones. If the power went then, and took the new
header but not that record, the old header would stand over a log with a hole: refused as corrupt. So the log is synced
when it is opened, also an empty one.
"""

from pathlib import Path

from crashtest import Run, scenario
from jin_core import STEPS

from . import _store
from ._store import CLAIMED, Change

#: long names, so that the records of a transaction take more than the sector that the header stands in
NAMES = [letter * 200 for letter in "abc"]


def files(text: str) -> list[Change]:
    return [("write", name, text.encode(), None) for name in NAMES]


@scenario(setup=_store.opened_before, guarantees=CLAIMED - {"live"}, steps=STEPS)
def goes_on(run: Run) -> None:
    _store.commit_each(run, log_limit=1)


@goes_on.ops
def transactions() -> list[list[Change]]:
    return [files("one")]


@goes_on.recover
def restart(directory: Path) -> None:
    """Starting again, and a transaction that every start makes."""
    with _store.open_store(directory) as jin:
        _store.commit(jin, [("write", letter * 200, b"started\n", None) for letter in "de"])


goes_on.observe(_store.everything)
