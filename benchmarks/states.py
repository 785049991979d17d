"""Walking the states of a power cut: does the cost of a state grow with the length of the trace?

Four programs that never stop, cut off after 1,000 and after 100,000 changes: one that syncs each operation, one that
never syncs and writes over what is there, one that never syncs and replaces files through temporary ones, and one that
only appends to a log. The state of the first three stays small; the log grows, and a state that differs in it costs
what the log weighs. The figure is the processor time of the whole walk for each loss tried; nothing is recovered.
`python -m benchmarks` has the first three, with one loss to a change; `python -m benchmarks.states` any of them, with
four.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from benchmarks.lean import Lean
from benchmarks.measure import Figure, Ratio, Result
from crashtest.persist.models import POSIX
from crashtest.persist.states import Limits, Walk
from crashtest.persist.tree import ROOT, Node, Tree
from crashtest.trace import Ack, Event, Op

FILES = 8


def first_state() -> Tree:
    tree = Tree()
    tree.nodes[ROOT] = Node("d", 0o755, 0, 0)
    for number in range(FILES):
        file = tree.new_id()
        tree.apply(Op("create", file, ROOT, f"f{number}", mode=0o644, uid=0, gid=0))
        tree.apply(Op("write", file, data=b"%d" % number * 4096))
    return tree


def overwriting() -> Iterator[Op]:
    """Writes over 64 bytes here and there, and never syncs."""
    number = 0
    while True:
        yield Op("write", 1 + number % FILES, offset=number * 832 % 4000, data=b"%08d" % number * 8, path="f")
        number += 1


def replacing(sync: bool = False) -> Iterator[Op]:
    """create, write, rename over: files are replaced in turn."""
    number, file = 0, FILES + 1
    while True:
        name = f"f{number % FILES}"
        yield Op("create", file, ROOT, "temp", mode=0o644, uid=0, gid=0, path="temp")
        yield Op("write", file, data=b"%08d" % number * 64, path="temp")
        if sync:
            yield Op("fsync", file)
        yield Op("rename", file, ROOT, "temp", ROOT, name, path="temp", path2=name)
        if sync:
            yield Op("fsync", ROOT)
        number += 1
        file += 1


def appending() -> Iterator[Op]:
    size = 4096
    while True:
        yield Op("write", 1, offset=size, data=b"%064d" % size, path="f0")
        size += 64


PROGRAMS: dict[str, Callable[[], Iterator[Op]]] = {
    "syncs": lambda: replacing(sync=True),
    "overwrites": overwriting,
    "replaces": replacing,
    "appends": appending,
}
#: those whose state stays small
TOLD = ["syncs", "overwrites", "replaces"]


def trace(name: str, changes: int) -> list[Event]:
    """The program's first changes, an ack every nine events."""
    events: list[Event] = []
    made = 0
    for op in PROGRAMS[name]():
        if made == changes:
            return events
        events.append(op._replace(began=len(events)))
        made += op.changes
        if len(events) % 10 == 9:
            events.append(Ack(len(events) // 10 + 1))
    return events


def measured(name: str, changes: int, each: int) -> tuple[float, int]:
    """(us for a loss that is tried, peak memory in MiB). each: losses to a change."""
    events = trace(name, changes)
    walk = Walk(first_state(), events, POSIX, limits=Limits(total=each * changes), seed=1)
    before = _peak()
    began = time.process_time()
    for _ in walk:
        pass
    took = time.process_time() - began
    covered = walk.coverage
    print(
        f"{name}, {changes} changes: {took / covered.walked * 1e6:.0f} us for each of {covered.walked} losses "
        f"({covered.states} states), peak {_peak()} MiB, of it {before} for the trace",
        file=sys.stderr,
    )
    return took / covered.walked * 1e6, _peak()


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def alone(name: str, changes: int, each: int, core: int | None = None) -> tuple[float, int]:
    """The same in a process of its own, for its peak of memory."""
    options = ["--one", "--changes", str(changes), "--each", str(each)]
    options += [] if core is None else ["--core", str(core)]
    command = [sys.executable, "-m", "benchmarks.states", name, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    took, peak = done.stdout.split()
    return float(took), int(peak)


def run(lean: Lean, quick: bool) -> Result:
    """For the table. One round: the figure of a walk is a mean over as many losses as changes."""
    result, changes = Result(), 10_000 if quick else 100_000
    for name in TOLD:
        (short, _), (long, peak) = (alone(name, number, 1, lean.core) for number in (1000, changes))
        grown, words = long / short, f"walk ({name}), time for a loss: {changes:,} changes / 1,000"
        result.ratios.append(Ratio(words, grown, grown, grown, "", ("at most", 1.1)))
        result.figures.append(Figure(f"walk ({name}), a loss, {changes:,} changes", long, "us"))
        result.figures.append(Figure(f"walk ({name}), peak of memory, {changes:,} changes", peak, "MiB"))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.states", description=__doc__)
    parser.add_argument("programs", nargs="*", default=TOLD, help=", ".join(PROGRAMS))
    parser.add_argument("--changes", type=int, default=100_000, help="the length compared with 1,000 (100,000)")
    parser.add_argument("--each", type=int, default=4, help="losses tried for each change (4)")
    parser.add_argument("--core", type=int, help="the core to run on (default: any)")
    parser.add_argument("--one", action="store_true", help="measure that length alone, in this process")
    chosen = parser.parse_args()
    if chosen.core is not None:
        os.sched_setaffinity(0, {chosen.core})
    for name in chosen.programs:
        if chosen.one:
            print(*measured(name, chosen.changes, chosen.each))
            continue
        (short, _), (long, _) = (alone(name, number, chosen.each, chosen.core) for number in (1000, chosen.changes))
        print(f"{name}: {long / short:.2f} times the cost of a loss when the trace has {chosen.changes} changes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
