"""The rows of what was measured on real file systems: what a program did, and what a power cut at its end left.

Each row is a trace and the outcomes that were seen on ext4, ext4 with noauto_da_alloc, xfs and btrfs. Contents are less
than a page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from crashtest.persist.filesystems import MODELS
from crashtest.persist.models import Model
from crashtest.persist.tree import Tree
from crashtest.trace import PAGE, Op
from tests.traces import Disk, shown

OLD, NEW, LOG = b"old " * 300, b"new! " * 300, b"log entry\n"
Content = dict[str, bytes | str]
Row = tuple[Disk, list[Content]]


def durable(**files: bytes) -> Disk:
    disk = Disk()
    for name, data in files.items():
        disk.create(name, data)
    return disk.start()


def close(disk: Disk, path: str) -> None:
    disk.events.append(Op("close", disk.file(path), call="close", path=path, began=len(disk.events)))


def created() -> Row:
    disk = durable()
    disk.create("f", NEW)
    return disk, [{}]


def created_and_synced() -> Row:
    disk = durable()
    disk.create("f", NEW)
    disk.fsync("f")
    return disk, [{"f": NEW}]


def replaced(*syncs: str, other: bool = False, target: str = "f") -> Disk:
    disk = durable(f=OLD, other=b"") if target == "f" else durable(other=b"")
    if other:
        disk.write("other", 0, b"x")
    disk.create("temp", NEW)
    if "temp" in syncs:
        disk.fsync("temp")
    close(disk, "temp")
    disk.rename("temp", target)
    if "directory" in syncs:
        disk.fsync("")
    if "other" in syncs:
        disk.fsync("other")
    return disk


def replaced_without_sync() -> Row:
    return replaced(), [{"f": OLD, "other": b""}]


def replaced_with_directory_sync() -> Row:
    return replaced("directory"), [{"f": NEW, "other": b""}, {"f": b"", "other": b""}]


def replaced_with_another_file_synced() -> Row:
    rest: Content = {"other": b"x"}
    return replaced("other", other=True), [{"f": NEW, **rest}, {"f": b"", **rest}, {"f": OLD, **rest}]


def renamed_to_a_new_name_with_directory_sync() -> Row:
    return replaced("directory", target="new"), [{"new": b"", "other": b""}]


def synced_and_renamed() -> Row:
    return replaced("temp"), [{"f": OLD, "temp": NEW, "other": b""}]


def replaced_by_the_book() -> Row:
    return replaced("temp", "directory"), [{"f": NEW, "other": b""}]


def rewritten(disk: Disk) -> None:
    disk.truncate("f", 0)
    disk.write("f", 0, NEW)


def truncated_and_rewritten(closed: bool = True) -> Row:
    disk = durable(f=OLD, other=b"")
    rewritten(disk)
    if closed:
        close(disk, "f")
    disk.write("other", 0, b"x")
    disk.fsync("other")
    return disk, [{"f": NEW, "other": b"x"}, {"f": b"", "other": b"x"}, {"f": OLD, "other": b"x"}]


def two_files_the_second_synced() -> Row:
    disk = durable()
    disk.create("a", NEW)
    disk.create("b", NEW)
    disk.fsync("b")
    return disk, [{"a": b"", "b": NEW}, {"b": NEW}]


def appended() -> Row:
    disk = durable(f=OLD, other=b"")
    disk.append("f", NEW)
    disk.write("other", 0, b"x")
    disk.fsync("other")
    return disk, [{"f": OLD, "other": b"x"}]


def overwritten_in_place() -> Row:
    disk = durable(f=OLD, other=b"")
    disk.write("f", 0, NEW[: len(OLD)])
    disk.write("other", 0, b"x")
    disk.fsync("other")
    return disk, [{"f": OLD, "other": b"x"}]


def unlinked_another_file_synced() -> Row:
    disk = durable(f=OLD, other=b"")
    disk.unlink("f")
    disk.write("other", 0, b"x")
    disk.fsync("other")
    return disk, [{"other": b"x"}, {"f": OLD, "other": b"x"}]


def renamed_another_file_synced() -> Row:
    disk = durable(f=OLD, other=b"")
    disk.rename("f", "g")
    disk.write("other", 0, b"x")
    disk.fsync("other")
    return disk, [{"g": OLD, "other": b"x"}, {"f": OLD, "other": b"x"}]


def unlinked() -> Row:
    disk = durable(f=OLD)
    disk.unlink("f")
    return disk, [{"f": OLD}]


def renamed() -> Row:
    disk = durable(f=OLD)
    disk.rename("f", "g")
    return disk, [{"f": OLD}]


def third_page_written_back() -> Row:
    disk = durable(f=b"")
    disk.append("f", b"1" * PAGE)
    disk.append("f", b"2" * PAGE)
    disk.append("f", b"3" * PAGE)
    disk.sync("sync_file_range", "f", 2 * PAGE, PAGE)
    return disk, [{"f": bytes(2 * PAGE) + b"3" * PAGE}]


def full_length_of_zeros() -> Row:
    disk = durable(f=OLD)
    rewritten(disk)
    close(disk, "f")
    disk.fsync("")
    return disk, [{"f": bytes(len(NEW))}]


def new_file_after_a_while() -> Row:
    disk = durable()
    disk.create("f", NEW)
    return disk, [{"f": b""}]


def renamed_then_log_synced() -> Row:
    disk = durable(a=OLD, log=bytes(PAGE))
    disk.rename("a", "b")
    disk.write("log", 0, LOG)
    disk.fdatasync("log")
    return disk, [{"a": OLD, "log": LOG.ljust(PAGE, b"\0")}]


def renamed_then_clean_file_synced() -> Row:
    disk = durable(a=OLD, clean=b"")
    disk.rename("a", "b")
    disk.fsync("clean")
    return disk, [{"a": OLD, "clean": b""}]


def renamed_then_clean_directory_synced() -> Row:
    disk = Disk()
    disk.create("a", OLD)
    disk.mkdir("d")
    disk.start()
    disk.rename("a", "b")
    disk.fsync("d")
    return disk, [{"b": OLD, "d/": b""}, {"a": OLD, "d/": b""}]


def replaced_then_done_logged() -> Row:
    disk = durable(f=OLD, log=bytes(PAGE))
    disk.create("temp", NEW)
    disk.fsync("temp")
    disk.rename("temp", "f")
    disk.write("log", 0, b"DONE")
    disk.fdatasync("log")
    done = b"DONE".ljust(PAGE, b"\0")
    return disk, [{"f": OLD, "log": done, "temp": NEW}, {"f": NEW, "log": done}]


def renamed_across_then_new_directory_synced() -> Row:
    disk = two_directories()
    disk.rename("x/f", "y/f")
    disk.fsync("y")
    return disk, [{"x/": b"", "y/": b"", "y/f": OLD}, {"x/": b"", "x/f": OLD, "y/": b"", "y/f": OLD}]


def rewritten_without_close() -> Row:
    disk, _ = truncated_and_rewritten(closed=False)
    return disk, [{"f": b"", "other": b"x"}, {"f": OLD, "other": b"x"}]


def two_directories() -> Disk:
    disk = Disk()
    disk.mkdir("x")
    disk.mkdir("y")
    disk.create("x/f", OLD)
    return disk.start()


ROWS: list[Callable[[], Row]] = [
    created,
    created_and_synced,
    replaced_without_sync,
    replaced_with_directory_sync,
    replaced_with_another_file_synced,
    renamed_to_a_new_name_with_directory_sync,
    synced_and_renamed,
    replaced_by_the_book,
    truncated_and_rewritten,
    two_files_the_second_synced,
    appended,
    overwritten_in_place,
    unlinked_another_file_synced,
    renamed_another_file_synced,
    unlinked,
    renamed,
    third_page_written_back,
    full_length_of_zeros,
    new_file_after_a_while,
    renamed_then_log_synced,
    renamed_then_clean_file_synced,
    renamed_then_clean_directory_synced,
    replaced_then_done_logged,
    renamed_across_then_new_directory_synced,
    rewritten_without_close,
]


# -- the outcomes that the models allow, in words ----------------------------------------------------------------------


def outcomes(disk: Disk, model: Model) -> list[str]:
    """All that a crash at the end may leave, sorted. A page is written whole, so that the list can be read."""
    return sorted({words(tree) for tree in disk.at_end(model._replace(tear=PAGE))})


def words(tree: Tree) -> str:
    """`f NEW, other 1 B`: each name with its content."""
    named = [path if path.endswith("/") else f"{path} {_content(data)}" for path, data in shown(tree).items()]
    return ", ".join(named) or "nothing"


_KNOWN = {OLD: "OLD", NEW: "NEW", OLD + NEW: "OLD+NEW", NEW[: len(OLD)]: "OVERWRITTEN", b"": "EMPTY"}


def _content(data: bytes | str) -> str:
    if isinstance(data, str):
        return f"-> {data}"
    if data in _KNOWN:
        return _KNOWN[data]
    parts = []
    while data:
        known = next((known for known in (OLD, NEW) if data.startswith(known)), b"")
        run = known or data[: len(data) - len(data.lstrip(data[:1]))]
        count = len(run)
        parts.append(_KNOWN[known] if known else f"{count} {'zeros' if not data[0] else chr(data[0])}")
        data = data[count:]
        if len(parts) > 5:
            return f"{' '.join(parts)} ..."
    return " ".join(parts)


def golden() -> str:
    """The golden file: each row, and what each model allows."""
    lines = ["# What a power cut at the end may leave, by row and model: all of it, one outcome a line.", ""]
    for row in ROWS:
        disk, _ = row()
        lines.append(row.__name__.replace("_", " "))
        lines += [f"    {event.describe()}" for event in disk.events]
        for name, model in MODELS.items():
            lines.append(f"  {name}")
            lines += [f"    - {one}" for one in outcomes(disk, model)]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(golden())
