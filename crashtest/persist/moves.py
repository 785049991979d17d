"""Moves in a history: nothing that was durable gets lost by being moved.

Guarantees: a place that a rename left, its old name or the directory that held it, gives the moves that whoever takes
or removes that place has to keep; a move of a file that never had a durable name is set aside until the file gets one.
Used for models that want it (`models.Model.keeps_moved`). Needs between units are the history's own.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable
from typing import Any

from crashtest.persist.image import Key
from crashtest.persist.models import Unit


class Moves:
    """The moves in a window. durable: files that have or had a durable name, as far as they can still be reached."""

    def __init__(self, durable: Iterable[int]) -> None:
        self.durable = set(durable)
        #: of files whose name was never durable, by file
        self._idle: dict[int, list[Unit]] = {}
        #: by the name they left, and by the directory they left
        self._left: dict[Key, list[Unit]] = {}
        self._out: dict[int, list[Unit]] = {}

    def remember(self, unit: Unit) -> None:
        """A unit is issued; it may be a move."""
        if not (unit.moves or (unit.directory and unit.op.kind == "rmdir")):
            return
        if unit.op.kind == "rename" and not unit.directory and unit.file not in self.durable:
            self._idle.setdefault(unit.file, []).append(unit)
            return
        for moves, place in self._places(unit):
            if moves is not self._idle and not (unit.op.kind == "rmdir" and moves is self._left):
                insort(moves.setdefault(place, []), unit, key=number)

    def leave(self, unit: Unit) -> None:
        """A unit can no longer be lost."""
        for moves, place in self._places(unit):
            if unit in moves.get(place, ()):
                moves[place].remove(unit)
                if not moves[place]:
                    del moves[place]

    def settle(self, file: int) -> list[Unit]:
        """A file has got a durable name; its moves that were set aside, and are remembered from now on."""
        self.durable.add(file)
        moves = self._idle.pop(file, [])
        for move in moves:
            self.remember(move)
        return moves

    def from_name(self, key: Key) -> Iterable[Unit]:
        """The last move away from a name."""
        return self._left.get(key, ())[-1:] if key[0] == "name" else ()

    def out_of(self, directory: int) -> Iterable[Unit]:
        """The moves out of a directory."""
        return self._out.get(directory, ())

    def left(self) -> list[int]:
        """The directories that something was moved out of."""
        return list(self._out)

    def _places(self, unit: Unit) -> list[tuple[dict[Any, list[Unit]], Any]]:
        """Where a move is written down."""
        places: list[tuple[dict[Any, list[Unit]], Any]] = []
        if unit.moves or unit.directory:
            for key, value in unit.changes.items():
                if key[0] == "name" and (value is None or unit.op.kind == "exchange"):
                    places += [(self._left, key), (self._out, key[1])]
            places.append((self._idle, unit.file))
        return places


def number(unit: Unit) -> int:
    """Its place in the order in which units were issued."""
    return unit.number
