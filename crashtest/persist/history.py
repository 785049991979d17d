"""A trace split into units: what was issued, what a completed sync made durable, and the state that a loss leaves.

Guarantees: `History` stands at a cut and has the window there (the units that were issued and are not durable), the
`live` state (everything issued) and the `base` state (everything durable); `without` and `only` build the tree that
a loss leaves from whichever of them is asked for, touching only the variables that differ. A variable (a sector, a
size, a name, an attribute) has the value of its last unit that is kept or durable. A file that no state can reach any
more is forgotten, with its units; so memory and cost follow the state and the window, not the length of the trace.

Does not decide which units are kept together (`persist.models`) nor which losses are tried (`persist.states`). A file
that was moved in from outside the state has its content with it: what was synced there is not in the record.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from crashtest.errors import HarnessError
from crashtest.persist.image import Image, Key, reachable, sectors, set_value
from crashtest.persist.journal import Journal
from crashtest.persist.models import NOTHING, Model, Unit
from crashtest.persist.moves import Moves, number
from crashtest.persist.splitting import Splitter, made_by
from crashtest.persist.tree import ROOT, Node, Tree
from crashtest.trace import SIGNS, SYNCS, Ack, Event, Op


class Variable:
    """floor: its durable value. units: those in the window that set it, in order."""

    __slots__ = ("floor", "units")

    def __init__(self, floor: Any) -> None:
        self.floor = floor
        self.units: list[Unit] = []


class History:
    """The states at a cut of a trace. It begins at cut 0 and is moved on by `step`."""

    def __init__(self, first: Tree, events: Sequence[Event], model: Model) -> None:
        self.events = events
        self.model = model
        self.cut = 0
        self.acks = 0
        self.live = Image(reachable(first), model.tear)
        self.base = Image(self.live.tree.copy(), model.tear)
        self._splitter = Splitter(model, self.live)
        self._moves = Moves(self.live.tree.nodes)
        self._journal = Journal()
        #: the units that were issued and are not durable, in order
        self.window: dict[Unit, None] = {}
        #: the same by event
        self.groups: dict[int, dict[Unit, None]] = {}
        self.variables: dict[Key, Variable] = {}
        self._of: dict[int, dict[Unit, None]] = {}
        self._names: dict[int, int] = {}
        self._issued = 0
        self._last: dict[tuple[str, int], Unit] = {}
        self._nameless: list[int] = []
        self._was_synced: set[int] = set()
        #: units that are being made durable
        self._pinning: dict[Unit, None] = {}

    # -- moving on ------------------------------------------------------------------------------------------------

    def step(self) -> Event:
        """The next event happens. Raises `HarnessError` when it does not fit the state."""
        event = self.events[self.cut]
        if isinstance(event, Ack):
            self.acks += 1
        elif isinstance(event, Op):
            try:
                if event.kind in SYNCS:
                    self._synced(event)
                else:
                    self._flush(event)
                    if event.kind not in SIGNS:
                        self._issue(event)
            except (KeyError, AttributeError) as error:
                words = f"event {self.cut} of the trace does not fit its first state: {event.describe()}: {error!r}"
                raise HarnessError(words) from None
            self._forget()
        self.cut += 1
        return event

    def close(self) -> None:
        """Let the units go of one another, so that their memory is free at once; the history goes no further."""
        for unit in self.window:
            unit.needs = unit.behind = unit.dependents = unit.over = unit.under = NOTHING

    def _issue(self, op: Op) -> None:
        made = made_by(op)
        if made is not None:
            self.live.add(op.file, made)
            self.base.add(op.file, made.copy())
        for unit in self._splitter.units(op, self.cut):
            self._enter(unit)
        if not self.model.loses:
            self._pin(list(self.window))

    def _enter(self, unit: Unit) -> None:
        """The unit happens: live has its values from now on."""
        unit.number = self._issued
        self._issued += 1
        for rule in self.model.needs:
            for needed in rule(unit, self):
                self._need(unit, needed)
        for rule in self.model.order:
            for needed in rule(unit, self):
                self._need(unit, needed, behind=True)
        if self.model.keeps_moved:
            for key in unit.changes:
                for move in self._moves.from_name(key):
                    self._need(unit, move)
            for directory in self._removed(unit):
                for move in self._moves.out_of(directory):
                    self._need(unit, move)
        for key, value in unit.changes.items():
            variable = self.variables.get(key)
            if variable is None:
                variable = self.variables[key] = Variable(self.live.value(key))
            for before in variable.units[-2:]:
                # keeping a value that is written over anyway changes nothing: so it counts as kept
                if before.left == 1 and all(needed in unit.needs for needed in before.needs):
                    unit.over = _with(unit.over, before)
                    before.under = _with(before.under, unit)
            variable.units.append(unit)
            if key[0] == "name" and value is not None:
                self._names[value] = self._names.get(value, 0) + 1
        self._moves.remember(unit)
        for key, value in unit.changes.items():
            self._put(self.live, key, value)
        self.window[unit] = None
        self.groups.setdefault(unit.event, {})[unit] = None
        for file in _subjects(unit):
            self._of.setdefault(file, {})[unit] = None
        if unit.kind != "data":
            self._last["metadata", 0] = unit
        if unit.kind == "size":
            self._last["size", unit.file] = unit
            if unit.changes["size", unit.file, 0] < unit.was:
                self._last["cut", unit.file] = unit
        if unit.moves and unit.directory:
            self._last["directory", 0] = unit
        if self.model.journal:
            self._journal.enter(unit)

    def _need(self, unit: Unit, needed: Unit, behind: bool = False) -> None:
        if needed is not unit and needed in self.window and needed not in unit.needs:
            unit.needs = _with(unit.needs, needed)
            needed.dependents = _with(needed.dependents, unit)
            if behind:
                unit.behind = _with(unit.behind, needed)

    def _flush(self, op: Op) -> None:
        """What an operation makes the file system write back before it."""
        if self.model.flushes is not None:
            for file in self.model.flushes(op, self):
                units = self._of.get(file, ())
                self._journal.write_back(
                    [u for u in units if u.delayed and u.file == file and u.kind in self.model.flushed]
                )
        if op.kind == "close":
            self._journal.emptied.discard(op.file)

    def _removed(self, unit: Unit) -> list[int]:
        """The directories that this unit is about to remove, by rmdir or by a rename over an empty one; one that
        departs takes all below it along, so everything moved before it counts."""
        op = unit.op
        if unit.kind != "name" or op.kind == "exchange":
            return []
        if op.kind == "depart" and self.live.type(op.file) == "d":
            return self._moves.left()
        now = [self.live.value(key) for key, value in unit.changes.items() if value is not None or op.kind == "rmdir"]
        return [file for file in now if file is not None and self.live.type(file) == "d"]

    # -- values ---------------------------------------------------------------------------------------------------

    def _put(self, image: Image, key: Key, value: Any) -> None:
        kind, file, what = key
        if kind == "name":
            gone = image.bind(file, what, value)
            if gone is not None:
                self._nameless.append(gone)
        else:
            set_value(image.change(file), kind, what, value, self.model.tear)

    def _chosen(self, key: Key, lost: set[Unit]) -> Any:
        """The value of a variable when these units are lost."""
        variable = self.variables.get(key)
        if variable is None:
            return self.live.value(key)
        for unit in reversed(variable.units):
            if unit not in lost:
                return unit.changes[key]
        return variable.floor

    # -- syncs ----------------------------------------------------------------------------------------------------

    def _synced(self, sync: Op) -> None:
        self._was_synced.add(sync.file)
        asked: Collection[Unit] = self.window
        if self.model.local and sync.kind not in ("sync", "syncfs"):
            asked = self._of.get(sync.file, {})
            if self.model.journal:
                asked = [*asked, *self._journal.at(sync.began)]
                sync = sync._replace(text=self.live.type(sync.file))
        before = [unit for unit in asked if unit.event < sync.began]
        self._pin([unit for unit in before if self.model.durable(sync, unit)])
        if self.model.logs is not None:
            for unit in before:
                if unit in self.window and self.model.logs(sync, unit):
                    self._log(unit)

    def _log(self, unit: Unit) -> None:
        """The unit may be kept from now on without what it is behind."""
        self._journal.log(unit, self._need)
        for needed in unit.behind:
            del unit.needs[needed]
            del needed.dependents[unit]
        unit.behind = NOTHING

    def _pin(self, units: list[Unit]) -> None:
        """Make units durable, and what they need; the last of each variable first, which the others are below."""
        found: dict[Unit, None] = {}
        while units:
            unit = units.pop()
            if unit not in found:
                found[unit] = None
                units.extend(needed for needed in unit.needs if needed not in unit.behind)
        self._pinning = found
        grown: dict[int, None] = {}
        for unit in sorted(found, key=number, reverse=True):
            if unit not in self.window:
                continue  # all it sets was set anew by a later unit that is durable by now
            for key, value in unit.changes.items():
                variable = self.variables.get(key)
                at = -1 if variable is None else _place(variable, unit)
                if variable is None or at < 0:
                    continue
                passed = variable.units[: at + 1]
                del variable.units[: at + 1]
                variable.floor = value
                if key[0] == "name":
                    self._put(self.base, key, value)
                    if value is not None and value not in self._moves.durable:
                        self._settle(value)
                elif key[0] == "size":
                    grown[unit.file] = None
                    self._resize_base(unit.file, value)
                else:
                    self._put(self.base, key, value)
                for below in passed:
                    self._lose_key(below, key, keep=below is unit)
                if not variable.units:
                    del self.variables[key]
            self._leave(unit)
        self._pinning = {}

    def _resize_base(self, file: int, size: int) -> None:
        """A durable size shows the durable data up to it, and no more."""
        node = self.base.change(file)
        was = len(node.data)
        set_value(node, "size", 0, size, self.model.tear)
        for sector in sectors(was, size, self.model.tear):
            variable = self.variables.get(("data", file, sector))
            value = variable.floor if variable is not None else self.live.value(("data", file, sector))
            set_value(node, "data", sector, value, self.model.tear)

    def _lose_key(self, unit: Unit, key: Key, keep: bool = False) -> None:
        """A later durable value stands over the unit's; a unit that sets nothing else is no loss any more."""
        value = unit.changes[key]
        if key[0] == "name" and value is not None:
            self._names[value] -= 1
            self._nameless.append(value)
        unit.left -= 1
        if not unit.left and not keep:
            self._leave(unit)

    def _leave(self, unit: Unit) -> None:
        """The unit can no longer be lost."""
        if unit not in self.window:
            return
        del self.window[unit]
        group = self.groups[unit.event]
        del group[unit]
        if not group:
            del self.groups[unit.event]
        for file in _subjects(unit):
            self._of[file].pop(unit, None)
            if not self._of[file]:
                del self._of[file]
        if self.model.journal:
            self._journal.leave(unit, self._pinning, self._need)
        for other in unit.dependents:
            del other.needs[unit]
            other.behind.pop(unit, None)
        for other in unit.needs:
            del other.dependents[unit]
        for other in unit.under:
            del other.over[unit]
        for other in unit.over:
            del other.under[unit]
        unit.needs = unit.behind = unit.dependents = unit.over = unit.under = NOTHING
        for name in (("metadata", 0), ("size", unit.file), ("cut", unit.file), ("directory", 0)):
            if self._last.get(name) is unit:
                del self._last[name]
        self._moves.leave(unit)

    def _settle(self, file: int) -> None:
        """A file has got a durable name: what takes the places it was moved from needs those moves."""
        for move in self._moves.settle(file):
            left = [key for key, value in move.changes.items() if value is None]
            for unit in _after(self.window, move):
                removed = unit.op.kind in ("rmdir", "depart") and unit.file in move.directories
                if removed or any(key in unit.changes for key in left):
                    self._need(unit, move)

    # -- files that no state can reach ----------------------------------------------------------------------------

    def _forget(self) -> None:
        while self._nameless:
            file = self._nameless.pop()
            if self._names.get(file):
                continue
            self._names.pop(file, None)
            if file == ROOT or self.live.links.get(file) or self.base.links.get(file):
                continue
            if file not in self.live.links and file not in self.base.links:
                continue
            keys = {key: None for unit in self._of.get(file, ()) for key in unit.changes if key[1] == file}
            for key in keys:
                variable = self.variables.pop(key, None)
                for unit in variable.units if variable is not None else ():
                    self._lose_key(unit, key)
            for image in (self.live, self.base):
                self._nameless += image.drop(file)
            self._moves.durable.discard(file)

    # -- what a model asks (`models.Past`) ------------------------------------------------------------------------

    def other_half(self, unit: Unit) -> Iterator[Unit]:
        return iter([other for other in self.groups.get(unit.event, ()) if other.half == "new"])

    def way_to(self, unit: Unit) -> Iterator[Unit]:
        op = unit.op
        for target in [op.dir2, op.dir] if op.kind == "exchange" else [op.dir2 if op.dir2 >= 0 else op.dir]:
            at = target
            while at != ROOT and at in self.live.tree.parents:
                above, name = self.live.tree.parents[at]
                variable = self.variables.get(("name", above, name))
                if variable is not None:
                    yield variable.units[-1]
                at = above

    def last_directory_move(self) -> Iterator[Unit]:
        return self._latest("directory", 0)

    def last_cut(self, file: int) -> Iterator[Unit]:
        return self._latest("cut", file)

    def last_size(self, file: int) -> Iterator[Unit]:
        return self._latest("size", file)

    def last_metadata(self) -> Iterator[Unit]:
        return self._latest("metadata", 0)

    def journal(self) -> Iterator[Unit]:
        return iter(list(self._journal.heads))

    def page(self, unit: Unit) -> Iterator[Unit]:
        return self._journal.page(unit)

    def taken(self, directory: int, name: str) -> bool:
        return name in self.live.entries(directory)

    def emptied(self, file: int) -> bool:
        return file in self._journal.emptied

    def was_synced(self, file: int) -> bool:
        return file in self._was_synced

    def _latest(self, what: str, file: int) -> Iterator[Unit]:
        unit = self._last.get((what, file))
        if unit is not None:
            yield unit

    # -- the tree that a loss leaves ------------------------------------------------------------------------------

    def without(self, lost: Collection[Unit]) -> Tree:
        """Everything issued but these units."""
        gone = set(lost)
        keys = {key: None for unit in lost for key in unit.changes if self._sets(unit, key)}
        return self._build(self.live, {key: self._chosen(key, gone) for key in keys}, gone)

    def only(self, kept: Collection[Unit]) -> Tree:
        """Everything durable and these units."""
        values: dict[Key, Any] = {}
        for unit in sorted(kept, key=number):
            for key, value in unit.changes.items():
                if self._sets(unit, key):
                    values[key] = value
        return self._build(self.base, values, None)

    def _sets(self, unit: Unit, key: Key) -> bool:
        """Whether the unit's value of a variable still counts: a later durable one may stand over it."""
        if unit.left == len(unit.changes):
            return True
        variable = self.variables.get(key)
        return variable is not None and _place(variable, unit) >= 0

    def _build(self, image: Image, values: dict[Key, Any], lost: set[Unit] | None) -> Tree:
        """A copy of the image's tree with other values. lost: what is lost of the live state, None for the base."""
        tree = image.tree.copy()
        tear = self.model.tear

        def change(file: int) -> Node:
            if file not in tree.nodes:
                tree.nodes[file] = image.share(file)
            node = tree.mine(file)
            node.dirty()
            return node

        for key, value in values.items():
            kind, file, what = key
            if kind == "name":
                entries = change(file).entries
                if value is None:
                    entries.pop(what, None)
                else:
                    if value not in tree.nodes:
                        tree.nodes[value] = image.share(value)
                    entries[what] = value
                    tree.parents[value] = (file, what)
            elif kind == "size":
                node = change(file)
                was = len(node.data)
                set_value(node, "size", 0, value, tear)
                for sector in sectors(was, value, tear):
                    at = ("data", file, sector)
                    if at not in values:
                        variable = self.variables.get(at)
                        if lost is not None:
                            shown = self._chosen(at, lost)
                        else:
                            shown = self.live.value(at) if variable is None else variable.floor
                        set_value(node, "data", sector, shown, tear)
        for key, value in values.items():
            if key[0] not in ("name", "size"):
                set_value(change(key[1]), key[0], key[2], value, tear)
        return tree


def _with(units: dict[Unit, None], unit: Unit) -> dict[Unit, None]:
    if units is NOTHING:
        return {unit: None}
    units[unit] = None
    return units


def _place(variable: Variable, unit: Unit) -> int:
    """Where the unit stands among those that set the variable, -1 when a later durable value stands over it."""
    for at in range(len(variable.units) - 1, -1, -1):
        if variable.units[at] is unit:
            return at
    return -1


def _subjects(unit: Unit) -> Iterator[int]:
    """The files that a unit is about, each once."""
    yield unit.file
    for directory in unit.directories:
        if directory != unit.file:
            yield directory


def _after(window: dict[Unit, None], unit: Unit) -> list[Unit]:
    found = []
    for other in reversed(window):
        if other.number <= unit.number:
            break
        found.append(other)
    return found
