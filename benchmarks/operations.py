"""Whole scenarios of 10, 100 and 1,000 operations: is the cost in proportion to the work?

Each operation replaces one of three small files (create, write, rename, ack: four crash points). What is timed is all
that `crashtest run` does with such a scenario under `kill` on one core: the runs without a crash, the recorded ones,
every crash state, and the confirmations. Nothing is multiplied up.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from benchmarks.lean import Lean
from benchmarks.measure import Figure, Ratio, Result
from crashtest.config import Settings
from crashtest.scale import local
from crashtest.scenario import load
from crashtest.verdict import ScenarioResult

SIZES = (10, 100, 1000)
_STORY = """
from benchmarks import subjects
from crashtest import scenario

@scenario(setup=subjects.OLD, timeout=600)
def many(run):
    subjects.many_operations(run)

many.recover(subjects.recover)
many.observe(subjects.observe)

@many.ops
def ops():
    return list(range({size}))
"""


def run(lean: Lean, quick: bool) -> Result:
    result, totals = Result(), {}
    for size in SIZES[:2] if quick else SIZES:
        seconds, made = whole(size)
        totals[size] = seconds
        model = made.models["kill"]
        result.figures.append(Figure(f"{size} operations, whole scenario", seconds, "s"))
        result.notes.append(f"{size} operations: {model.cells} cells, {model.kills} of them by a real kill")
    small = totals[100] / totals[10]
    result.ratios.append(Ratio("operations, time of the whole scenario: 100 / 10", small, small, small))
    if quick:
        result.notes.append("operations: 1,000 of them take a minute or more, so they are left out to be quick")
        return result
    grown = totals[1000] / totals[100]
    words = "operations, time of the whole scenario: 1,000 / 100"
    result.ratios.insert(0, Ratio(words, grown, grown, grown, "", ("at most", 12)))
    return result


def whole(size: int) -> tuple[float, ScenarioResult]:
    """The seconds that a scenario of so many operations takes, and its result. Raises `RuntimeError` unless it held."""
    with tempfile.TemporaryDirectory(prefix="crashtest-benchmarks-") as directory:
        file = Path(directory, "story.py")
        file.write_text(_STORY.format(size=size))
        settings = Settings(models=("kill",), jobs=1, depth=1, timeout=600.0, report_dir=Path(directory, "report"))
        began = time.perf_counter()
        made = local.run(load(file), {str(file): file}, settings, lambda event: None).scenarios[0]
        seconds = time.perf_counter() - began
    if made.verdict != "held":
        raise RuntimeError(f"the scenario did not hold: {made.harness_error or made.reason or made.violations}")
    return seconds, made
