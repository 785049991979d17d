"""What a slot's thread does with a task: the requests to its zygote, and their answers put into the task.

Guarantees: changes nothing but the task; every answer stands beside the cell it belongs to. Judges nothing and counts
nothing: that is `local.Runner`'s, in the main thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from crashtest.cells.example import Example
from crashtest.cells.plan import Cell
from crashtest.config import Settings
from crashtest.scale import real
from crashtest.scale.jobs import Task
from crashtest.scale.slot import Slot
from crashtest.trace import Step, near


def do(slot: Slot, task: Task, settings: Settings, tell: Callable[[Task], None], over: Callable[[], bool]) -> None:
    """Do a task; what it came to is in the task afterwards. Raises what the slot does.

    tell: takes what has come of a long one meanwhile, as a task with `more`. over: whether the run is ending.
    """
    job, timeout = task.job, settings.timeout
    slot.open(job.scenario, job.file)
    if task.do == "prepare":
        task.answers = [slot.prepare(job.scenario, task.ops, timeout, once=bool(job.goal))]
        return
    assert task.example is not None
    slot.serve(task.example, timeout, job.depth)
    if task.do in ("real", "seen"):
        real.do(slot, task, settings)
        return
    if task.do in ("power", "power_again", "reduce"):
        _cut(slot, task, task.example, settings, tell, over)
        return
    if task.do == "kill":

        def recorded(cell: Cell) -> bool:
            return job.rebuilt or cell.variant in ("rebuilt", "computed")

        for from_record, cells in itertools.groupby(task.cells, recorded):
            if from_record:
                task.answers += _rebuild(slot, task.example, list(cells), alone=task.alone)
                continue
            for cell in cells:
                request = {"do": "kill", "crashes": [[*cell[:4], settings.grace]], "alone": task.alone}
                task.answers += slot.ask(request)["cells"]
        return
    for cell in task.cells:
        crash = [cell.cut, cell.kind, cell.torn, "group" if cell.variant == "computed" else cell.variant]
        if cell.inner:
            task.answers.append(slot.ask({"do": "kill_inner", "crash": crash, "path": [list(p) for p in cell.inner]}))
        elif cell.variant == "computed":
            task.answers += slot.ask({"do": "kill", "crashes": [crash], "alone": False})["cells"]
        else:
            task.answers += _rebuild(slot, task.example, [cell], compare=True)


def _rebuild(
    slot: Slot, example: Example, cells: list[Cell], compare: bool = False, alone: bool = False
) -> list[dict[str, Any]]:
    """Crash states from the record, told like killed ones. compare: nothing remembered, in own processes."""
    request = {
        "do": "rebuild",
        "cells": [[cell.cut, cell.torn] for cell in cells],
        "compare": compare,
        "alone": alone,
    }
    return [{**_told(example, cell), **facts} for cell, facts in zip(cells, slot.ask(request)["cells"], strict=True)]


def _cut(
    slot: Slot,
    task: Task,
    example: Example,
    settings: Settings,
    tell: Callable[[Task], None],
    over: Callable[[], bool],
) -> None:
    """The walk of a shard, told part by part; or one state again; or one reduced."""
    request: dict[str, Any] = {"model": task.model, "seed": settings.seed}
    losses = settings.losses
    request["bounds"] = [min(256, losses), losses, max(8, losses // 16), max(8, losses // 16)]
    if task.do != "power":
        cell = task.cells[0] if task.fault is None else task.fault[1]
        request["cell"] = {
            "cut": cell.cut, "lost": list(cell.lost), "path": [list(place) for place in cell.inner],
            "lost_first": None if cell.lost_first is None else list(cell.lost_first), "without": list(cell.without),
        }  # fmt: skip
        if task.fault is not None:
            reduced = {"guarantee": task.fault[0].guarantee, "names": example.prepared["names"]}
            request.update({**reduced, "glances": example.prepared["glances"]})
        task.answers = [slot.ask({**request, "do": task.do})]
        if task.fault is None and not task.alone:
            task.coverage = {"skipped": "0", "exhaustive": False, "nested": 0, "nested_complete": False}
        return
    slot.ask({**request, "do": "power", "shard": list(task.shard)})
    while True:
        answer = slot.ask({"do": "power_more"})
        if answer["done"] or task.job.dropped or over():
            task.answers, task.coverage = answer["cells"], answer.get("coverage")
            return
        tell(replace(task, answers=answer["cells"], more=True))


def _told(example: Example, cell: Cell) -> dict[str, Any]:
    """What is known of a crash state that no kill has made."""
    event = example.events[cell.cut] if cell.cut < len(example.events) else None
    return {
        "end": "killed", "problem": "", "events": cell.cut, "step": event.name if isinstance(event, Step) else "",
        "proof": [], "proved": False, "strays": [], "outside": [], "after": [], "ended": "", "outlasted": [],
        "before": event.describe() if event else "", "where": near(event.where) if event else "",
    }  # fmt: skip
