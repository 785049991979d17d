"""Many restarts in one process: the parts that start again, run on one crash state after the other.

A process of its own for each recovery costs several times what a small recovery does. Guarantees: an answer stands only
when the process had nothing left to write, no thread and no child of its own, so that a process of its own would have
ended with the same files; otherwise, and when the process dies or takes too long, `Unfit` is raised and nothing of it
is used. Does not see what a program remembers in memory from one state to the next: `recoveries.py` does a sample, and
everything that would be a violation, in processes of their own, and compares.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from crashtest.cells.leftovers import others
from crashtest.cells.supervise import Supervision, parsed
from crashtest.observe.process import children
from crashtest.observe.syscalls import Recorder
from crashtest.persist.tree import Tree

if TYPE_CHECKING:
    from crashtest.cells.realise import Bench, Restarted

#: states after which the process is replaced by a new one
ENOUGH = 400


class Unfit(Exception):
    """The part has to be run in a process of its own; the message says why."""


class Batch(Supervision):
    """One process that serves the parts of a bench's scenario. record: under a listener, so recovery is recorded."""

    def __init__(self, bench: Bench, record: bool) -> None:
        self.bench = bench
        self.served = 0
        forker = bench.forker(observed=record, steps=record)
        super().__init__(
            forker,
            "serve",
            [],
            end="at once",
            deadline=bench.timeout,
            control=bench.control,
            state=bench.state,
            in_turns=True,
        )

    def close(self) -> None:
        """End the process."""
        if not self._over():
            self._kill_group()
        self._finish()
        self._forker.close()

    def recover_on(self, tree: Tree) -> Restarted:
        """Run recovery on disk, recorded (`Bench.recover_on`). Raises `Unfit`."""
        shadow = tree.copy()
        self.recorder = Recorder(self.bench.state, shadow, dict(tree.inodes), self._channels)
        self._processes = self.recorder.processes
        try:
            made = self.part(self.bench.recovery())
            made.trace = self.recorder.finish()
        finally:
            self.recorder.close()
            self.recorder = None
        made.tree = self.bench.capture()
        made.proof = shadow.differences(made.tree)
        return made

    def part(self, name: str) -> Restarted:
        """Run a part on what is on disk. Raises `Unfit`."""
        self.served += 1
        self.bench.touched()
        self._answer = b""
        self._deadline = time.monotonic() + self.bench.timeout
        if self._over():
            raise Unfit("its process is gone")
        os.write(self._go, name[0].encode())
        self._loop()
        if self._over() or not self._answer.endswith(b"\n"):
            raise Unfit("its process died, or took too long")
        self.out.answer = answer = parsed(self._answer)
        if answer.get("left") or "value" not in answer or self._company():
            raise Unfit("something was left to be written when it had returned, or it failed")
        return self.bench.part_result(name, self.out)

    def _over(self) -> bool:
        return self._killed or self._worker_gone

    def _company(self) -> bool:
        """Whether the part left a process behind."""
        return bool(children(self.worker)) or bool(others(self._but))
