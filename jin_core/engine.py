"""What an open store consists of; shared by transactions and recovery."""

from __future__ import annotations

import os
from dataclasses import dataclass

from jin_core.errors import Misuse, NeedsRecovery
from jin_core.lock import StoreLock
from jin_core.repository import Repository
from jin_core.wal import Wal


@dataclass(slots=True)
class Engine:
    """An open store. `patience`: seconds to wait for, or to watch, a git lock that is not proven ours.

    `unfinished` says why recovery has to run before the next transaction, "" when it has not.
    """

    repository: Repository
    lock: StoreLock
    wal: Wal
    patience: float
    pid: int
    unfinished: str = ""
    closed: bool = False

    def check_process(self) -> None:
        """Raises `Misuse` when the store is closed, or was opened by another process (before a fork)."""
        if self.closed:
            raise Misuse("the store is closed", "open it again")
        if self.pid != os.getpid():
            raise Misuse("the store was opened by another process", "open it in the process that uses it")

    def check_ready(self) -> None:
        """Raises `Misuse`, or `NeedsRecovery` when a transaction is unfinished."""
        self.check_process()
        reason = self.unfinished or self.wal.poisoned
        if reason:
            raise NeedsRecovery(f"no transaction can begin: {reason}", "call recover(), or open the store again")
