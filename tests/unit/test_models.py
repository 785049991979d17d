"""The persistence models: what filesystems were seen to leave is allowed, what posix promises is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashtest.persist.filesystems import MODELS
from crashtest.persist.history import History
from crashtest.persist.models import COVERS, KILL, POSIX, Model, Unit, barrier, describe, posix_durable
from crashtest.persist.states import window_at
from crashtest.persist.tree import Tree
from crashtest.trace import PAGE, Op
from tests.rows import NEW, OLD, ROWS, Content, Row, durable, third_page_written_back, two_directories
from tests.traces import Disk, shown


def left(disk: Disk, model: Model = POSIX) -> list[Content]:
    """What a crash at the end may leave."""
    return [shown(tree) for tree in disk.at_end(model)]


# -- what was seen on real file systems (`tests.rows`) -----------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_posix_allows_what_filesystems_were_seen_to_leave(row: Callable[[], Row]) -> None:
    disk, seen = row()
    if row is third_page_written_back:  # 24 sectors: too many for all their subsets, so this one is asked for
        units = window_at(disk.first, disk.events, len(disk.events))
        lost = [unit.name for unit in units if unit.kind == "data" and unit.offset < 2 * PAGE]
        assert [shown(disk.state(lost))] == seen
        return
    allowed = left(disk)
    assert [outcome for outcome in seen if outcome not in allowed] == []


# -- what posix promises -----------------------------------------------------------------------------------------------


def synced_file(model: Model) -> bool:
    disk = durable(f=OLD)
    disk.write("f", 0, NEW)
    disk.fsync("f")
    return left(disk, model) == [{"f": NEW}]


def data_synced_file(model: Model) -> bool:
    disk = durable(f=OLD)
    disk.append("f", NEW)
    disk.fdatasync("f")
    return left(disk, model) == [{"f": OLD + NEW}]


def synced_range(model: Model) -> bool:
    """As an O_DSYNC write is recorded: its own bytes and the size, not what was written before."""
    disk = durable(f=bytes(1024))
    disk.write("f", 0, b"1" * 512)
    disk.write("f", 512, b"2" * 1024)
    disk.sync("fdatasync", "f", 512, 1024)
    first = {state["f"][:512] for state in left(disk, model)}
    rest = {state["f"][512:] for state in left(disk, model)}
    return first == {bytes(512), b"1" * 512} and rest == {b"2" * 1024}


def synced_mapping(model: Model) -> bool:
    """The data of the range, and not the size that shows them."""
    disk = durable(f=b"")
    disk.truncate("f", 1024)
    disk.write("f", 0, b"1" * 1024)
    disk.sync("msync", "f", 0, 512)
    wanted = [b"", b"1" * 512 + bytes(512), b"1" * 1024]
    return sorted(state["f"] for state in left(disk, model)) == wanted


def mapping_then_size(model: Model) -> bool:
    """Data that were durable before their size are there when the size is."""
    disk = durable(f=b"")
    disk.truncate("f", 512)
    disk.write("f", 0, b"1" * 512)
    disk.sync("msync", "f")
    disk.sync("fdatasync", "f")
    return left(disk, model) == [{"f": b"1" * 512}]


def synced_directory(model: Model) -> bool:
    disk = durable(a=OLD)
    disk.create("f")
    disk.rename("a", "b")
    disk.fsync("")
    return left(disk, model) == [{"b": OLD, "f": b""}]


def data_synced_directory(model: Model) -> bool:
    disk = durable()
    disk.create("f")
    disk.fdatasync("")
    return left(disk, model) == [{"f": b""}]


def synced_attributes(model: Model) -> bool:
    disk = durable(f=OLD)
    disk.chmod("f", 0o600)
    disk.setxattr("f", "user.a", b"1")
    disk.fsync("f")
    return modes(disk, model) == {(0o600, b"1")}


def attributes_after_data_sync(model: Model) -> bool:
    disk = durable(f=OLD)
    disk.chmod("f", 0o600)
    disk.fdatasync("f")
    return modes(disk, model) == {(0o644, None), (0o600, None)}


def modes(disk: Disk, model: Model) -> set[tuple[int, bytes | None]]:
    found = [tree.nodes[disk.file("f")] for tree in disk.at_end(model)]
    return {(node.mode, node.xattrs.get("user.a")) for node in found}


def name_after_file_sync(model: Model) -> bool:
    disk = durable()
    disk.create("f", NEW)
    disk.fsync("f")
    return {} in left(disk, model) and {"f": NEW} in left(disk, model)


def whole_sync(model: Model) -> bool:
    disk = durable(f=OLD)
    disk.create("g", NEW)
    disk.write("f", 0, NEW)
    disk.sync("syncfs")
    return left(disk, model) == [{"f": NEW, "g": NEW}]


def file_range(model: Model) -> bool:
    disk = durable(f=OLD[:512])
    disk.write("f", 0, NEW[:512])
    disk.sync("sync_file_range", "f", 0, 512)
    return {"f": OLD[:512]} in left(disk, model)


def sync_under_way(model: Model) -> bool:
    """What happens after a sync has begun is not covered by it."""
    disk = durable(f=OLD[:512])
    disk.write("f", 0, NEW[:512])
    disk.sync("fsync", "f", began=0)
    return {"f": OLD[:512]} in left(disk, model)


def one_name_within(model: Model) -> bool:
    disk = durable(a=OLD)
    disk.rename("a", "b")
    return sorted(map(list, left(disk, model))) == [["a"], ["b"]]


def never_neither_across(model: Model) -> bool:
    disk = two_directories()
    disk.rename("x/f", "y/f")
    names = sorted([name for name in state if name[-1] == "f"] for state in left(disk, model))
    return names == [["x/f"], ["x/f", "y/f"], ["y/f"]]


def never_neither_in_a_new_directory(model: Model) -> bool:
    disk = two_directories()
    disk.mkdir("z")
    disk.rename("x/f", "z/f")
    return all("x/f" in state or "z/f" in state for state in left(disk, model))


def exchanged_with_a_new_directory(model: Model) -> bool:
    disk = two_directories()
    disk.mkdir("z")
    disk.create("z/g")
    disk.exchange("x/f", "z/g")
    return all(OLD in state.values() for state in left(disk, model))


def removal_synced(model: Model) -> bool:
    """The old directory alone is synced: the new name comes along."""
    disk = two_directories()
    disk.mkdir("z")
    disk.rename("x/f", "z/f")
    disk.fsync("x")
    return left(disk, model) == [{"x/": b"", "y/": b"", "z/": b"", "z/f": OLD}]


def old_name_taken_again(model: Model) -> bool:
    """A log that is rotated: the old one is there under one name or the other."""
    disk = durable(log=OLD)
    disk.rename("log", "log.1")
    disk.create("log")
    return all(OLD in state.values() for state in left(disk, model)) and len(left(disk, model)) == 3


def temporary_name_taken_again(model: Model) -> bool:
    """But a file that was never durable may be lost by it."""
    disk = durable(f=OLD)
    disk.create("temp")
    disk.rename("temp", "f")
    disk.create("temp")
    return {"f": OLD, "temp": b""} in left(disk, model)


def made_durable_after_it_was_moved(model: Model) -> bool:
    """A file gets its first durable name when a later move of it and a new file in its place are there already."""
    disk = two_directories()
    disk.create("x/t", NEW)
    disk.fsync("x/t")
    disk.rename("x/t", "y/f")
    disk.rename("y/f", "y/g")
    disk.create("y/f")
    disk.fsync("x")
    return all(NEW in state.values() for state in left(disk, model))


def emptied_directory_removed(model: Model) -> bool:
    disk = two_directories()
    disk.rename("x/f", "y/f")
    disk.rmdir("x")
    return all(OLD in state.values() for state in left(disk, model))


def directories_moved_into_each_other(model: Model) -> bool:
    disk = two_directories()
    disk.rename("x", "y/x")
    disk.rename("y/x", "x")
    disk.rename("y", "x/y")
    return all(OLD in state.values() for state in left(disk, model))


def directory_has_one_name(model: Model) -> bool:
    disk = two_directories()
    disk.rename("x", "z")
    disk.rename("z", "w")
    states = left(disk, model)
    return sorted([name for name in state if name[-1] == "f"] for state in states) == [["w/f"], ["x/f"], ["z/f"]]


def cut_off(model: Model) -> bool:
    """Whole pages that a truncation cut off do not come back when the file grows again; the rest of one page may."""
    whole = durable(f=b"x" * 2 * PAGE)
    whole.truncate("f", 0)
    whole.truncate("f", PAGE)
    if {state["f"] for state in left(whole, model)} != {b"x" * 2 * PAGE, b"", bytes(PAGE)}:
        return False
    disk = durable(f=OLD[:1024])
    disk.truncate("f", 100)
    disk.truncate("f", 600)
    cleared = {OLD[:100] + bytes(924), OLD[:100] + bytes(412) + OLD[512:1024], OLD[:512] + bytes(512)}
    grown = {OLD[:600], OLD[:100] + bytes(412) + OLD[512:600], OLD[:512] + bytes(88), OLD[:100] + bytes(500)}
    return {state["f"] for state in left(disk, model)} == {OLD[:1024], OLD[:100], *cleared, *grown}


PROMISES: list[Callable[[Model], bool]] = [
    synced_file,
    data_synced_file,
    synced_range,
    synced_mapping,
    mapping_then_size,
    synced_directory,
    data_synced_directory,
    synced_attributes,
    attributes_after_data_sync,
    name_after_file_sync,
    whole_sync,
    file_range,
    sync_under_way,
    one_name_within,
    never_neither_across,
    never_neither_in_a_new_directory,
    exchanged_with_a_new_directory,
    removal_synced,
    old_name_taken_again,
    temporary_name_taken_again,
    made_durable_after_it_was_moved,
    emptied_directory_removed,
    directories_moved_into_each_other,
    directory_has_one_name,
    cut_off,
]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise.__name__)
def test_posix_keeps_its_promises(promise: Callable[[Model], bool]) -> None:
    assert promise(POSIX)


def but(changed: Callable[[Op, Unit, bool], bool]) -> Model:
    return POSIX._replace(durable=lambda sync, unit: changed(sync, unit, posix_durable(sync, unit)))


def without(rule: str) -> Model:
    return POSIX._replace(needs=tuple(one for one in POSIX.needs if one.__name__ != rule))


def never(sync: str, kind: str) -> Model:
    return but(lambda op, unit, was: was and (op.kind, unit.kind) != (sync, kind))


def always(sync: str, kind: str) -> Model:
    return but(lambda op, unit, was: was or (op.kind, unit.kind) == (sync, kind))


MUTANTS: dict[str, Model] = {
    "fsync without data": never("fsync", "data"),
    "fsync without size": never("fsync", "size"),
    "fsync without attributes": never("fsync", "attribute"),
    "fsync without names": never("fsync", "name"),
    "fsync with the file's name": but(lambda op, unit, was: was or op.file == unit.file),
    "fdatasync without data": never("fdatasync", "data"),
    "fdatasync without size": never("fdatasync", "size"),
    "fdatasync without names": never("fdatasync", "name"),
    "fdatasync with attributes": always("fdatasync", "attribute"),
    "msync without data": never("msync", "data"),
    "msync with the size": always("msync", "size"),
    "ranges are not looked at": but(lambda op, unit, was: posix_durable(op._replace(size=0), unit)),
    "sync_file_range is a sync": always("sync_file_range", "data"),
    "syncfs without names": never("syncfs", "name"),
    "syncfs without data": never("syncfs", "data"),
    "sync of nothing": POSIX._replace(durable=lambda sync, unit: False),
    "both names may go": without("never_neither"),
    "directories out of order": without("directories_in_order"),
    "cut off comes back": without("cut_off_stays_off"),
    "moved files may go": POSIX._replace(keeps_moved=False),
    "names are never lost": but(lambda op, unit, was: was or unit.kind == "name"),
    "nothing is lost": KILL,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_each_rule_of_posix_is_held_by_a_promise(name: str) -> None:
    assert not all(promise(MUTANTS[name]) for promise in PROMISES)


@pytest.mark.parametrize("broken", ["_settle", "_resize_base"])
def test_what_the_history_keeps_for_the_model_is_needed(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a promise fails: moves become ties when their file gets durable; a durable size shows durable data."""
    instead: dict[str, Callable[..., None]] = {
        "_settle": lambda self, file: self._moves.durable.add(file),
        "_resize_base": lambda self, file, size: self.base.change(file).data.extend(bytes(size)),
    }
    monkeypatch.setattr(History, broken, instead[broken])
    assert not all(promise(POSIX) for promise in [made_durable_after_it_was_moved, mapping_then_size])


def test_kill_loses_nothing() -> None:
    disk = two_directories()
    disk.rename("x/f", "y/f")
    disk.create("x/g", NEW)
    disk.ack()
    walk = disk.walk(KILL)
    trees = [disk.tree_at(cut).digest() for cut in range(len(disk.events))]
    assert [(state.digest, state.lost) for state in walk if state.acks == 0] == [(digest, []) for digest in trees]
    assert walk.coverage.exhaustive


def test_models_are_known_by_their_names() -> None:
    assert list(MODELS) == ["kill", "ext4-lock", "ext4", "ext4-noda", "xfs", "btrfs", "posix"]
    assert all(model.name == name and model.about for name, model in MODELS.items())


# -- a model of one's own ----------------------------------------------------------------------------------------------


DOCS = Path(__file__).resolve().parents[2] / "docs" / "models.md"


def documented() -> Model:
    """The example of docs/models.md."""
    source = DOCS.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    made: dict[str, Any] = {}
    exec(source, made)
    assert isinstance(made["journal"], Model)
    return made["journal"]


def test_the_page_names_every_model_sync_and_rule() -> None:
    page = DOCS.read_text(encoding="utf-8")
    rules = [rule.__name__ for rule in POSIX.needs]
    for word in [*MODELS, *COVERS, *rules, "keeps_moved"]:
        assert word in page, word


def test_a_journal_is_two_rules() -> None:
    """Metadata as a prefix of its history, and a kept page means a size that reaches its end."""
    journal = documented()
    disk = durable(a=OLD[:512], b=b"")
    disk.append("b", b"1" * 512)
    disk.rename("a", "c")
    disk.append("b", b"2" * 512)
    found = left(disk, journal)
    sizes = sorted({(len(state["b"]), "c" in state) for state in found})
    assert sizes == [(0, False), (512, False), (512, True), (1024, True)]
    assert len(found) == 1 + 2 + 2 + 4
    disk.fsync("c")
    assert left(disk, journal) == found  # nothing of c itself is there to commit
    disk.fsync("")
    assert {len(state["b"]) for state in left(disk, journal)} == {512, 1024}


def test_a_later_durable_value_stands_over_an_earlier_one_that_is_not() -> None:
    """A model may pin the second write to a sector and leave the first in the window."""
    second = POSIX._replace(durable=lambda sync, unit: unit.event == 1, needs=(), local=False)
    disk = durable(f=b"0" * 512)
    disk.write("f", 0, b"1" * 512)
    disk.write("f", 0, b"2" * 512)
    disk.sync("sync")
    assert left(disk, second) == [{"f": b"2" * 512}]


# -- in words ----------------------------------------------------------------------------------------------------------


def test_units_and_their_barriers_in_words() -> None:
    disk = Disk()
    disk.mkdir("x")
    disk.mkdir("y")
    for path in ("log", "a.tmp", "x/f", "gone"):
        disk.create(path)
    disk.start()
    disk.append("log", b"1" * 700)
    disk.rename("a.tmp", "a")
    disk.rename("x/f", "y/f")
    disk.chmod("log", 0o600)
    disk.chown("log", 5, 0o600)
    disk.setxattr("log", "user.a", b"1")
    disk.unlink("gone")
    disk.link("log", "x/other")
    disk.truncate("log", 0)
    told = []
    for unit in window_at(disk.first, disk.events, len(disk.events)):
        needed = barrier(unit, POSIX)
        assert needed is not None
        told.append((describe(unit), needed.call, needed.path))
    assert told == [
        ("the size of log (0 -> 700)", "fsync", "log"),
        ("the data of log (512 bytes at 0)", "fsync", "log"),
        ("the data of log (188 bytes at 512)", "fsync", "log"),
        ("the name a.tmp -> a (rename)", "fsync of the directory", "."),
        ("the new name y/f", "fsync of the directory", "y"),
        ("the removal of the old name x/f", "fsync of the directory", "x"),
        ("the mode of log", "fsync", "log"),
        ("the owner of log", "fsync", "log"),
        ("the attribute user.a of log", "fsync", "log"),
        ("the removal of the name gone", "fsync of the directory", "."),
        ("the name x/other", "fsync of the directory", "x"),
        ("the size of log (700 -> 0)", "fsync", "log"),
    ]


def test_a_barrier_is_what_the_model_itself_says() -> None:
    disk = durable()
    disk.create("f", NEW)
    (name, *_) = window_at(disk.first, disk.events, 1)
    own = POSIX._replace(durable=lambda sync, unit: posix_durable(sync, unit) or sync.file == unit.file)
    found = [barrier(name, model) for model in (POSIX, own, POSIX._replace(durable=lambda sync, unit: False))]
    assert [made and (made.call, made.path) for made in found] == [
        ("fsync of the directory", "."),
        ("fsync of the directory", "."),
        None,
    ]
    only_file = POSIX._replace(durable=lambda sync, unit: sync.file == unit.file)
    made = barrier(name, only_file)
    assert made is not None
    assert (made.call, made.path) == ("fsync", "f")


def test_a_tree_is_shared_and_not_changed(tmp_path: Any) -> None:
    """States share nodes with the walk, which goes on; their trees stay what they were."""
    disk = durable(f=OLD)
    disk.write("f", 0, b"1" * 512)
    disk.append("f", b"2" * 512)
    disk.create("g", NEW)
    disk.unlink("f")
    states = list(disk.walk(POSIX))
    assert all(Tree.from_plain(state.tree.to_plain()).digest() == state.digest for state in states)
