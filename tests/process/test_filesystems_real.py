"""The models against the real file systems: every row, and a sample of generated programs (`tests.realcuts`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from crashtest.persist.filesystems import MODELS
from crashtest.persist.player import Background
from crashtest.persist.realfs import FILE_SYSTEMS, Cut, Disks, missing
from crashtest.trace import Op
from tests import realcuts
from tests.realcuts import allows, rows_left
from tests.rows import ROWS, Row, close, durable, words

pytestmark = [pytest.mark.privileged, pytest.mark.slow]


@pytest.fixture(scope="module")
def disks() -> Iterator[Disks]:
    with Disks() as made:
        yield made


@pytest.fixture(scope="module", params=sorted(FILE_SYSTEMS))
def name(request: pytest.FixtureRequest) -> str:
    reason = missing(request.param)
    if reason:
        pytest.skip(reason)
    return str(request.param)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_what_is_left_of_each_row_is_allowed(disks: Disks, name: str, row: Callable[[], Row]) -> None:
    """At once, and after the kernel has written back and committed, which it does at its own time."""
    disk, _ = row()
    model = MODELS[FILE_SYSTEMS[name].model]
    left = rows_left(disks, name, disk)
    assert [words(tree) for tree in left if not allows(model, disk, len(disk.events), tree)] == []


def test_what_is_left_of_generated_programs_is_allowed(disks: Disks, name: str) -> None:
    found = realcuts.run(disks, name, range(40), seed=0)
    assert found.wrong == []
    assert found.cuts["cuts"] > 60
    assert found.cuts["too many ways"] == found.cuts["too many ways under posix"] == 0


def test_a_model_that_is_too_strong_is_found_out(disks: Disks, name: str) -> None:
    """That nothing is lost is not true of any of them."""
    disk = durable()
    disk.create("f", b"x")
    [tree] = disks.cut(name, disk.first, disk.events, [Cut(len(disk.events))])
    assert words(tree) == "nothing"
    assert allows(MODELS["kill"], disk, len(disk.events), tree) is False


def test_ext4_shows_zeros_where_its_data_are_not_readable_yet(disks: Disks) -> None:
    """Why `ext4` is weaker than `ext4-lock`: data go to unwritten extents, which a later commit makes readable. It is a
    race in the kernel, so only what must not be there is held here: an empty file, or the old one."""
    reason = missing("ext4")
    if reason:
        pytest.skip(reason)
    for name, allowed in (("ext4", {"f NEW", "f 1500 zeros"}), ("ext4-lock", {"f NEW"})):
        seen = set()
        for _ in range(10):
            disk = durable(f=b"old")
            disk.truncate("f", 0)
            disk.append("f", b"new! " * 300)
            close(disk, "f")
            disk.fsync("")
            seen.add(words(disks.cut(name, disk.first, disk.events, [Cut(len(disk.events))])[0]))
        assert seen <= allowed


def test_an_append_within_a_page_is_not_brought_by_a_replacement(disks: Disks) -> None:
    """The row that was mended: with the page on the disk, nothing is written back before the rename."""
    reason = missing("ext4-lock")
    if reason:
        pytest.skip(reason)
    disk = durable(f=b"old")
    disk.create("temp", b"a" * 5)
    disk.append("temp", b"b" * 5)
    disk.rename("temp", "f")
    disk.fsync("")
    made = disk.events[0]
    assert isinstance(made, Op)
    played = [*disk.events[:2], Background("writeback", made.file), *disk.events[2:]]
    [tree] = disks.cut("ext4-lock", disk.first, played, [Cut(len(played))])
    assert words(tree) == "f 5 a 5 zeros"
    assert allows(MODELS["ext4-lock"], disk, len(disk.events), tree)
