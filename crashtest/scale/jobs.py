"""The work of a run in pieces: a job for each scenario, tasks for the slots, and the order in which facts are judged.

Guarantees: what a job's examples are told does not depend on which zygote was faster: cells are taken in in the order
of the plan, examples are kept in the order in which they were drawn. Main process only, one thread; no I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crashtest.cells.example import Example
from crashtest.cells.judge import Fault
from crashtest.cells.plan import Cell
from crashtest.explore.generate import Source
from crashtest.scenario import Scenario


@dataclass
class Task:
    """prepare an example, realise a chunk of its cells (alone: with nothing beside it), or rebuild some."""

    job: Job
    do: str
    example: Example | None = None
    ops: list[str] | None = None
    cells: list[Cell] = field(default_factory=list)
    killed: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    error: BaseException | None = None
    alone: bool = False
    #: a walk of the states that a power cut may leave: its model, and which shard of how many
    model: str = ""
    shard: tuple[int, int] = (0, 1)
    coverage: dict[str, Any] | None = None
    #: the answers are a part of what is to come
    more: bool = False
    #: a fault to be reduced to the fewest lost changes
    fault: tuple[Fault, Cell, dict[str, Any]] | None = None


class Shrunk:
    """How a drawn sequence became the smallest one for a guarantee.

    ops: the smallest. before: how many operations it had. runs: how many other sequences were run for it. old: the
    search began with a sequence remembered from an earlier run. stopped: why it ended before its end, or "".
    """

    def __init__(self, ops: list[str], before: int, runs: int, old: bool, stopped: str) -> None:
        self.ops = ops
        self.before = before
        self.runs = runs
        self.old = old
        self.stopped = stopped

    def words(self) -> str:
        """In words: "shrunk from 7 operations to 3 in 24 runs"."""
        runs = f"{self.runs} run{'' if self.runs == 1 else 's'}"
        if self.before > len(self.ops):
            told = f"shrunk from {self.before} operations to {len(self.ops)} in {runs}"
        elif self.old and not self.runs:
            told = "remembered from an earlier run"
        else:
            told = f"shrunk in {runs}, to as many operations"
        return f"{told}; shrinking stopped there: {self.stopped}" if self.stopped else told


@dataclass
class Job:
    """One scenario on its way: its examples, and how much of them is still out.

    goal: set for a candidate of shrinking: the guarantee, and the job is over when one cell breaks it.
    """

    scenario: Scenario
    file: Path
    sequences: list[list[str] | None]
    source: Source | None = None
    depth: int = 2
    models: tuple[str, ...] = ("kill",)
    goal: str = ""
    #: places (`before`) where its goal is likely to be reached: they are tried first
    likely: frozenset[tuple[str, str]] = frozenset()
    #: a candidate's crash states are made from its record, without a kill
    rebuilt: bool = False
    examples: list[Example] = field(default_factory=list)
    open_tasks: int = 0
    planned: int = 0
    started: float = 0.0
    error: str = ""
    #: what a user has to know of its first state, before anything runs
    note: str = ""
    #: why the scenario cannot be judged as it is written
    usage: str = ""
    done: bool = False
    #: given up: what still comes in counts for nothing
    dropped: bool = False
    #: cells in which something timed out, to be tried again when nothing else runs
    slow: list[tuple[Example, Cell]] = field(default_factory=list)
    timeouts: int = 0
    #: by guarantee
    shrunk: dict[str, Shrunk] = field(default_factory=dict)
    confirmed: list[Example] = field(default_factory=list)
    _arrived: dict[int, InOrder] = field(default_factory=dict)

    @property
    def drawn(self) -> bool:
        """Whether its sequences were drawn from a strategy, and can be shrunk."""
        return self.source is not None and self.source.drawn

    def take_example(self, example: Example) -> None:
        """A prepared example finds its place among the others."""
        self.examples.append(example)
        self.examples.sort(key=lambda one: self.sequences.index(one.ops))
        self._arrived[id(example)] = InOrder(example)

    def replace_example(self, example: Example, anew: Example) -> None:
        """An example has to be judged anew, from its first cell on."""
        del self._arrived[id(example)]
        self.examples.remove(example)
        self.take_example(anew)

    @property
    def tried(self) -> int:
        """How many cells have come in."""
        return sum(arrived.count for arrived in self._arrived.values())

    def take_cell(self, example: Example, cell: Cell, facts: dict[str, Any] | None) -> None:
        """What a cell showed; None: it has to be tried again, later or in another way."""
        self._arrived[id(example)].take(cell, facts)
        if self.goal:
            self.take_rest()  # nothing of it is told but whether the goal was reached

    def take_rest(self) -> None:
        """Nothing more will come: whatever waits for its turn is judged."""
        for arrived in self._arrived.values():
            arrived.rest()
        for example in self.examples:
            for losses in example.losses.values():
                losses.judge()

    def violated(self) -> set[str]:
        """The guarantees that some cell broke, so far."""
        return {guarantee for example in self.examples for guarantee in broken(example)}


def broken(example: Example) -> set[str]:
    """The guarantees that this sequence of operations breaks, as far as its cells were judged."""
    found = {fault.guarantee for fault, _, _ in example.faults}
    for losses in example.losses.values():
        found |= losses.violated()
    return found | set(example.prepared["fault"][:1])


def before(example: Example, cell: Cell) -> tuple[str, str]:
    """The call and the directory at a cell's place in the recorded run; the rest differs between sequences."""
    if cell.cut >= len(example.events):
        return "", ""
    words = example.events[cell.cut].describe()
    return words.partition("(")[0], words.partition("(")[2].rpartition("/")[0]


class InOrder:
    """Hands the cells of an example on in the order of its plan, whatever the order in which they come in."""

    def __init__(self, example: Example) -> None:
        self._example = example
        self._place = {cell: number for number, cell in enumerate(example.plan.cells)}
        self._next = 0
        self.count = 0
        self._waiting: dict[int, dict[str, Any] | None] = {}
        self._later: list[tuple[Cell, dict[str, Any]]] = []

    def take(self, cell: Cell, facts: dict[str, Any] | None) -> None:
        self.count += facts is not None
        place = self._place.get(cell, -1)
        if place < self._next:  # it was passed over before, or it is not in the plan
            if facts is not None:
                self._later.append((cell, facts))
            return
        self._waiting[place] = facts
        while self._next in self._waiting:
            self._hand_on(self._next)
            self._next += 1

    def rest(self) -> None:
        for place in sorted(self._waiting):
            self._hand_on(place)
        for cell, facts in sorted(self._later, key=lambda one: one[0]):
            self._example.add(cell, facts)
        self._later.clear()

    def _hand_on(self, place: int) -> None:
        facts = self._waiting.pop(place)
        if facts is not None:
            self._example.add(self._example.plan.cells[place], facts)


def family(identity: str) -> str:
    """The part of a cell's id that the cells nested in it, and those torn at its place, have in common with it."""
    name, example, point, _, _ = identity.rsplit("/", 4)
    return f"{name}/{example}/{point.partition('>')[0]}"
