"""`python -m benchmarks`: all of them in one run, ratios first, then absolute figures."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from benchmarks import git_commit, kill_cell, operations, power, states, stop
from benchmarks.lean import Lean
from benchmarks.measure import Ratio, Result
from crashtest.observe import bpf

BENCHMARKS = {
    "cell": kill_cell.run,
    "stop": stop.run,
    "git": git_commit.run,
    "operations": operations.run,
    "power": power.run,
    "states": states.run,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", metavar="NAME", help=f"which ones: {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: half a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to FILE as well")
    parser.add_argument("--core", type=int, help="the core everything runs on (default: the last)")
    parser.add_argument("--profile", action="store_true", help="instead, a profile of the zygote in kill cells")
    given = parser.parse_args()
    if unknown := set(given.only) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    if (reason := bpf.probe()) is not None:
        parser.error(f"system calls cannot be observed here: {reason}")
    core = max(os.sched_getaffinity(0)) if given.core is None else given.core
    began = time.monotonic()
    directory = tempfile.TemporaryDirectory(dir="/dev/shm", prefix="crashtest-benchmarks-")
    lean = None
    whole = Result()
    try:
        lean = Lean(f"{directory.name}/lean", core)
        if given.profile:
            print(kill_cell.profile(lean, 10))
            return 0
        for name in given.only or BENCHMARKS:
            print(f"{name} ...", file=sys.stderr, flush=True)
            made = BENCHMARKS[name](lean, given.quick)
            whole.ratios += made.ratios
            whole.figures += made.figures
            whole.notes += made.notes
    finally:
        if lean is not None:
            lean.close()
        directory.cleanup()
    seconds = round(time.monotonic() - began, 1)
    print(table(whole, seconds))
    if given.json is not None:
        given.json.write_text(json.dumps(plain(whole, seconds, given.quick), indent=1) + "\n")
    return 0


def machine() -> str:
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{os.cpu_count()} cores, {platform.system()} {kernel}, Python {platform.python_version()}"


def _rounded(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _line(one: Ratio) -> str:
    spread = "" if one.low == one.high else f"{_rounded(one.low)} to {_rounded(one.high)}"
    target = "" if one.target is None else f"{one.target[0]} {one.target[1]:g} {one.unit}".rstrip()
    return f"{one.name:62} {_rounded(one.value) + ' ' + one.unit:>10} {spread:>16}  {target:16} {one.verdict}".rstrip()


def table(whole: Result, seconds: float) -> str:
    lines = [f"{'ratios':62} {'median':>9}  {'quartiles':>16}  {'target':16}", *map(_line, whole.ratios), ""]
    lines += ["absolute figures (medians; they move with what else the machine does)"]
    lines += [f"{one.name:62} {_rounded(one.value):>9} {one.unit}" for one in whole.figures]
    return "\n".join([*lines, "", *whole.notes, f"{machine()}; {seconds} s; everything measured on one core"])


def plain(whole: Result, seconds: float, quick: bool) -> dict[str, object]:
    return {
        "schema": 1,
        "machine": machine(),
        "quick": quick,
        "seconds": seconds,
        "ratios": [{**asdict(one), "verdict": one.verdict} for one in whole.ratios],
        "figures": [asdict(one) for one in whole.figures],
        "notes": whole.notes,
    }


if __name__ == "__main__":
    sys.exit(main())
