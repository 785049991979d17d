"""A log record longer than two pages may be torn by the kill, and is then as good as never written.

The first transaction writes files with very long paths, so that its record is cut at a page boundary when
the process is killed in the middle of writing it; opening again drops what is there of it. The log may keep
next to nothing of the past, so that it is also emptied before the second transaction.
"""

from crashtest import Run, scenario
from jin_core import STEPS

from . import _store
from ._store import CLAIMED, Change

DEEP = "/".join(letter * 200 for letter in "xy")


def files(text: str, count: int) -> list[Change]:
    return [("write", f"{DEEP}/{number}", text.encode(), None) for number in range(count)]


@scenario(setup=_store.opened_before, guarantees=CLAIMED, steps=STEPS)
def torn_log(run: Run) -> None:
    _store.commit_each(run, log_limit=4096)


@torn_log.ops
def transactions() -> list[list[Change]]:
    return [
        files("one", 9),
        [("delete", f"{DEEP}/3"), ("ref", "main", "2", "1")],
    ]


torn_log.recover(_store.restart)
torn_log.observe(_store.everything)
