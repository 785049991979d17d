"""The journal of a file system in a history: what a commit would bring now, and what waits for write-back.

Guarantees: `heads` are the last units that are in the journal and in the window; every other one in it is needed by
one of them, at one remove or more. What waits for write-back (`Unit.delayed`) is not in it. Used where a model has a
journal (`models.Model.journal`); needs between units are the history's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from crashtest.persist.models import Unit
from crashtest.trace import PAGE

#: need(unit, needed, behind): from now on a unit needs another
Need = Callable[[Unit, Unit, bool], None]


class Journal:
    """What a journal has of the units in a window."""

    def __init__(self) -> None:
        self.heads: dict[Unit, None] = {}
        #: by file and page: the unit that made the page, or cut it off
        self._pages: dict[tuple[int, int], Unit] = {}
        #: files that were cut to nothing since they were last closed
        self.emptied: set[int] = set()

    def enter(self, unit: Unit) -> None:
        """A unit is issued."""
        if unit.kind != "data" and not unit.delayed:
            self._join(unit)
        if unit.kind == "size":
            for page in _pages(unit):
                self._pages[unit.file, page] = unit
            if not unit.changes["size", unit.file, 0]:
                self.emptied.add(unit.file)

    def write_back(self, units: Collection[Unit]) -> None:
        """Delayed units are written back, so they join the journal."""
        for unit in units:
            unit.delayed = False
            self._join(unit)

    def _join(self, unit: Unit) -> None:
        self.heads = {head: None for head in self.heads if head not in unit.needs}
        self.heads[unit] = None

    def at(self, began: int) -> list[Unit]:
        """Its last units when so many events had happened."""
        found: dict[Unit, None] = {}
        waiting = list(self.heads)
        while waiting:
            unit = waiting.pop()
            if unit not in found:
                found[unit] = None
                if unit.event >= began:
                    waiting.extend(unit.needs)
        return list(found)

    def log(self, unit: Unit, need: Need) -> None:
        """A sync may bring the unit without what it is behind; what is behind the unit is behind that as well."""
        for needed in unit.behind:
            for other in unit.dependents:
                need(other, needed, True)
            if unit in self.heads:
                self.heads[needed] = None

    def leave(self, unit: Unit, pinning: Collection[Unit], need: Need) -> None:
        """A unit is durable, or stands for nothing any more: what was after it is after what was before it.

        pinning: the units that are being made durable.
        """
        before = [needed for needed in unit.needs if needed not in pinning]
        for other in unit.dependents:
            for needed in before:
                need(other, needed, unit in other.behind or needed in unit.behind)
        if unit in self.heads:
            del self.heads[unit]
            for needed in before:
                self.heads[needed] = None
        if unit.kind == "size":
            for page in _pages(unit):
                if self._pages.get((unit.file, page)) is unit:
                    del self._pages[unit.file, page]

    def page(self, unit: Unit) -> Iterator[Unit]:
        """The unit by which the page of a data unit came to be in the file, or was cut off before that."""
        made = self._pages.get((unit.file, unit.offset // PAGE))
        if made is not None:
            yield made


def _pages(unit: Unit) -> range:
    """The pages that a size unit makes or cuts off."""
    size = unit.changes["size", unit.file, 0]
    return range(-(-min(unit.was, size) // PAGE), -(-max(unit.was, size) // PAGE))
