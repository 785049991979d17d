"""The models of real file systems: what each allows of every row is written down, and each rule of theirs is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from crashtest.persist.filesystems import BTRFS, EXT4, EXT4_LOCK, EXT4_NODA, MODELS, XFS, ext4_durable
from crashtest.persist.models import KILL, POSIX, Model, posix_durable
from crashtest.persist.realfs import FILE_SYSTEMS
from crashtest.scenario import DEFAULT_MODELS
from crashtest.scenario import MODELS as NAMES
from crashtest.scenario import REAL as REAL_NAMES
from crashtest.trace import PAGE
from tests.rows import NEW, OLD, ROWS, Row, close, durable, golden, outcomes, two_directories
from tests.traces import Disk

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "outcomes.txt"
REAL = [EXT4_LOCK, EXT4, EXT4_NODA, XFS, BTRFS]
EXT = ["ext4-lock", "ext4", "ext4-noda"]
ALL = [*EXT, "xfs", "btrfs"]

#: where what was measured excludes something that posix allows; elsewhere a longer wait shows all of it
STRONGER: dict[str, list[str]] = {
    "created_and_synced": ALL,
    "replaced_without_sync": ["ext4-lock", "ext4"],
    "replaced_with_directory_sync": ["ext4-lock", "ext4"],
    "replaced_with_another_file_synced": ["ext4-lock", "ext4"],
    "synced_and_renamed": ALL,
    "truncated_and_rewritten": ALL,
    "two_files_the_second_synced": ALL,
    "unlinked_another_file_synced": [*EXT, "xfs"],
    "renamed_another_file_synced": [*EXT, "xfs"],
    "full_length_of_zeros": ALL,
    "renamed_then_clean_directory_synced": EXT,
    "replaced_then_done_logged": ALL,
    "renamed_across_then_new_directory_synced": [*EXT, "xfs"],
    "rewritten_without_close": ALL,
}


def test_what_each_model_allows_of_each_row_is_written_down() -> None:
    """To write it anew: python -m tests.rows > tests/golden/outcomes.txt, and read the difference."""
    assert golden() == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_each_model_is_a_part_of_posix_and_a_proper_one_where_it_was_measured(row: Callable[[], Row]) -> None:
    disk, _ = row()
    weakest = set(outcomes(disk, POSIX))
    for model in REAL:
        assert set(outcomes(disk, model)) <= weakest, model.name
    assert set(outcomes(disk, KILL)) <= weakest
    stronger = [model.name for model in REAL if set(outcomes(disk, model)) < weakest]
    assert stronger == STRONGER.get(row.__name__, [])


def test_the_options_know_all_models_and_try_two() -> None:
    assert list(MODELS) == list(NAMES)
    assert set(DEFAULT_MODELS) == {"kill", "posix"}
    assert {f"real-{made.name}": made.model for made in FILE_SYSTEMS.values()} == REAL_NAMES


# -- rules -------------------------------------------------------------------------------------------------------------


def in_order() -> Disk:
    """Three names and an attribute, none synced."""
    disk = durable(a=OLD, c=b"")
    disk.rename("a", "b")
    disk.chmod("c", 0o600)
    disk.unlink("c")
    disk.create("d")
    return disk


@pytest.mark.parametrize("model", REAL, ids=lambda model: model.name)
def test_names_and_attributes_survive_as_a_beginning(model: Model) -> None:
    disk = in_order()
    trees = {disk.tree_at(cut).digest() for cut in range(len(disk.events) + 1)}
    assert {tree.digest() for tree in disk.at_end(model)} == trees


@pytest.mark.parametrize("model", [EXT4_LOCK, EXT4, EXT4_NODA, XFS], ids=lambda model: model.name)
def test_a_sync_brings_the_journal_before_what_it_waits_for_and_not_what_is_after(model: Model) -> None:
    disk = durable(a=OLD, f=b"")
    disk.unlink("a")
    disk.chmod("f", 0o600)
    disk.create("later")
    disk.fsync("f")
    assert outcomes(disk, model) == ["f EMPTY", "f EMPTY, later EMPTY"]


def test_a_size_is_kept_with_all_that_was_issued_before_the_write() -> None:
    disk = durable(a=OLD, f=b"")
    disk.unlink("a")
    disk.append("f", NEW)
    disk.create("later")
    for model in (EXT4, XFS):
        found = outcomes(disk, model)
        assert "a OLD, f EMPTY" in found
        assert "f NEW" in found
        assert "f EMPTY, later EMPTY" in found
        assert not [one for one in found if one.startswith("a OLD, f NEW")]


def test_a_file_grows_page_by_page() -> None:
    disk = durable(f=b"")
    disk.append("f", b"x" * (2 * PAGE + 5))
    for model in (*REAL, POSIX):
        found = outcomes(disk, model)
        whole = [one for one in found if "zeros" not in one]
        assert whole == ["f 4096 x", "f 8192 x", "f 8197 x", "f EMPTY"], model.name


def test_a_truncation_may_clear_the_rest_of_its_page_before_its_size_is_kept() -> None:
    disk = durable(f=b"x" * (2 * PAGE))
    disk.truncate("f", 1000)
    for model in (*REAL, POSIX):
        assert outcomes(disk, model) == ["f 1000 x", "f 1000 x 3096 zeros 4096 x", "f 8192 x"], model.name


def test_a_truncation_is_kept_without_the_write_that_it_cut() -> None:
    disk = durable(f=b"")
    disk.append("f", b"x" * 100)
    disk.truncate("f", 3)
    for model in (*REAL, POSIX):
        assert {"f 3 zeros", "f 3 x"} <= set(outcomes(disk, model)), model.name


def test_ext4_closes_bring_the_size_of_a_file_that_was_cut_to_nothing() -> None:
    disk = durable(f=OLD)
    disk.truncate("f", 0)
    disk.append("f", NEW)
    opened = {model.name: outcomes(disk, model) for model in REAL}
    disk.create("later")
    close(disk, "f")
    disk.create("after")
    for model in REAL:
        with_after = [one for one in outcomes(disk, model) if one.startswith("after")]
        wanted = {"ext4-lock": ["NEW"], "ext4": ["1500 zeros", "NEW"]}.get(model.name, ["1500 zeros", "EMPTY", "NEW"])
        assert with_after == [f"after EMPTY, f {content}, later EMPTY" for content in wanted]
        assert "f EMPTY" in opened[model.name]


def test_an_append_within_a_page_is_not_brought_by_a_replacement() -> None:
    """Seen on ext4: the page had its place on the disk already, so nothing was written back before the rename."""
    disk = durable(f=OLD)
    disk.create("temp", b"a" * 5)
    disk.append("temp", b"b" * 5)
    disk.rename("temp", "f")
    disk.fsync("")
    assert "f 5 a 5 zeros" in outcomes(disk, EXT4_LOCK)
    assert "f 5 a 5 b" in outcomes(disk, EXT4_LOCK)
    assert "f EMPTY" not in outcomes(disk, EXT4_LOCK)


def test_btrfs_logs_a_synced_file_with_its_new_directories_and_without_what_was_before() -> None:
    disk = durable(a=OLD)
    disk.unlink("a")
    disk.mkdir("d")
    disk.create("d/f", NEW)
    disk.fsync("d/f")
    assert outcomes(disk, BTRFS) == ["a OLD, d/, d/f NEW", "d/, d/f NEW"]


def test_btrfs_may_log_a_rename_of_what_was_synced_with_the_next_sync_of_anything() -> None:
    disk = durable(a=OLD, log=b"")
    disk.fsync("a")
    disk.unlink("log")
    disk.rename("a", "b")
    assert "b OLD, log EMPTY" in outcomes(disk, BTRFS)
    assert "b OLD, log EMPTY" not in outcomes(disk, XFS)


# -- each rule is needed -----------------------------------------------------------------------------------------------


def weaker(model: Model) -> dict[str, Model]:
    """The model without one of its rules."""
    made = {
        f"no {rule.__name__}": model._replace(needs=tuple(r for r in model.needs if r is not rule))
        for rule in model.needs
    }
    made["posix syncs"] = model._replace(durable=posix_durable)
    if model.order:
        made["no order"] = model._replace(order=())
    if model.whole_renames:
        made["half renames"] = model._replace(whole_renames=False)
    if model.flushed:
        made["nothing flushed"] = model._replace(flushed=())
    return made


def told(model: Model) -> list[list[str]]:
    disks = [row()[0] for row in ROWS] + [in_order()]
    disk = two_directories()
    disk.mkdir("z")
    disk.create("z/new", NEW)
    disk.rename("x/f", "z/f")
    disk.fsync("z/new")
    rewritten = durable(f=OLD)
    rewritten.truncate("f", 0)
    rewritten.append("f", NEW)
    empty = durable()
    empty.create("e")
    empty.fsync("e")
    moved = two_directories()
    moved.fsync("x")
    moved.rename("x/f", "y/f")
    moved.fsync("x")
    return [outcomes(one, model) for one in [*disks, disk, rewritten, empty, moved]]


@pytest.mark.parametrize("model", REAL, ids=lambda model: model.name)
def test_each_rule_makes_a_difference(model: Model) -> None:
    whole = told(model)
    same = [name for name, without in weaker(model).items() if told(without) == whole]
    assert same == []


def test_only_ext4_commits_all_with_a_clean_directory() -> None:
    assert EXT4.durable is ext4_durable
    disk = Disk()
    disk.create("a", OLD)
    disk.mkdir("d")
    disk.start()
    disk.rename("a", "b")
    disk.fsync("d")
    assert {model.name: len(outcomes(disk, model)) for model in REAL} == {
        "ext4-lock": 1, "ext4": 1, "ext4-noda": 1, "xfs": 2, "btrfs": 2,
    }  # fmt: skip
