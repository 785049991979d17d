"""What power cuts showed of one example: facts become faults, and faults of one cause become one reduced violation.

Guarantees: states are judged in the order of the walk, whichever zygote they came from; two faults are of one cause
when what the one lost, reduced to the fewest changes, is among what the other lost (the same calls at the same places
in the program). What was not reduced is counted, never dropped. Main process only; pure but for what it is handed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from crashtest.cells import judge
from crashtest.cells.judge import Expected, Fault
from crashtest.cells.plan import Cell
from crashtest.scenario import Scenario
from crashtest.verdict import MOST

#: causes of one guarantee that are reduced and told
CAUSES = 5


class Cause(NamedTuple):
    """A violation reduced: its cell, the facts about it, the fault, and the words of its story."""

    cell: Cell
    facts: dict[str, Any]
    fault: Fault
    marks: frozenset[str]
    story: dict[str, Any]
    number: int


class Losses:
    """The states of one model over one example. facts: what is known of each tree, shared with the example."""

    def __init__(self, scenario: Scenario, expected: Expected, model: str, facts: dict[str, dict[str, Any]]) -> None:
        self.scenario = scenario
        self.expected = expected
        self.model = model
        self.facts = facts
        self.faults: list[tuple[Fault, Cell, dict[str, Any]]] = []
        self.causes: list[Cause] = []
        self.judged: dict[str, int] = {}
        self.seen: set[tuple[str, int]] = set()
        self.states = self.nested = self.skipped = self.untried = 0
        #: shards of the walk and single states that were given out, and how many of them have come to their end
        self.given = self.finished = 0
        self.exhaustive = self.nested_complete = True
        #: a fault that did not come again in processes of its own, in words
        self.disagreement = ""
        #: by cell: on which real file systems a violation was seen, and on which not
        self.real: dict[Cell, dict[str, bool]] = {}
        self._waiting: list[dict[str, Any]] = []
        self._failed: set[tuple[str, Cell]] = set()

    # -- taking facts in ---------------------------------------------------------------------------------------

    def take(self, told: dict[str, Any]) -> None:
        """A state that was recovered; it is judged when all have come in."""
        self._waiting.append(told)

    def finish(self, coverage: dict[str, Any]) -> None:
        """One shard of the walk has come to its end."""
        self.finished += 1
        self.skipped = max(self.skipped, min(int(coverage["skipped"]), MOST))
        self.exhaustive = self.exhaustive and coverage["exhaustive"]
        self.nested += coverage["nested"]
        self.nested_complete = self.nested_complete and coverage["nested_complete"]

    def judge(self) -> None:
        """Judge what has come in, in the order of the walk."""
        waiting, self._waiting = sorted(self._waiting, key=lambda told: told["number"]), []
        for told in waiting:
            lost = _names(told["lost"])
            dropped = tuple(told.get("without", ()))
            cell = Cell(told["cut"], "", 0, "group", model=self.model, lost=lost, without=dropped)
            untried = self.facts[told["tree"]]["skipped"]  # others timed out, so it was not recovered
            if untried:
                self.untried += 1
            elif not told["outer"]:
                self.states += 1
                self.seen.add((told["tree"], told["acks"]))
                for fault in self._faults(told, None):
                    self.faults.append((fault, cell, told))
            first = told.get("lost_first")
            for inner in told["inner"] if told["outer"] else ():
                if untried or self.facts[inner["tree"]]["skipped"]:
                    self.untried += 1
                    continue
                nested = _nested(cell, inner, first)
                shown = None if self._broken(told) else inner["shown"]
                facts = {**told, **inner, "acks": told["acks"], "before": told["before"], "then": inner["before"]}
                facts["marks"] = sorted({*inner["marks"], *(told["marks"] if first else ())})
                for fault in self._faults(facts, shown):
                    self.faults.append((fault, nested, facts))

    def _broken(self, told: dict[str, Any]) -> bool:
        """Whether the recovery that is cut shows something wrong already: then it has not promised anything."""
        tree = self.facts[told["tree"]]
        _, found = judge.faults(self.scenario, self.expected, tree, told["acks"], told["extra"])
        return bool({fault.guarantee for fault in found} & {*judge.STATE, "idempotent"})

    def _faults(self, told: dict[str, Any], shown: str | None) -> list[Fault]:
        tree = self.facts[told["tree"]]
        judged, found = judge.faults(self.scenario, self.expected, tree, told["acks"], told["extra"], shown)
        for guarantee in judged:
            self.judged[guarantee] = self.judged.get(guarantee, 0) + 1
        return found

    def take_seen(self, guarantee: str, cell: Cell, real: str, answers: list[dict[str, Any]]) -> None:
        """Real cuts where the cell is: whether one of them breaks the same guarantee."""
        seen = False
        for told in answers:
            tree = (self.facts | told["new"])[told["tree"]]
            if not told["timed_out"] and not tree["skipped"]:
                _, found = judge.faults(self.scenario, self.expected, tree, told["acks"], told["extra"])
                seen = seen or any(fault.guarantee == guarantee for fault in found)
        self.real.setdefault(cell, {})[real] = seen

    # -- one violation for each cause ----------------------------------------------------------------------------

    def next_to_reduce(self) -> tuple[Fault, Cell, dict[str, Any]] | None:
        """The shallowest fault with the fewest losses whose cause is not known yet; None when all are told."""
        told: dict[str, int] = {}
        for cause in self.causes:
            told[cause.fault.guarantee] = told.get(cause.fault.guarantee, 0) + 1
        bare = self._bare()
        for fault, cell, facts in sorted(self.faults, key=_order):
            known = (fault.guarantee, cell) in self._failed or _explained(fault, cell, bare)
            known = known or self._cause_of(fault, cell, facts) is not None
            if _losing(cell) and not known and told.get(fault.guarantee, 0) < CAUSES:
                return fault, cell, facts
        return None

    def _cause_of(self, fault: Fault, cell: Cell, facts: dict[str, Any]) -> int | None:
        marks = set(facts["marks"])
        for number, cause in enumerate(self.causes):
            same = cause.fault.guarantee == fault.guarantee
            if same and cause.marks <= marks and (cause.marks or not marks):
                return number
        return None

    def _bare(self) -> set[tuple[Any, ...]]:
        """Where a guarantee breaks although nothing is lost, and which losses break one without a cut in recovery."""
        bare: set[tuple[Any, ...]] = set()
        for fault, cell, _ in self.faults:
            if not _losing(cell):
                bare.add((fault.guarantee, *_at(cell)))
            elif not cell.inner:
                bare.add((fault.guarantee, cell.cut, cell.lost))
        return bare

    def take_reduced(self, fault: Fault, cell: Cell, facts: dict[str, Any], reduced: dict[str, Any]) -> None:
        """What reducing a fault came to: with fewer losses, in processes of its own, it must break the same."""
        self.facts.update(reduced["new"])
        made = {**facts, **{key: reduced[key] for key in ("tree", "extra", "marks")}}
        again = [one for one in self._faults(made, reduced["shown"]) if one.guarantee == fault.guarantee]
        if not again:
            self._failed.add((fault.guarantee, cell))
            self.disagreement = self.disagreement or f"{fault.guarantee}: {fault.observed}"
            return
        small = cell._replace(lost=_names(reduced["lost"]))
        cause = Cause(small, made, again[0], frozenset(reduced["marks"]), reduced["story"], 0)
        self.causes.append(cause)

    def counted(self) -> list[Cause]:
        """Every cause with how many states it broke; what was not reduced is with the first of its guarantee."""
        counts = [0] * len(self.causes)
        bare = self._bare()
        for fault, cell, facts in self.faults:
            if not _losing(cell) or _explained(fault, cell, bare):
                continue
            number = self._cause_of(fault, cell, facts)
            if number is None:
                number = next((n for n, c in enumerate(self.causes) if c.fault.guarantee == fault.guarantee), None)
            if number is not None:
                counts[number] += 1
        return [cause._replace(number=max(number, 1)) for cause, number in zip(self.causes, counts, strict=True)]

    def kept_all(self) -> list[tuple[Fault, Cell, dict[str, Any]]]:
        """Faults of states in which nothing is lost: what a kill would have shown too."""
        return [one for one in sorted(self.faults, key=_order) if not _losing(one[1])]

    def violated(self) -> set[str]:
        return {fault.guarantee for fault, _, _ in self.faults}


def late_cells(model: str, told: dict[str, Any]) -> list[Cell]:
    """The states in which something timed out: to be tried again when nothing else runs."""
    dropped = tuple(told.get("without", ()))
    cell = Cell(told["cut"], "", 0, "group", model=model, lost=_names(told["lost"]), without=dropped)
    if told["timed_out"] and not told["outer"]:
        return [cell]
    inner = told["inner"] if told["outer"] else ()
    return [_nested(cell, one, told["lost_first"]) for one in inner if one["timed_out"]]


def _nested(cell: Cell, inner: dict[str, Any], first: Any) -> Cell:
    """A power cut in recovery, from the cell whose recovery it is. first: what that one lost, None after a kill."""
    places = tuple((cut, kind, torn) for cut, kind, torn in inner["path"])
    return cell._replace(inner=places, lost=_names(inner["lost"]), lost_first=None if first is None else _names(first))


def _losing(cell: Cell) -> bool:
    return bool(cell.lost or cell.lost_first)


def _explained(fault: Fault, cell: Cell, bare: set[tuple[Any, ...]]) -> bool:
    """Whether a guarantee breaks there anyway, so that what was lost, or cut in recovery, says nothing more."""
    if (fault.guarantee, *_at(cell)) in bare:
        return True
    if not cell.inner:
        return False
    return (fault.guarantee, cell.cut, (), False) in bare or (fault.guarantee, cell.cut, cell.lost_first) in bare


def _at(cell: Cell) -> tuple[Any, ...]:
    """Where a state is, whatever it lost."""
    return cell.cut, cell.inner, bool(cell.lost_first)


def _names(lost: Any) -> tuple[tuple[int, int], ...]:
    return tuple((event, part) for event, part in lost)


def _order(fault: tuple[Fault, Cell, dict[str, Any]]) -> tuple[Any, ...]:
    cell = fault[1]
    return len(cell.inner), len(cell.lost) + len(cell.lost_first or ()), cell.cut, cell.inner, cell.lost
