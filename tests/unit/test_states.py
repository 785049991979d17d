"""The walk over crash states: its order, its limits, what it says of itself, and smaller losses."""

from __future__ import annotations

import gc
import hashlib

import pytest

from crashtest.errors import HarnessError
from crashtest.persist.models import POSIX, Unit, describe
from crashtest.persist.states import Limits, Name, Walk, more_to_lose, reduced, state_of, window_at
from crashtest.persist.tree import Tree
from crashtest.trace import Op, Step
from tests.traces import EVERYTHING, Disk, shown


def replacing() -> Disk:
    disk = Disk()
    disk.create("f", b"old")
    disk.start()
    disk.create("temp", b"new")
    disk.rename("temp", "f")
    disk.fsync("")
    disk.ack()
    return disk


def growing(changes: int) -> Disk:
    disk = Disk()
    disk.create("f")
    disk.start()
    for number in range(changes):
        disk.append("f", b"%03d" % number * 200)
    return disk


def test_the_most_telling_come_first() -> None:
    disk = replacing()
    levels = [state.level for state in disk.walk(POSIX)]
    assert levels == sorted(levels)
    assert max(levels) > 1
    first = [state for state in disk.walk(POSIX) if state.level == 1]
    assert [(state.cut, state.acks, state.lost) for state in first if state.acks == 0] == [
        (cut, 0, []) for cut in range(4)
    ]


def test_a_sync_adds_no_state_and_an_ack_brings_all_of_the_window_again() -> None:
    disk = replacing()
    by_acks = {acks: [state for state in disk.walk(POSIX) if state.acks == acks] for acks in (0, 1)}
    assert {state.cut for state in by_acks[0]} == {0, 1, 2, 3}
    assert {state.cut for state in by_acks[1]} == {5}
    contents = sorted(str(shown(state.tree)["f"]) for state in by_acks[1])
    # the size kept or lost, and the data under it
    assert contents == sorted(map(str, [b"", b"\0\0\0", b"new"]))


def test_each_state_comes_once_and_with_its_own_name() -> None:
    disk = replacing()
    states = list(disk.walk(POSIX))
    assert len({(state.digest, state.acks) for state in states}) == len(states)
    for state in states:
        assert state_of(disk.first, disk.events, state.cut, state.lost).digest() == state.digest


def test_what_was_tried_is_stated_exactly() -> None:
    disk = Disk()
    disk.create("f", b"0" * 1024)
    disk.start()
    disk.write("f", 0, b"1" * 1024)
    disk.chmod("f", 0o600)
    walk = disk.walk(POSIX)
    assert len(list(walk)) == 8
    covered = walk.coverage
    # the first state; three sets that keep something of two sectors; four that keep the mode
    assert (covered.cuts, covered.losses, covered.states, covered.exhaustive_cuts) == (3, 1 + 3 + 4, 8, 3)
    assert covered.exhaustive
    assert covered.skipped == 0


@pytest.mark.parametrize("limits", [Limits(per_cut=5), Limits(total=20), Limits(per_cut=1, total=3)])
def test_limits_leave_out_and_say_so(limits: Limits) -> None:
    disk = growing(12)
    walk = disk.walk(POSIX, limits)
    found = list(walk)
    covered = walk.coverage
    assert covered.walked <= min(limits.total, limits.per_cut * covered.cuts)
    assert len(found) == covered.states <= covered.walked
    assert not covered.exhaustive
    assert covered.skipped == covered.losses - covered.walked > 0


def test_a_walk_that_was_not_finished_is_not_exhaustive() -> None:
    walk = growing(2).walk(POSIX)
    next(iter(walk))
    assert not walk.coverage.exhaustive


def test_a_limited_walk_looks_at_the_whole_trace() -> None:
    cuts = {state.cut for state in growing(400).walk(POSIX, Limits(total=100))}
    assert max(cuts) > 390
    assert len([cut for cut in cuts if cut < 200]) > 10


def test_the_same_seed_draws_the_same_states_and_another_one_others() -> None:
    def drawn(seed: int) -> list[tuple[int, list[Name]]]:
        limits = Limits(per_cut=30)
        return [(state.cut, state.lost) for state in growing(60).walk(POSIX, limits, seed) if state.level == 5]

    assert drawn(1) == drawn(1) != drawn(2)


def test_the_order_of_states_is_the_same_on_every_python() -> None:
    """The digest of a sampled walk, as Python 3.11, 3.12 and 3.13 give it: no hash() and no order of a set is in it."""
    made = hashlib.blake2b(digest_size=8)
    for state in growing(60).walk(POSIX, Limits(per_cut=30), seed=7):
        made.update(f"{state.cut} {state.level} {state.lost} {state.digest}\n".encode())
    assert made.hexdigest() == "2e1095b86c19aeb5"


def test_what_nothing_can_reach_is_forgotten() -> None:
    """A file that is durably gone leaves no unit, no variable and no node behind."""
    from crashtest.persist.history import History

    disk = Disk().start()
    for number in range(50):
        disk.mkdir("d")
        disk.create("d/f", b"%d" % number * 400)
        disk.fsync("d")
        disk.unlink("d/f")
        disk.rmdir("d")
        disk.fsync("")
    history = History(disk.first, disk.events, POSIX)
    for _ in disk.events:
        history.step()
    assert (len(history.window), len(history.variables), len(history.groups)) == (0, 0, 0)
    assert list(history.live.tree.nodes) == list(history.base.tree.nodes) == [0]
    assert history.live.unnamed == history.base.unnamed == {}


# -- one state again ---------------------------------------------------------------------------------------------------


def test_a_loss_of_another_trace_is_refused() -> None:
    disk = replacing()
    with pytest.raises(HarnessError, match="unit 7 of event 0 cannot be lost at cut 3 under posix"):
        state_of(disk.first, disk.events, 3, [(0, 7)])


def test_a_trace_that_does_not_fit_is_refused() -> None:
    disk = replacing()
    disk.events.append(Op("unlink", 9, 0, "nowhere", call="unlink", path="nowhere"))
    with pytest.raises(HarnessError, match=r"event 5 of the trace does not fit .*unlink\(nowhere\)"):
        list(disk.walk(POSIX))


def test_a_loss_is_reduced_to_the_units_that_matter() -> None:
    disk = growing(6)
    asked: list[str] = []

    def bad(lost: list[Name], tree: Tree) -> bool:
        """The third piece is not there, although the file is long enough."""
        asked.append(tree.digest())
        data = tree.content(disk.file("f"))
        return len(data) == 3600 and b"002" not in bytes(data[1200:1800])

    units = window_at(disk.first, disk.events, 6)
    lost = [unit.name for unit in units if unit.kind == "data"]
    left = reduced(disk.first, disk.events, 6, lost, POSIX, bad)
    told = [describe(unit) for unit in units if unit.name in left]
    assert told == [
        "the data of f (336 bytes at 1200)",
        "the data of f (264 bytes at 1536)",
        "the data of f (248 bytes at 1800)",
    ]
    assert len(asked) == len(set(asked)), "a tree is asked for once"
    assert left == reduced(disk.first, disk.events, 6, lost, POSIX, bad)


def test_a_reduced_loss_keeps_what_is_kept_possible() -> None:
    """Both halves of a rename are lost, and only the removal needs the other: the new name alone stays lost."""
    disk = Disk()
    disk.mkdir("x")
    disk.mkdir("y")
    disk.create("x/f", b"1")
    disk.start()
    disk.create("noise")
    disk.rename("x/f", "y/f")

    def bad(lost: list[Name], tree: Tree) -> bool:
        return "x/f" in tree.names()

    assert reduced(disk.first, disk.events, 2, [(0, 0), (1, 0), (1, 1)], POSIX, bad) == [(1, 1)]


def test_limits_are_generous_where_a_trace_is_small() -> None:
    assert Limits() < EVERYTHING
    walk = replacing().walk(POSIX, Limits())
    list(walk)
    assert walk.coverage.exhaustive


@pytest.mark.parametrize("which", [0, 1, 2])
def test_dropping_a_sync_adds_exactly_the_states_that_are_walked(which: int) -> None:
    disk = replacing()
    disk.fsync("f")
    disk.append("f", b"!" * 600)
    disk.fsync("f")
    disk.ack()
    disk.chmod("f", 0o600)
    syncs = [at for at, event in enumerate(disk.events) if isinstance(event, Op) and event.kind == "fsync"]
    after = [Step("dropped") if at == syncs[which] else event for at, event in enumerate(disk.events)]
    before = {(state.digest, state.acks) for state in disk.walk(POSIX)}
    everything = {(state.digest, state.acks) for state in Walk(disk.first, after, POSIX, limits=EVERYTHING)}
    losing = more_to_lose(disk.first, disk.events, after, POSIX)
    walk = Walk(disk.first, after, POSIX, limits=EVERYTHING, losing=losing)
    new = list(walk)
    assert walk.coverage.exhaustive and new
    assert {(state.digest, state.acks) for state in new} | before == everything
    assert everything - before <= {(state.digest, state.acks) for state in new}
    for state in new:
        assert losing[state.cut] & set(state.lost)


def test_what_dropping_a_sync_adds_is_counted_exactly() -> None:
    disk = Disk()
    disk.create("f", b"0" * 1024)
    disk.start()
    disk.write("f", 0, b"1" * 1024)
    disk.fsync("f")
    disk.chmod("f", 0o600)
    after = [Step("dropped") if at == 1 else event for at, event in enumerate(disk.events)]
    losing = more_to_lose(disk.first, disk.events, after, POSIX)
    assert losing == {2: {(0, 0), (0, 1)}, 3: {(0, 0), (0, 1)}}
    walk = Walk(disk.first, after, POSIX, limits=EVERYTHING, losing=losing)
    # the mode is kept, and at least one of two sectors is lost
    assert len(list(walk)) == 3
    assert (walk.coverage.losses, walk.coverage.exhaustive) == (3, True)


def test_no_unit_of_a_pass_is_left_when_the_next_begins() -> None:
    """Without the collector: what waits for it stands beside the next pass, and a long window is most of the memory."""

    def units() -> int:
        return sum(isinstance(one, Unit) for one in gc.get_objects())

    disk = growing(20)
    gc.collect()
    before = units()
    gc.disable()
    try:
        window, alive, level = 0, 0, 0
        for state in disk.walk(POSIX, Limits(64, 400)):
            if state.level != level:
                level, alive = state.level, max(alive, units() - before)
            window = max(window, len(list(window_at(disk.first, disk.events, state.cut, POSIX))))
            gc.collect()
        left = units() - before
    finally:
        gc.enable()
    assert level > 2 and 0 < alive <= window
    assert left == 0
