"""The store: a git repository opened for transactions.

Guarantees: one holder at a time; opening runs recovery when the log has an unfinished transaction, and
otherwise writes nothing except at the very first opening, which makes the engine's directory with all it
will ever hold (`jin/lock`, `jin/wal` in the directory that all work trees of the repository share).
Does not guarantee: anything to programs that change the same files and refs without asking; see
`transaction`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

from jin_core import disk, wal
from jin_core.engine import Engine
from jin_core.files import WantedFile
from jin_core.lock import StoreLock
from jin_core.protocol import Decision, decide
from jin_core.recovery import Recovery, recover
from jin_core.refplan import WantedRef
from jin_core.repository import Repository, locate
from jin_core.steps import step
from jin_core.transaction import Commit, Transaction
from jin_core.wal import Record, Wal

LOG_LIMIT = 1 << 16
PATIENCE = 1.0


@dataclass(frozen=True, slots=True)
class Status:
    """A store as it is now. Sizes in bytes; transactions by number, None when there is none.

    `unfinished`: the transaction that recovery has to bring to its end, and `decision` what it will do.
    """

    worktree: str
    engine_dir: str
    log_bytes: int
    torn_bytes: int
    records: int
    last_transaction: int | None
    unfinished: int | None
    decision: str


class Jin:
    """An open store. Close it, or use it in a `with` block. Threads of one process may share it."""

    def __init__(self, engine: Engine, report: Recovery) -> None:
        self._engine = engine
        self._guard = threading.RLock()
        self.recovered = report

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        wait: bool = True,
        patience: float = PATIENCE,
        log_limit: int = LOG_LIMIT,
    ) -> Jin:
        """Open the repository whose work tree is `path`, and recover if the log says so.

        `wait`: wait for another holder, otherwise raise `Busy`. `patience`: seconds that a git lock which
        is not proven ours is waited for or watched (refs never longer than 0.1). `log_limit`: bytes of
        finished transactions that the log may keep. What recovery did is in `recovered`.
        Raises `NotARepository`, `Busy`, `LogCorrupt`, `RecoveryConflict`, `OSError`.
        """
        repository = locate(path)
        _make_engine_dir(repository)
        lock = StoreLock(os.path.join(repository.engine_dir, "lock"), wait)
        log: Wal | None = None
        try:
            log = Wal(_log_path(repository), log_limit)
            if not log.records:
                # A log that has records was made durable, name and all, before the first of them.
                disk.sync_dir(repository.engine_dir)
                disk.sync_dir(repository.common_dir)
            engine = Engine(repository, lock, log, patience, os.getpid())
            report = recover(engine)
            if report:
                log.reset()
            return cls(engine, report)
        except BaseException:
            if log is not None:
                log.close()
            lock.close()
            raise

    def transaction(self) -> Transaction:
        """A new, empty transaction. Raises `Misuse`, `NeedsRecovery`."""
        with self._guard:
            self._engine.check_ready()
        return Transaction(self._commit)

    def _commit(self, files: Mapping[str, WantedFile], refs: Mapping[str, WantedRef]) -> int:
        with self._guard:
            self._engine.check_ready()
            return Commit(self._engine, files, refs).run()

    def recover(self) -> Recovery:
        """Read the log again, bring its last transaction to its end and empty the log; twice does no more.

        Raises `LogCorrupt`, `RecoveryConflict`, `OSError`.
        """
        with self._guard:
            self._engine.check_process()
            self._engine.wal.load()
            report = recover(self._engine)
            self._engine.wal.reset()
            self._engine.unfinished = ""
            return report

    def status(self) -> Status:
        """The store as it is now. Raises `LogCorrupt`, `OSError`."""
        with self._guard:
            self._engine.check_process()
            return survey(self._engine.repository)

    def close(self) -> None:
        """Let the store go; closing twice is allowed."""
        with self._guard:
            if not self._engine.closed:
                self._engine.closed = True
                self._engine.wal.close()
                self._engine.lock.close()

    def __enter__(self) -> Jin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_engine"):
            self.close()


def _make_engine_dir(repository: Repository) -> None:
    if not disk.is_dir(repository.engine_dir):
        step("jin_core.store.create", repository.engine_dir)
        disk.make_dir(repository.engine_dir)


def _log_path(repository: Repository) -> str:
    return os.path.join(repository.engine_dir, "wal")


def survey(repository: Repository) -> Status:
    """Look at a store without opening it: no lock, no recovery, no change. Raises `LogCorrupt`."""
    found = wal.read(_log_path(repository))
    last = last_transaction(found.records)
    decision = decide([record.kind for record in last])
    return Status(
        worktree=repository.worktree,
        engine_dir=repository.engine_dir,
        log_bytes=found.end,
        torn_bytes=found.torn,
        records=len(found.records),
        last_transaction=last[0].transaction if last else None,
        unfinished=None if decision is Decision.NOTHING else last[0].transaction,
        decision=decision.value,
    )


def last_transaction(records: tuple[Record, ...]) -> list[Record]:
    """The records of the last transaction in a log."""
    return [record for record in records if record.transaction == records[-1].transaction]
