"""Several zygotes that are asked questions about one example, as many at a time as there are cores.

Guarantees: answers come in the order of the questions; whatever ends the asking (an error, Ctrl-C), every zygote and
all below it has ended when `close` returns. Where recoveries remember something from one to the next, everybody begins
anew with a process for each.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

from crashtest import wire
from crashtest.cells.example import Example
from crashtest.cells.recoveries import Unbatchable
from crashtest.config import Settings
from crashtest.errors import HarnessError
from crashtest.scale.jobs import Job
from crashtest.scale.local import end_strays
from crashtest.scale.rundir import RunDirectory
from crashtest.scale.slot import Slot


class Team:
    """`size` zygotes below one run directory, for one job. Raises what they report."""

    def __init__(self, size: int, directory: RunDirectory, job: Job, settings: Settings) -> None:
        self.size = size
        self._directory = directory
        self._job = job
        self._timeout = settings.timeout
        self._slots = [Slot(number, directory, True, settings.first_core) for number in range(size)]
        self._threads = ThreadPoolExecutor(size)
        self._example: Example | None = None
        #: what each of them is asked first about the example, and what it answered; None: it was not asked yet
        self._first: list[dict[str, Any]] = []
        self._told: list[list[dict[str, Any]] | None] = [None] * size

    def close(self) -> None:
        for slot in self._slots:
            slot.hang_up()
        # by the threads that started them: a zygote is told when the thread that did has ended
        wait([self._threads.submit(slot.close) for slot in self._slots])
        self._threads.shutdown()
        end_strays(self._directory.token)

    def prepare(self, ops: list[str] | None) -> dict[str, Any]:
        """The runs without a crash."""
        return self._alone(lambda slot: slot.prepare(self._job.scenario, ops, self._timeout))

    def measure(self, ops: list[str] | None, runs: int) -> list[list[list[Any]]]:
        """The times that the syncs of the workload take, run by run (`zygote.do_measure`)."""
        request = {**self._slots[0].request("measure", self._job.scenario, ops, self._timeout), "runs": runs}
        found: list[list[list[Any]]] = self._alone(lambda slot: slot.ask(request))["runs"]
        return found

    def _alone(self, ask: Callable[[Slot], dict[str, Any]]) -> dict[str, Any]:
        def first() -> dict[str, Any]:
            self._slots[0].open(self._job.scenario, self._job.file)
            return ask(self._slots[0])

        try:
            return self._threads.submit(first).result()
        except wire.Closed:
            raise HarnessError("the zygote of this scenario died") from None

    def begin(self, example: Example, first: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Turn to an example, about which everybody is asked the same first; the answers of one."""
        self._example, self._first, self._told = example, first, [None] * self.size
        self._together([[] for _ in self._slots])
        assert self._told[0] is not None
        return self._told[0]

    def ask(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each question to one of them."""
        answers = self._together([requests[at :: self.size] for at in range(self.size)])
        return [answers[at % self.size][at // self.size] for at in range(len(requests))]

    def _together(self, shares: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        while True:
            futures = [self._threads.submit(self._share, at, share) for at, share in enumerate(shares)]
            wait(futures)
            try:
                return [future.result() for future in futures]
            except Unbatchable as error:
                assert self._example is not None
                if self._example.remembers:
                    raise HarnessError(f"recovery alone is not the same each time: {error}") from error
                self._example.remembers = str(error)
                self._told = [None] * self.size
                for slot in self._slots:
                    slot.close()

    def _share(self, at: int, share: list[dict[str, Any]]) -> list[dict[str, Any]]:
        assert self._example is not None
        slot = self._slots[at]
        try:
            if self._told[at] is None:
                slot.open(self._job.scenario, self._job.file)
                slot.serve(self._example, self._timeout, self._job.depth)
                self._told[at] = [slot.ask(request) for request in self._first]
            return [slot.ask(request) for request in share]
        except wire.Closed:
            raise HarnessError("the zygote of this scenario died") from None
