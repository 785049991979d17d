"""Transactions that are refused change nothing, killed or not, and those behind them go on.

The second one expects an old value that the ref does not have, and is refused before anything is logged.
The third passes all checks of the engine, stages its file, and is then refused by a hook of the repository
when git already holds the locks: it has to be undone in the living process, and a crash in the middle of
that by the next opening.
"""

from pathlib import Path

from crashtest import Run, scenario
from jin_core import STEPS

from . import _store
from ._store import CLAIMED, Change

HOOK = """#!/bin/sh
while read -r old new name; do
    case "$1 $name" in "prepared refs/heads/protected/"*) exit 1 ;; esac
done
"""


def with_hook(directory: Path) -> None:
    _store.opened_before(directory)
    hook = directory / ".git/hooks/reference-transaction"
    hook.parent.mkdir()
    hook.write_text(HOOK)
    hook.chmod(0o755)


@scenario(setup=with_hook, guarantees=CLAIMED, steps=STEPS)
def refused(run: Run) -> None:
    _store.commit_each(run)


@refused.ops
def transactions() -> list[list[Change]]:
    return [
        [("ref", "main", "2", "1"), ("write", "config", b"colour = red\n", None)],
        [("ref", "main", "3", "1"), ("write", "config", b"never\n", None)],
        [("ref", "protected/x", "2", "0"), ("ref", "main", "1", "2"), ("write", "new/config", b"never\n", None)],
        [("ref", "main", "3", "2"), ("delete", "config")],
    ]


refused.recover(_store.restart)
refused.observe(_store.everything)
