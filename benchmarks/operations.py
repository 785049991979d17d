"""Cells over 10, 100 and 1,000 operations: is the cost in proportion to the work?

Each operation replaces one of three small files (create, write, rename, ack: four crash points). The whole cost of a
scenario is the runs without a crash (two for each number of operations), one recorded run, and all its cells. A stated
number of each, evenly spread, is measured in the zygote and multiplied up: so 1,000 operations take bounded time here.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.lean import Lean
from benchmarks.measure import Figure, Ratio, Result
from benchmarks.subjects import MANY_OPERATIONS
from crashtest.cells.plan import plan
from crashtest.cells.realise import Bench
from crashtest.cells.recoveries import Cells
from crashtest.cells.supervise import Crash
from crashtest.cells.zygote import Zygote

SIZES = (10, 100, 1000)
#: cells that belong to one operation: measured together, because what is known of one spares work on the next
_BLOCK = 4


def run(lean: Lean, quick: bool) -> Result:
    sample = {10: 41, 100: 40, 1000: 16} if quick else {10: 41, 100: 100, 1000: 40}
    result, totals = Result(), {}
    for size in SIZES:
        made = lean.call("benchmarks.operations:measured", size=size, sample=sample[size], stacks=not quick)
        totals[size] = made["total"]
        result.figures += [
            Figure(f"{size} operations, one run without a crash, observed", made["plain"] * 1000, "ms"),
            Figure(f"{size} operations, the recorded run", made["recorded"] * 1000, "ms"),
            Figure(f"{size} operations, one cell", made["cell"] * 1000, "ms"),
            Figure(f"{size} operations, whole scenario (multiplied up)", made["total"], "s"),
        ]
        result.notes.append(
            f"{size} operations: measured {made['cells measured']} of {made['cells']} cells and "
            f"{made['plain measured']} of {made['plain runs']} runs without a crash"
        )
    if quick:
        result.notes.append("operations: recorded without the places in the program, to be quick; `crashtest run` asks")
    grown, whole = totals[1000] / totals[100], totals[100] / totals[10]
    result.ratios = [
        Ratio("operations, time of the whole scenario: 1,000 / 100", grown, grown, grown, "", ("at most", 12)),
        Ratio("operations, time of the whole scenario: 100 / 10", whole, whole, whole),
    ]
    return result


def _spread(first: int, last: int, number: int) -> list[int]:
    """At most `number` of first..last, evenly spread, each from the middle of its part."""
    total = last - first + 1
    number = min(number, total)
    return [first + int((at + 0.5) * total / number) for at in range(number)]


def measured(zygote: Zygote, size: int, sample: int, stacks: bool) -> dict[str, Any]:
    """In the lean process: the mean times, and what they come to. stacks: record the places in the program too."""
    bench = Bench(zygote.scenarios[MANY_OPERATIONS.function], zygote.root, zygote.sock.fileno(), 60.0, True)
    first, ops = bench.first_state(), [str(number) for number in range(size)]
    lengths = _spread(0, size, max(5, sample // 4))
    began = time.perf_counter()
    for length in lengths:
        ran, _ = bench.run(first, ops[:length])
        bench.restore(ran.disk)
        _good(bench.restart().failure)
    plain = (time.perf_counter() - began) / len(lengths)
    began = time.perf_counter()
    ran, _ = bench.run(first, ops, record=True, stacks=stacks)
    recorded = time.perf_counter() - began
    _good(ran.proof)
    todo = plan(ran.outcome.trace.events, ran.outcome.company, True).cells
    cells = Cells(bench, first, ops, [], 1)
    spent, count = 0.0, 0
    blocks = (len(todo) + _BLOCK - 1) // _BLOCK
    for block in _spread(0, blocks - 1, max(1, sample // _BLOCK) if sample < len(todo) else blocks):
        chosen = todo[block * _BLOCK : (block + 1) * _BLOCK]
        if block and sample < len(todo):
            cells.kill(Crash(*todo[block * _BLOCK - 1][:4]))  # what its neighbour would have left known; not counted
        began = time.perf_counter()
        for cell in chosen:
            facts = cells.kill(Crash(*cell[:4]))
            _good(facts["problem"] or facts["proof"])
        spent += time.perf_counter() - began
        count += len(chosen)
    cells.close()
    bench.close()
    cell_time, plain_runs = spent / count, 2 * (size + 1)
    return {
        "plain": plain, "plain measured": len(lengths), "plain runs": plain_runs, "recorded": recorded,
        "cell": cell_time, "cells measured": count, "cells": len(todo),
        "total": plain * plain_runs + recorded + cell_time * len(todo),
    }  # fmt: skip


def _good(problem: object) -> None:
    if problem:
        raise RuntimeError(f"a run went wrong: {problem}")
