"""From a failing sequence of operations to the smallest that fails in the same way.

Guarantees: the search is Hypothesis's own (`explore.generate.Source`); a sequence that was judged is not run again for
it; it ends after `RUNS` runs, or when its time is over, and then says so. A candidate is looked through quickly: where
they can show the violation, its crash states are made from its record without a kill. What is found goes through the
whole matrix like any example, and only that is reported. "The same way" is the same guarantee under the same model,
by a crash nested no deeper than the shallowest that broke it. Main process only.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from crashtest.cells.matrix import find
from crashtest.explore.generate import Enough
from crashtest.scale.jobs import Job, Shrunk, before, broken
from crashtest.scenario import GUARANTEES
from crashtest.values import shown
from crashtest.verdict import Emit, ScenarioResult, Shrinking

#: sequences run while one scenario is shrunk
RUNS = 400
#: seconds for a scenario whose violations were all expected
FOR_EXPECTED = 30.0

#: operations of a sequence that are told
SHOWN = 50

#: runs a job with nothing beside it, until all of it is judged or its goal is reached; raises `Enough` at the given
#: time (`time.monotonic`) or when the run is stopped
Judge = Callable[[Job, float], None]


def wanted(job: Job) -> bool:
    """Whether there is something to shrink, or to forget."""
    return job.drawn and not job.usage and not job.error and bool(job.examples)


def shrink(job: Job, judge: Judge, seconds: float, emit: Emit) -> None:
    """Shrink each violated guarantee of a job whose matrix is done; the smallest sequences become its first examples.

    seconds: for all of it; 0 only remembers what failed. judge: runs a candidate.
    """
    assert job.source is not None
    violated = job.violated()
    judged = all(not example.reason and not example.harness_error for example in job.examples)
    for guarantee in job.scenario.claimed() - violated if judged else ():
        job.source.forget(guarantee)
    expected = frozenset[str]().union(*(job.scenario.expected(model) for model in job.models))
    if violated <= expected:
        seconds = min(seconds, FOR_EXPECTED)
    search = _Search(job, judge, time.monotonic() + seconds, seconds, emit)
    for guarantee in sorted(violated, key=lambda name: (name in expected, GUARANTEES.index(name))):
        found = search.smallest(guarantee)
        if found is not None:
            job.shrunk[guarantee] = found
    for found in reversed(job.shrunk.values()):  # what is told first stands first
        _put_first(job, found, judge)


def _put_first(job: Job, found: Shrunk, judge: Judge) -> None:
    """The whole matrix of the smallest sequence is run, unless it was, and it becomes the first example."""
    if found.ops in job.sequences:
        job.sequences.remove(found.ops)
        job.sequences.insert(0, found.ops)
        job.examples.sort(key=lambda one: job.sequences.index(one.ops))
        return
    job.sequences.insert(0, found.ops)
    judge(job, float("inf"))


def tell(made: ScenarioResult, job: Job, stopped: str) -> None:
    """Add to each violation its operations, and how they were shrunk. stopped: why the run ended early, or ""."""
    for violation in made.violations:
        example, _ = find(job.examples, violation.id)
        ops = example.ops or []
        violation.operations = [shown(op) for op in ops[:SHOWN]]
        if len(ops) > SHOWN:
            violation.operations.append(f"and {len(ops) - SHOWN} more")
        found = job.shrunk.get(violation.guarantee)
        if found is not None and found.ops == ops:
            violation.shrunk = found.words()
    if made.violations and stopped and not job.shrunk:
        made.notes.append(f"the operations were not shrunk: the run was stopped ({stopped})")


class _Search:
    """The runs of one scenario's shrinking, and what is known of sequences."""

    def __init__(self, job: Job, judge: Judge, until: float, seconds: float, emit: Emit) -> None:
        self._job = job
        self._judge = judge
        self._until = until
        self._seconds = seconds
        self._emit = emit
        self._runs = 0
        #: what a sequence breaks, as far as it is known, and what it was looked through for already
        self._breaks = {_key(one.ops): broken(one) for one in job.examples}
        self._asked = {(guarantee, key) for key in self._breaks for guarantee in GUARANTEES}
        #: of one search
        self._failed: list[list[str]] = []
        self._depth = 1
        self._likely: frozenset[tuple[str, str]] = frozenset()
        self._rebuilt = False

    def smallest(self, guarantee: str) -> Shrunk | None:
        assert self._job.source is not None
        self._look_for(guarantee)
        began, stopped = self._runs, ""

        def known(ops: list[str]) -> bool:
            return guarantee in self._breaks.get(_key(ops), ())

        def fails(ops: list[str]) -> bool:
            found = known(ops) or ((guarantee, _key(ops)) not in self._asked and self._run(ops, guarantee))
            if found:
                self._failed.append(ops)
            return found

        try:
            best = self._job.source.smallest(guarantee, fails, known)
        except Enough as reason:
            stopped = str(reason)
            best = min(self._failed, key=lambda ops: (len(ops), sum(map(len, ops)), ops), default=None)
        if best is None:
            return None
        old = self._failed[0] in self._job.source.old
        return Shrunk(best, len(self._failed[0]), self._runs - began, old, stopped)

    def _look_for(self, guarantee: str) -> None:
        """What the cells that broke a guarantee have in common: candidates are looked through in that light."""
        shown = [
            (example, cell, facts)
            for example in self._job.examples
            for fault, cell, facts in example.faults
            if fault.guarantee == guarantee
        ]
        self._models: tuple[str, ...] = ("kill",)
        if not shown:  # a power cut alone shows it
            cuts = [
                (model, len(cell.inner))
                for example in self._job.examples
                for model, losses in example.losses.items()
                for fault, cell, _ in losses.faults
                if fault.guarantee == guarantee
            ]
            self._models = tuple(dict.fromkeys(model for model, _ in cuts)) or ("kill",)
            self._depth = 1 + min((inner for _, inner in cuts), default=0)
        self._failed = []
        if shown:
            self._depth = 1 + min(
                (len(cell.inner) for _, cell, _ in shown), default=0
            )  # 1: the workload alone is killed
        self._likely = frozenset(before(example, cell) for example, cell, _ in shown)
        self._rebuilt = any(
            example.seccomp and example.can_be_rebuilt(cell, facts)
            for example, cell, facts in shown
            if len(cell.inner) < self._depth
        )

    def _run(self, ops: list[str], guarantee: str) -> bool:
        """The matrix of one candidate, up to the first cell that breaks the guarantee."""
        if self._runs >= RUNS:
            raise Enough(f"{RUNS} runs are the limit")
        if time.monotonic() >= self._until:
            raise Enough(f"its time of {self._seconds:g} seconds is over (--shrink)")
        self._runs += 1
        self._emit(Shrinking(name=self._job.scenario.name, runs=self._runs, operations=len(ops)))
        candidate = Job(
            self._job.scenario, self._job.file, [ops], depth=self._depth, goal=guarantee, likely=self._likely,
            rebuilt=self._rebuilt, models=self._models,
        )  # fmt: skip
        try:
            self._judge(candidate, self._until)
        except Enough as reason:
            raise Enough(str(reason) or f"its time of {self._seconds:g} seconds is over (--shrink)") from None
        found: set[str] = set()
        for example in candidate.examples if not candidate.usage and not candidate.error else []:
            found |= broken(example) if not example.harness_error else set()
        self._breaks.setdefault(_key(ops), set()).update(found)
        self._asked.add((guarantee, _key(ops)))
        return guarantee in found


def _key(ops: list[str] | None) -> str:
    return "\n".join(ops or [])
