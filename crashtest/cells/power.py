"""Power cuts in the zygote: the states that a model allows, recovered, and the power cut again in recovery.

Guarantees: every state comes from `persist.states.Walk` over the recorded run, or over that run followed by a recorded
recovery; each tree is recovered once. Two kinds of nested cut: the worker is killed, recovery runs, and then the power
goes, so that what the run had not synced can still be lost; and the power goes, recovery runs on what was left, and
the power goes again. A recovery that finished has shown a state, which must outlive a cut after it. Nested cuts are a
sample within stated limits. Judges only to reduce a loss to the fewest changes; verdicts are the main process's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from crashtest.cells import judge
from crashtest.cells.batch import Unfit
from crashtest.cells.plan import kind_of
from crashtest.cells.realise import Restarted, summary
from crashtest.cells.recoveries import Cells
from crashtest.errors import HarnessError, quoted
from crashtest.persist.models import Model, barrier, describe
from crashtest.persist.states import Limits, Name, Walk, reduced, state_of, window_at
from crashtest.persist.tree import Tree
from crashtest.trace import SYNCS, Ack, Event, Op, Step, near

#: seconds after which what has been found is sent
TURN = 0.3
#: units of which a story tells
TOLD = 6
#: how a step that stands for a dropped sync is described
_DROPPED = "step without "


class Bounds(NamedTuple):
    """How much is tried of one example: losses at one cut and in all, cuts in one recovery, and recoveries cut."""

    per_cut: int
    total: int
    per_recovery: int
    recoveries: int


class Root(NamedTuple):
    """What a cut is made in: a first state that is durable, the events from it, and how many of them came before
    recovery began (0: it is the recorded run itself). shown: what a finished recovery observed."""

    first: Tree
    events: list[Event]
    begin: int = 0
    shown: str = ""
    #: the last event stands for the end of recovery
    ended: bool = False


class Power:
    """The walk of one model over one example, or one shard of it: trees are shared out by their digests."""

    def __init__(self, cells: Cells, model: Model, bounds: Bounds, seed: int, shard: tuple[int, int]) -> None:
        self.cells = cells
        self.model = model
        self.bounds = bounds
        self.seed = seed
        self.shard = shard
        self.nested = 0
        self.nested_complete = True
        limits = Limits(per_cut=bounds.per_cut, total=bounds.total)
        self.walk = Walk(cells.first, cells.events, model, limits=limits, seed=seed)
        self.acks = [event.line for event in cells.events if isinstance(event, Ack)]
        self._work = self._all()

    def more(self) -> dict[str, Any]:
        """What came of the next states, as a message; `done` when there are no more."""
        until = time.monotonic() + TURN
        found: list[dict[str, Any]] = []
        for one in self._work:
            if one is not None:
                found.append(one)
            if time.monotonic() > until:
                return {"cells": found, "done": False}
        coverage = self.walk.coverage
        told = {
            "skipped": str(coverage.skipped),
            "exhaustive": coverage.exhaustive,
            "nested": self.nested,
            "nested_complete": self.nested_complete,
        }
        return {"cells": found, "done": True, "coverage": told}

    # -- the states ----------------------------------------------------------------------------------------------

    def _all(self) -> Iterator[dict[str, Any] | None]:
        roots: list[tuple[int, list[Name] | None, Tree]] = []
        number = 0
        for number, state in enumerate(self.walk):
            if int(state.digest[:8], 16) % self.shard[1] != self.shard[0]:
                yield None
                continue
            lost = state.lost
            if lost:
                roots.append((state.cut, lost, state.tree))
            yield self._cell(number, state.cut, lost, state.tree)
        if self.cells.depth > 1:
            yield from self._nested(number + 1, roots)

    def _nested(self, number: int, cuts: list[tuple[int, list[Name] | None, Tree]]) -> Iterator[dict[str, Any] | None]:
        """Recovery after a kill, and recovery after a power cut, each cut by the power in turn."""
        index, of = self.shard
        kills = kill_cuts(self.cells.events)
        chosen: list[tuple[int, list[Name] | None, Tree]] = [
            (cut, None, self.cells.state(cut, 0)[0])
            for cut in telling(self.cells.events, kills, self.bounds.recoveries)[index::of]
        ]
        chosen += spread(cuts, self.bounds.recoveries // of)
        self.nested_complete = max(len(kills), len(cuts) * of) <= self.bounds.recoveries
        for cut, lost, tree in chosen:
            told = self._cell(number, cut, lost or [], tree)
            told["outer"] = True
            root = None if told["timed_out"] else self.root(cut, lost, tree)
            if root is None:
                self.nested_complete = False
            else:
                told["inner"] = list(self._inner(root, told["acks"], told["new"]))
                told["lost_first"] = lost
                yield told
            number += 1

    def _inner(self, root: Root, acked: int, new: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The states that a power cut in recovery, or after it, may leave. new: takes what is learnt of their trees."""
        limits = Limits(per_cut=8, total=self.bounds.per_recovery)
        walk = Walk(root.first, root.events, self.model, limits=limits, seed=self.seed, begin=root.begin)
        for state in walk:
            self.nested += 1
            found = self.settled(state.tree, acked)
            if not found["timed_out"]:
                new.update(found["new"])
            told = self.told_inner(root, state.cut, state.lost)
            yield {**told, "tree": found["tree"], "extra": found["extra"], "timed_out": found["timed_out"]}
        self.nested_complete = self.nested_complete and walk.coverage.exhaustive

    def told_inner(self, root: Root, at: int, lost: list[Name]) -> dict[str, Any]:
        """A power cut in recovery, without what came of it."""
        over = root.ended and at == len(root.events)
        event = root.events[at] if at < len(root.events) - root.ended else None
        before, where = summary(event)
        return {
            "path": [[at - root.begin, kind_of(root.events, at), 0]], "lost": lost, "before": before, "where": where,
            "shown": root.shown if over else None, "marks": _marks(root.events, lost),
        }  # fmt: skip

    def told(self, number: int, cut: int, lost: list[Name]) -> dict[str, Any]:
        """A power cut in the run, without what came of it. outer: it is told for the cuts in its recovery only."""
        events = self.cells.events
        before, where = summary(events[cut] if cut < len(events) else None)
        return {
            "number": number, "cut": cut, "lost": lost, "acks": sum(isinstance(e, Ack) for e in events[:cut]),
            "before": before, "where": where, "outer": False, "marks": _marks(events, lost),
        }  # fmt: skip

    def _cell(self, number: int, cut: int, lost: list[Name], tree: Tree) -> dict[str, Any]:
        """Recover one state."""
        told = self.told(number, cut, lost)
        return {**told, **self.settled(tree, told["acks"])}

    def settled(self, tree: Tree, acked: int, alone: bool = False) -> dict[str, Any]:
        """Recover a tree; nothing is remembered of it when anything timed out, unless it was alone."""
        cells = self.cells
        cells.bench.timed_out = False
        with cells.shallow(), cells.certain(alone):
            return cells.timed(cells.settle(tree, self.acks[:acked], alone=alone, on_disk=False), alone)

    def root(self, cut: int, lost: list[Name] | None, tree: Tree, stacks: bool = False) -> Root | None:
        """Recovery of a tree, recorded; lost: None after a kill, when what was not synced can still be lost.

        stacks: its events have their code lines, which takes longer.
        """
        made = self._recorded(tree, stacks)
        if made.trace is None or made.failure or made.timeout or made.trace.unmodelled:
            return None
        if made.proof:
            raise HarnessError(f"the record of a recovery does not give what it left on disk: {quoted(made.proof[0])}")
        shift = cut if lost is None else 0
        recovery = [e._replace(began=e.began + shift) if isinstance(e, Op) else e for e in made.trace.events]
        before = self.cells.events[:cut] if lost is None else []
        first = self.cells.first if lost is None else tree
        if not self.cells.bench.scenario.shows:
            return Root(first, [*before, *recovery], shift)
        number = sum(isinstance(e, Ack) for e in before) + 1
        return Root(first, [*before, *recovery, Ack(number)], shift, made.value, True)

    def _recorded(self, tree: Tree, stacks: bool) -> Restarted:
        bench, batch = self.cells.bench, None if stacks else self.cells.batch(True)
        for one in (batch, None):
            bench.restore(tree)
            try:
                return bench.restart(None, tree, one, stacks)
            except Unfit:
                continue
        return Restarted("could not be recorded")

    # -- one state again -----------------------------------------------------------------------------------------

    def find(self, asked: dict[str, Any]) -> tuple[Root, int, Tree]:
        """The root, the cut in it, and the tree of a state that was told of. Raises `HarnessError`, or `Unfit`.

        Where it is a state that dropping syncs adds, they are dropped in the root.
        """
        whole = Root(self.cells.first, without(self.cells.events, asked["without"] if not asked["path"] else ()))
        cut, lost, path = asked["cut"], asked["lost"], asked["path"]
        if not path:
            return whole, cut, state_of(whole.first, whole.events, cut, lost, self.model)
        root = self.root(cut, asked["lost_first"], self._outer(asked), stacks=bool(asked["without"]))
        if root is None:
            raise Unfit("recovery did not come to its end when it was to be cut by the power")
        root = root._replace(events=without(root.events, asked["without"]))
        at = root.begin + path[-1][0]
        return root, at, state_of(root.first, root.events, at, lost, self.model)

    def left(self, number: int, cut: int, tree: Tree, alone: bool) -> dict[str, Any]:
        """A state that came from elsewhere, recovered. alone: with nothing remembered."""
        told = self.told(number, cut, [])
        if alone:
            self.cells.forget(tree.digest(), told["acks"])
        return {**told, **self.settled(tree, told["acks"], alone=alone)}

    def again(self, asked: dict[str, Any]) -> dict[str, Any]:
        """One state, recovered in processes of its own with nothing remembered."""
        root, at, tree = self.find(asked)
        facts = {**self.alone(root, at, tree, asked["cut"]), "without": asked["without"]}
        if not asked["path"]:
            return {**self.told(0, asked["cut"], asked["lost"]), **facts}
        first = asked["lost_first"]
        told = self._cell(0, asked["cut"], first or [], self._outer(asked))
        inner = {**self.told_inner(root, at, asked["lost"]), **facts, "path": asked["path"]}
        new = {**told["new"], **facts["new"]}
        return {**told, "new": new, "outer": True, "without": asked["without"], "lost_first": first, "inner": [inner]}

    def _outer(self, asked: dict[str, Any]) -> Tree:
        """The tree whose recovery is cut."""
        if asked["lost_first"] is None:
            return self.cells.state(asked["cut"], 0)[0]
        cells = self.cells
        return state_of(cells.first, cells.events, asked["cut"], asked["lost_first"], self.model)

    def alone(self, root: Root, at: int, tree: Tree, cut: int) -> dict[str, Any]:
        acked = sum(isinstance(e, Ack) for e in self.cells.events[:cut])
        self.cells.forget(tree.digest(), acked)
        over = root.ended and at == len(root.events)
        found = self.settled(tree, acked, alone=True)
        return {**found, "acks": acked, "shown": root.shown if over else None}

    def reduce(self, asked: dict[str, Any], guarantee: str, expected: judge.Expected) -> dict[str, Any]:
        """The fewest lost units with which a state still breaks the guarantee, told in words."""
        root, at, _ = self.find(asked)
        made = self.reduce_at(root, at, asked["cut"], asked["lost"], guarantee, expected)
        made["story"]["without"] = in_words(root.events, asked["without"])
        return made

    def reduce_at(
        self, root: Root, at: int, cut: int, lost: list[Name], guarantee: str, expected: judge.Expected
    ) -> dict[str, Any]:
        """The same of a state of a root. cut: where the run was cut for it."""

        def bad(_: list[Name], tree: Tree) -> bool:
            return guarantee in broken(self.cells, expected, self.alone(root, at, tree, cut))

        lost = reduced(root.first, root.events, at, lost, self.model, bad)
        tree = state_of(root.first, root.events, at, lost, self.model)
        facts = self.alone(root, at, tree, cut)
        return {**facts, "lost": lost, "marks": _marks(root.events, lost), "story": self.story(root, at, lost)}

    def story(self, root: Root, at: int, lost: list[Name]) -> dict[str, Any]:
        """What was lost, what later thing was kept, and the sync that is missing between them, in words."""
        units = {unit.name: unit for unit in window_at(root.first, root.events, at, self.model)}
        gone = [units[event, part] for event, part in lost]
        if not gone:
            return {"lost": [], "kept": [], "barrier": "", "where": "", "without": []}
        words = [f"{describe(unit)}{_in(unit.op.where)}" for unit in gone[:TOLD]]
        words += [f"and {len(gone) - TOLD} more"] if len(gone) > TOLD else []
        taken = {unit.event for unit in gone}
        first, last = min(taken), max(taken)
        later = [(n, e) for n, e in enumerate(root.events[:at]) if n > first and n not in taken]
        kept = [f"{e.describe()}{_in(e.where)}" for n, e in later if isinstance(e, Op) and e.changes and n > last][:2]
        acks = [e for n, e in later if isinstance(e, Ack) and n > last]
        if acks:
            ended = root.ended and at == len(root.events)
            kept.append("the end of recovery" if ended else f"{acks[0].describe()}{_in(acks[0].where)}")
        missing = dict.fromkeys(filter(None, (barrier(unit, self.model) for unit in gone)))
        barriers = [
            f"{made.call} {'' if ' ' in made.call else 'of '}{made.path}" if made.path else made.call
            for made in missing
        ]
        until = next(
            (e.where for n, e in later if n > last and (isinstance(e, Ack) or (isinstance(e, Op) and e.changes))), ""
        )
        after = root.events[last]
        place = getattr(after, "where", "")
        between = f"after {_line(place)}" if place else ""
        between += f"{' and ' if between else ''}before {_line(until)}" if until and until != place else ""
        return {
            "lost": words, "kept": kept, "barrier": " and ".join(dict.fromkeys(barriers)), "where": between,
            "without": [],
        }  # fmt: skip


def broken(cells: Cells, expected: judge.Expected, facts: dict[str, Any]) -> set[str]:
    """The guarantees that a state breaks."""
    tree = facts["new"].get(facts["tree"]) or cells.known[facts["tree"]]
    _, found = judge.faults(cells.bench.scenario, expected, tree, facts["acks"], facts["extra"], facts["shown"])
    return {fault.guarantee for fault in found}


def without(events: Sequence[Event], numbers: Iterable[int]) -> list[Event]:
    """The same events with the effect of these syncs dropped; every other one keeps its number.

    Raises `HarnessError` when one of them is no sync.
    """
    made = list(events)
    for number in numbers:
        op = made[number] if number < len(made) else None
        if not isinstance(op, Op) or op.kind not in SYNCS:
            raise HarnessError(
                f"event {number} of the trace is no sync, so its effect cannot be dropped; record it again"
            )
        made[number] = Step(f"without {op.describe()}", op.thread, op.where)
    return made


def in_words(events: Sequence[Event], numbers: Iterable[int]) -> list[str]:
    """Syncs for people, dropped or not: `fsync(config), in app.py:12 in save`."""
    syncs = [events[number] for number in numbers]
    return [f"{sync.describe().removeprefix(_DROPPED)}{_in(getattr(sync, 'where', ''))}" for sync in syncs]


def _in(where: str) -> str:
    return f", in {_line(where)}" if where else ""


def _line(where: str) -> str:
    """The innermost line of the program alone: a story names several places."""
    return where.partition(" < ")[0]


def _marks(events: list[Event], lost: list[Name]) -> list[str]:
    """The calls, with their places in the program, that issued what was lost: what makes two losses alike."""
    found = {event for event, _ in lost}
    ops = [op for number in sorted(found) if isinstance(op := events[number], Op)]
    return sorted({f"{op.call} {near(op.where)}" for op in ops})


def kill_cuts(events: list[Event]) -> list[int]:
    """The cuts right after a change, at which a kill leaves something to be lost later."""
    return [_over(events, n) for n, e in enumerate(events) if isinstance(e, Op) and e.changes]


def _over(events: list[Event], number: int) -> int:
    """The cut after the change with this number, and after the sync that belongs to it: the kernel ends a synchronous
    write (O_DSYNC) that a SIGKILL finds under way."""
    after = events[number + 1] if number + 1 < len(events) else None
    whole = isinstance(after, Op) and after.kind in SYNCS and after.call not in SYNCS and after.began == number + 1
    return number + 1 + whole  # the recorder enters the two together, so nothing comes between them


def telling(events: list[Event], cuts: list[int], number: int) -> list[int]:
    """At most so many of the cuts after a change: those first that no change follows, but a sync, a step or an ack. A
    kill there leaves most to be lost later; one between two changes leaves a part of it."""
    last = [cut for cut in cuts if not (cut < len(events) and isinstance(e := events[cut], Op) and e.changes)]
    others = [cut for cut in cuts if cut not in last]
    chosen = spread(last, number)
    return sorted(chosen + spread(others, number - len(chosen))) if number > len(chosen) else chosen


def spread(items: list[Any], number: int) -> list[Any]:
    """At most so many of them, evenly spread."""
    if len(items) <= number:
        return items
    return [items[(2 * at + 1) * len(items) // (2 * number)] for at in range(number)]
