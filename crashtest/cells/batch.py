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

from crashtest.cells import worker
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
        scenario, state = bench.scenario, bench.state
        functions = (("recover", scenario.do_recover), ("observe", scenario.do_observe), ("glance", scenario.do_glance))
        parts = {name[0].encode(): worker.part(function, state, name) for name, function in functions if function}
        reading, self._asking = os.pipe()
        super().__init__(
            worker.serving(parts, f"{bench.root}/home"),
            cwd=f"{bench.root}/home",
            environment=bench.environment,
            output=f"{bench.root}/output",
            deadline=bench.timeout,
            control=bench.control,
            state=state,
            filter_program=bench.program if record else None,
            steps=record,
            end="at once",
            but=frozenset(bench.serving),
            ask=reading,
        )
        os.close(reading)
        bench.serving.add(self.worker)

    def close(self) -> None:
        """End the process."""
        self.bench.serving.discard(self.worker)
        os.close(self._asking)
        self._but = frozenset(self.bench.serving)
        if not self._killed and not self._worker_gone:
            self._kill_group()
        self._finish()

    def part(self, name: str) -> Restarted:
        """Run a part on what is on disk. Raises `Unfit`."""
        return self._turn(name)

    def recover_on(self, tree: Tree) -> Restarted:
        """Run recovery on disk, recorded (`Bench.recover_on`). Raises `Unfit`."""
        shadow = tree.copy()
        self.recorder = Recorder(self.bench.state, shadow, dict(tree.inodes), self._channels)
        self._processes = self.recorder.processes
        try:
            made = self._turn(self.bench.recovery()[0])
            made.trace = self.recorder.finish(killed=False)
        finally:
            self.recorder.close()
            self.recorder = None
        made.tree = self.bench.capture()
        made.proof = shadow.differences(made.tree)
        return made

    def _turn(self, name: str) -> Restarted:
        self.served += 1
        self._answer = b""
        self._deadline = time.monotonic() + self.bench.timeout
        self._but = frozenset(self.bench.serving - {self.worker})
        if self.out.end == "refused" or self._over():
            raise Unfit("its process could not be observed, or is gone")
        os.write(self._asking, name[0].encode())
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
        here = self.bench.serving
        return bool(children(self.worker)) or any(pid not in here for pid in children(os.getpid()))
