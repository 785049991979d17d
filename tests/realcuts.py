"""Generated programs, cut on real file systems: is what is left allowed by the model?

`python -m tests.realcuts --programs 2000` runs as many on each file system and says what it found; a few run in CI.
The same seed gives the same programs. Each is cut at a random place and at its end, and the kernel is made to write
back and to commit at random places, which it does at its own time otherwise. Needs root.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from crashtest.persist.filesystems import MODELS
from crashtest.persist.history import History
from crashtest.persist.models import Model
from crashtest.persist.player import Background
from crashtest.persist.realfs import FILE_SYSTEMS, Cut, Disks, missing
from crashtest.persist.states import allowed
from crashtest.persist.tree import Tree
from crashtest.trace import PAGE, Event, Op
from tests.rows import ROWS, words
from tests.traces import Disk, shown

#: sets of units at one cut that are looked through for what a file system left
MOST = 1 << 16
_FILES = ["a", "b", "x/f", "y/g", "x/n", "n", "x/y/f"]
_DIRECTORIES = ["", "x", "y", "x/y"]
_SIZES = [5, 700, PAGE, PAGE + 900, 2 * PAGE]


class Program(NamedTuple):
    """disk: its first state and events. played: the same, with what the kernel does in between. number: of events of
    the disk that each number of played ones has."""

    disk: Disk
    played: list[Event | Background]

    def events(self, played: int) -> int:
        return sum(not isinstance(event, Background) for event in self.played[:played])


def generate(chance: random.Random) -> Program:
    disk = Disk()
    for path in ("x", "y"):
        disk.mkdir(path)
    for path in ("a", "b", "x/f"):
        disk.create(path, bytes(chance.choice(b"OPQ") for _ in range(chance.choice(_SIZES))))
    disk.start()
    for _ in range(chance.randint(1, 5)):
        _act(disk, chance)
        if chance.random() < 0.5 and disk.events:
            last = disk.events[-1]
            if isinstance(last, Op) and last.file > 0 and last.kind not in ("close", "mkdir"):
                disk.events.append(Op("close", last.file, call="close", path=last.path))
    played: list[Event | Background] = []
    for event in disk.events:
        played.append(event)
        while chance.random() < 0.25:
            file = event.file if isinstance(event, Op) and event.kind in ("create", "write", "truncate") else -1
            if file > 0 and chance.random() < 0.7:
                played.append(Background("writeback", file))
            else:
                played.append(Background("commit"))
    return Program(disk, played)


def _act(disk: Disk, chance: random.Random) -> None:
    """One operation that fits."""
    files = [path for path, file in disk.tree.walk() if disk.tree.nodes[file].type == "f"]
    folders = [path for path in _DIRECTORIES if disk.tree.lookup(path) is not None]
    free = [p for p in _FILES if disk.tree.lookup(p) is None and p.rpartition("/")[0] in folders]
    data = bytes([chance.randrange(97, 123)]) * chance.choice(_SIZES)
    file, target = chance.choice(files or ["-"]), chance.choice(free or ["-"])
    acts: dict[str, Callable[[], None]] = {
        "create": lambda: disk.create(target),
        "write": lambda: disk.create(target, data),
        "overwrite": lambda: disk.write(file, chance.choice([0, 100]), data[: disk.tree.size(disk.file(file))] or data),
        "append": lambda: disk.append(file, data),
        "truncate": lambda: disk.truncate(file, chance.choice([0, 0, 3, 1000, PAGE, PAGE + 5])),
        "rewrite": lambda: _rewrite(disk, file, data),
        "rename": lambda: _rename(disk, file, chance.choice([target, *files])),
        "link": lambda: disk.link(file, target),
        "unlink": lambda: disk.unlink(file),
        "mkdir": lambda: disk.mkdir("x/y"),
        "fsync": lambda: disk.fsync(file),
        "fdatasync": lambda: disk.fdatasync(file),
        "fsync of a directory": lambda: disk.fsync(chance.choice(folders)),
    }
    kind = chance.choice(list(acts))
    needs_file = kind not in ("create", "write", "mkdir", "fsync of a directory")
    needs_target = kind in ("create", "write", "link")
    if (needs_file and not files) or (needs_target and not free) or (kind == "mkdir" and disk.tree.lookup("x/y")):
        return
    acts[kind]()


def _rename(disk: Disk, old: str, new: str) -> None:
    """As rename(2): nothing happens between two names of one file."""
    if new != "-" and disk.tree.lookup(old) != disk.tree.lookup(new):
        disk.rename(old, new)


def _rewrite(disk: Disk, path: str, data: bytes) -> None:
    disk.truncate(path, 0)
    disk.write(path, 0, data)


def allows(model: Model, disk: Disk, cut: int, tree: Tree) -> bool | None:
    """Whether the model lets a crash leave this; None when there are too many ways to look through. Pages are whole,
    as on a device that is memory."""
    history = History(disk.first, disk.events, model._replace(tear=PAGE))
    for _ in range(cut):
        history.step()
    masks = allowed(history.window, MOST)
    if masks is None:
        return None
    units = list(history.window)
    wanted = tree.digest()
    return any(
        history.only([unit for at, unit in enumerate(units) if mask >> at & 1]).digest() == wanted for mask in masks
    )


def told(program: Program, played: int) -> str:
    lines = [f"  first: { {name: len(data) for name, data in shown(program.disk.first).items()} }"]
    for event in program.played[:played]:
        words = f"({event.what} of {event.file})" if isinstance(event, Background) else event.describe()
        lines.append(f"  {words}")
    return "\n".join(lines)


def sketch(tree: Tree) -> str:
    """Contents in runs: `a: 5*o 3*0`."""
    lines = []
    for path, data in shown(tree).items():
        runs: list[list[object]] = []
        for byte in data if isinstance(data, bytes) else b"":
            if runs and runs[-1][0] == byte:
                runs[-1][1] = int(str(runs[-1][1])) + 1
            else:
                runs.append([byte, 1])
        shown_runs = " ".join(f"{n}*{chr(b) if b else 'zero'}" for b, n in runs[:12] if isinstance(b, int))
        lines.append(f"    {path}: {shown_runs if len(runs) < 12 else f'{len(data)} bytes'}")
    return "\n".join(lines)


def rows_left(disks: Disks, name: str, disk: Disk, wait: float = 0.0, options: str = "") -> list[Tree]:
    """What a cut at the end leaves: at once, or after a wait. Without a wait also after a commit, and after each file
    was written back and then a commit."""
    end = len(disk.events)
    left = disks.cut(name, disk.first, disk.events, [Cut(end, wait)], options)
    if wait:
        return left
    files = {event.file for event in disk.events if isinstance(event, Op) and event.kind in ("write", "truncate")}
    commit = Background("commit")
    for hidden in [[commit], *([Background("writeback", file), commit] for file in sorted(files))]:
        left += disks.cut(name, disk.first, [*disk.events, *hidden], [Cut(end + len(hidden))], options)
    return left


class Found(NamedTuple):
    cuts: Counter[str]
    wrong: list[str]


def run(disks: Disks, name: str, programs: range, seed: int) -> Found:
    """Each program on one file system."""
    made = FILE_SYSTEMS[name]
    cuts: Counter[str] = Counter()
    wrong: list[str] = []
    for number in programs:
        chance = random.Random(f"{seed}/{number}")
        program = generate(chance)
        places = sorted({chance.randint(0, len(program.played)), len(program.played)})
        trees = disks.cut(name, program.disk.first, program.played, [Cut(at) for at in places])
        for at, tree in zip(places, trees, strict=True):
            cut = program.events(at)
            verdict = allows(MODELS[made.model], program.disk, cut, tree)
            wider = allows(MODELS["posix"], program.disk, cut, tree)
            cuts["cuts"] += 1
            cuts["too many ways"] += verdict is None
            cuts["too many ways under posix"] += wider is None
            for model, is_allowed in ((made.model, verdict), ("posix", wider)):
                if is_allowed is False:
                    words = f"{name}, program {seed}/{number}, not allowed by {model}:\n{told(program, at)}"
                    wrong.append(f"{words}\n  left:\n{sketch(tree)}")
    return Found(cuts, wrong)


def rows_after(name: str, wait: float) -> list[str]:
    """Each row on one file system, cut after a wait, and after two seconds where it commits each second: what is not
    allowed."""
    made = FILE_SYSTEMS[name]
    options = "commit=1" if made.type in ("ext4", "btrfs") else ""
    wrong = []
    with Disks() as disks:
        for row in ROWS:
            disk, _ = row()
            left = rows_left(disks, name, disk, wait) + (rows_left(disks, name, disk, 2.0, options) if options else [])
            for tree in left:
                if not allows(MODELS[made.model], disk, len(disk.events), tree):
                    wrong.append(f"{name}, {row.__name__}: {words(tree)}")
    return wrong


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--programs", type=int, default=2000)
    options.add_argument("--begin", type=int, default=0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--on", default=",".join(FILE_SYSTEMS))
    options.add_argument("--wait", type=float, default=0.0, help="instead: the rows, cut after so many seconds")
    asked = options.parse_args()
    bad = 0
    if asked.wait:
        names = [name for name in asked.on.split(",") if not missing(name)]
        with ThreadPoolExecutor(len(names)) as pool:
            for name, wrong in zip(names, pool.map(lambda name: rows_after(name, asked.wait), names), strict=True):
                print(f"{name}: {len(ROWS)} rows, {len(wrong)} not allowed", *wrong, sep="\n  ", flush=True)
                bad += len(wrong)
        return bool(bad)
    with Disks() as disks:
        for name in asked.on.split(","):
            reason = missing(name)
            if reason:
                print(f"{name}: NOT RUN: {reason}")
                bad += 1
                continue
            begun = time.monotonic()
            found = run(disks, name, range(asked.begin, asked.begin + asked.programs), asked.seed)
            figures = ", ".join(f"{number} {what}" for what, number in found.cuts.items())
            took = time.monotonic() - begun
            print(f"{name}: {asked.programs} programs, {figures}, {len(found.wrong)} not allowed, {took:.0f} s")
            print("\n".join(found.wrong[:4]), flush=True)
            bad += len(found.wrong)
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
