"""From a recorded run to the cells to try: crash points, torn writes, variants, and the ids they are known by.

Guarantees: ids are made of content and place, never of the order in which things ran, so the same run gives the same
ids. What is left out of the plan is counted. Pure functions, no I/O.
"""

from __future__ import annotations

from _blake2 import blake2b  # as in persist/tree.py
from typing import NamedTuple

from crashtest.scenario import SIGNALS
from crashtest.trace import PAGE, Ack, Event, Op, Step, crash_points

#: page boundaries tried inside one write
TEARS = 3
#: calls whose bytes the supervisor knows before they are written, so that it can let a prefix through
_TEARABLE = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2"})
_VARIANTS = {
    "group": "", "worker": "w", "late": "l", "rebuilt": "r", "computed": "", "TERM": "t", "INT": "i", "HUP": "h",
}  # fmt: skip
#: how many events may be repeated in all by workers that are really killed, before only a sample of the crash points is
#: a real kill: at 220 points each is one. Their cost would grow with the square of the number of operations
REPEATED = 25_000
#: real kills that are made however long the run is
KILLS = 32


class Cell(NamedTuple):
    """One crash to realise, as `cells.supervise.Crash` takes it.

    Two variants are made from the record, without a kill: "rebuilt", where a kill cannot be timed, and "computed", the
    state that a kill of the whole group there leaves.
    """

    cut: int
    kind: str
    torn: int
    variant: str
    #: nested crashes: where each recovery is killed in turn, as (cut, kind, torn)
    inner: tuple[tuple[int, str, int], ...] = ()
    model: str = "kill"
    #: the units that the last crash loses, by name (`persist.states`)
    lost: tuple[tuple[int, int], ...] = ()
    #: with a nested crash: the units that the first crash lost, where it was a power cut; None: it was a kill
    lost_first: tuple[tuple[int, int], ...] | None = None
    #: syncs whose effect is dropped, by the number of their event in the run, or in the run and the recovery after it
    without: tuple[int, ...] = ()


class Plan(NamedTuple):
    """crash_points: how many places; cells: what is tried there; skipped: cells left out."""

    crash_points: int
    cells: list[Cell]
    skipped: int


def kind_of(events: list[Event], cut: int) -> str:
    """The kind of the event that is about to happen at a cut, "" at the end."""
    if cut >= len(events):
        return ""
    event = events[cut]
    if isinstance(event, Op):
        return event.kind
    return "step" if isinstance(event, Step) else "ack"


def tears(op: Op) -> list[int]:
    """The lengths at which SIGKILL can tear a write: where a page of the file ends inside it (semantics)."""
    first = PAGE - op.offset % PAGE
    return list(range(first, len(op.data), PAGE))


def tears_tried(op: Op) -> tuple[list[int], int]:
    """The lengths at which a write is torn, and how many possible ones are left out."""
    if op.kind != "write":
        return [], 0
    lengths = tears(op)
    if op.call not in _TEARABLE:
        return [], len(lengths)  # bytes that the kernel moves by itself cannot be stopped half-way
    if len(lengths) <= TEARS:
        return lengths, 0
    return [lengths[0], lengths[len(lengths) // 2], lengths[-1]], len(lengths) - TEARS


def plan(
    events: list[Event], company: list[int], seccomp: bool, signals: tuple[str, ...] = (), acks_itself: bool = True
) -> Plan:
    """The cells of one recorded run.

    company: the cuts at which the worker had children. signals: those that the program is to be ended by as well.
    acks_itself: where it acks it is still there, and not only what has started it.
    """
    points = crash_points(events)
    beside = set(company)
    cells: list[Cell] = []
    skipped = 0
    for cut in points:
        kind = kind_of(events, cut)
        event = events[cut] if cut < len(events) else None
        if isinstance(event, Op) and event.call == "mmap":
            cells.append(Cell(cut, kind, 0, "rebuilt"))  # no call announces a store into a mapping
            continue
        sent = signals if kind and (acks_itself or kind != "ack") else ()
        skipped += 0 if seccomp else len(sent)
        if not seccomp and kind == "ack":
            skipped += 1  # observed by steps alone, a worker cannot be stopped before an ack
            continue
        cells.append(Cell(cut, kind, 0, "group"))
        if cut in beside:
            cells += [Cell(cut, kind, 0, "worker"), Cell(cut, kind, 0, "late")]
        cells += [Cell(cut, kind, 0, name) for name in sent if seccomp]
        if isinstance(event, Op):
            chosen, left_out = tears_tried(event)
            skipped += left_out
            cells += [Cell(cut, kind, length, "group") for length in chosen]
    if not seccomp:
        return Plan(len(points), cells, skipped)
    cells, left_out = _sampled(cells)
    return Plan(len(points), cells, skipped + left_out)


def _sampled(cells: list[Cell]) -> tuple[list[Cell], int]:
    """Real kills for an even sample of the crash points where all would be too many; the other variants left out."""
    cost = sum(cell.cut for cell in cells if cell.variant == "group")
    if cost <= REPEATED:
        return cells, 0
    cuts = sorted({cell.cut for cell in cells})
    number = max(KILLS, len(cuts) * REPEATED // cost)
    real = {cuts[(2 * at + 1) * len(cuts) // (2 * number)] for at in range(number)}
    kept = [
        cell._replace(variant="computed") if cell.variant == "group" and cell.cut not in real else cell
        for cell in cells
        if cell.cut in real or cell.variant in ("group", "rebuilt")
    ]
    return kept, len(cells) - len(kept)


def short_hash(text: str) -> str:
    """Eight hexadecimal digits of a text's content."""
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


def example_id(ops: list[str] | None) -> str:
    return short_hash("\n".join(ops)) if ops is not None else "fixed"


def cell_id(name: str, example: str, cell: Cell, model: str) -> str:
    """`path::function/EXAMPLE/POINT/MODEL/LOSS`; POINT is the cut, `>` and the one in recovery, `-` and each sync that
    is dropped."""
    point = f"{cell.cut}{_VARIANTS[cell.variant]}" + "".join(f">{cut}" for cut, _, _ in cell.inner)
    torn = [cell.torn, *(torn for _, _, torn in cell.inner)]
    loss = short_hash(f"torn at {torn}") if any(torn) else "none"
    if cell.lost or cell.lost_first:
        loss = short_hash(f"lost {cell.lost_first} {cell.lost}")
    point += "".join(f"-{number}" for number in cell.without)
    return f"{name}/{example}/{point}/{model}/{loss}"


def place(events: list[Event], cell: Cell, before: str, then: str = "") -> str:
    """Where the crash struck, in words that follow "died": "before rename(a.tmp -> a)"; for a signal in words that
    follow "got": "SIGTERM before rename(a.tmp -> a)". then: and recovery after it."""
    parts = []
    power = cell.model != "kill"
    if cell.cut and cell.cut <= len(events) and isinstance(events[cell.cut - 1], Ack):
        parts.append(f"after {events[cell.cut - 1].describe()}")
    if cell.torn:
        parts.append(f"inside {before}, with {cell.torn} bytes written")
    elif before:
        parts.append(f"before {before}")
    elif not parts or cell.cut >= len(events):
        parts.append("after the normal end")
    words = ", ".join(parts)
    if cell.variant == "worker":
        words += " (the workload's own process was killed alone; its children ran on to their end)"
    elif cell.variant == "late":
        words += " (the workload's own process was killed alone; its children were held until recovery waited for them)"
    elif cell.variant in SIGNALS:
        words = f"SIG{cell.variant} {words}"
    elif cell.variant == "rebuilt":
        words += " (rebuilt from the record: a kill cannot be timed there)"
    if cell.inner:
        torn = cell.inner[-1][2]
        died = f"inside {then}, with {torn} bytes written" if torn else f"before {then}"
        if power:
            words += f"; then the power was cut {f'before {then}' if then else 'after the end'} in recovery"
        else:
            words += f"; then recovery died {died}"
    return words
