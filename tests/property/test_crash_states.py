"""The walk against an oracle that tries every combination of values, and what holds of every state."""

from __future__ import annotations

import itertools
import math

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crashtest.persist.history import History
from crashtest.persist.models import POSIX
from crashtest.persist.states import Limits, state_of
from crashtest.persist.tree import ROOT, Node, Tree
from crashtest.trace import SYNCS, Ack, Op
from tests.traces import Disk

#: small sectors, so that a few bytes are several of them
TEAR = 4
MODEL = POSIX._replace(tear=TEAR)
PATHS = ["a", "b", "x/a", "x/b", "y/a"]


# -- traces -----------------------------------------------------------------------------------------------------------


def is_directory(disk: Disk, path: str) -> bool:
    file = disk.tree.lookup(path)
    return file is not None and disk.tree.nodes[file].type == "d"


def free(disk: Disk, path: str) -> bool:
    return is_directory(disk, path.rpartition("/")[0]) and disk.tree.lookup(path) is None


def act(disk: Disk, kind: str, path: str, other: str, number: int) -> None:
    """One call, where it fits."""

    def there(path: str) -> bool:
        return disk.tree.lookup(path) is not None

    if kind in ("write", "append", "truncate", "rename", "link", "unlink", "fsync", "fdatasync") and not there(path):
        names = [name for name, file in disk.tree.walk() if disk.tree.nodes[file].type == "f"]
        path = names[number % len(names)] if names else path
    if kind == "ack":
        disk.ack()
    elif kind == "fsync directory":
        above = path.rpartition("/")[0]
        if there(above):
            disk.fsync(above)
    elif kind == "mkdir":
        if free(disk, path[0]):
            disk.mkdir(path[0])
    elif kind == "create":
        if free(disk, path):
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
        if is_directory(disk, other):
            return
        if (
            is_directory(disk, other.rpartition("/")[0])
            and path != other
            and (not there(other) or disk.file(other) != disk.file(path))
        ):
            disk.rename(path, other)
    elif kind == "link":
        if free(disk, other):
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
    disk.create("x/b", b"ghi")
    for step in before:
        if step[0] != "ack":
            act(disk, *step)
    disk.start()
    for step in steps:
        act(disk, *step)
    return disk


# -- the oracle: every value of every variable, from what was synced to now -------------------------------------------


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
            # files are of one page here, which is cleared from its new end on, as data of its own
            for sector in range(op.size // TEAR, (size - 1) // TEAR + 1) if 0 < op.size < size else ():
                self.change(index, op, [("data", op.file, sector)])
            gone = [("data", op.file, sector) for sector in range((size - 1) // TEAR + 1)] if not op.size else []
            self.change(index, op, [("size", op.file, 0), *gone], cut=op.size < size)
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


# -- what holds of every state ----------------------------------------------------------------------------------------

OTHERS = ["rename directory", "rmdir", "exchange", "chmod", "setxattr", "symlink", "allocate", "tmpfile", "depart"]
WIDE = [*CALLS, *OTHERS]
WIDE_STEPS = st.lists(
    st.tuples(st.sampled_from(WIDE), st.sampled_from(PATHS), st.sampled_from(PATHS), st.integers(0, 6)), max_size=12
)
FEW = Limits(per_cut=40, total=600)


def act_widely(disk: Disk, kind: str, path: str, other: str, number: int) -> None:
    if kind not in OTHERS:
        act(disk, kind, path, other, number)
        return
    names = [name for name, _ in disk.tree.walk()]
    directories = [name for name, file in disk.tree.walk() if disk.tree.nodes[file].type == "d"]
    if kind == "rename directory" and directories:
        old = directories[number % len(directories)]
        if free(disk, other) and not f"{other}/".startswith(f"{old}/"):
            disk.rename(old, other)
    elif kind == "rmdir":
        for name in directories[number % 3 :]:
            if not disk.tree.nodes[disk.file(name)].entries:
                disk.rmdir(name)
                return
    elif kind == "exchange" and len(names) > 1:
        one, two = names[number % len(names)], names[(number + 1) % len(names)]
        if (
            disk.file(one) != disk.file(two)
            and not f"{two}/".startswith(f"{one}/")
            and not f"{one}/".startswith(f"{two}/")
        ):
            disk.exchange(one, two)
    elif kind == "symlink" and free(disk, other):
        disk.symlink("target", other)
    elif kind == "tmpfile":
        file = disk.tmpfile()
        disk.write(file, 0, b"tmp")
        if free(disk, other):
            disk.link(file, other)
    elif kind == "depart" and names:
        disk.depart(names[number % len(names)])
    elif names and disk.tree.nodes[disk.file(names[number % len(names)])].type == "f":
        name = names[number % len(names)]
        if kind == "chmod":
            disk.chmod(name, 0o600 + number)
        elif kind == "setxattr":
            disk.setxattr(name, "user.a", b"%d" % number)
        elif kind == "allocate":
            disk.allocate(name, number * 2)


def wide_disk(steps) -> Disk:
    disk = disk_of([], [])
    for step in steps:
        act_widely(disk, *step)
    return disk


@settings(deadline=None)
@given(WIDE_STEPS)
def test_everything_kept_is_the_trace_applied_and_everything_lost_what_was_synced(steps) -> None:
    disk = wide_disk(steps)
    history = History(disk.first, disk.events, MODEL)
    for cut in range(len(disk.events) + 1):
        applied = disk.tree_at(cut)
        assert history.live.tree.digest() == applied.digest() == history.without([]).digest()
        assert history.base.tree.digest() == history.only([]).digest() == history.without(list(history.window)).digest()
        assert history.only(list(history.window)).digest() == applied.digest()
        if cut < len(disk.events):
            history.step()


@settings(deadline=None)
@given(WIDE_STEPS)
def test_every_state_is_a_tree_and_comes_again_from_its_name(steps) -> None:
    disk = wide_disk(steps)
    names = names_kept(disk)
    for state in disk.walk(MODEL, FEW):
        walked = [file for _, file in state.tree.walk()]
        directories = [file for file in walked if state.tree.nodes[file].type == "d"]
        assert len(directories) == len(set(directories)), "a directory has one parent"
        assert names <= set(walked), "a file that was only moved is there"
        again = state_of(disk.first, disk.events, state.cut, state.lost, MODEL)
        assert again.digest() == state.digest == Tree.from_plain(state.tree.to_plain()).digest()


def names_kept(disk: Disk) -> set[int]:
    """Files that the trace moves at most: they had one name throughout."""
    tree, gone = disk.first.copy(), set()
    for event in disk.events:
        if isinstance(event, Op) and event.changes:
            before = {file for _, file in tree.walk()}
            if event.kind == "rename" and (over := tree.nodes[event.dir2].entries.get(event.name2)) is not None:
                gone.add(over)
            tree.apply(event)
            gone |= before - {file for _, file in tree.walk()}
            if event.kind in ("unlink", "link"):
                gone.add(event.file)
    return {file for _, file in disk.first.walk()} - gone


@settings(deadline=None, max_examples=60)
@given(STEPS, st.integers(0, 3))
def test_a_limited_walk_stays_within_the_allowed_states_and_its_limits(steps, seed) -> None:
    disk = disk_of([], steps)
    everything = {(state.digest, state.acks) for state in disk.walk(MODEL)}
    limits = Limits(per_cut=6, total=40)
    walk = disk.walk(MODEL, limits, seed)
    found = [(state.digest, state.acks, state.cut, state.lost) for state in walk]
    assert {found[:2] for found in found} <= everything
    assert walk.coverage.walked <= limits.total
    assert walk.coverage.losses >= walk.coverage.walked
    if walk.coverage.exhaustive:
        assert {found[:2] for found in found} == everything
    assert [(state.digest, state.acks, state.cut, state.lost) for state in disk.walk(MODEL, limits, seed)] == found
