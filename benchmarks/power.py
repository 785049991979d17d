"""States of a power cut: found, put on disk, recovered, observed, recovered again and judged, beside the floor.

The scenario appends records with checksums to a log and syncs nothing, so that a power cut may leave any of their
sectors; its recovery cuts off what is not whole, and no state breaks what it claims. The floor does the same with the
same trees in one process: it writes the log, recovers, looks, recovers again, looks, and compares, with no walk, no
record, no comparison of whole trees and no process for the user's code.
"""

from __future__ import annotations

import os
import time
from typing import Any

from benchmarks import handwritten, subjects
from benchmarks.lean import Lean
from benchmarks.measure import Result, figure, ratio, rounds, summed
from crashtest.cells.example import Example
from crashtest.cells.power import Bounds
from crashtest.cells.zygote import Zygote
from crashtest.persist.models import POSIX
from crashtest.persist.states import Limits, Walk

RECORDS = 6


def run(lean: Lean, quick: bool) -> Result:
    losses = 500 if quick else 2000
    bounds = Bounds(256, losses, 8, 8)
    ops = [str(number) for number in range(RECORDS)]
    scenario = {"scenario": subjects.LOG.function, "ops": ops, "timeout": 60.0, "seccomp": True}
    prepared = lean.ask({"do": "prepare", **scenario})
    told = {"first": prepared["first"], "states": prepared["states"], "events": prepared["events"]}
    expect = {"do": "expect", **scenario, **told, "depth": 1, "batches": True}
    states: list[int] = []
    trees: list[float] = []

    def crashtest() -> float:
        """As `scale.local` does it, in one zygote; seconds for a state."""
        example = Example(subjects.LOG, ops, prepared, True)
        lean.ask(expect)  # forgets what it knows of trees
        began = time.perf_counter()
        lean.ask({"do": "power", "model": "posix", "bounds": list(bounds), "seed": 1, "shard": [0, 1]})
        done = False
        while not done:
            answer = lean.ask({"do": "power_more"})
            for cell in answer["cells"]:
                example.take_cut("posix", cell)
            done = answer["done"]
        walk = example.walk("posix")
        walk.judge()
        took = time.perf_counter() - began
        if walk.faults or example.harness_error or example.reason:
            raise RuntimeError(f"a state went wrong: {walk.faults[:1]} {example.harness_error or example.reason}")
        states.append(len(walk.seen))
        trees.append(len({tree for tree, _ in walk.seen}) / took)
        return took / len(walk.seen)

    def floor() -> float:
        seconds, number = lean.call("benchmarks.power:by_hand", losses=losses)
        if number != states[-1]:
            raise RuntimeError(f"the floor has {number} states, crashtest {states[-1]}")
        return float(seconds) / float(number)

    crashtest()
    trees.clear()
    found = rounds(3 if quick else 7, {"crashtest": crashtest, "floor": floor})
    return Result(
        [
            summed("power cuts, distinct states per second and core", [1 / one for one in found["crashtest"]],
                   ("at least", 1000)),
            summed("power cuts, distinct trees recovered per second and core", trees),
            ratio("power cuts, time for a state: crashtest / floor", found["crashtest"], found["floor"]),
        ],
        [figure(f"power cut, a state, {name}", values, "ms", 1000) for name, values in found.items()],
        [f"power cuts: {states[-1]} distinct (tree, acks) a round"],
    )  # fmt: skip


# -- in the lean process ------------------------------------------------------------------------------------------


def by_hand(zygote: Zygote, losses: int) -> tuple[float, int]:
    """(seconds, states) for the same states: the walk is made before the clock starts."""
    assert zygote.cells is not None
    directory = f"{zygote.root}/by-hand"
    os.makedirs(directory, exist_ok=True)
    cells = zygote.cells
    walk = Walk(cells.first, cells.events, POSIX, limits=Limits(256, losses), seed=1)
    trees = [(bytes(state.tree.content(1)), state.acks) for state in walk]
    answer = handwritten.forked(lambda: _timed(directory, trees))
    seconds, number = answer.split()
    return float(seconds), int(number)


class _Plain:
    """Printed as it is by `handwritten.forked`."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _timed(directory: str, trees: list[tuple[bytes, int]]) -> _Plain:
    expected = set(range(RECORDS + 1))
    known: dict[bytes, Any] = {}
    began = time.perf_counter()
    for content, _ in trees:
        if content in known:
            continue
        handwritten.restore(directory, {"log": content})
        subjects.cut_log(directory)  # type: ignore[arg-type]
        known[content] = seen = subjects.whole_records(directory)
        subjects.cut_log(directory)  # type: ignore[arg-type]
        if seen not in expected or subjects.whole_records(directory) != seen:
            raise RuntimeError(f"{seen} whole records")
    return _Plain(f"{time.perf_counter() - began} {len(trees)}")
