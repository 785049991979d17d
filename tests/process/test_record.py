"""The record proves itself: applied to the first state it gives the last one, on ordinary programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashtest.trace import Ack, Op, Step, from_plain

PROGRAMS = Path(__file__).parent / "programs" / "recorded.py"
#: at least so many changes must have been recorded, so that an empty record cannot pass
LEAST = {
    "git_commit": 30,
    "git_gc": 30,
    "sqlite_delete": 50,
    "sqlite_wal": 50,
    "python_files": 70,
    "shell_tools": 60,
    "eight_threads": 350,
}
Prepare = Callable[[Path, str], dict[str, Any]]


@pytest.mark.parametrize("program", LEAST)
def test_record_applied_to_the_first_state_gives_the_last_one(prepare: Prepare, program: str) -> None:
    facts = prepare(PROGRAMS, program)
    events = [from_plain(event) for event in facts["events"]]
    assert facts["problem"] == ""
    assert facts["proof"] == []
    assert facts["unmodelled"] == []
    assert facts["outside"] == []
    assert sum(isinstance(event, Op) and event.changes for event in events) >= LEAST[program]
    assert isinstance(events[-1], Ack)


def test_eight_threads_are_told_apart(prepare: Prepare) -> None:
    events = [from_plain(event) for event in prepare(PROGRAMS, "eight_threads")["events"]]
    assert len({event.thread for event in events if isinstance(event, Op) and event.kind == "rename"}) == 9


def test_a_missed_change_is_seen_by_the_proof(prepare: Prepare, write_scenario: Callable[[str], Path]) -> None:
    """A private mapping made shared-writable behind the filter's back: not recorded, so not proven."""
    file = write_scenario(
        """
        import ctypes, mmap

        @scenario(setup={"data": b"a" * 4096})
        def sneaks(run: Run) -> None:
            (run.dir / "other").write_text("x")
            fd = os.open(run.dir / "data", os.O_RDWR)
            shared = mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
            libc = ctypes.CDLL(None)
            libc.mmap.restype = ctypes.c_void_p
            at = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
            libc.mprotect(ctypes.c_void_p(at), 4096, mmap.PROT_READ | mmap.PROT_WRITE)
            ctypes.memset(at, ord("b"), 10)
            run.ack()

        @sneaks.observe
        def look(directory: Path) -> bytes:
            return (directory / "data").read_bytes()[:10]
        """
    )
    facts = prepare(file, "sneaks")
    assert "data: content differs at byte 0" in facts["problem"]
    assert "mprotect" in facts["problem"]


def test_named_steps_acks_and_calls_stand_in_their_order(
    prepare: Prepare, write_scenario: Callable[[str], Path]
) -> None:
    file = write_scenario(
        """
        import sys

        @scenario
        def steps(run: Run) -> None:
            sys.audit("story.before", run.dir)
            (run.dir / "a").write_text("a")
            sys.audit("story.middle")
            os.rename(run.dir / "a", run.dir / "b")
            run.ack("done")

        @steps.observe
        def look(directory: Path) -> list[str]:
            return sorted(os.listdir(directory))
        """
    )
    events = [from_plain(event) for event in prepare(file, "steps")["events"]]
    assert [event.describe() for event in events] == [
        "step story.before",
        "openat(a)",
        "write(a, 1 bytes at 0)",
        "step story.middle",
        "rename(a -> b)",
        "ack 1",
    ]
    assert events[-1] == Ack(1, False, '"done"', 0, events[-1].where)
    assert all("story.py:" in event.where for event in events), [event.where for event in events]
    assert isinstance(events[0], Step)


def test_a_call_that_failed_makes_no_event(prepare: Prepare, write_scenario: Callable[[str], Path]) -> None:
    file = write_scenario(
        """
        import contextlib

        @scenario(setup={"full/file": b"x"})
        def fails(run: Run) -> None:
            for call, words in ((os.rmdir, ["full"]), (os.unlink, ["none"]), (os.rename, ["none", "b"]),
                                (os.mkdir, ["full"]), (os.link, ["full", "b"]), (os.truncate, ["none", 1])):
                with contextlib.suppress(OSError):
                    call(*[run.dir / w if isinstance(w, str) else w for w in words])
            with contextlib.suppress(OSError):
                os.open(run.dir / "full/file", os.O_CREAT | os.O_EXCL)
            with contextlib.suppress(OSError):
                os.open(run.dir / "none/file", os.O_CREAT)
            with contextlib.suppress(OSError):
                os.write(os.open(run.dir / "full/file", os.O_RDONLY), b"y")
            (run.dir / "c").write_text("")
            run.ack()

        @fails.observe
        def look(directory: Path) -> list[str]:
            return sorted(os.listdir(directory))
        """
    )
    facts = prepare(file, "fails")
    changes = [e for e in map(from_plain, facts["events"]) if isinstance(e, Op) and e.changes]
    assert [change.describe() for change in changes] == ["openat(c)"]


def test_changes_outside_are_listed_and_io_uring_is_named(
    prepare: Prepare, write_scenario: Callable[[str], Path], tmp_path: Path
) -> None:
    file = write_scenario(
        f"""
        import ctypes

        @scenario
        def outside(run: Run) -> None:
            Path({str(tmp_path / "elsewhere")!r}).write_text("x")
            (run.dir / "a").write_text("a")
            ctypes.CDLL(None).syscall(425, 0, None)
            run.ack()

        @outside.observe
        def look(directory: Path) -> list[str]:
            return sorted(os.listdir(directory))
        """
    )
    facts = prepare(file, "outside")
    assert any(words.endswith("/elsewhere") for words in facts["outside"])
    assert len(facts["unmodelled"]) == 1 and "io_uring" in facts["unmodelled"][0]
