"""Persistence models: what a power cut may take away of what was issued before it.

A change is split into *units*, the smallest things a cut may keep or lose (`persist.history` does it). A model is a
few rules about them: which units a completed sync makes durable, and which units one of them cannot do without.
Everything else is free: any set of units that keeps the needs of what it keeps is a loss that the model allows.

Guarantees: pure functions over units, no I/O; `POSIX` is complete, so a walk under it loses nothing that one of its
rules keeps. The models of real file systems are in `persist.filesystems`. Does not know which losses are worth trying
(`persist.states`). Standard library only: the zygote loads it.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

from crashtest.trace import Op

#: a disk writes this many bytes whole or not at all
SECTOR = 512
#: most units are tied to no other: they share this, which stays empty
NOTHING: dict[Any, None] = {}


class Unit:
    """The smallest thing a cut may keep or lose.

    event, part: its stable name: the event's index in the trace and a count within it. kind: "data" (one sector),
    "size", "name" or "attribute". op: the change it belongs to. file: whose data, size or attribute it is, or the file
    that the name is given to or taken from. directories: those in which it sets names, the new name's first. offset,
    size: the bytes of a data unit. was: a size unit's size before. half: "new" or "old" for the two names of a
    rename across directories. delayed: it waits for write-back, and no journal has it before that. moves: a rename
    that takes a file away from a name, or a part of one. directory: what it moves or removes is a directory.
    changes: pairs of variable and value; `persist.history` reads them.
    """

    __slots__ = (
        "behind",
        "changes",
        "delayed",
        "dependents",
        "directories",
        "directory",
        "event",
        "file",
        "half",
        "kind",
        "left",
        "moves",
        "needs",
        "number",
        "offset",
        "op",
        "over",
        "part",
        "size",
        "under",
        "was",
    )

    def __init__(self, event: int, part: int, kind: str, op: Op, file: int, changes: dict[Any, Any]):
        self.event = event
        self.part = part
        self.kind = kind
        self.op = op
        self.file = file
        self.changes = changes
        self.directories: tuple[int, ...] = ()
        self.offset = 0
        self.size = 0
        self.was = 0
        self.half = ""
        self.delayed = False
        self.moves = False
        self.directory = False
        # what follows is kept by persist.history while the unit is in the window
        self.number = -1
        self.left = len(changes)
        self.needs: dict[Unit, None] = NOTHING
        #: those of its needs that a sync of the unit does not bring along
        self.behind: dict[Unit, None] = NOTHING
        self.dependents: dict[Unit, None] = NOTHING
        self.over: dict[Unit, None] = NOTHING
        self.under: dict[Unit, None] = NOTHING

    @property
    def name(self) -> tuple[int, int]:
        """What it is known by in a violation."""
        return self.event, self.part

    def __repr__(self) -> str:
        return f"<{self.event}.{self.part} {describe(self)}>"


class Past(Protocol):
    """What a model may ask about the units before one that is just being issued; durable ones are left out."""

    def other_half(self, unit: Unit) -> Iterator[Unit]:
        """The new name, for the removal of the old one by a rename across directories."""

    def way_to(self, unit: Unit) -> Iterator[Unit]:
        """The names by which the directory that a name is given in is reached, of an exchange both."""

    def last_directory_move(self) -> Iterator[Unit]:
        """The last rename of a directory."""

    def last_cut(self, file: int) -> Iterator[Unit]:
        """The last truncation that made the file shorter."""

    def last_size(self, file: int) -> Iterator[Unit]:
        """The last unit that sets the file's size; of a write, its size comes before its data."""

    def last_metadata(self) -> Iterator[Unit]:
        """The last unit that is not data."""

    def journal(self) -> Iterator[Unit]:
        """What a commit just now would bring: the last units of the journal, which need all that is before them."""

    def page(self, unit: Unit) -> Iterator[Unit]:
        """The unit by which the page of a data unit came to be in the file, or was cut off before that."""

    def taken(self, directory: int, name: str) -> bool:
        """Whether the name is there."""

    def emptied(self, file: int) -> bool:
        """Whether the file was cut to nothing since it was last closed."""

    def was_synced(self, file: int) -> bool:
        """Whether the file or directory itself was synced before, in what the trace shows."""


Rule = Callable[[Unit, Past], Iterator[Unit]]
#: files whose delayed sizes (and data) an operation brings into the journal, asked before it happens
Flushes = Callable[[Op, Past], Iterator[int]]


class Model(NamedTuple):
    """A persistence model.

    durable(sync, unit): whether this completed sync makes the unit durable; only units whose change happened before
    the sync began are asked about; `sync.text` is "d" when a directory is synced. What a durable unit needs is durable
    with it. needs: rules, each of which gives units issued earlier that must be kept for this one to be kept; asked
    once, when the unit is issued. order: the same, of what is kept when the unit comes by a commit; a sync makes the
    unit durable without it. logs(sync, unit): whether the sync may bring the unit along without what it is behind by
    `order`, as it may not.
    keeps_moved: a place that a rename left (its old name, or the directory that held it) is taken again or removed
    only when that rename is kept, where the file was durable; otherwise a file that was only moved could be lost.
    tear: writes tear where a multiple of so many bytes ends. local: a sync of one file is asked only about units of
    that file, names in it and names of it, which is faster. loses: False for the model that loses nothing.
    journal: names, attributes and truncations are in a journal as soon as they are issued; what a write grows gets
    there when it is written back. A sync is then asked about the journal's last units as well.
    whole_renames: a rename across directories is one change. flushes, flushed: what brings delayed units into the
    journal, and kinds of unit.
    """

    name: str
    about: str
    durable: Callable[[Op, Unit], bool]
    needs: tuple[Rule, ...] = ()
    keeps_moved: bool = True
    tear: int = SECTOR
    local: bool = False
    loses: bool = True
    order: tuple[Rule, ...] = ()
    logs: Callable[[Op, Unit], bool] | None = None
    journal: bool = False
    whole_renames: bool = False
    flushes: Flushes | None = None
    flushed: tuple[str, ...] = ()


# -- what a sync makes durable ---------------------------------------------------------------------------------------

#: what each sync covers of the file (or directory) it is called on; None is everything there is. The data of a
#: directory are the names in it.
COVERS: dict[str, tuple[str, ...] | None] = {
    "fsync": ("data", "size", "attribute", "name"),
    "fdatasync": ("data", "size", "name"),
    "msync": ("data",),
    "sync_file_range": (),
    "sync": None,
    "syncfs": None,
}


def posix_durable(sync: Op, unit: Unit) -> bool:
    """The table above. A sync with a range covers only the data in it, and an fsync or fdatasync the size as well."""
    covered = COVERS[sync.kind]
    if covered is None:
        return True
    if unit.kind not in covered:
        return False
    if unit.kind == "name":
        return sync.file in unit.directories
    if unit.file != sync.file:
        return False
    if sync.size and unit.kind == "data":
        return unit.offset < sync.offset + sync.size and sync.offset < unit.offset + unit.size
    return not sync.size or unit.kind == "size"


# -- what a unit cannot do without -----------------------------------------------------------------------------------


def never_neither(unit: Unit, past: Past) -> Iterator[Unit]:
    """A rename across directories takes the old name away only when the new one is kept and can be reached."""
    if unit.half == "old":
        yield from past.other_half(unit)
    if unit.half == "old" or (unit.moves and len(unit.directories) > 1):
        yield from past.way_to(unit)


def directories_in_order(unit: Unit, past: Past) -> Iterator[Unit]:
    """Directories are moved in order: each has one parent, and none is moved into itself."""
    if unit.moves and unit.directory:
        yield from past.last_directory_move()


def cut_off_stays_off(unit: Unit, past: Past) -> Iterator[Unit]:
    """A size keeps the truncations before it: whole pages that were cut off do not come back under a later size."""
    if unit.kind == "size":
        yield from past.last_cut(unit.file)


KILL = Model(
    name="kill",
    about="SIGKILL: everything issued is there",
    durable=lambda sync, unit: True,
    local=True,
    loses=False,
)

POSIX = Model(
    name="posix",
    about="power cut, the weakest: what was not synced may be there or not, each sector, size, name, attribute alone",
    durable=posix_durable,
    needs=(never_neither, directories_in_order, cut_off_stays_off),
    local=True,
)

# -- in words --------------------------------------------------------------------------------------------------------


def describe(unit: Unit) -> str:
    """A unit in words for a story: `the data of log (512 bytes at 0)`, `the name a.tmp -> a (rename)`."""
    op = unit.op
    path = op.path or f"file {unit.file}"
    if unit.kind == "data":
        return f"the data of {path} ({unit.size} bytes at {unit.offset})"
    if unit.kind == "size":
        return f"the size of {path} ({unit.was} -> {unit.changes['size', unit.file, 0]})"
    if unit.kind == "attribute":
        what = {"chmod": "mode", "chown": "owner"}.get(op.kind, f"attribute {op.text}")
        return f"the {what} of {path}"
    if unit.half == "old":
        return f"the removal of the old name {path}"
    if unit.half == "new":
        return f"the new name {op.path2}"
    if op.kind in ("rename", "exchange"):
        return f"the name{'s' * (op.kind == 'exchange')} {path} -> {op.path2} ({op.kind})"
    if op.kind in ("unlink", "rmdir", "depart"):
        return f"the removal of the name {path}"
    return f"the name {op.path2 or path}"


class Barrier(NamedTuple):
    """A sync that would have made a unit durable. call: in words ("fsync", "fsync of the directory", "sync"); path:
    what it is called on, "" for everything; sync: the sync itself."""

    call: str
    path: str
    sync: Op


def barrier(unit: Unit, model: Model) -> Barrier | None:
    """The narrowest sync that makes the unit durable under the model, by asking the model; None when none does."""
    candidates = [] if unit.kind == "name" else [Barrier("fsync", unit.op.path, Op("fsync", unit.file))]
    for directory in unit.directories:
        path = posixpath.dirname(_path_in(unit, directory)) or "."
        candidates.append(Barrier("fsync of the directory", path, Op("fsync", directory)))
    if unit.kind == "name":
        candidates.append(Barrier("fsync", unit.op.path2 or unit.op.path, Op("fsync", unit.file)))
    candidates.append(Barrier("sync", "", Op("sync")))
    return next((made for made in candidates if model.durable(made.sync, unit)), None)


def _path_in(unit: Unit, directory: int) -> str:
    """The path of the name that the unit sets in a directory."""
    op = unit.op
    return op.path2 if op.path2 and directory == op.dir2 else op.path
