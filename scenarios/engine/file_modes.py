"""The mode of a file is part of what a transaction changes, and is never half changed.

A new file gets the mode asked for, a rewritten one keeps its mode, and one transaction changes nothing but
modes: the content stays, so only a recovery that looks at modes can tell the old state from the new one.
"""

from crashtest import Run, scenario
from jin_core import STEPS

from . import _store
from ._store import CLAIMED, Change


@scenario(setup=_store.opened_before, guarantees=CLAIMED, steps=STEPS)
def file_modes(run: Run) -> None:
    _store.commit_each(run)


@file_modes.ops
def transactions() -> list[list[Change]]:
    return [
        [("write", "run.sh", b"#!/bin/sh\n", 0o755), ("write", "secret", b"one\n", 0o600)],
        [("write", "run.sh", b"#!/bin/sh\nexit 0\n", None), ("write", "secret", b"two\n", None)],
        [
            ("write", "run.sh", b"#!/bin/sh\nexit 0\n", 0o644),
            ("write", "secret", b"two\n", 0o400),
            ("ref", "main", "2", "1"),
        ],
    ]


file_modes.recover(_store.restart)
file_modes.observe(_store.everything)
