"""Recovery may be killed at each of its own steps and calls, and the next one still ends in a whole state.

The first state is what a killed process left: an engine and its git child, really SIGKILLed as a group in the middle
of a transaction. The workload is the recovery of that, killed everywhere, and then one more transaction. Before the
commit point recovery takes everything back, its own git locks included; after it, recovery brings the rest; a torn
record at the end of the log is cut off first.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from crashtest import Run, scenario
from jin_core import STEPS

from . import _store
from ._store import CLAIMED, Change

HALF_DONE: list[Change] = [
    ("write", "readme", b"second\n", 0o600),
    ("write", "new/file", b"in a new directory\n", None),
    ("ref", "main", "2", "1"),
    ("ref", "team/topic", "3", "0"),
]
NEXT: list[Change] = [("write", "next", b"the next transaction\n", None), ("ref", "main", "3", None)]


def killed_at(name: str, cut: int = 0) -> Callable[[Path], None]:
    """A first state: a transaction whose whole process group died at the step `name`, the log `cut` bytes shorter."""

    def setup(directory: Path) -> None:
        _store.opened_before(directory)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            sys.addaudithook(lambda event, _: os.killpg(0, signal.SIGKILL) if event == name else None)
            with _store.open_store(directory) as jin, jin.transaction() as tx:
                for change in HALF_DONE:
                    _store.add(tx, change)
            os._exit(1)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, f"the step {name} was not reached"
        log = directory / ".git/jin/wal"
        os.truncate(log, log.stat().st_size - cut)

    return setup


def recover_and_go_on(run: Run) -> None:
    with _store.open_store(run.dir) as jin:
        run.ack("recovered", same=True)
        with jin.transaction() as tx:
            for change in NEXT:
                _store.add(tx, change)
    run.ack("committed")


CLAIMS = CLAIMED - {"live"}  # there is no list of operations to go on with


@scenario(setup=killed_at("jin_core.wal.commit"), guarantees=CLAIMS, steps=STEPS)
def rolls_back(run: Run) -> None:
    recover_and_go_on(run)


@scenario(setup=killed_at("jin_core.refs.commit"), guarantees=CLAIMS, steps=STEPS)
def redoes(run: Run) -> None:
    recover_and_go_on(run)


@scenario(setup=killed_at("jin_core.wal.cleanup"), guarantees=CLAIMS, steps=STEPS)
def redoes_what_is_done_already(run: Run) -> None:
    recover_and_go_on(run)


@scenario(setup=killed_at("jin_core.refs.commit", cut=7), guarantees=CLAIMS, steps=STEPS)
def rolls_back_a_torn_commit(run: Run) -> None:
    """The commit record is torn, so it was never written, though git holds its locks."""
    recover_and_go_on(run)


for story in (rolls_back, redoes, redoes_what_is_done_already, rolls_back_a_torn_commit):
    story.recover(_store.restart)
    story.observe(_store.everything)
