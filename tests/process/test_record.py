"""The record proves itself: applied to the first state it gives the last one, on ordinary programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashtest.observe import bpf, privilege, stacks
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
    named = [words for words in facts["unmodelled"] if words.startswith("io_uring, ")]
    assert len(named) == len(facts["unmodelled"]) == int(privilege.io_uring_allowed())


def test_a_number_that_is_another_file_by_now_is_seen(prepare: Prepare, write_scenario: Callable[[str], Path]) -> None:
    """close, dup2, lseek, fcntl and fork do not stop: what a descriptor is has to be looked up at each write."""
    file = write_scenario(
        """
        import fcntl

        @scenario(setup={"a": b"a" * 10, "b": b"b" * 10, "c": b"c" * 10, "d": b""})
        def numbers(run: Run) -> None:
            fd = os.open(run.dir / "a", os.O_WRONLY)
            os.write(fd, b"1")
            os.write(fd, b"2")
            os.close(fd)
            assert os.open(run.dir / "b", os.O_WRONLY) == fd
            os.write(fd, b"3")
            os.lseek(fd, 7, os.SEEK_SET)
            os.write(fd, b"4")
            os.dup2(os.open(run.dir / "c", os.O_WRONLY), fd)
            os.write(fd, b"5")
            fcntl.fcntl(fd, fcntl.F_SETFL, os.O_APPEND)
            os.write(fd, b"6")
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)
            if os.fork() == 0:
                os.write(fd, b"7")
                os.dup2(os.open(run.dir / "d", os.O_WRONLY), fd)
                os.write(fd, b"8")
                os._exit(0)
            os.wait()
            os.write(fd, b"9")
            os.dup2(os.open(run.dir / "d", os.O_RDONLY), fd)
            try:
                os.write(fd, b"0")
            except OSError:
                pass
            run.ack()

        @numbers.observe
        def look(directory: Path) -> list[str]:
            return sorted(os.listdir(directory))
        """
    )
    facts = prepare(file, "numbers")
    assert facts["proof"] == []
    writes = [event for event in map(from_plain, facts["events"]) if isinstance(event, Op)]
    assert [(op.path, op.data, op.offset) for op in writes] == [
        ("a", b"1", 0), ("a", b"2", 1), ("b", b"3", 0), ("b", b"4", 7), ("c", b"5", 0), ("c", b"6", 10),
        ("c", b"7", 11), ("d", b"8", 0), ("c", b"9", 12),
    ]  # fmt: skip


def test_each_event_has_the_code_line_of_its_own_thread(
    prepare: Prepare, write_scenario: Callable[[str], Path]
) -> None:
    """Threads that change files at once are asked for their stacks one after the other."""
    functions = "".join(
        f"        def worker_{n}():\n            for _ in range(20):\n                os.pwrite(fd, b'x', {n})\n\n"
        for n in range(4)
    )
    file = write_scenario(
        f"""
        import threading

{functions}
        @scenario(setup={{"a": b"...."}})
        def threads(run: Run) -> None:
            global fd
            fd = os.open(run.dir / "a", os.O_WRONLY)
            started = [threading.Thread(target=f) for f in (worker_0, worker_1, worker_2, worker_3)]
            for one in started:
                one.start()
            for one in started:
                one.join()
            run.ack()

        @threads.observe
        def look(directory: Path) -> bytes:
            return (directory / "a").read_bytes()
        """
    )
    writes = [event for event in map(from_plain, prepare(file, "threads")["events"]) if isinstance(event, Op)]
    assert len(writes) == 80
    for op in writes:
        assert op.where.count("story.py:") == 1 and op.where.endswith(f" in worker_{op.offset}"), (op.offset, op.where)


def test_a_stack_does_not_stop_and_the_filter_lets_one_number_pass() -> None:
    whole, passing = bpf.program(), bpf.program(passing=stacks.DESCRIPTOR)
    assert stacks.DESCRIPTOR.to_bytes(4, "little") in passing
    assert stacks.DESCRIPTOR.to_bytes(4, "little") not in whole
