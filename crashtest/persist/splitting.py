"""From a change to its units, the smallest things of it that a power cut may keep or lose.

Guarantees: all that a change does to the live state is in one of its units, and each unit holds the values that its
variables have after it. Changes nothing. Does not know what the units need of one another (`persist.models`,
`persist.history`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crashtest.persist.image import Image, Key
from crashtest.persist.models import NOTHING, Model, Unit
from crashtest.persist.tree import Node
from crashtest.trace import PAGE, Op

#: kinds of change that make a file, and its type; None: the change says which
_MAKES = {"create": "f", "mkdir": "d", "symlink": "l", "arrive": "f", "tmpfile": "f", "mknod": None}
_TAKES = frozenset({"unlink", "rmdir", "depart"})


def made_by(op: Op) -> Node | None:
    """The file that a change makes, without a name; None when it makes none."""
    if op.kind not in _MAKES:
        return None
    node = Node(_MAKES[op.kind] or op.text, op.mode, op.uid, op.gid, op.text if op.kind == "symlink" else "")
    node.data[:] = op.data if op.kind == "arrive" else b""
    return node


class Splitter:
    """Splits changes of the `live` state as the model wants it: its sectors, its delays, its renames."""

    def __init__(self, model: Model, live: Image) -> None:
        self.model = model
        self.live = live
        self._event = 0

    def units(self, op: Op, event: int) -> Iterator[Unit]:
        """The units of a change, in the order in which they may need one another; each is to be entered into the live
        state before the next is asked for. event: the change's index in the trace."""
        kind = op.kind
        self._event = event
        if kind in _MAKES:
            if kind != "tmpfile":
                yield self._name(0, op, op.file, (op.dir, op.name, op.file))
        elif kind in _TAKES:
            self.live.entries(op.dir)[op.name]
            unit = self._name(0, op, op.file, (op.dir, op.name, None))
            unit.directory = kind == "rmdir"
            yield unit
        elif kind == "link":
            yield self._name(0, op, op.file, (op.dir2, op.name2, op.file))
        elif kind == "rename":
            yield from self._renamed(op)
        elif kind == "exchange":
            # one unit, also across directories: half of it would leave one of the two without a name
            other = self.live.entries(op.dir2)[op.name2]
            unit = self._name(0, op, op.file, (op.dir2, op.name2, op.file), (op.dir, op.name, other))
            unit.moves = True
            unit.directory = "d" in (self.live.type(op.file), self.live.type(other))
            yield unit
        elif self.live.get(op.file) is None:
            return  # nothing can reach the file any more
        elif kind == "write":
            yield from self._written(op)
        elif kind in ("truncate", "allocate"):
            yield from self._resized(op)
        elif kind == "chmod":
            yield Unit(self._event, 0, "attribute", op, op.file, {("mode", op.file, 0): op.mode})
        elif kind == "chown":
            changes: dict[Key, Any] = {("owner", op.file, 0): (op.uid, op.gid)}
            if self.live.value(("mode", op.file, 0)) != op.mode:  # set-user-ID is cleared
                changes["mode", op.file, 0] = op.mode
            yield Unit(self._event, 0, "attribute", op, op.file, changes)
        elif kind in ("setxattr", "removexattr"):
            value = op.data if kind == "setxattr" else None
            yield Unit(self._event, 0, "attribute", op, op.file, {("xattr", op.file, op.text): value})

    def _name(self, part: int, op: Op, file: int, *sets: tuple[int, str, int | None]) -> Unit:
        unit = Unit(self._event, part, "name", op, file, {("name", d, name): value for d, name, value in sets})
        unit.directories = tuple(dict.fromkeys(d for d, _, _ in sets))
        return unit

    def _renamed(self, op: Op) -> Iterator[Unit]:
        self.live.entries(op.dir)[op.name]
        directory = self.live.type(op.file) == "d"  # it has one parent: its move is one change wherever it goes
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
        tear, was = self.model.tear, len(self.live.data(op.file))
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
        content = bytearray(self.live.data(op.file)[first * tear : (last + 1) * tear])
        at = op.offset - first * tear
        content[at : at + len(op.data)] = op.data
        for sector in range(first, last + 1):
            value = bytes(content[(sector - first) * tear : (sector - first + 1) * tear])
            unit = Unit(self._event, part, "data", op, op.file, {("data", op.file, sector): value})
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
        unit = Unit(self._event, part, "size", op, op.file, {("size", op.file, 0): size, **cleared})
        unit.was = was
        return unit

    def _resized(self, op: Op) -> Iterator[Unit]:
        """A truncation cuts off at once whole pages, which do not come back when the file grows again. The rest of the
        page at the new end is cleared in the page cache, and is data like any other: what was cut off there was seen to
        come back on btrfs, and to be cleared under the old size on ext4 and xfs."""
        data = self.live.data(op.file)
        was, size = len(data), op.size
        if size > was:
            yield self._size(0, op, was, size)
        elif size < was and op.kind == "truncate":
            tear, end = self.model.tear, min(was, -(-size // PAGE) * PAGE)
            for part, sector in enumerate(range(size // tear, -(-end // tear)) if end > size else (), 1):
                left = bytes(data[sector * tear : max(size, sector * tear)])
                unit = Unit(
                    self._event, part, "data", op, op.file, {("data", op.file, sector): left.ljust(tear, b"\0")}
                )
                unit.offset = sector * tear + len(left)
                unit.size = min(end, (sector + 1) * tear) - unit.offset
                yield unit
            gone = range(-(-end // tear), -(-was // tear))
            yield self._size(0, op, was, size, {("data", op.file, sector): b"" for sector in gone})
