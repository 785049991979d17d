"""The states that a crash may leave under a model, each once, the most telling first.

Guarantees: every state that is walked is one that the model allows; each (tree, number of acks) comes once; the same
trace, model, limits and seed give the same states in the same order on every Python. `Walk.coverage` says what was
tried of how much, and `exhaustive` is True only when no state that the model allows was left out. A state keeps no
part of the walk alive but its tree, which shares what it can with others.

Does not recover or judge anything. Any set of units may be lost that keeps the
needs of what it keeps; docs/models.md says in which order they are tried.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from crashtest.errors import HarnessError
from crashtest.persist.history import History
from crashtest.persist.models import POSIX, Model, Unit
from crashtest.persist.tree import Tree
from crashtest.trace import Ack, Event, Op

if TYPE_CHECKING:
    import random

#: what a unit is known by: (index of its event in the trace, count within the event)
Name = tuple[int, int]

Units = dict[Unit, None]
#: the units of the change just before a cut, None when there is no such change
Fresh = Units | None
Candidates = Iterator[tuple[bool, Iterable[Unit]]]

#: groups of one cut that are looked at for pairs, and parts of one group that are torn
_NEAR, _PARTS = 12, 8


class Limits(NamedTuple):
    """per_cut: losses tried at one cut; total: losses tried in all. Both are met by leaving out, never by failing."""

    per_cut: int = 256
    total: int = 200_000


class Coverage:
    """What a walk has tried. cuts: where it looked. walked: losses tried; states: distinct (tree, acks) among them.
    losses: how many there are, as sets of units that can be lost, whether the model allows them or not.
    exhaustive_cuts: cuts at which every state that the model allows was tried."""

    def __init__(self) -> None:
        self.cuts = self.walked = self.states = self.losses = self.exhaustive_cuts = 0
        self.finished = False

    @property
    def exhaustive(self) -> bool:
        return self.finished and self.exhaustive_cuts == self.cuts

    @property
    def skipped(self) -> int:
        """Losses left out. Those that an exhaustive walk does not try are ruled out or lead to states it has tried."""
        return 0 if self.exhaustive else max(self.losses - self.walked, 0)


class State:
    """One state that a crash may leave. acks: how many were sent before it. level: 1 to 4, by which it was found.

    parts: the names of the units lost, or (`keeps`) of those kept when all others are lost.
    """

    __slots__ = ("_walk", "acks", "cut", "digest", "keeps", "level", "parts", "tree")

    def __init__(
        self, walk: Walk, history: History, level: int, keeps: bool, parts: tuple[Name, ...], tree: Tree
    ) -> None:
        self._walk = walk
        self.cut = history.cut
        self.acks = history.acks
        self.level = level
        self.keeps = keeps
        self.parts = parts
        self.tree = tree
        self.digest = tree.digest()

    @property
    def lost(self) -> list[Name]:
        """The names of the units lost, in order: with the cut, all that `state_of` needs. Cheap while the walk has not
        gone on from this state."""
        if not self.keeps:
            return list(self.parts)
        kept = set(self.parts)
        return [unit.name for unit in self._walk.window(self.cut) if unit.name not in kept]


class Walk:
    """The crash states of a trace under a model, as an iterable. first: the state before it, which is durable.

    begin: only cuts after so many events are looked at. losing: only its cuts are looked at, and only losses that lose
    one of the units it names there (`more_to_lose`).
    """

    def __init__(
        self,
        first: Tree,
        events: Sequence[Event],
        model: Model,
        *,
        limits: Limits = Limits(),  # noqa: B008 - a tuple
        seed: int = 0,
        begin: int = 0,
        losing: Mapping[int, Collection[Name]] | None = None,
    ) -> None:
        self.first = first
        self.events = events
        self.model = model
        self.limits = limits
        self.seed = seed
        self.begin = begin
        self.losing = losing
        self.coverage = Coverage()
        self._seen: set[bytes] = set()
        #: by cut: losses tried, as masks over a small window
        self._tried: dict[int, set[int]] = {}
        #: by cut: how many losses were tried
        self._used: dict[int, int] = {}
        #: where the walk is
        self._now: History | None = None

    def window(self, cut: int) -> Iterable[Unit]:
        """The units that a crash at a cut may lose, in order."""
        if self._now is not None and self._now.cut == cut:
            return self._now.window
        return window_at(self.first, self.events, cut, self.model)

    def __iter__(self) -> Iterator[State]:
        """The states. Each iteration is a walk of its own."""
        self.coverage = Coverage()
        self._seen, self._tried, self._used = set(), {}, {}
        for level in range(1, len(_LEVELS) + 2):
            yield from self._pass(level, last=level > len(_LEVELS))
        self.coverage.finished = True

    def _pass(self, level: int, last: bool) -> Iterator[State]:
        """One level over the whole trace. Half of what the limits leave is its share, spread evenly over the cuts."""
        coverage = self.coverage
        begun = coverage.walked
        room = self.limits.total - begun
        room = room if last else (room + 1) // 2
        looked_at = self.events[self.begin :]
        cuts = 1 + sum(isinstance(event, Ack) or (isinstance(event, Op) and event.changes) for event in looked_at)
        if self.losing is not None:
            cuts = sum(not isinstance(e := self.events[cut - 1], Op) or e.changes for cut in self.losing if cut)
        for at, (history, fresh) in enumerate(self._cuts(), 1):
            self._now = history
            if level == 1:
                coverage.cuts += 1
                coverage.losses += _losses(history, fresh, self._wanted(history))
            used = self._used.get(history.cut, 0)
            free = self.limits.per_cut - used
            free = min(free if last else (free + 1) // 2, at * room // cuts - (coverage.walked - begun))
            before = coverage.walked
            if last:
                yield from self._rest(history, fresh, free, level)
            else:
                yield from self._tell(history, level, _LEVELS[level - 1](history, fresh), fresh, free)
            if coverage.walked > before:
                self._used[history.cut] = used + coverage.walked - before

    def _cuts(self) -> Iterator[tuple[History, Fresh]]:
        """Every cut where a new state is possible, with the units of the change that came just before it.

        None: all losses are new, because an ack came before it or nothing at all. A loss that keeps nothing of the
        change was possible before it, with as many acks; so was any after a sync, which only shrinks the window.
        """
        history = History(self.first, self.events, self.model)
        if not self.begin and (self.losing is None or 0 in self.losing):
            yield history, None
        for event in self.events:
            history.step()
            if history.cut <= self.begin or (self.losing is not None and history.cut not in self.losing):
                continue
            if isinstance(event, Ack):
                yield history, None
            elif isinstance(event, Op) and event.changes:
                fresh = dict(history.groups.get(history.cut - 1, {}))
                if fresh or not history.window:
                    yield history, fresh
        self._now = None
        history.close()  # units refer to each other in rings: without it the next pass stands beside this one's

    def _wanted(self, history: History) -> Units | None:
        """The units of which a loss must lose one; None: it need not."""
        if self.losing is None:
            return None
        names = self.losing.get(history.cut, ())
        return {unit: None for unit in history.window if unit.name in names}

    def _tell(self, history: History, level: int, candidates: Candidates, fresh: Fresh, free: int) -> Iterator[State]:
        """The new states among the candidates, at most `free` losses."""
        window = history.window
        # every loss of a small window is tried once; in a large one the tree's digest alone tells what is new
        small = len(window) <= self.limits.per_cut
        bits = {unit: 1 << at for at, unit in enumerate(window)} if small and free > 0 else {}
        tried = self._tried.setdefault(history.cut, set()) if small and free > 0 else set()
        wanted = self._wanted(history)
        for keeps, units in candidates if free > 0 else ():
            chosen = kept_with(units) if keeps else settled(lost_with(units))
            few = keeps
            if few and (small or len(chosen) * 2 > len(window)):
                few, chosen = False, settled(dict.fromkeys(unit for unit in window if unit not in chosen))
            if fresh and not any((unit in chosen) is few for unit in fresh):
                continue
            if wanted is not None and not any((unit in chosen) is not few for unit in wanted):
                continue
            if small:
                mask = sum(bits[unit] for unit in chosen)
                if mask in tried:
                    continue
                if len(chosen) * 2 > len(window):
                    few, chosen = True, dict.fromkeys(unit for unit in window if unit not in chosen)
            if free <= 0:
                return
            if small:
                tried.add(mask)
            free -= 1
            self.coverage.walked += 1
            tree = history.only(chosen) if few else history.without(chosen)
            mark = bytes.fromhex(tree.digest()) + b"%d" % history.acks
            if mark not in self._seen:
                self._seen.add(mark)
                self.coverage.states += 1
                yield State(self, history, level, few, tuple(unit.name for unit in sorted(chosen, key=_number)), tree)

    def _rest(self, history: History, fresh: Fresh, free: int, level: int) -> Iterator[State]:
        """All losses that are left where they are few, else a sample of them."""
        masks = allowed(history.window, self.limits.per_cut)
        if masks is None:
            import random  # here, because with it each forked process begins by drawing a seed

            drawn = _sample(history, random.Random(f"{self.seed}/{history.cut}"), 2 * free)
            yield from self._tell(history, level, drawn, fresh, free)
            return
        units = list(history.window)
        if fresh:
            group = sum(1 << at for at, unit in enumerate(units) if unit in fresh)
            masks = [mask for mask in masks if mask & group]
        wanted = self._wanted(history)
        if wanted is not None:
            group = sum(1 << at for at, unit in enumerate(units) if unit in wanted)
            masks = [mask for mask in masks if mask & group != group]
        full = (1 << len(units)) - 1
        tried = self._tried.get(history.cut, set())
        left = [mask for mask in masks if full ^ mask not in tried]
        every = ((True, [unit for at, unit in enumerate(units) if mask >> at & 1]) for mask in left)
        yield from self._tell(history, level, every, fresh, free)
        self.coverage.exhaustive_cuts += len(left) <= free or not units
        self._tried.pop(history.cut, None)


# -- which losses the levels try: pairs of (whether these units are kept, or lost) and units ---------------------------


def _whole(history: History, fresh: Fresh) -> Candidates:
    """Everything kept, everything lost."""
    yield False, ()
    if fresh is None:
        yield True, ()


def _singles(history: History, fresh: Fresh) -> Candidates:
    """Each group lost alone, kept alone, and kept with all before it; the latest first."""
    if fresh:
        yield True, fresh
    for group in reversed(history.groups.values()):
        yield False, group
    if fresh is None:
        for group in reversed(history.groups.values()):
            yield True, group
        gone: Units = {}
        for group in reversed(history.groups.values()):
            gone = {**gone, **group}
            yield False, gone


def _torn(history: History, fresh: Fresh) -> Candidates:
    """Groups kept in part, with everything else kept and with everything else lost; the latest first."""
    for group in reversed(history.groups.values()):
        if len(group) > 1:
            for part in _parts(list(group)):
                yield False, [unit for unit in group if unit not in part]
                yield True, part


def _parts(units: list[Unit]) -> Iterator[Units]:
    """Some of a group's units: its size or its data alone, the sectors up to a place and from it, single ones."""
    others = [unit for unit in units if unit.kind != "data"]
    data = [unit for unit in units if unit.kind == "data"]
    if others and data:
        yield dict.fromkeys(others)
        yield dict.fromkeys(data)
    for place in range(1, len(data)) if len(data) <= _PARTS else (1, len(data) // 2, len(data) - 1):
        yield dict.fromkeys(others + data[:place])
        yield dict.fromkeys(others + data[place:])
    if len(units) <= _PARTS:
        for unit in units:
            yield {unit: None}
            yield dict.fromkeys(other for other in units if other is not unit)


def _pairs(history: History, fresh: Fresh) -> Candidates:
    """Two groups lost, two groups kept; the latest first."""
    near = list(islice(reversed(history.groups.values()), _NEAR))
    for at, one in enumerate(near):
        for other in near[:at]:
            yield False, [*one, *other]
            yield True, [*one, *other]


_LEVELS = (_whole, _singles, _torn, _pairs)


def _sample(history: History, chance: random.Random, number: int) -> Candidates:
    """Losses drawn by chance: a few units lost or kept, near the cut or anywhere, or a half of what is near."""
    near = list(islice(reversed(history.window), 64)) if number > 0 else []
    for _ in range(number if near else 0):
        keeps, kind = chance.random() < 0.5, chance.randrange(3)
        if kind == 0:
            yield keeps, [unit for unit in near if chance.random() < 0.5]
            continue
        units = [near[chance.randrange(len(near))] for _ in range(chance.randrange(1, 6))]
        for _ in range(4 if kind == 1 else 0):
            group = list(history.groups.get(chance.randrange(history.cut), ()))
            if group:
                units.append(group[chance.randrange(len(group))])
        yield keeps, units


def _losses(history: History, fresh: Fresh, wanted: Units | None = None) -> int:
    """How many sets of units can be lost that were not possible at the cut before, and lose one that is wanted."""
    units = len(history.window)
    found = (1 << units) - ((1 << units - len(fresh)) if fresh else 0)
    if wanted is not None:  # less those that keep all that is wanted
        rest = units - len(wanted)
        apart = fresh is not None and all(unit not in wanted for unit in fresh)
        found -= (1 << rest) - ((1 << rest - len(fresh)) if fresh and apart else 0)
    return found


def allowed(window: Units, limit: int) -> list[int] | None:
    """Every set of units of the window that the model lets be kept, as masks; None when there are more than `limit`.

    A unit whose every value is written over by one that is kept counts as kept.
    """
    if len(window) >= limit:
        return None  # already the beginnings of the window are as many
    bits = {unit: 1 << at for at, unit in enumerate(window)}
    masks = [0]
    for unit, bit in bits.items():
        wanted = sum(bits[other] for other in {**unit.needs, **unit.over})
        masks += [mask | bit for mask in masks if mask & wanted == wanted]
        if len(masks) > limit:
            return None
    return masks


def lost_with(units: Iterable[Unit]) -> Units:
    """These units and all that need one of them."""
    return _spread(units, lambda unit: unit.dependents)


def kept_with(units: Iterable[Unit]) -> Units:
    """These units and all that one of them needs."""
    return _spread(units, lambda unit: unit.needs)


def _spread(units: Iterable[Unit], onward: Callable[[Unit], Units]) -> Units:
    found = dict.fromkeys(units)
    waiting = list(found)
    while waiting:
        for unit in onward(waiting.pop()):
            if unit not in found:
                found[unit] = None
                waiting.append(unit)
    return found


def settled(lost: Units) -> Units:
    """The same loss, without the units whose every value is written over by one that is kept."""
    left = dict(lost)
    for unit in sorted(lost, key=_number, reverse=True):
        if any(later not in left for later in unit.under):
            del left[unit]
    return left


def _number(unit: Unit) -> int:
    return unit.number


# -- one state again ---------------------------------------------------------------------------------------------------


def _history_at(first: Tree, events: Sequence[Event], cut: int, model: Model) -> History:
    history = History(first, events, model)
    for _ in range(cut):
        history.step()
    return history


def window_at(first: Tree, events: Sequence[Event], cut: int, model: Model = POSIX) -> list[Unit]:
    """The units that a crash at a cut may lose, in order; `models.describe` and `models.barrier` tell of them."""
    return list(_history_at(first, events, cut, model).window)


def more_to_lose(
    first: Tree, before: Sequence[Event], after: Sequence[Event], model: Model
) -> dict[int, frozenset[Name]]:
    """By cut, the units that a crash may lose in `after` and not in `before`: the same events, but for their syncs."""
    edits = [at for at, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    one, other = History(first, before, model), History(first, after, model)
    found: dict[int, frozenset[Name]] = {}
    for at in range(len(before)) if edits else ():
        one.step()
        other.step()
        if at < edits[0]:
            continue
        safe = {unit.name for unit in one.window}
        more = frozenset(unit.name for unit in other.window if unit.name not in safe)
        if more:
            found[at + 1] = more
        elif at >= edits[-1]:
            break  # from here on the two are alike
    return found


def state_of(
    first: Tree, events: Sequence[Event], cut: int, lost: Iterable[Sequence[int]], model: Model = POSIX
) -> Tree:
    """The tree at a cut when these units are lost, by name. Raises `HarnessError` when one of them cannot be lost."""
    history = _history_at(first, events, cut, model)
    return history.without(_units(history, lost))


def _units(history: History, names: Iterable[Sequence[int]]) -> list[Unit]:
    units = {unit.name: unit for unit in history.window}
    wanted = [(event, part) for event, part in names]
    for name in wanted:
        if name not in units:
            raise HarnessError(
                f"unit {name[1]} of event {name[0]} cannot be lost at cut {history.cut} under {history.model.name}: "
                "the loss belongs to another trace or model; record it again"
            )
    return [units[name] for name in wanted]


def reduced(
    first: Tree,
    events: Sequence[Event],
    cut: int,
    lost: Iterable[Sequence[int]],
    model: Model,
    bad: Callable[[list[Name], Tree], bool],
) -> list[Name]:
    """The fewest lost units that still are `bad`, found by keeping more and more: first halves, then single groups,
    then single units, until none can be kept. bad(lost, tree): asked once for each distinct tree. Deterministic.
    """
    history = _history_at(first, events, cut, model)
    left = settled(dict.fromkeys(_units(history, lost)))
    known: dict[str, bool] = {history.without(left).digest(): True}

    def fails(loss: Units) -> bool:
        tree = history.without(loss)
        digest = tree.digest()
        if digest not in known:
            known[digest] = bad([unit.name for unit in sorted(loss, key=_number)], tree)
        return known[digest]

    def pieces(size: int) -> list[list[Unit]]:
        if size == 0:
            return [[unit] for unit in left]
        groups: dict[int, list[Unit]] = {}
        for unit in left:
            groups.setdefault(unit.event, []).append(unit)
        parts = list(groups.values())
        return [[unit for group in parts[at : at + size] for unit in group] for at in range(0, len(parts), size)]

    size = len({unit.event for unit in left})
    while True:
        smaller = False
        for piece in pieces(size):
            kept = kept_with(unit for unit in piece if unit in left)
            less = settled(dict.fromkeys(unit for unit in left if unit not in kept))
            if len(less) < len(left) and fails(less):
                left, smaller = less, True
        if not smaller and size == 0:
            return [unit.name for unit in sorted(left, key=_number)]
        if size > 1 or not smaller:
            size //= 2
