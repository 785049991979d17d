"""The named steps of the engine: the only seam through which others watch it.

Guarantees: every place where the engine is about to change something durable announces itself first,
through `sys.audit`, under a name listed in `STEPS`; a name that is not listed is a programming error and
raises at once.
Does not guarantee: that a step is announced exactly once per transaction (staging ten files announces ten
times), nor that arguments of a step stay the same between versions. Nobody listening costs nothing.
"""

from __future__ import annotations

import sys

STEPS: tuple[str, ...] = (
    # first opening of a repository
    "jin_core.store.create",
    "jin_core.wal.create",
    # every opening
    "jin_core.lock.acquire",
    # a transaction, in the order of the protocol
    "jin_core.refs.objects",
    "jin_core.wal.begin",
    "jin_core.wal.sync",
    "jin_core.files.mkdir",
    "jin_core.files.stage",
    "jin_core.files.sync_stage",
    "jin_core.refs.prepare",
    "jin_core.refs.prepared",
    "jin_core.wal.commit",
    "jin_core.refs.commit",
    "jin_core.refs.sync",
    "jin_core.files.rename",
    "jin_core.files.unlink",
    "jin_core.files.sync",
    "jin_core.wal.cleanup",
    "jin_core.wal.reset",
    "jin_core.transaction.done",
    # a transaction that is refused after it has begun
    "jin_core.transaction.abort",
    # roll-back, in the process or at recovery
    "jin_core.refs.unlock",
    "jin_core.refs.rmdir",
    "jin_core.files.discard",
    "jin_core.files.rmdir",
    "jin_core.wal.abort",
    # recovery
    "jin_core.wal.truncate",
    "jin_core.recovery.keep",
    "jin_core.recovery.rollback",
    "jin_core.recovery.redo",
    "jin_core.wal.redo",
    "jin_core.recovery.done",
)

_KNOWN = frozenset(STEPS)


def step(name: str, *args: object) -> None:
    """Announce that the step `name` is about to be done.

    `args` say what it is done to (a path, a ref, a transaction number); they are for people who watch.
    Raises `ValueError` when `name` is not in `STEPS`.
    """
    if name not in _KNOWN:
        raise ValueError(f"{name!r} is not in jin_core.steps.STEPS: list it there first")
    sys.audit(name, *args)
