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

from bisect import insort
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from crashtest.errors import HarnessError
from crashtest.persist.models import NOTHING, Model, Unit
from crashtest.persist.tree import ROOT, Node, Tree
from crashtest.trace import PAGE, SIGNS, SYNCS, Ack, Event, Op

#: (kind, file or directory, sector or name or attribute)
Key = tuple[str, int, Any]

_MAKES = {"create": "f", "mkdir": "d", "symlink": "l", "arrive": "f", "tmpfile": "f"}
_TAKES = frozenset({"unlink", "rmdir", "depart"})


class Variable:
    """floor: its durable value. units: those in the window that set it, in order."""

    __slots__ = ("floor", "units")

    def __init__(self, floor: Any) -> None:
        self.floor = floor
        self.units: list[Unit] = []


class Image:
    """A tree in which files may lose all their names and get one again. tree: what has a name; its copies are safe."""

    def __init__(self, tree: Tree) -> None:
        """tree: taken as it is, all of it with names."""
        self.tree = tree
        self.unnamed: dict[int, Node] = {}
        self.links: dict[int, int] = {ROOT: 1}
        self._own: set[int] = set()
        for node in tree.nodes.values():
            for file in node.entries.values():
                self.links[file] = self.links.get(file, 0) + 1

    def add(self, file: int, node: Node) -> None:
        """A new file, without a name."""
        self.tree.reserve(file)
        self.unnamed[file] = node
        self.links[file] = 0
        self._own.add(file)

    def get(self, file: int) -> Node | None:
        return self.tree.nodes.get(file) or self.unnamed.get(file)

    def share(self, file: int) -> Node:
        """The node, for another tree to hold: not to be changed there, nor here any more."""
        node = self.tree.nodes.get(file)
        if node is None:
            node = self.unnamed[file]
            self._own.discard(file)
        return node

    def change(self, file: int) -> Node:
        """The node, to be changed."""
        if file in self.tree.nodes:
            node = self.tree.mine(file)
        else:
            node = self.unnamed[file]
            if file not in self._own:
                node = self.unnamed[file] = node.copy()
                self._own.add(file)
        node.dirty()
        return node

    def bind(self, directory: int, name: str, file: int | None) -> int | None:
        """Set a name; the file that has lost its last name by it, or None."""
        entries = self.change(directory).entries
        old = entries.pop(name, None)
        if file is not None:
            entries[name] = file
            self.links[file] += 1
            if file in self.unnamed:
                node = self.unnamed.pop(file)
                self.tree.nodes[file] = node if file in self._own else node.copy()
                self._own.discard(file)
            self.tree.parents[file] = (directory, name)
        return None if old is None else self._unlink(old)

    def _unlink(self, file: int) -> int | None:
        self.links[file] -= 1
        if self.links[file]:
            return None
        self.unnamed[file] = self.tree.nodes.pop(file)  # other trees may share it
        self.tree.parents.pop(file, None)
        return file

    def drop(self, file: int) -> list[int]:
        """Forget a file without a name; the files that lose their last name by it."""
        node = self.unnamed.pop(file, None)
        self._own.discard(file)
        self.links.pop(file, None)
        if node is None:
            return []
        return [child for child in node.entries.values() if self._unlink(child) is not None]


class History:
    """The states at a cut of a trace. It begins at cut 0 and is moved on by `step`."""

    def __init__(self, first: Tree, events: Sequence[Event], model: Model) -> None:
        self.events = events
        self.model = model
        self.cut = 0
        self.acks = 0
        self.live = Image(_reachable(first))
        self.base = Image(self.live.tree.copy())
        #: the units that were issued and are not durable, in order
        self.window: dict[Unit, None] = {}
        #: the same by event
        self.groups: dict[int, dict[Unit, None]] = {}
        self.variables: dict[Key, Variable] = {}
        self._of: dict[int, dict[Unit, None]] = {}
        self._names: dict[int, int] = {}
        self._issued = 0
        #: files that have or had a durable name
        self._durable = set(self.live.tree.nodes)
        #: moves of files whose name was never durable, by file
        self._idle: dict[int, list[Unit]] = {}
        #: moves by the name they left, and by the directory they left
        self._left: dict[Key, list[Unit]] = {}
        self._out: dict[int, list[Unit]] = {}
        self._last: dict[tuple[str, int], Unit] = {}
        self._nameless: list[int] = []
        #: the last units of the journal: all others in it are needed by one of them
        self._heads: dict[Unit, None] = {}
        #: by file and page: the unit that made the page, or cut it off
        self._pages: dict[tuple[int, int], Unit] = {}
        self._emptied: set[int] = set()
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
        for unit in self._split(op):
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
                for move in self._left.get(key, [])[-1:] if key[0] == "name" else []:
                    self._need(unit, move)
            for directory in self._removed(unit):
                for move in self._out.get(directory, ()):
                    self._need(unit, move)
        for key, value in unit.changes.items():
            variable = self.variables.get(key)
            if variable is None:
                variable = self.variables[key] = Variable(self._now(key))
            for before in variable.units[-2:]:
                # keeping a value that is written over anyway changes nothing: so it counts as kept
                if before.left == 1 and all(needed in unit.needs for needed in before.needs):
                    unit.over = _with(unit.over, before)
                    before.under = _with(before.under, unit)
            variable.units.append(unit)
            if key[0] == "name" and value is not None:
                self._names[value] = self._names.get(value, 0) + 1
        self._remember_move(unit)
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
            self._remember_journal(unit)

    def _need(self, unit: Unit, needed: Unit, behind: bool = False) -> None:
        if needed is not unit and needed in self.window and needed not in unit.needs:
            unit.needs = _with(unit.needs, needed)
            needed.dependents = _with(needed.dependents, unit)
            if behind:
                unit.behind = _with(unit.behind, needed)

    # -- a journal, and what waits for write-back to be in it --------------------------------------------------------

    def _remember_journal(self, unit: Unit) -> None:
        if unit.kind != "data" and not unit.delayed:
            self._join(unit)
        if unit.kind == "size":
            size = unit.changes["size", unit.file, 0]
            for page in range(-(-min(unit.was, size) // PAGE), -(-max(unit.was, size) // PAGE)):
                self._pages[unit.file, page] = unit
            if not size:
                self._emptied.add(unit.file)

    def _join(self, unit: Unit) -> None:
        """The unit is in the journal from now on."""
        self._heads = {head: None for head in self._heads if head not in unit.needs}
        self._heads[unit] = None

    def _flush(self, op: Op) -> None:
        """What an operation makes the file system write back before it."""
        if self.model.flushes is not None:
            for file in self.model.flushes(op, self):
                for unit in self._of.get(file, ()):
                    if unit.delayed and unit.file == file and unit.kind in self.model.flushed:
                        unit.delayed = False
                        self._join(unit)
        if op.kind == "close":
            self._emptied.discard(op.file)

    # -- from a change to its units -------------------------------------------------------------------------------

    def _split(self, op: Op) -> Iterator[Unit]:
        """The units of a change, in the order in which they may need one another."""
        kind = op.kind
        if kind in _MAKES or kind == "mknod":
            node = Node(_MAKES.get(kind) or op.text, op.mode, op.uid, op.gid, op.text if kind == "symlink" else "")
            node.data[:] = op.data if kind == "arrive" else b""
            self.live.add(op.file, node)
            self.base.add(op.file, node.copy())
            if kind != "tmpfile":
                yield self._name(0, op, op.file, (op.dir, op.name, op.file))
        elif kind in _TAKES:
            self._entries(op.dir)[op.name]
            unit = self._name(0, op, op.file, (op.dir, op.name, None))
            unit.directory = kind == "rmdir"
            yield unit
        elif kind == "link":
            yield self._name(0, op, op.file, (op.dir2, op.name2, op.file))
        elif kind == "rename":
            yield from self._renamed(op)
        elif kind == "exchange":
            # one unit, also across directories: half of it would leave one of the two without a name
            other = self._entries(op.dir2)[op.name2]
            unit = self._name(0, op, op.file, (op.dir2, op.name2, op.file), (op.dir, op.name, other))
            unit.moves = True
            unit.directory = "d" in (self._type(op.file), self._type(other))
            yield unit
        elif self.live.get(op.file) is None:
            return  # nothing can reach the file any more
        elif kind == "write":
            yield from self._written(op)
        elif kind in ("truncate", "allocate"):
            yield from self._resized(op)
        elif kind == "chmod":
            yield Unit(self.cut, 0, "attribute", op, op.file, {("mode", op.file, 0): op.mode})
        elif kind == "chown":
            changes: dict[Key, Any] = {("owner", op.file, 0): (op.uid, op.gid)}
            if self._now(("mode", op.file, 0)) != op.mode:  # set-user-ID is cleared
                changes["mode", op.file, 0] = op.mode
            yield Unit(self.cut, 0, "attribute", op, op.file, changes)
        elif kind in ("setxattr", "removexattr"):
            value = op.data if kind == "setxattr" else None
            yield Unit(self.cut, 0, "attribute", op, op.file, {("xattr", op.file, op.text): value})

    def _name(self, part: int, op: Op, file: int, *sets: tuple[int, str, int | None]) -> Unit:
        unit = Unit(self.cut, part, "name", op, file, {("name", d, name): value for d, name, value in sets})
        unit.directories = tuple(dict.fromkeys(d for d, _, _ in sets))
        return unit

    def _entries(self, directory: int) -> dict[str, int]:
        """The names in a directory of the live state."""
        node = self.live.get(directory)
        return node.entries  # type: ignore[union-attr]  # AttributeError: the trace does not fit

    def _renamed(self, op: Op) -> Iterator[Unit]:
        self._entries(op.dir)[op.name]
        directory = self._type(op.file) == "d"  # it has one parent: its move is one change wherever it goes
        if op.dir == op.dir2 or directory or self.model.whole_renames:
            unit = self._name(0, op, op.file, (op.dir2, op.name2, op.file), (op.dir, op.name, None))
            unit.moves, unit.directory = True, directory
            yield unit
            return
        new = self._name(0, op, op.file, (op.dir2, op.name2, op.file))
        new.half = "new"
        yield new
        old = self._name(1, op, op.file, (op.dir, op.name, None))
        old.half, old.moves = "old", True
        yield old

    def _written(self, op: Op) -> Iterator[Unit]:
        tear, was = self.model.tear, len(self._live_data(op.file))
        size = was
        end = op.offset + len(op.data)
        if not op.data:
            return
        part = 0
        if end > size:
            for at in self._grown(op, size, end):
                unit = self._size(part, op, size, at)
                unit.delayed = self.model.journal
                size, part = at, part + 1
                yield unit
        first, last = op.offset // tear, (end - 1) // tear
        content = bytearray(self._live_data(op.file)[first * tear : (last + 1) * tear])
        at = op.offset - first * tear
        content[at : at + len(op.data)] = op.data
        for sector in range(first, last + 1):
            value = bytes(content[(sector - first) * tear : (sector - first + 1) * tear])
            unit = Unit(self.cut, part, "data", op, op.file, {("data", op.file, sector): value})
            unit.offset = max(op.offset, sector * tear)
            unit.size = min(end, (sector + 1) * tear) - unit.offset
            # a page beyond the old end has no place on the disk before it is written back
            unit.delayed = self.model.journal and sector * tear // PAGE * PAGE >= was
            part += 1
            yield unit

    def _grown(self, op: Op, size: int, end: int) -> list[int]:
        """The sizes that a write makes the file grow through: to the end of each page it touches, because pages are
        written back on their own (seen on ext4, xfs and btrfs)."""
        if not self.model.loses:
            return [end]
        pages = range(op.offset // PAGE * PAGE + PAGE, end, PAGE)
        return [*(at for at in pages if at > size), end]

    def _size(self, part: int, op: Op, was: int, size: int, cleared: dict[Key, Any] = NOTHING) -> Unit:
        unit = Unit(self.cut, part, "size", op, op.file, {("size", op.file, 0): size, **cleared})
        unit.was = was
        return unit

    def _resized(self, op: Op) -> Iterator[Unit]:
        """A truncation cuts off at once whole pages, which do not come back when the file grows again. The rest of the
        page at the new end is cleared in the page cache, and is data like any other: what was cut off there was seen to
        come back on btrfs, and to be cleared under the old size on ext4 and xfs."""
        data = self._live_data(op.file)
        was, size = len(data), op.size
        if size > was:
            yield self._size(0, op, was, size)
        elif size < was and op.kind == "truncate":
            tear, end = self.model.tear, min(was, -(-size // PAGE) * PAGE)
            for part, sector in enumerate(range(size // tear, -(-end // tear)) if end > size else (), 1):
                left = bytes(data[sector * tear : max(size, sector * tear)])
                unit = Unit(self.cut, part, "data", op, op.file, {("data", op.file, sector): left.ljust(tear, b"\0")})
                unit.offset = sector * tear + len(left)
                unit.size = min(end, (sector + 1) * tear) - unit.offset
                yield unit
            gone = range(-(-end // tear), -(-was // tear))
            yield self._size(0, op, was, size, {("data", op.file, sector): b"" for sector in gone})

    def _type(self, file: int) -> str:
        node = self.live.get(file)
        return "" if node is None else node.type

    def _live_data(self, file: int) -> bytearray:
        node = self.live.get(file)
        assert node is not None
        return node.data

    def _removed(self, unit: Unit) -> list[int]:
        """The directories that this unit is about to remove, by rmdir or by a rename over an empty one; one that
        departs takes all below it along, so everything moved before it counts."""
        op = unit.op
        if unit.kind != "name" or op.kind == "exchange":
            return []
        if op.kind == "depart" and self._type(op.file) == "d":
            return list(self._out)
        now = [self._now(key) for key, value in unit.changes.items() if value is not None or op.kind == "rmdir"]
        return [file for file in now if file is not None and self._type(file) == "d"]

    # -- values ---------------------------------------------------------------------------------------------------

    def _now(self, key: Key) -> Any:
        """The value of a variable in the live state."""
        kind, file, what = key
        node = self.live.get(file)
        assert node is not None
        return _value(node, kind, what, self.model.tear)

    def _put(self, image: Image, key: Key, value: Any) -> None:
        kind, file, what = key
        if kind == "name":
            gone = image.bind(file, what, value)
            if gone is not None:
                self._nameless.append(gone)
        else:
            _set(image.change(file), kind, what, value, self.model.tear)

    def _chosen(self, key: Key, lost: set[Unit]) -> Any:
        """The value of a variable when these units are lost."""
        variable = self.variables.get(key)
        if variable is None:
            return self._now(key)
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
                asked = [*asked, *self._journal_at(sync.began)]
                sync = sync._replace(text=self._type(sync.file))
        before = [unit for unit in asked if unit.event < sync.began]
        self._pin([unit for unit in before if self.model.durable(sync, unit)])
        if self.model.logs is not None:
            for unit in before:
                if unit in self.window and self.model.logs(sync, unit):
                    self._log(unit)

    def _log(self, unit: Unit) -> None:
        """The unit may be kept from now on without what it is behind; what is behind it is behind that as well."""
        for needed in unit.behind:
            for other in unit.dependents:
                self._need(other, needed, behind=True)
            if unit in self._heads:
                self._heads[needed] = None
            del unit.needs[needed]
            del needed.dependents[unit]
        unit.behind = NOTHING

    def _journal_at(self, began: int) -> list[Unit]:
        """The last units of the journal when so many events had happened."""
        found: dict[Unit, None] = {}
        waiting = list(self._heads)
        while waiting:
            unit = waiting.pop()
            if unit not in found:
                found[unit] = None
                if unit.event >= began:
                    waiting.extend(unit.needs)
        return list(found)

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
        for unit in sorted(found, key=_number, reverse=True):
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
                    if value is not None and value not in self._durable:
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
        _set(node, "size", 0, size, self.model.tear)
        for sector in _sectors(was, size, self.model.tear):
            variable = self.variables.get(("data", file, sector))
            value = variable.floor if variable is not None else self._now(("data", file, sector))
            _set(node, "data", sector, value, self.model.tear)

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
            self._leave_journal(unit)
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
        for move_list, place in self._places(unit):
            if unit in move_list.get(place, ()):
                move_list[place].remove(unit)
                if not move_list[place]:
                    del move_list[place]

    def _leave_journal(self, unit: Unit) -> None:
        """What was after the unit is after what was before it: it is durable or stands for nothing any more."""
        before = [needed for needed in unit.needs if needed not in self._pinning]
        for other in unit.dependents:
            for needed in before:
                self._need(other, needed, behind=unit in other.behind or needed in unit.behind)
        if unit in self._heads:
            del self._heads[unit]
            for needed in before:
                self._heads[needed] = None
        if unit.kind == "size":
            size = unit.changes["size", unit.file, 0]
            for page in range(-(-min(unit.was, size) // PAGE), -(-max(unit.was, size) // PAGE)):
                if self._pages.get((unit.file, page)) is unit:
                    del self._pages[unit.file, page]

    # -- moves: nothing that was durable gets lost by being moved -------------------------------------------------

    def _places(self, unit: Unit) -> list[tuple[dict[Any, list[Unit]], Any]]:
        """Where a move is written down."""
        places: list[tuple[dict[Any, list[Unit]], Any]] = []
        if unit.moves or unit.directory:
            for key, value in unit.changes.items():
                if key[0] == "name" and (value is None or unit.op.kind == "exchange"):
                    places += [(self._left, key), (self._out, key[1])]
            places.append((self._idle, unit.file))
        return places

    def _remember_move(self, unit: Unit) -> None:
        if not (unit.moves or (unit.directory and unit.op.kind == "rmdir")):
            return
        if unit.op.kind == "rename" and not unit.directory and unit.file not in self._durable:
            self._idle.setdefault(unit.file, []).append(unit)
            return
        for move_list, place in self._places(unit):
            if move_list is not self._idle and not (unit.op.kind == "rmdir" and move_list is self._left):
                insort(move_list.setdefault(place, []), unit, key=_number)

    def _settle(self, file: int) -> None:
        """A file has got a durable name: what takes the places it was moved from needs those moves."""
        self._durable.add(file)
        for move in self._idle.pop(file, []):
            self._remember_move(move)
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
            self._durable.discard(file)

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
        return iter(list(self._heads))

    def page(self, unit: Unit) -> Iterator[Unit]:
        made = self._pages.get((unit.file, unit.offset // PAGE))
        if made is not None:
            yield made

    def taken(self, directory: int, name: str) -> bool:
        return name in self._entries(directory)

    def emptied(self, file: int) -> bool:
        return file in self._emptied

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
        for unit in sorted(kept, key=_number):
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
                _set(node, "size", 0, value, tear)
                for sector in _sectors(was, value, tear):
                    at = ("data", file, sector)
                    if at not in values:
                        variable = self.variables.get(at)
                        if lost is not None:
                            shown = self._chosen(at, lost)
                        else:
                            shown = self._now(at) if variable is None else variable.floor
                        _set(node, "data", sector, shown, tear)
        for key, value in values.items():
            if key[0] not in ("name", "size"):
                _set(change(key[1]), key[0], key[2], value, tear)
        return tree


def _value(node: Node, kind: str, what: Any, tear: int) -> Any:
    if kind == "name":
        return node.entries.get(what)
    if kind == "data":
        return bytes(node.data[what * tear : (what + 1) * tear])
    if kind == "size":
        return len(node.data)
    if kind == "mode":
        return node.mode
    if kind == "owner":
        return node.uid, node.gid
    return node.xattrs.get(what)


def _set(node: Node, kind: str, what: Any, value: Any, tear: int) -> None:
    """Set anything but a name; data only as far as the file's size goes."""
    if kind == "data":
        at = what * tear
        room = min(tear, len(node.data) - at)
        if room > 0:
            node.data[at : at + room] = value[:room].ljust(room, b"\0")
    elif kind == "size":
        if value < len(node.data):
            del node.data[value:]
        else:
            node.data.extend(bytes(value - len(node.data)))
    elif kind == "mode":
        node.mode = value
    elif kind == "owner":
        node.uid, node.gid = value
    elif value is None:
        node.xattrs.pop(what, None)
    else:
        node.xattrs[what] = value


def _number(unit: Unit) -> int:
    return unit.number


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


def _sectors(was: int, size: int, tear: int) -> range:
    """The sectors that a larger size shows anew."""
    return range(was // tear, (size - 1) // tear + 1) if size > was else range(0)


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


def _reachable(first: Tree) -> Tree:
    """A copy with nothing in it that has no name."""
    tree = first.copy()
    tree.inodes = {}
    named = {ROOT, *(file for _, file in first.walk())}
    for file in [file for file in tree.nodes if file not in named]:
        del tree.nodes[file]
        tree.parents.pop(file, None)
    return tree
