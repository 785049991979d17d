"""The record without some of its syncs: which states that adds, and whether one of them breaks a guarantee.

Nothing is run again but recovery. What is judged are *roots*: the recorded run, and recoveries recorded after a kill of
it or after a power cut. In each of them a sync is named by the place that issues it and by its ordinal there; dropping
it leaves every other event where it was.

Guarantees: only states are walked that the record with the sync does not allow at that cut; a proof is a state that
breaks a guarantee in processes of its own, reduced to the fewest lost units, of which at least one can be lost only
without the sync: so what breaks anyway proves nothing. Recoveries are a sample within a stated limit, recorded once,
with every sync in place. Verdicts are the main process's (`explore.syncs`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from crashtest.cells import judge
from crashtest.cells.power import Bounds, Power, Root, broken, in_words, kill_cuts, spread, telling, without
from crashtest.cells.recoveries import Cells
from crashtest.errors import HarnessError
from crashtest.persist.models import Model
from crashtest.persist.states import Limits, Name, State, Walk, kept_with, more_to_lose, state_of, window_at
from crashtest.persist.tree import Tree
from crashtest.trace import SYNCS, Ack, Event, Op

#: recoveries that are recorded after kills, and as many after power cuts
RECOVERIES = 12
#: what differs in a name from run to run: numbers, and what tempfile or git make up
_MADE_UP = re.compile(r"(?<![A-Za-z0-9_])[a-z0-9_]{8}(?![A-Za-z0-9_])|[0-9a-f]{6,}|\d+")

#: a sync: the place that issues it (`site_key`), and its ordinal there, from 1
Sync = tuple[str, int]


def site_key(part: str, op: Op) -> str:
    """What the syncs of one place have in common: the call, the code lines, and the name but for made-up parts.

    part: "run" or "recovery".
    """
    return "\0".join((part, op.call, op.kind, _MADE_UP.sub("*", op.path), op.where))


def syncs_of(events: Sequence[Event], begin: int) -> dict[int, Sync]:
    """The syncs among events, by the number of the event; those from `begin` on are recovery's."""
    counts: dict[str, int] = {}
    found: dict[int, Sync] = {}
    for at, event in enumerate(events):
        if isinstance(event, Op) and event.kind in SYNCS:
            key = site_key("run" if at < begin else "recovery", event)
            counts[key] = counts.get(key, 0) + 1
            found[at] = key, counts[key]
    return found


class Rooted(NamedTuple):
    """A root and where it comes from. cut: of the run, None: it is the run. lost: what that cut lost, None: it was a
    kill. syncs: as `syncs_of` gives them."""

    root: Root
    syncs: dict[int, Sync]
    cut: int | None = None
    lost: list[Name] | None = None


class Tried:
    """What a search has tried. losses: how many; skipped: how many it left out.
    until: what makes durable, later, what the sync would have, in words. untried: recoveries that timed out."""

    def __init__(self) -> None:
        self.losses = self.skipped = self.untried = 0
        self.exhaustive = True
        self.until = ""

    def plain(self) -> dict[str, Any]:
        return {**vars(self), "skipped": min(self.skipped, 1 << 53)}


class Drops:
    """The roots of one example under one model, and what dropping syncs in them shows.

    losses: how many are tried for one question.
    """

    def __init__(self, cells: Cells, model: Model, losses: int, seed: int, expected: judge.Expected) -> None:
        self.cells = cells
        self.model = model
        self.losses = losses
        self.seed = seed
        self.expected = expected
        self.power = Power(cells, model, Bounds(min(256, losses), losses, 0, 0), seed, (0, 1))
        self.roots = [Rooted(Root(cells.first, cells.events), syncs_of(cells.events, len(cells.events)))]
        self.roots += self._recoveries() if cells.depth > 1 else ()

    # -- what there is ---------------------------------------------------------------------------------------------

    def _recoveries(self) -> Iterator[Rooted]:
        """Recoveries after kills and after power cuts that end well: one that shows something wrong proves nothing."""
        cells = self.cells
        starts: list[tuple[int, list[Name] | None, Tree]] = [
            (cut, None, cells.state(cut, 0)[0]) for cut in telling(cells.events, kill_cuts(cells.events), RECOVERIES)
        ]
        cuts = [(state.cut, state.lost, state.tree) for state in self.power.walk]
        starts += spread([cut for cut in cuts if cut[1]], RECOVERIES)
        for cut, lost, tree in starts:
            root = self.power.root(cut, lost, tree, stacks=True)
            if root is None:
                continue
            if not root.ended or judge.state_fault(self.expected.states, self._acked(cut), root.shown) is None:
                yield Rooted(root, syncs_of(root.events, root.begin), cut, lost)

    def _acked(self, cut: int) -> int:
        return sum(isinstance(event, Ack) for event in self.cells.events[:cut])

    def sites(self) -> list[dict[str, Any]]:
        """The places that issue syncs, in the order in which they do; recovery's after the run's.

        count: how many syncs the place issues in one run, or at most in one recovery. last: where, for the order.
        """
        found: dict[str, dict[str, Any]] = {}
        for rooted in self.roots:
            for at, (key, ordinal) in rooted.syncs.items():
                op = rooted.root.events[at]
                assert isinstance(op, Op)
                site = found.setdefault(key, {
                    "key": key, "part": key.partition("\0")[0], "call": op.call, "kind": op.kind, "where": op.where,
                    "paths": [], "directory": self._is_directory(op.file), "last": 0, "count": 0,
                })  # fmt: skip
                site["count"] = max(site["count"], ordinal)
                site["last"] = max(site["last"], at)
                if op.path not in site["paths"]:
                    site["paths"].append(op.path)
        return sorted(found.values(), key=lambda site: (site["part"] != "run", site["last"]))

    def _is_directory(self, file: int) -> bool:
        made = (e for e in self.cells.events if isinstance(e, Op) and e.file == file and e.kind in ("mkdir", "create"))
        node = self.cells.first.nodes.get(file)
        return node.type == "d" if node is not None else any(op.kind == "mkdir" for op in made)

    # -- what dropping shows -----------------------------------------------------------------------------------------

    def drop(self, dropped: set[Sync], weakened: set[Sync], asked: set[Sync], weaker: bool) -> dict[str, Any]:
        """Drop some syncs, besides those dropped or weakened already: a proof that one is needed, and what was tried.

        weaker: do not drop them, but have each fsync do what an fdatasync does.
        """
        tried = Tried()
        asked -= dropped
        having = [rooted for rooted in self.roots if not asked.isdisjoint(rooted.syncs.values())]
        for number, rooted in enumerate(having):
            before = without(rooted.root.events, _numbers(rooted, dropped))
            before = _weakened(before, _numbers(rooted, weakened))
            mine = _numbers(rooted, asked)
            after = _weakened(before, mine) if weaker else without(before, mine)
            # what is left is shared out among the roots that are left
            limit = max(8, (self.losses - tried.losses) // (len(having) - number)) if number else self.losses
            proof = self._search(rooted, before, after, limit, tried)
            if proof is not None:
                if not weaker:
                    fewest = proof["cell"]["without"] = self._fewest(rooted, dropped | asked, proof["cell"])
                    proof["reduced"]["story"]["without"] = in_words(rooted.root.events, fewest)
                return {"proof": proof, **tried.plain()}
        return {"proof": None, **tried.plain()}

    def _search(
        self, rooted: Rooted, before: list[Event], after: list[Event], limit: int, tried: Tried
    ) -> dict[str, Any] | None:
        """The first state that only `after` allows and that breaks a guarantee for that reason."""
        losing = more_to_lose(rooted.root.first, before, after, self.model)
        if not losing:
            return None
        end = max(losing)
        if end < len(after):
            event = after[end]
            tried.until = tried.until or f"{event.describe()}\0{event.where if isinstance(event, Op) else ''}"
        root = rooted.root._replace(events=after)
        limits = Limits(min(256, limit), limit)
        walk = Walk(root.first, after[:end], self.model, limits=limits, seed=self.seed, begin=root.begin, losing=losing)
        for state in walk:
            for guarantee in self.breaks(root, state, cut_of(rooted, state.cut), tried):
                proof = self._proof(rooted, root, state, guarantee, losing[state.cut])
                if proof is not None:
                    return proof
        tried.losses += walk.coverage.walked
        tried.skipped += walk.coverage.skipped
        tried.exhaustive = tried.exhaustive and walk.coverage.exhaustive
        return None

    def breaks(self, root: Root, state: State, cut: int, tried: Tried) -> list[str]:
        """The guarantees that a state of a root breaks. cut: where the run was cut for it, as recorded."""
        return sorted(self._broken(root, state.cut, state.tree, self._acked(cut), tried))

    def _broken(self, root: Root, at: int, tree: Tree, acked: int, tried: Tried) -> set[str]:
        found = self.power.settled(tree, acked)
        if found["timed_out"] or self.cells.known[found["tree"]]["skipped"]:
            tried.untried += 1
            return set()
        shown = root.shown if root.ended and at == len(root.events) else None
        return broken(self.cells, self.expected, {**found, "acks": acked, "shown": shown})

    def _proof(
        self, rooted: Rooted, root: Root, state: State, guarantee: str, more: frozenset[Name]
    ) -> dict[str, Any] | None:
        """The state reduced; None when it breaks the guarantee without losing any of `more`.

        That is looked at first with all of `more` kept, which is cheap, and in the end on what is left of the loss.
        """
        units = {unit.name: unit for unit in window_at(root.first, root.events, state.cut, self.model)}
        kept = kept_with(units[name] for name in state.lost if name in more)
        rest = [name for name in state.lost if units[name] not in kept]
        tree = state_of(root.first, root.events, state.cut, rest, self.model)
        cut = cut_of(rooted, state.cut)
        if guarantee in self._broken(root, state.cut, tree, self._acked(cut), Tried()):
            return None
        made = self.reduced(root, state.cut, cut, state.lost, guarantee)
        return self.proof(rooted, root, state.cut, guarantee, made) if any(n in more for n in made["lost"]) else None

    def reduced(self, root: Root, at: int, cut: int, lost: list[Name], guarantee: str) -> dict[str, Any]:
        """A state that breaks a guarantee, reduced to the fewest lost units (`Power.reduce_at`).

        Raises `HarnessError` when it does not break it in processes of its own.
        """
        made = self.power.reduce_at(root, at, cut, lost, guarantee, self.expected)
        if guarantee not in broken(self.cells, self.expected, made):
            raise HarnessError(f"a power cut that broke {guarantee} did not do so in processes of its own")
        return made

    def proof(self, rooted: Rooted, root: Root, at: int, guarantee: str, made: dict[str, Any]) -> dict[str, Any]:
        """A reduced state as a message: its cell, the facts about it, and its story."""
        cut, lost = cut_of(rooted, at), made["lost"]
        cell = {"cut": cut, "lost": lost, "lost_first": rooted.lost, "path": [], "without": []}
        facts = self.power.told(0, cut, lost if rooted.cut is None else rooted.lost or [])
        if rooted.cut is not None:
            inner = self.power.told_inner(root, at, lost)
            cell["path"] = inner["path"]
            facts.update({"where": inner["where"], "then": inner["before"]})
        return {"guarantee": guarantee, "model": self.model.name, "cell": cell, "facts": facts, "reduced": made}

    def _fewest(self, rooted: Rooted, gone: set[Sync], cell: dict[str, Any]) -> list[int]:
        """The fewest of the dropped syncs without which the loss of a proof is possible, by event."""
        first, lost = rooted.root.first, {(event, part) for event, part in cell["lost"]}
        at = cell["cut"] if rooted.cut is None else rooted.root.begin + cell["path"][-1][0]
        since = min(event for event, _ in lost)
        numbers = [number for number in _numbers(rooted, gone) if since < number < at]
        for number in list(numbers):
            others = [other for other in numbers if other != number]
            events = without(rooted.root.events, others)
            if lost <= {unit.name for unit in window_at(first, events, at, self.model)}:
                numbers = others
        return numbers


def cut_of(rooted: Rooted, at: int) -> int:
    """Where the run was cut for a state at a cut of the root."""
    return at if rooted.cut is None else rooted.cut


def _numbers(rooted: Rooted, syncs: set[Sync]) -> list[int]:
    """The events of the root that are these syncs."""
    return [number for number, sync in rooted.syncs.items() if sync in syncs]


def _weakened(events: list[Event], numbers: list[int]) -> list[Event]:
    """Have these fsyncs do what an fdatasync does."""
    made = list(events)
    for number in numbers:
        op = made[number]
        if isinstance(op, Op) and op.kind == "fsync":
            made[number] = op._replace(kind="fdatasync")
    return made
