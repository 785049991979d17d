"""Which sync is missing: for each violation by a power cut the smallest added barrier that removes it.

A barrier is added to the record, not to the program: after each change of one code line, just before the next ack, the
next change of another line, or the end of recovery. Then the states are walked again with it.

Guarantees: a barrier is proposed only when the walk with it, within the same limit, does not find the violation of the
same cause again; single syncs are tried before several at once. The search goes on with every barrier found in place,
until nothing is violated or what is left cannot be mended by a sync. Proofs are states of the record as it was made.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, NamedTuple

from crashtest.cells.drops import Drops, Rooted, Tried
from crashtest.cells.power import Root
from crashtest.persist.history import History
from crashtest.persist.models import Model, Unit, barrier
from crashtest.persist.states import Limits, Walk, window_at
from crashtest.trace import Ack, Event, Op

#: violations that are looked into
ROUNDS = 8


class Added(NamedTuple):
    """A sync added to the record, wherever these lines come by.

    change: the call and the place of the changes that it makes durable. kind: of their units. call: the sync in words
    (`models.Barrier`). before: what it is put before: ("ack" or a call, its place), or ("end", "") of recovery. path,
    where: what it is called on and between which lines, the first time, for people.
    """

    change: tuple[str, str]
    kind: str
    call: str
    before: tuple[str, str]
    path: str
    where: str


class Worst(NamedTuple):
    """A violation with the barriers so far: in which root, the calls that lost something, what it lost, its proof."""

    number: int
    guarantee: str
    marks: frozenset[str]
    lost: list[Unit]
    before: tuple[str, str]
    proof: dict[str, Any]


class Mending:
    """The search over the roots of one example under one model."""

    def __init__(self, drops: Drops) -> None:
        self.drops = drops
        self.tried = Tried()

    def missing(self) -> dict[str, Any]:
        """`found`: proofs, each with the barriers that remove it; `left`: proofs that none removes; `finished`: whether
        the last walk, with all these barriers, came to its end and found nothing else."""
        added: list[Added] = []
        found: list[dict[str, Any]] = []
        left: list[Worst] = []
        finished = False
        for _ in range(ROUNDS):
            self.tried = Tried()
            worst = self._first(added, left)
            if worst is None:
                finished = not self.tried.untried
                break
            barriers = self._mend(added, left, worst)
            if barriers is None:
                left.append(worst)
                continue
            added += barriers
            found.append({**worst.proof, "barriers": [one._asdict() for one in barriers]})
        return {"found": found, "left": [one.proof for one in left], "finished": finished}

    def _mend(self, added: list[Added], left: list[Worst], worst: Worst) -> list[Added] | None:
        """The fewest barriers that remove a violation; None when none do."""
        singles = list(dict.fromkeys(self._candidates(worst)))
        for barriers in [[one] for one in singles] + ([singles] if len(singles) > 1 else []):
            if self._first([*added, *barriers], left, worst) is None:
                return barriers
        return None

    def _candidates(self, worst: Worst) -> Iterator[Added]:
        """For each unit that was lost the narrowest sync that would have made it durable."""
        where = worst.proof["reduced"]["story"]["where"]
        if worst.before == ("end", ""):
            where = f"{where}{' and ' if where else ''}before the end of recovery"
        for unit in worst.lost:
            made = barrier(unit, self.drops.model)
            if made is not None:
                yield Added((unit.op.call, unit.op.where), unit.kind, made.call, worst.before, made.path, where)

    # -- the first violation -----------------------------------------------------------------------------------------

    def _first(self, added: list[Added], left: list[Worst], again: Worst | None = None) -> Worst | None:
        """The first violation that is not in `left`; again: only one of this root, guarantee and cause."""
        for number, rooted in enumerate(self.drops.roots):
            if again is None or number == again.number:
                worst = self._first_of(number, rooted, added, left, again)
                if worst is not None:
                    return worst
        return None

    def _first_of(
        self, number: int, rooted: Rooted, added: list[Added], left: list[Worst], again: Worst | None
    ) -> Worst | None:
        drops = self.drops
        root, origin = with_barriers(rooted.root, added, drops.model)
        total = drops.losses if rooted.cut is None else max(8, drops.losses // len(drops.roots))
        limits = Limits(min(256, total), total)
        walk = Walk(root.first, root.events, drops.model, limits=limits, seed=drops.seed, begin=root.begin)
        bare: set[tuple[str, int]] = set()
        for state in walk:
            cut = origin[state.cut] if rooted.cut is None else rooted.cut
            lost = state.lost
            for guarantee in drops.breaks(root, state, cut, self.tried):
                if not lost:
                    bare.add((guarantee, state.cut))  # a kill breaks it there as well
                if (guarantee, state.cut) in bare or (again is not None and guarantee != again.guarantee):
                    continue
                marks = _marks(root.events, lost)
                if any(one.guarantee == guarantee and one.marks <= marks for one in left):
                    continue
                if again is not None and not again.marks <= marks:
                    continue
                made = drops.reduced(root, state.cut, cut, lost, guarantee)
                worst = self._worst(number, rooted, root, origin, state.cut, guarantee, made)
                if worst.lost and (again is None or worst.marks == again.marks):
                    return worst
        return None

    def _worst(
        self, number: int, rooted: Rooted, root: Root, origin: list[int], at: int, guarantee: str, made: dict[str, Any]
    ) -> Worst:
        names = set(made["lost"])
        window = window_at(root.first, root.events, at, self.drops.model)
        lost = [unit for unit in window if unit.name in names]
        before = _next(root, max(unit.event for unit in lost)) if lost else ("end", "")
        # told of the record as it was made, in which that state is possible as well
        recorded = [(origin[event], part) for event, part in made["lost"]]
        story = self.drops.power.story(rooted.root, origin[at], recorded)
        proof = self.drops.proof(rooted, rooted.root, origin[at], guarantee, {**made, "lost": recorded, "story": story})
        return Worst(number, guarantee, _marks(root.events, made["lost"]), lost, before, proof)


def with_barriers(root: Root, added: list[Added], model: Model) -> tuple[Root, list[int]]:
    """The root with these syncs in its record; and for each cut of it how many of its events were recorded."""
    places = sorted(_places(root, added, model), key=lambda one: one[0])
    at = [place for place, _ in places]

    def moved(number: int) -> int:
        """A number of events, counted anew: what is put before an event comes before it begins."""
        return number + bisect_right(at, number)

    events: list[Event] = []
    origin = [0]
    following = iter([*places, (len(root.events) + 1, None)])
    place, sync = next(following)
    for number, event in enumerate(root.events):
        while place == number and sync is not None:
            events.append(sync._replace(began=len(events)))
            origin.append(number)
            place, sync = next(following)
        events.append(event._replace(began=moved(event.began)) if isinstance(event, Op) else event)
        origin.append(number + 1)
    begin = root.begin + sum(place < root.begin for place in at)
    return root._replace(events=events, begin=begin), origin


def _places(root: Root, added: list[Added], model: Model) -> set[tuple[int, Op]]:
    """The syncs to be added, each with the number of the event before which it stands."""
    found: set[tuple[int, Op]] = set()
    if not added:
        return found
    history = History(root.first, root.events, model)
    for number, event in enumerate(root.events):
        history.step()
        for one in added:
            if not isinstance(event, Op) or (event.call, event.where) != one.change:
                continue
            for unit in history.groups.get(number, ()):
                made = barrier(unit, model) if unit.kind == one.kind else None
                place = _before(root, number, one.before) if made is not None and made.call == one.call else None
                if made is not None and place is not None:
                    found.add((place, made.sync._replace(call=made.sync.kind, path=made.path)))
    return found


def _later(root: Root, number: int) -> Iterator[tuple[int, tuple[str, str]]]:
    """What comes after a change, as `Added.before` says it, with its number: changes and acks, but not what goes on
    with it (the same call on the same file by the same line), and the end of recovery."""
    change = root.events[number]
    for later, event in enumerate(root.events[number + 1 :], number + 1):
        if root.ended and later == len(root.events) - 1:
            yield later, ("end", "")
        elif isinstance(event, Ack):
            yield later, ("ack", event.where)
        elif isinstance(event, Op) and event.changes and _line_and_file(event) != _line_and_file(change):
            yield later, (event.call, event.where)


def _line_and_file(event: Event) -> tuple[str, str, int]:
    assert isinstance(event, Op)
    return event.call, event.where, event.file


def _next(root: Root, number: int) -> tuple[str, str]:
    return next((what for _, what in _later(root, number)), ("end", ""))


def _before(root: Root, number: int, what: tuple[str, str]) -> int | None:
    """The number of the next such event after a change; None when there is none."""
    return next((later for later, found in _later(root, number) if found == what), None)


def _marks(events: list[Event], lost: list[tuple[int, int]]) -> frozenset[str]:
    """What makes two losses alike: the calls, with their places in the program, that issued what was lost."""
    ops = [events[number] for number, _ in lost]
    return frozenset(f"{op.call} {op.where}" for op in ops if isinstance(op, Op))
