"""The walk against an oracle that tries every combination of values, and what holds of every state."""

from __future__ import annotations

import itertools
import math

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from crashtest.persist.models import POSIX
from crashtest.persist.states import Limits, Walk, state_of
from crashtest.persist.tree import ROOT, Node, Tree
from crashtest.trace import SYNCS, Ack, Op
from tests.traces import EVERYTHING, Disk

#: small sectors, so that a few bytes are several of them
TEAR = 4
MODEL = POSIX._replace(tear=TEAR)
PATHS = ["a", "b", "x/a", "x/b", "y/a"]


# -- traces ------------------------------------------------------------------------------------------------------------


def act(disk: Disk, kind: str, path: str, other: str, number: int) -> None:
    """One call, where it fits."""

    def there(path: str) -> bool:
        return disk.tree.lookup(path) is not None

    def free(path: str) -> bool:
        above = path.rpartition("/")[0]
        return there(above) and not there(path)

    if kind == "ack":
        disk.ack()
    elif kind == "fsync directory":
        above = path.rpartition("/")[0]
        if there(above):
            disk.fsync(above)
    elif kind == "mkdir":
        if free(path[0]):
            disk.mkdir(path[0])
    elif kind == "create":
        if free(path):
            disk.create(path)
    elif kind == "sync":
        disk.sync("sync")
    elif not there(path) or disk.tree.nodes[disk.file(path)].type == "d":
        return
    elif kind == "write":
        disk.write(path, number, b"%d" % (len(disk.events) % 10) * (1 + number))
    elif kind == "append":
        disk.append(path, b"%d" % (len(disk.events) % 10) * 3)
    elif kind == "truncate":
        disk.truncate(path, number)
    elif kind == "rename":
        above = other.rpartition("/")[0]
        if there(above) and path != other and (not there(other) or disk.file(other) != disk.file(path)):
            disk.rename(path, other)
    elif kind == "link":
        if free(other):
            disk.link(path, other)
    elif kind == "unlink":
        disk.unlink(path)
    elif kind in ("fsync", "fdatasync"):
        disk.sync(kind, path)
    elif kind == "slow fsync":
        above = path.rpartition("/")[0]
        disk.sync("fsync", above, began=max(len(disk.events) - number, 0))


KINDS = ["create", "write", "append", "truncate", "rename", "rename", "link", "unlink", "mkdir"]
CALLS = [*KINDS, "fsync", "fdatasync", "fsync directory", "slow fsync", "sync", "ack"]
STEPS = st.lists(
    st.tuples(st.sampled_from(CALLS), st.sampled_from(PATHS), st.sampled_from(PATHS), st.integers(0, 6)), max_size=9
)


def disk_of(before, steps) -> Disk:
    disk = Disk()
    disk.mkdir("x")
    disk.create("a", b"abcdef")
    for step in before:
        if step[0] != "ack":
            act(disk, *step)
    disk.start()
    for step in steps:
        act(disk, *step)
    return disk


# -- the oracle: every value of every variable, from what was synced to now ----------------------------------------------


class Oracle:
    """A plain reading of the rules: histories of values, floors, and every combination of places in them."""

    def __init__(self, first: Tree) -> None:
        self.first = first
        self.tree = first.copy()
        #: variable -> [first value, then (change, value) ...]
        self.histories: dict[tuple, list] = {}
        self.floors: dict[tuple, int] = {}
        self.changes: list[dict] = []
        self.made: dict[int, Node] = {}
        self.pinned: set[int] = set()
        self.durable = {file for _, file in first.walk()}
        self.acks = 0

    def value_now(self, variable):
        kind, file, what = variable
        node = self.tree.nodes[file]
        if kind == "name":
            return node.entries.get(what)
        if kind == "size":
            return len(node.data)
        return bytes(node.data[what * TEAR : (what + 1) * TEAR]).ljust(TEAR, b"\0")

    def change(self, index: int, op: Op, variables: list, **facts) -> None:
        """`variables` change together. Called before the tree has changed; `settle` fills in the values."""
        for variable in variables:
            self.histories.setdefault(variable, [(-1, self.value_now(variable))])
        self.changes.append({"at": index, "op": op, "variables": variables, "needs": set(), **facts})

    def happen(self, index: int, op: Op) -> None:
        known = len(self.changes)
        size = len(self.tree.nodes[op.file].data) if op.file in self.tree.nodes else 0
        if op.kind in ("create", "mkdir", "unlink"):
            self.change(index, op, [("name", op.dir, op.name)])
        elif op.kind == "link":
            self.change(index, op, [("name", op.dir2, op.name2)])
        elif op.kind == "rename":
            old, new = ("name", op.dir, op.name), ("name", op.dir2, op.name2)
            if op.dir == op.dir2:
                self.change(index, op, [new, old], left=[old], moved=op.file)
            else:
                way, at = set(), op.dir2
                while at != ROOT:
                    above, name = self.tree.parents[at]
                    way |= {number for number, _ in self.histories.get(("name", above, name), [])[-1:] if number >= 0}
                    at = above
                self.change(index, op, [new])
                self.change(index, op, [old], left=[old], moved=op.file)
                self.changes[-1]["needs"] = {known} | way
        elif op.kind == "write":
            end = op.offset + len(op.data)
            if end > size:
                self.change(index, op, [("size", op.file, 0)])
            for sector in range(op.offset // TEAR, (end - 1) // TEAR + 1):
                self.change(index, op, [("data", op.file, sector)])
        elif op.kind == "truncate" and op.size != size:
            sectors = range(op.size // TEAR, (size - 1) // TEAR + 1) if op.size < size else []
            self.change(index, op, [("size", op.file, 0), *(("data", op.file, s) for s in sectors)], cut=bool(sectors))
        self.tree.apply(op)
        if op.kind in ("create", "mkdir"):
            self.made[op.file] = self.tree.nodes[op.file].copy()
        for number in range(known, len(self.changes)):
            for variable in self.changes[number]["variables"]:
                self.histories[variable].append((number, self.value_now(variable)))

    def place(self, variable, number: int) -> int:
        return next((i for i, (n, _) in enumerate(self.histories[variable]) if n == number), -1)

    def needs(self, number: int) -> set[int]:
        """What must be kept, and is not durable, for a change to be kept."""
        mine = self.changes[number]
        found = set(mine["needs"])
        for earlier, other in enumerate(self.changes[:number]):
            if any(left in mine["variables"] for left in other.get("left", ())) and other["moved"] in self.durable:
                found.add(earlier)
            if other.get("cut") and other["variables"][0] in mine["variables"]:
                found.add(earlier)
        return {n for n in found if not self.passed(n)}

    def passed(self, number: int) -> bool:
        """Whether a change is durable, or all it set was set anew by what is durable."""
        return number in self.pinned or all(
            self.place(v, number) <= self.floors.get(v, 0) for v in self.changes[number]["variables"]
        )

    def closed(self, numbers: set[int]) -> set[int]:
        done: set[int] = set()
        while numbers - done:
            number = min(numbers - done)
            done.add(number)
            numbers = numbers | self.needs(number)
        return numbers

    def sync(self, op: Op) -> None:
        def covered(kind: str, file: int) -> bool:
            if op.kind == "sync":
                return True
            return file == op.file and (kind == "name" or op.kind in ("fsync", "fdatasync"))

        pinned = {
            number
            for number, change in enumerate(self.changes)
            if change["at"] < op.began and any(covered(v[0], v[1]) for v in change["variables"])
        }
        pinned = self.closed({n for n in pinned if not self.passed(n)})
        self.pinned |= pinned
        for number in pinned:
            for variable in self.changes[number]["variables"]:
                self.floors[variable] = max(self.floors.get(variable, 0), self.place(variable, number))
        for variable, floor in self.floors.items():
            if variable[0] == "name" and (value := self.histories[variable][floor][1]) is not None:
                self.durable.add(value)

    def count(self) -> int:
        return math.prod(len(history) - self.floors.get(v, 0) for v, history in self.histories.items())

    def states(self) -> set[str]:
        found = set()
        variables = list(self.histories)
        ranges = [range(self.floors.get(v, 0), len(self.histories[v])) for v in variables]
        for places in itertools.product(*ranges):
            at = dict(zip(variables, places, strict=True))
            chosen = {self.histories[v][p][0] for v, p in at.items() if p > self.floors.get(v, 0)}
            kept = self.closed(set(chosen))
            if all(self.place(v, n) <= at[v] for n in kept for v in self.changes[n]["variables"]):
                found.add(self.tree_at(at).digest())
        return found

    def tree_at(self, at: dict) -> Tree:
        tree = self.first.copy()
        for file, node in self.made.items():
            tree.nodes[file] = node.copy()
        for variable, place in at.items():
            (kind, file, what), value = variable, self.histories[variable][place][1]
            if kind == "name":
                tree.mine(file).entries.pop(what, None)
                if value is not None:
                    tree.mine(file).entries[what] = value
        files = {file for (kind, file, _) in at if kind != "name"}
        for file in files:
            node = tree.mine(file)
            place = at.get(("size", file, 0))
            size = len(node.data) if place is None else self.histories["size", file, 0][place][1]
            raw = bytearray(max(size, len(node.data)) + TEAR * 8)
            raw[: len(node.data)] = node.data
            for (kind, owner, sector), place in at.items():
                if kind == "data" and owner == file:
                    raw[sector * TEAR : (sector + 1) * TEAR] = self.histories[kind, owner, sector][place][1]
            node.data[:] = raw[:size]
            node.dirty()
        return tree


def oracle_states(disk: Disk, limit: int = 4000) -> set[tuple[str, int]]:
    oracle = Oracle(disk.first)
    found = {(digest, 0) for digest in oracle.states()}
    for index, event in enumerate(disk.events):
        if isinstance(event, Ack):
            oracle.acks += 1
        elif isinstance(event, Op) and event.kind in SYNCS:
            oracle.sync(event)
        elif isinstance(event, Op):
            oracle.happen(index, event)
        assume(oracle.count() <= limit)
        found |= {(digest, oracle.acks) for digest in oracle.states()}
    return found


@settings(deadline=None, max_examples=300)
@given(STEPS, STEPS)
def test_an_exhaustive_walk_finds_exactly_the_allowed_states(before, steps) -> None:
    disk = disk_of(before[:3], steps)
    wanted = oracle_states(disk)
    walk = disk.walk(MODEL)
    found = [(state.digest, state.acks) for state in walk]
    assert walk.coverage.exhaustive
    assert len(found) == len(set(found)) == walk.coverage.states
    assert set(found) == wanted
