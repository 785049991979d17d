"""A scenario on real file systems: its states after real power cuts, and whether what a model allows is seen there.

Guarantees: the recorded run is played on a mounted image (`persist.realfs`), so a state is what this kernel's file
system left at that place of it; it is recovered and judged like any other. A real cut shows one outcome of many: a
violation that is not seen is not refuted. Runs in a slot's thread; judges nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from crashtest.cells.example import Example
from crashtest.cells.plan import Cell
from crashtest.config import Settings
from crashtest.persist.player import Background
from crashtest.persist.realfs import Cut
from crashtest.persist.tree import Tree
from crashtest.scale.jobs import Task
from crashtest.scale.slot import Slot
from crashtest.scenario import REAL
from crashtest.trace import Ack, Event, Op

#: how a model is named that is a real file system
PREFIX = "real-"
#: places at which the kernel commits by itself, tried for one violation; and trees in one request
PLACES, CHUNK = 8, 16
#: events after the place of a violation at which the power is cut as well: what a model may lose at one place, a file
#: system may show after the next sync
LATER = 4


def is_real(model: str) -> bool:
    return model in REAL


def do(slot: Slot, task: Task, settings: Settings) -> None:
    """Cut an example everywhere, or where the task's cells say so; or try to see one violation."""
    assert task.example is not None
    example = task.example
    first = Tree.from_plain(example.prepared["first"])
    name = task.model.removeprefix(PREFIX)
    if task.do == "seen":
        [cell] = task.cells
        later = range(cell.cut, min(cell.cut + LATER, len(example.events)) + 1)
        left = list(zip(later, slot.disks.cut(name, first, example.events, [Cut(cut) for cut in later]), strict=True))
        for hidden in _hidden(example.events, cell):
            played = _with(example.events[: cell.cut], hidden)
            left += [(cell.cut, tree) for tree in slot.disks.cut(name, first, played, [Cut(len(played))])]
        task.answers = _recovered(slot, task, left)
        return
    cuts, left_out = _cuts(example, settings.losses)
    if task.cells:
        cuts, left_out = [cell.cut for cell in task.cells], 0
    trees = slot.disks.cut(name, first, example.events, [Cut(cut) for cut in cuts])
    task.answers = _recovered(slot, task, list(zip(cuts, trees, strict=True)))
    task.coverage = {"skipped": str(left_out), "exhaustive": False, "nested": 0, "nested_complete": True}


def _cuts(example: Example, most: int) -> tuple[list[int], int]:
    """The places of the run at which the power is cut, and how many are left out: evenly, where there are too many."""
    events = example.events
    cuts = [0, *(n + 1 for n, event in enumerate(events) if isinstance(event, (Op, Ack)))]
    chosen = cuts if len(cuts) <= most else sorted({cuts[at * (len(cuts) - 1) // (most - 1)] for at in range(most)})
    return chosen, len(cuts) - len(chosen)


def _recovered(slot: Slot, task: Task, cuts: list[tuple[int, Tree]]) -> list[dict[str, Any]]:
    """Each (tree, number of acks) once, recovered and told."""
    assert task.example is not None
    events = task.example.events
    once = {(tree.digest(), sum(isinstance(e, Ack) for e in events[:cut])): (cut, tree) for cut, tree in reversed(cuts)}
    answers: list[dict[str, Any]] = []
    states = sorted(once.values(), key=lambda one: one[0])
    for at in range(0, len(states), CHUNK):
        part = [[cut, tree.to_plain()] for cut, tree in states[at : at + CHUNK]]
        request = {"do": "real", "first": at, "states": part, "alone": task.alone}
        answers += slot.ask(request)["cells"]
    return answers


# -- what the kernel may do by itself, so that a violation is seen -------------------------------------------


def _hidden(events: list[Event], cell: Cell) -> Iterator[dict[int, list[Background]]]:
    """What is done at which places, one attempt after the other: a commit at the end; files written back, all, each, or
    all but those whose data are lost, and a commit; a commit before each change from the first lost one on."""
    commit, end = Background("commit"), cell.cut
    yield {end: [commit]}
    lost = {event for event, _ in cell.lost}
    written = {e.file: None for e in events[:end] if isinstance(e, Op) and e.kind in ("write", "truncate")}
    gone = {e.file for n, e in enumerate(events[:end]) if n in lost and isinstance(e, Op) and e.kind == "write"}
    for files in ([*written], [file for file in written if file not in gone], *([file] for file in written)):
        if files:
            yield {end: [*(Background("writeback", file) for file in files[:PLACES]), commit]}
    begin = min(lost, default=0)
    changes = [n for n, e in enumerate(events[:end]) if isinstance(e, Op) and e.changes and n >= begin]
    for place in changes[-PLACES:]:
        yield {place: [commit]}
        yield {place: [*(Background("writeback", file) for file in [*written][:PLACES]), commit]}


def _with(events: list[Event], hidden: dict[int, list[Background]]) -> list[Event | Background]:
    played: list[Event | Background] = []
    for at, event in enumerate(events):
        played += hidden.get(at, [])
        played.append(event)
    return played + hidden.get(len(events), [])
