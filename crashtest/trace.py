"""The trace: the ordered record of what one run did to its state. These are the words all other modules speak.

Guarantees: a trace applied to the first state (`persist.tree.Tree.apply`) gives the state at each place in it; a
file is named by a trace-local file id and never by its path, because paths change and ids do not. Carries no
verdict and knows no persistence model. Standard library only: the zygote loads it.

A *cut* is a number of events, from 0 to `len(trace.events)`: the crash strikes when that many have happened.
"""

from __future__ import annotations

from typing import Any, NamedTuple

#: kinds of change, by what they touch; each has a crash point before it
NAME_CHANGES = frozenset(
    {
        "create",
        "mkdir",
        "mknod",
        "symlink",
        "link",
        "unlink",
        "rmdir",
        "rename",
        "exchange",
        "arrive",
        "depart",
        "tmpfile",
    }
)
DATA_CHANGES = frozenset({"write", "truncate", "allocate"})
ATTRIBUTE_CHANGES = frozenset({"chmod", "chown", "utimes", "setxattr", "removexattr"})
CHANGES = NAME_CHANGES | DATA_CHANGES | ATTRIBUTE_CHANGES
#: kinds that change no byte but decide what a power cut may lose; recorded when they have completed. `file` is what
#: was synced, -1 for everything (sync, syncfs); `offset` and `size` its range, size 0 for all of it, or all from
#: `offset` on (sync_file_range). A synchronous write is two events: the write, and an fsync or fdatasync of its range
#: with the same `call`. What was in effect when `began` events had happened is covered, and nothing later
SYNCS = frozenset({"fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync"})
#: kinds that change nothing and make nothing durable. close: the last descriptor of one open(2) of `file` is closed,
#: which some file systems act on
SIGNS = frozenset({"close"})
KINDS = CHANGES | SYNCS | SIGNS

PAGE = 4096


def near(where: str) -> str:
    """The innermost three frames of a place in the program: what a report shows of it."""
    return " < ".join(where.split(" < ")[:3])


class Op(NamedTuple):
    """One change or sync that took effect.

    kind: one of `KINDS`. file: the id of the file (or directory) changed. dir, name: the binding changed (for
    rename and exchange the old one); dir2, name2: the new binding. offset, size: bytes. data: the bytes written,
    or the value of an extended attribute. mode: permission bits. text: a symlink's target, an attribute's name, or
    the type a mknod made. call: the system call. thread: a small number, in order of appearance. where: the code
    line and its callers, or the program. path, path2: the names as they were, for people. began: how many events had
    happened when the call began.
    """

    kind: str
    file: int = -1
    dir: int = -1
    name: str = ""
    dir2: int = -1
    name2: str = ""
    offset: int = 0
    size: int = 0
    data: bytes = b""
    mode: int = 0
    uid: int = -1
    gid: int = -1
    text: str = ""
    call: str = ""
    thread: int = 0
    where: str = ""
    path: str = ""
    path2: str = ""
    began: int = 0

    @property
    def changes(self) -> bool:
        return self.kind in CHANGES

    def describe(self) -> str:
        """The call as a person would write it: `rename(a.tmp -> a)`, `pwrite64(log, 512 bytes at 0)`."""
        if self.kind in ("rename", "exchange", "link", "arrive", "depart"):
            return f"{self.call}({self.path} -> {self.path2})"
        if self.kind == "symlink":
            return f"{self.call}({self.text} -> {self.path})"
        if self.kind == "write":
            return f"{self.call}({self.path}, {len(self.data)} bytes at {self.offset})"
        if self.kind in ("truncate", "allocate"):
            return f"{self.call}({self.path}, to {self.size} bytes)"
        if self.kind in SYNCS and self.size:
            kind = "" if self.kind == self.call else f"{self.kind} of "
            return f"{self.call}({self.path}, {kind}{self.size} bytes at {self.offset})"
        if self.kind == "chmod":
            return f"{self.call}({self.path}, {self.mode:o})"
        return f"{self.call}({self.path})"


class Step(NamedTuple):
    """A named step: the program raised the audit event `name` here."""

    name: str
    thread: int = 0
    where: str = ""

    def describe(self) -> str:
        return f"step {self.name}"


class Ack(NamedTuple):
    """The `number`-th operation (from 1) was acknowledged. same: it says that it changed nothing to be seen."""

    number: int
    same: bool = False
    value: str = "null"
    thread: int = 0
    where: str = ""

    @property
    def line(self) -> bytes:
        """As it was sent, without its end."""
        return f"{int(self.same)}{self.value}".encode("utf-8", "surrogatepass")

    def describe(self) -> str:
        return f"ack {self.number}"


Event = Op | Step | Ack


class Trace(NamedTuple):
    """What one run did: its events, what it changed elsewhere, and what could not be recorded."""

    events: list[Event]
    #: changes outside the state directory, as "call path"
    outside: list[str]
    #: calls that change files in a way that is not modelled; not empty means inconclusive
    unmodelled: list[str]


def crash_points(events: list[Event]) -> list[int]:
    """The cuts at which a crash is tried: before every named step and change, before and after every ack, and after
    the normal end (docs/adr/0002: the state just before an ack is where `ordered` breaks)."""
    cuts = {len(events)}
    for index, event in enumerate(events):
        if type(event) is Ack:
            cuts.update((index, index + 1))
        elif type(event) is Step or (type(event) is Op and event.kind in CHANGES):
            cuts.add(index)
    return sorted(cuts)


def to_plain(event: Event) -> list[Any]:
    """An event as a list for a message or a file; `from_plain` gives it back."""
    return [type(event).__name__, *event]


def from_plain(items: list[Any]) -> Event:
    """Raises `ValueError` when `items` is not an event."""
    made: Event
    try:
        tag, *fields = items
        if tag == "Op":
            made = Op(*fields)
            if made.kind not in KINDS:
                raise ValueError(f"unknown kind of change {made.kind!r}")
        elif tag == "Step":
            made = Step(*fields)
        elif tag == "Ack":
            made = Ack(*fields)
        else:
            raise ValueError(f"unknown event {tag!r}")
    except TypeError as error:
        raise ValueError(f"not an event: {error}") from None
    return made
