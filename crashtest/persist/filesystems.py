"""The models of real file systems, and all models by name.

Guarantees: each allows all that its file system was seen to leave, on thousands of real cuts (docs/models.md has the
count), and is a proper part of `posix`. They describe Linux 6.18 with the file systems' default options but for those
in the name; what is weaker than the file system is so because a kernel may write back, and commit, whenever it likes.

In ext4 and xfs names, attributes and truncations are in one journal, in the order of the calls, and a crash leaves a
beginning of it. Sizes that a write grows, and data in new pages, get there when pages are written back, some time after
the call: never before what was issued before the write, and perhaps after what was issued later.

Does not hold for other options (data=writeback, nobarrier) or for disks that lose what they said they had written.
Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterator

from crashtest.persist.models import KILL, POSIX, Model, Past, Unit, never_neither, posix_durable
from crashtest.trace import Op

# -- ext4 and xfs: one journal -----------------------------------------------------------------------------------------


def in_journal_order(unit: Unit, past: Past) -> Iterator[Unit]:
    """What is not data is kept only with all of the journal before it."""
    if unit.kind != "data":
        yield from past.journal()


def in_its_page(unit: Unit, past: Past) -> Iterator[Unit]:
    """Data are in a page that is kept: one that was added, or cut off and added, has its place from the journal."""
    if unit.kind == "data":
        yield from past.page(unit)


def journal_durable(sync: Op, unit: Unit) -> bool:
    """As posix says, and for fsync the file's own names, whose journal entries its inode waits for; with them comes
    the journal before them. fdatasync waits for what is needed to find the data: its creation, and its sizes."""
    if posix_durable(sync, unit):
        return True
    if unit.kind != "name" or unit.file != sync.file or sync.size:
        return False
    made = unit.op.kind in ("create", "mkdir", "symlink", "mknod")
    return sync.kind == "fsync" or (sync.kind == "fdatasync" and made)


def ext4_durable(sync: Op, unit: Unit) -> bool:
    """An fsync of any directory commits the whole journal (ext4_sync_file: directories journal their data)."""
    commits = sync.kind in ("fsync", "fdatasync") and sync.text == "d"
    return journal_durable(sync, unit) or (commits and not unit.delayed)


def auto_da_alloc(op: Op, past: Past) -> Iterator[int]:
    """A rename over an existing name, and the close of a file that was cut to nothing, start to write the file back
    (ext4(5), auto_da_alloc): its place and size are in the journal from then on."""
    if op.kind == "rename" and past.taken(op.dir2, op.name2):
        yield op.file
    if op.kind == "close" and past.emptied(op.file):
        yield op.file


XFS = Model(
    name="xfs",
    about="power cut, xfs: names and attributes in order, sizes and data when they are written back",
    durable=journal_durable,
    needs=(in_journal_order, in_its_page),
    keeps_moved=False,
    local=True,
    journal=True,
    whole_renames=True,
)

EXT4_NODA = XFS._replace(
    name="ext4-noda",
    about="power cut, ext4 mounted with noauto_da_alloc: as xfs, but an fsync of a directory commits everything",
    durable=ext4_durable,
)

# the data are written to unwritten extents, which become readable by a later commit (dioread_nolock, the default since
# Linux 5.6): a commit between leaves a file of its full length in zeros
EXT4 = EXT4_NODA._replace(
    name="ext4",
    about="power cut, ext4: a replacement without fsync is never empty, but may be its full length in zeros",
    flushes=auto_da_alloc,
    flushed=("size",),
)

EXT4_LOCK = EXT4._replace(
    name="ext4-lock",
    about="power cut, ext4 mounted with dioread_lock (the default before Linux 5.6): replacements have their data",
    flushed=("size", "data"),
)

# -- btrfs: a tree that is committed, and a log of what was synced -----------------------------------------------------


def in_the_log(unit: Unit, past: Past) -> bool:
    """A name of what was synced before, or in a directory that was: a later sync of anything may bring it along."""
    return unit.kind == "name" and any(past.was_synced(file) for file in (unit.file, *unit.directories))


def in_the_tree(unit: Unit, past: Past) -> Iterator[Unit]:
    """A commit has all that was issued before; data too, because no block is overwritten in place."""
    if not in_the_log(unit, past):
        yield from past.journal()


def btrfs_logs(sync: Op, unit: Unit) -> bool:
    """What is logged with the inode, as far as it is not certain: all that is about it, and the names in it."""
    return sync.kind in ("fsync", "fdatasync", "msync") and sync.file in (unit.file, *unit.directories)


def new_directories(unit: Unit, past: Past) -> Iterator[Unit]:
    """A synced name is reached: directories that were made for it are in the log with it."""
    if unit.kind == "name" and any(value is not None for value in unit.changes.values()):
        yield from (name for name in past.way_to(unit) if name.op.kind == "mkdir")


def btrfs_durable(sync: Op, unit: Unit) -> bool:
    """fsync of F: its data and all its names, but not the removal of an old one elsewhere; fsync of D: the names in
    it, with nothing in them."""
    if posix_durable(sync, unit):
        return True
    named = unit.kind == "name" and unit.file == sync.file and unit.half != "old"
    return sync.kind == "fsync" and named and any(value is not None for value in unit.changes.values())


BTRFS = Model(
    name="btrfs",
    about="power cut, btrfs: a commit has everything in order; what was fsynced comes alone, by the log",
    durable=btrfs_durable,
    needs=(never_neither, new_directories),
    order=(in_the_tree,),
    logs=btrfs_logs,
    keeps_moved=False,
    local=True,
    journal=True,
)

#: all models, the strongest first
MODELS: dict[str, Model] = {model.name: model for model in (KILL, EXT4_LOCK, EXT4, EXT4_NODA, XFS, BTRFS, POSIX)}
