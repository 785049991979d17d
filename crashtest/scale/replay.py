"""A stored violation, done again: its cell first, and all cells of its operations where that shows nothing any more.

Guarantees: what comes again is told as it was stored, and a violation that only moved is not taken for mended. Does not
promise that another machine, or another commit, makes the same calls: the notes say what differs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from crashtest.config import Settings
from crashtest.errors import UsageError, quoted
from crashtest.scale import local, stored
from crashtest.scale.jobs import Job
from crashtest.scenario import SIGNALS, load
from crashtest.verdict import Emit, RunResult, ScenarioResult


def replay(path: Path, settings: Settings, emit: Emit) -> RunResult:
    """Re-execute one stored violation; see `again`. Raises `UsageError` when it, or its scenario, cannot be read."""
    record = stored.read(path)
    file, label = stored.locate(record, path)
    return again(record, file, label, settings, emit)


def again(record: stored.Record, file: Path, label: str, settings: Settings, emit: Emit) -> RunResult:
    """The runs without a crash, then the cell of `record`; if it breaks nothing any more, all cells of its operations.

    A mended program makes other calls, and so does one in which the same bug has moved by a line: only the whole
    matrix of these operations tells the two apart. exit: 1 when the guarantee (or `recovers`) is violated, 0 when it
    is not, 2 or 3 when that cannot be said, 130 when interrupted. Raises `UsageError`.
    """
    scenario = next((one for one in load(file, label) if one.function == record.function), None)
    if scenario is None:
        raise UsageError(f"{quoted(label)} has no scenario {quoted(record.function)} any more")
    seccomp = local.observation(settings)
    scenario.allow_outside = (*scenario.allow_outside, *settings.allow_outside)
    crash = record.crash()
    if crash.variant in SIGNALS:  # also where all crashes of its operations have to be tried
        scenario.signals = tuple({*scenario.signals, crash.variant})
    cells = [crash._replace(inner=()) if crash.model == "kill" else crash] if record.cell is not None else []
    depth, models = 1 + len(record.crash().inner), (record.model,)
    settings = replace(settings, seed=record.seed, depth=depth, models=models)
    job = Job(scenario, file, [record.ops], depth=settings.depth, models=models)
    made = local.run_jobs([job], settings, seccomp, emit, cells)
    notes = [] if made.stopped else stored.differences(record, file, job.examples)
    here = [v for one in made.scenarios for v in one.violations if (v.id, v.guarantee) == (record.id, record.guarantee)]
    if here:
        made.scenarios[0].violations = here
    elif record.without and not made.stopped:
        # the program keeps the guarantee as it is: only with these syncs dropped does its place say anything
        notes.append("the state without the dropped syncs breaks nothing any more; `crashtest syncs` judges them anew")
    elif not made.stopped:
        job = Job(scenario, file, [record.ops], depth=record.depth, models=models)
        made = local.run_jobs([job], replace(settings, depth=job.depth), seccomp, emit, None, keep=False)
        for one in made.scenarios:
            one.violations = [v for v in one.violations if v.guarantee in (record.guarantee, "recovers")]
            found = "it comes elsewhere" if one.violations else f"{record.guarantee} is {_verdict(one, record)}"
            notes.append(
                f"the stored violation {quoted(record.id, 1000)} did not come again at its place, so all "
                f"{sum(model.cells for model in one.models.values())} cells of these operations were tried: {found}"
            )
    made.notes += notes
    made.exit = _replayed_exit(made, record)
    return made


def _verdict(made: ScenarioResult, record: stored.Record) -> str:
    """What became of the guarantee that was violated."""
    return made.models[record.model].guarantees.get(record.guarantee, "not claimed")


def _replayed_exit(made: RunResult, record: stored.Record) -> int:
    if made.stopped == "interrupted":
        return 130
    if any(one.usage_error for one in made.scenarios):
        return 2
    if made.stopped or not made.scenarios or any(one.harness_error for one in made.scenarios):
        return 3
    if any(one.violations for one in made.scenarios):
        return 1
    return 0 if all(_verdict(one, record) == "held" for one in made.scenarios) else 3
