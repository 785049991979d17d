"""One operation sequence of a scenario: prepared, planned, and filled with the facts of its cells.

Guarantees: facts are judged by `judge.py` alone; what could not be judged has its reason in words; a killed and a
rebuilt crash state that show different things are a harness error. Main process only. Power cuts: `losses.py`.
"""

from __future__ import annotations

import fnmatch
from typing import Any

from crashtest.cells import judge
from crashtest.cells.judge import Fault
from crashtest.cells.losses import Losses
from crashtest.cells.plan import Cell, Plan, place, plan
from crashtest.errors import quoted
from crashtest.scenario import SIGNALS, Scenario
from crashtest.trace import Ack, Event, Op, from_plain, near


class Example:
    """One operation sequence of a scenario: prepared, planned, and filled with the facts of its cells.

    prepared: the answer of a zygote's `do_prepare`. ops: canonical texts, or None.
    """

    def __init__(self, scenario: Scenario, ops: list[str] | None, prepared: dict[str, Any], seccomp: bool) -> None:
        self.scenario = scenario
        self.ops = ops
        self.prepared = prepared
        self.seccomp = seccomp
        self.states: list[str] = prepared["states"]
        self.expected = judge.Expected(prepared["states"], prepared["names"], prepared["glances"])
        #: why no two states may be recovered in one process, "" where they may
        self.remembers = ""
        #: judged anew from the beginning: what still comes in is not for this one
        self.void = False
        self.events: list[Event] = [from_plain(event) for event in prepared["events"]]
        self.facts: dict[str, dict[str, Any]] = {}
        self.cells: list[tuple[Cell, dict[str, Any]]] = []
        self.faults: list[tuple[Fault, Cell, dict[str, Any]]] = []
        self.judged: dict[str, int] = {}
        self.seen: set[tuple[str, int]] = set()
        #: what power cuts showed, by model
        self.losses: dict[str, Losses] = {}
        self.inner = 0
        self.inner_where: dict[Cell, str] = {}
        self.seen_inner: set[tuple[str, int]] = set()
        self.harness_error = ""
        self.self_proofs = 0
        self.rebuilt = 0
        #: cells in which something timed out twice, the second time alone
        self.timeouts = 0
        self.reason = "" if prepared["problem"] == "" else prepared["problem"]
        self.reason = self.reason or _vacuous(scenario, ops, prepared, self.events, seccomp)
        company = [] if scenario.whole else prepared["company"]
        acks_itself = not scenario.driven or scenario.ack_line is not None
        self.plan = (
            Plan(0, [], 0) if self.reason else plan(self.events, company, seccomp, scenario.signals, acks_itself)
        )
        #: cells in which the run ended before it came to the place of its signal
        self.unsent = 0

    # -- taking facts in ---------------------------------------------------------------------------------------

    def add(self, cell: Cell, facts: dict[str, Any]) -> None:
        """Judge one realised cell."""
        if cell.variant in SIGNALS and self.missed(cell, facts):
            self.unsent += 1
            return
        self.cells.append((cell, facts))
        self.self_proofs += facts["proved"]
        if facts["proof"] and not self.prepared["unmodelled"]:
            self.harness_error = self.harness_error or (
                "a killed run's own record does not give what it left on disk "
                f"({place(self.events, cell, facts['before'])}): {quoted(facts['proof'][0], 400)}"
            )
        outside = _outside(self.scenario, facts["outside"])
        if outside:
            self.reason = self.reason or (
                f"a killed run changed files outside its directory: {', '.join(map(quoted, outside[:3]))}; write below "
                "run.dir, or say allow_outside=[...]"
            )
        if facts["problem"]:
            verb = "gets" if cell.variant in SIGNALS else "should die"
            where = place(self.events, cell, facts["before"])
            self.reason = self.reason or f"in the cell that {verb} {where}: {facts['problem']}"
            return
        self._take_in(facts["new"])
        tree = self.facts[facts["tree"]]
        if tree["skipped"]:
            return
        self.seen.add((facts["tree"], facts["acks"]))
        for fault in self._faults(tree, facts):
            self.faults.append((fault, cell, facts))
        for inner in facts["inner"]:
            self._add_inner(cell, facts, inner)

    def is_store(self, cell: Cell) -> bool:
        """Whether a store into a mapping is about to happen at the cell's place."""
        event = self.events[cell.cut] if cell.cut < len(self.events) else None
        return isinstance(event, Op) and event.call == "mmap"

    def missed(self, cell: Cell, facts: dict[str, Any]) -> bool:
        """Whether the run ended before it came to the place where it was to be killed."""
        return bool(facts["end"] == "normal" and cell.cut < len(self.events) and self.seccomp)

    def _take_in(self, new: dict[str, dict[str, Any]]) -> None:
        """Facts about trees that were not known; the record of each recovery must prove itself too."""
        for digest, facts in new.items():
            self.facts[digest] = facts
            self.harness_error = self.harness_error or (
                f"the record of a recovery does not give what it left on disk: {quoted(facts['proof'][0], 400)}"
                if facts["proof"] and not facts["unmodelled"]
                else ""
            )
            if facts["unmodelled"]:
                words = "; ".join(map(quoted, facts["unmodelled"][:3]))
                self.reason = self.reason or f"recovery does what cannot be recorded, or run, as it is: {words}"
            outside = _outside(self.scenario, facts["outside"])
            if outside:
                self.reason = self.reason or (
                    f"recovery changes files outside the directory: {', '.join(map(quoted, outside[:3]))}; keep to the "
                    "directory it is given, or say allow_outside=[...]"
                )

    def _add_inner(self, cell: Cell, facts: dict[str, Any], inner: dict[str, Any]) -> None:
        """Judge one nested crash state, with the acks of the run that was killed first."""
        self.inner += 1
        key = (inner["tree"], facts["acks"])
        tree = self.facts[inner["tree"]]
        if tree["skipped"]:
            return
        told = {
            **facts,
            "tree": inner["tree"],
            "extra": inner["extra"],
            "then": inner["before"],
            "step": inner["step"],
            "inner_where": inner["where"],
        }
        nested = cell._replace(inner=tuple((cut, kind, torn) for cut, kind, torn in inner["path"]))
        outer = self.facts[inner["outer"]]
        found = self._faults(tree, told) if key not in self.seen else []
        self.seen_inner.add(key)
        changed = not outer["failure"] and not tree["failure"] and outer["observed"] != tree["observed"]
        if changed and "idempotent" in self.scenario.claimed():
            found.append(judge.interrupted_fault(outer["observed"], tree["observed"]))
        self.faults += [(fault, nested, told) for fault in found]

    def _faults(self, tree: dict[str, Any], facts: dict[str, Any]) -> list[Fault]:
        judged, found = judge.faults(self.scenario, self.expected, tree, facts["acks"], facts["extra"])
        for guarantee in judged:
            self.judged[guarantee] = self.judged.get(guarantee, 0) + 1
        return found

    def walk(self, model: str) -> Losses:
        """Where the states of a power cut under a model are taken in."""
        if model not in self.losses:
            self.losses[model] = Losses(self.scenario, self.expected, model, self.facts)
        return self.losses[model]

    def take_cut(self, model: str, told: dict[str, Any]) -> None:
        """A state that a power cut may leave was recovered."""
        self._take_in(told["new"])
        self.walk(model).take(told)

    # -- both ways ---------------------------------------------------------------------------------------------

    def to_confirm(self, sample: int) -> list[tuple[Cell, dict[str, Any]]]:
        """Cells to rebuild from the trace: the first of each violation's cause, and an even sample of the rest."""
        if not self.seccomp:
            return []
        whole = [(c, f) for c, f in self.cells if c.variant == "group" and self._comparable(c, f)]
        causes: dict[tuple[str, str], tuple[Cell, dict[str, Any]]] = {}
        for fault, cell, facts in self.faults:
            if cell.variant == "group" and not cell.inner and self._comparable(cell, facts):
                causes.setdefault((fault.guarantee, self.cause(cell, facts)), (cell, facts))
        step = max(1, len(whole) // sample) if sample else len(whole) + 1
        return [*causes.values(), *whole[step // 2 :: step][:sample]]

    def where(self, cell: Cell, facts: dict[str, Any]) -> str:
        """The code line (known from the recorded run) or the program that issues the call before which it died."""
        if cell.inner:
            return self.inner_where.get(cell) or str(facts["inner_where"])
        known = self.events[cell.cut].where if cell.cut < len(self.events) and self._same_place(cell, facts) else ""
        return near(known) or str(facts["where"])

    def cause(self, cell: Cell, facts: dict[str, Any]) -> str:
        """What makes two violations of a guarantee one: the same call at the same place in the program."""
        if cell.inner:
            return f"{_call(facts['then'])} {facts['inner_where']} in recovery"
        by = f" by SIG{cell.variant}" if cell.variant in SIGNALS else ""
        return f"{_call(facts['before'])} {self.where(cell, facts)}{by}"

    def can_be_rebuilt(self, cell: Cell, facts: dict[str, Any]) -> bool:
        """Whether the record gives the crash state of a cell: a kill of the whole group where it was recorded."""
        return cell.variant in ("group", "rebuilt") and (cell.variant == "rebuilt" or self._comparable(cell, facts))

    def _comparable(self, cell: Cell, facts: dict[str, Any]) -> bool:
        """Whether the state can be rebuilt: what it left in TMPDIR and HOME is not in the record."""
        return self._same_place(cell, facts) and not facts["scratch"]

    def _same_place(self, cell: Cell, facts: dict[str, Any]) -> bool:
        """Whether the killed run did the same as the recorded one up to the cut."""
        done = facts["events"] - bool(cell.torn)
        if facts["problem"] or done < cell.cut or (done > cell.cut and cell.variant in ("group", "computed")):
            return False  # where the worker alone died, its children add events of their own
        expected = self.events[cell.cut].describe() if cell.cut < len(self.events) else ""
        here, there = facts["before"].rpartition("/")[0], expected.rpartition("/")[0]
        return _call(facts["before"]) == _call(expected) and here == there  # temp names may differ from run to run

    def to_kill(self) -> list[tuple[Cell, dict[str, Any]]]:
        """The first computed cell of each violation's cause that no real kill has shown: to be killed for real."""
        shown = {(f.guarantee, self.cause(c, facts)) for f, c, facts in self.faults if c.variant != "computed"}
        causes: dict[tuple[str, str], tuple[Cell, dict[str, Any]]] = {}
        for fault, cell, facts in sorted(self.faults, key=order):
            key = (fault.guarantee, self.cause(cell, facts))
            if cell.variant == "computed" and not cell.inner and key not in shown:
                causes.setdefault(key, (cell, facts))
        return list({pair[0]: pair for pair in causes.values()}.values())

    def frontier(self) -> bool:
        """Whether some nested crash leaves a tree whose own recovery was not killed: it lies at the last depth."""
        outer = {facts["tree"] for _, facts in self.cells}
        return any(tree not in outer for tree, _ in self.seen_inner if not self.facts[tree]["nested"])

    def inner_to_confirm(self) -> list[tuple[Cell, dict[str, Any]]]:
        """The first nested crash of each violation's cause, to be made by real kills."""
        causes: dict[tuple[str, str], tuple[Cell, dict[str, Any]]] = {}
        for fault, cell, facts in sorted(self.faults, key=order):
            if cell.inner and cell.variant in ("group", "computed") and self._comparable(cell, facts):
                causes.setdefault((fault.guarantee, self.cause(cell, facts)), (cell, facts))
        return list(causes.values())

    def confirm_inner(self, cell: Cell, rebuilt: dict[str, Any], killed: dict[str, Any]) -> None:
        """A nested crash state was made by real kills as well; it also told where in the program recovery died."""
        self.inner_where[cell] = killed["where"]
        if killed["proof"]:
            self.harness_error = (
                self.harness_error or f"a killed recovery's record is wrong: {quoted(killed['proof'][0])}"
            )
            return
        self._compare(cell, {**killed, "acks": rebuilt["acks"]}, rebuilt, killed["new"] or self.facts)

    def confirm_by_kill(self, cell: Cell, rebuilt: dict[str, Any], killed: dict[str, Any]) -> None:
        """A crash state that was computed, and showed a violation, was made by a real kill as well."""
        self.self_proofs += killed["proved"]
        if killed["proof"] or killed["problem"] or not self._comparable(cell, killed):
            words = quoted(killed["proof"][0]) if killed["proof"] else killed["problem"] or "it did something else"
            self.harness_error = self.harness_error or (
                f"a violation seen on a computed state could not be made by a real kill "
                f"({place(self.events, cell, rebuilt['before'])}): {words}"
            )
            return
        self._compare(cell, killed, rebuilt, killed["new"] or self.facts)

    def confirm(self, cell: Cell, killed: dict[str, Any], rebuilt: dict[str, Any]) -> None:
        """A killed and a rebuilt crash state must show the same; else the harness is wrong, and says so."""
        self._compare(cell, killed, {**rebuilt, "acks": killed["acks"]}, self.facts, rebuilt["new"])

    def _compare(
        self,
        cell: Cell,
        killed: dict[str, Any],
        rebuilt: dict[str, Any],
        known: dict[str, dict[str, Any]],
        new: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """known, new: where the facts about the killed and the rebuilt tree are."""
        one = known.get(killed["tree"]) or self.facts[killed["tree"]]
        other = (new or self.facts)[rebuilt["tree"]]
        if one["skipped"] or other["skipped"]:
            return
        self.rebuilt += 1
        here = {fault.guarantee for fault in self._faults(one, killed)}
        there = {fault.guarantee for fault in self._faults(other, rebuilt)}
        if bool(one["failure"]) != bool(other["failure"]) or one["observed"] != other["observed"] or here != there:
            shown = f"{other['failure'] or quoted(other['observed'])}, violated: {sorted(there)}"
            self.harness_error = self.harness_error or (
                "a real kill and the state rebuilt from the record disagree "
                f"({place(self.events, cell, killed['before'])}): "
                f"killed: {one['failure'] or quoted(one['observed'])}, violated: {sorted(here)}; rebuilt: {shown}"
            )


def order(fault: tuple[Fault, Cell, dict[str, Any]]) -> tuple[Any, ...]:
    """The shallowest and earliest crash first, the whole group before its variants."""
    cell = fault[1]
    return len(cell.inner), cell.cut, cell.torn, cell.variant != "group", cell.variant, cell.inner


def _call(words: str) -> str:
    return words.partition("(")[0]


def _vacuous(
    scenario: Scenario, ops: list[str] | None, prepared: dict[str, Any], events: list[Event], seccomp: bool
) -> str:
    """Why a pass would mean nothing; "" when it would mean something."""
    acks = [event for event in events if isinstance(event, Ack)]
    changes = [event for event in events if isinstance(event, Op) and event.changes]
    outside = _outside(scenario, prepared["outside"])
    if prepared["unmodelled"]:
        words = "; ".join(map(quoted, prepared["unmodelled"][:3]))
        return f"something in the run cannot be recorded, or run, as it is: {words}"
    if prepared["proof"]:
        return f"the record does not give what is on disk: {quoted(prepared['proof'][0], 400)}"
    if outside:
        more = f" and {len(outside) - 3} more" if len(outside) > 3 else ""
        only = "only " if not changes else ""
        do = (
            "say --allow-outside GLOB if it may"
            if scenario.driven
            else "write below run.dir, or say allow_outside=[...]"
        )
        return (
            f"the workload {only}changes files outside its directory: {', '.join(map(quoted, outside[:3]))}{more}; {do}"
        )
    states = prepared["states"]
    if not changes and seccomp:
        return "the workload changed nothing in its directory" + ("" if scenario.driven else "; write below run.dir")
    if not acks and "durable" in scenario.claimed():
        do = "no whole line had what --ack-line says" if scenario.driven else "call run.ack() after each operation"
        return f"the workload never acked anything, so durable cannot be judged; {do}"
    if len(set(states)) < 2:
        if scenario.looks:
            return (
                "the command changes nothing that is observed; observe more of it, or let it follow another command "
                "that does (--commands FILE), and say --same if one of them is to change nothing"
            )
        return "observe returns the same for every state; let it return what the operations change"
    return _blind(acks, states, events, seccomp)


def _blind(acks: list[Ack], states: list[str], events: list[Event], seccomp: bool) -> str:
    """An operation that changes bytes, gives the state before, and does not say so."""
    changed, number = False, 0
    for event in events:
        if isinstance(event, Op) and event.changes and event.kind != "utimes":
            changed = True
        if isinstance(event, Ack):
            number += 1
            same = number < len(states) and states[number] == states[number - 1]
            if same and (changed or not seccomp) and not event.same:
                return (
                    f"observe cannot see operation {number}: the states before and after it are equal; observe more, "
                    "or say run.ack(same=True) for an operation that changes nothing to be seen"
                )
            changed = False
    return ""


def _outside(scenario: Scenario, changes: list[str]) -> list[str]:
    """The changes elsewhere that the scenario does not allow; each is "call path"."""
    globs = scenario.allow_outside
    return [c for c in changes if not any(fnmatch.fnmatchcase(c.partition(" ")[2], glob) for glob in globs)]
