"""A real-kill cell on three small files: crashtest, a hand-written loop with the same forks, and a spawn per cell."""

from __future__ import annotations

import cProfile
import io
import os
import pstats
import time
from collections.abc import Callable
from contextlib import closing

from benchmarks.lean import Lean
from benchmarks.measure import Result, figure, ratio, rounds
from benchmarks.subjects import THREE_FILES
from crashtest.cells.example import Example
from crashtest.cells.outcome import Crash
from crashtest.cells.recoveries import Cells
from crashtest.cells.zygote import Zygote
from crashtest.scale.local import CHUNK


def run(lean: Lean, quick: bool) -> Result:
    request = {"scenario": THREE_FILES.function, "ops": None, "timeout": 60.0, "seccomp": True}
    prepared = lean.ask({"do": "prepare", **request})
    expect = {
        "do": "expect",
        **request,
        "first": prepared["first"],
        "states": prepared["states"],
        "depth": 1,
        "batches": True,
        "events": prepared["events"],
    }
    cells = Example(THREE_FILES, None, prepared, True).plan.cells
    cuts, stops = [cell.cut for cell in cells], len(prepared["events"])

    def crashtest() -> float:
        """As `scale.local` does it: chunks of cells over the wire, judged as they come back."""
        example = Example(THREE_FILES, None, prepared, True)
        lean.ask(expect)  # forgets what it knows of trees
        began = time.perf_counter()
        for at in range(0, len(cells), CHUNK):
            chunk = cells[at : at + CHUNK]
            answers = lean.ask({"do": "kill", "crashes": [list(cell[:4]) for cell in chunk]})["cells"]
            for cell, facts in zip(chunk, answers, strict=True):
                example.add(cell, facts)
        took = time.perf_counter() - began
        if example.reason or example.harness_error or example.faults or len(example.cells) != len(cells):
            raise RuntimeError(f"a cell went wrong: {example.reason or example.harness_error or example.faults}")
        return took

    def by_hand() -> float:
        began = time.perf_counter()
        lean.call("benchmarks.handwritten:fork_round", cuts=cuts, stops=stops)
        return time.perf_counter() - began

    def spawning() -> float:
        began = time.perf_counter()
        other.call("benchmarks.handwritten:spawn_round", cuts=cuts)
        return time.perf_counter() - began

    forks = [_counted(lean, crashtest), _counted(lean, by_hand)]
    # a process of its own, because what subprocess loads (threading) would slow down each fork of the others
    with closing(Lean(f"{lean.root}-spawning", lean.core)) as other:
        found = rounds(9 if quick else 21, {"crashtest": crashtest, "by hand": by_hand, "spawning": spawning})
    return Result(
        [
            ratio("kill cell, speed: crashtest / hand-written loop", found["by hand"], found["crashtest"],
                  ("at least", 0.8)),
            ratio("kill cell, speed: crashtest / python -I -S for each cell", found["spawning"], found["crashtest"],
                  ("at least", 5)),
        ],
        [figure(f"kill cell, {name}", found[name], "ms", 1000 / len(cells)) for name in found],
        [f"kill cell: {len(cells)} cells a round; forks a round: crashtest {forks[0]}, by hand {forks[1]}"],
    )  # fmt: skip


def _counted(lean: Lean, contender: Callable[[], float]) -> int:
    before = lean.call("benchmarks.handwritten:forks")
    contender()
    return int(lean.call("benchmarks.handwritten:forks") - before)


# -- in the lean process ------------------------------------------------------------------------------------------


def profile(lean: Lean, repeat: int) -> str:
    """A profile of the zygote's own processor time (its children are not in it) over `repeat` rounds of kill cells."""
    request = {"scenario": THREE_FILES.function, "ops": None, "timeout": 60.0, "seccomp": True}
    prepared = lean.ask({"do": "prepare", **request})
    cells = [list(cell) for cell in Example(THREE_FILES, None, prepared, True).plan.cells]
    lean.ask(
        {
            "do": "expect",
            **request,
            "first": prepared["first"],
            "states": prepared["states"],
            "depth": 1,
            "batches": True,
            "events": prepared["events"],
        }
    )
    return str(lean.call("benchmarks.kill_cell:profiled", cells=cells, repeat=repeat))


def profiled(zygote: Zygote, cells: list[list[int | str]], repeat: int) -> str:
    assert zygote.cells is not None
    bench, first, states = zygote.cells.bench, zygote.cells.first, zygote.cells.states
    profiler = cProfile.Profile(time.process_time)  # what it waits for its children is not in it
    os.register_at_fork(after_in_child=profiler.disable)
    profiler.enable()
    for _ in range(repeat):
        fresh = Cells(bench, first, None, states, 1)
        for cell in cells:
            fresh.kill(Crash(*cell[:4]))  # type: ignore[arg-type]
    profiler.disable()
    text = io.StringIO()
    shown = pstats.Stats(profiler, stream=text).strip_dirs()
    print(f"{repeat * len(cells)} cells", file=text)
    shown.sort_stats("tottime").print_stats(35)
    shown.sort_stats("cumulative").print_stats(45)
    return text.getvalue()
