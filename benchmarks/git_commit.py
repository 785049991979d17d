"""`git commit` (20 files, 5 changed): run, recorded by crashtest, and under `strace -f -o /dev/null`.

The worker takes the time of the one command, so starting the worker is in none of the figures.
"""

from __future__ import annotations

import shutil
from contextlib import closing
from typing import Any

from benchmarks.lean import Lean
from benchmarks.measure import Result, figure, ratio, rounds
from benchmarks.subjects import GIT_COMMIT
from crashtest.cells.realise import Bench
from crashtest.cells.zygote import Zygote
from crashtest.persist.tree import Tree
from crashtest.values import canonical, parse

_STRACE = ["strace", "-f", "-o", "/dev/null"]
_first: list[Tree] = []


def run(lean: Lean, quick: bool) -> Result:
    events = 0

    def native() -> float:
        return float(lean.call("benchmarks.git_commit:commit", before=[], record=False)["ns"])

    def recorded() -> float:
        nonlocal events
        made = lean.call("benchmarks.git_commit:commit", before=[], record=True)
        events = made["events"]
        return float(made["ns"])

    def under_strace() -> float:
        return float(lean.call("benchmarks.git_commit:commit", before=_STRACE, record=False)["ns"])

    contenders = {"run": native, "recorded": recorded}
    if shutil.which("strace"):
        contenders["strace -f"] = under_strace
    found = rounds(9 if quick else 31, contenders)
    result = Result(
        [ratio("git commit, time: recorded / run", found["recorded"], found["run"], ("at most", 2))],
        [figure(f"git commit, {name}", found[name], "ms", 1e-6) for name in found],
        [f"git commit: {events} events recorded, with the places in the program, as `crashtest run` does"],
    )
    if "strace -f" in found:
        result.ratios += [
            ratio("git commit, time: recorded / strace -f", found["recorded"], found["strace -f"]),
            ratio("git commit, time: strace -f / run", found["strace -f"], found["run"]),
        ]
    else:
        result.notes.append("git commit: strace was skipped, it is not installed")
    return result


def commit(zygote: Zygote, before: list[str], record: bool) -> dict[str, Any]:
    """In the lean process: one commit on a fresh copy of the repository."""
    scenario = zygote.scenarios[GIT_COMMIT.function]
    with closing(Bench(scenario, zygote.root, zygote.sock.fileno(), 60.0, True)) as bench:
        if not _first:
            _first.append(bench.first_state())
        ran, _ = bench.run(_first[0], [canonical(word) for word in before], record=record, stacks=record)
    out = ran.outcome
    if out.end != "normal" or ran.proof or len(out.acks) != 1:
        raise RuntimeError(f"{out.end} {ran.proof} {out.answer} {out.output}")
    return {"ns": parse(out.acks[0][1:].decode()), "events": len(out.trace.events)}
