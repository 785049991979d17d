"""What the record says of syncs: which file and range, from when on, and nothing of those that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from crashtest.trace import SYNCS, Op, from_plain

Prepare = Callable[[Path, str], dict[str, Any]]
Write = Callable[[str], Path]

_OBSERVE = """

        @story.observe
        def look(directory: Path) -> list[str]:
            return sorted(os.listdir(directory))
"""


def ops(prepare: Prepare, file: Path) -> list[tuple[int, Op]]:
    """The changes and syncs of the one scenario, each with its place in the trace."""
    facts = prepare(file, "story")
    assert facts["proof"] == [] and facts["unmodelled"] == [], facts
    events = [from_plain(event) for event in facts["events"]]
    return [(at, event) for at, event in enumerate(events) if isinstance(event, Op)]


def test_a_synchronous_write_is_followed_by_the_sync_of_its_range(prepare: Prepare, write_scenario: Write) -> None:
    file = write_scenario(
        """
        @scenario(setup={"a": b"12345678"})
        def story(run: Run) -> None:
            for flags in (os.O_SYNC, os.O_DSYNC, os.O_APPEND | os.O_DSYNC, 0):
                os.write(os.open(run.dir / "a", os.O_WRONLY | flags), b"xyz")
            plain = os.open(run.dir / "a", os.O_RDWR)
            os.pwritev(plain, [b"s", b"t"], 5, os.RWF_SYNC)
            os.pwritev(plain, [b"d"], 6, os.RWF_DSYNC)
            os.pwritev(plain, [b"n"], 7)
            (run.dir / "new").write_text("")
            os.sendfile(os.open(run.dir / "new", os.O_WRONLY | os.O_SYNC), plain, 2, 4)
            run.ack()
        """
        + _OBSERVE
    )
    found = ops(prepare, file)
    assert [(op.kind, op.call, op.path, op.offset, op.size or len(op.data)) for _, op in found] == [
        ("write", "write", "a", 0, 3),
        ("fsync", "write", "a", 0, 3),
        ("write", "write", "a", 0, 3),
        ("fdatasync", "write", "a", 0, 3),
        ("write", "write", "a", 8, 3),
        ("fdatasync", "write", "a", 8, 3),
        ("write", "write", "a", 0, 3),
        ("write", "pwritev2", "a", 5, 2),
        ("fsync", "pwritev2", "a", 5, 2),
        ("write", "pwritev2", "a", 6, 1),
        ("fdatasync", "pwritev2", "a", 6, 1),
        ("write", "pwritev2", "a", 7, 1),
        ("create", "openat", "new", 0, 0),
        ("write", "sendfile", "new", 0, 4),
        ("fsync", "sendfile", "new", 0, 4),
    ]
    assert all(op.data == b"" and op.began == at for at, op in found if op.kind in SYNCS), "it covers its own write"
    assert found[1][1].describe() == "write(a, fsync of 3 bytes at 0)"


def test_a_sync_names_its_file_and_its_range(prepare: Prepare, write_scenario: Write) -> None:
    file = write_scenario(
        """
        import ctypes, mmap

        @scenario(setup={"a": b"a" * 20000, "sub/b": b"b"})
        def story(run: Run) -> None:
            (run.dir / "sub/b").write_text("c")
            libc = ctypes.CDLL(None)
            a = os.open(run.dir / "a", os.O_RDWR)
            os.fsync(os.open(run.dir / "sub", os.O_RDONLY))
            os.fdatasync(a)
            libc.sync_file_range(a, ctypes.c_int64(4096), ctypes.c_int64(8192), 7)
            libc.syncfs(a)
            os.sync()
            shared = mmap.mmap(a, 12288, offset=4096)
            shared[5000] = 0x62
            shared.flush(4096, 8192)
            other = mmap.mmap(os.open(run.dir / "a", os.O_RDWR), 4096, mmap.MAP_PRIVATE)
            other[0] = 0x63
            other.flush()
            at = ctypes.addressof(ctypes.c_char.from_buffer(shared))
            for flags in (0, 1, 2):  # none of them waits for the disk
                assert libc.msync(ctypes.c_void_p(at), ctypes.c_size_t(4096), flags) == 0
            run.ack()
        """
        + _OBSERVE
    )
    found = ops(prepare, file)
    assert [(op.kind, op.path, op.offset, op.size, op.began == at) for at, op in found if op.kind in SYNCS] == [
        ("fsync", "sub", 0, 0, True),
        ("fdatasync", "a", 0, 0, True),
        ("sync_file_range", "a", 4096, 8192, True),
        ("syncfs", "", 0, 0, True),
        ("sync", "", 0, 0, True),
        ("msync", "a", 8192, 8192, True),
    ]
    syncs = [op for _, op in found if op.kind in SYNCS]
    assert len({op.file for op in syncs if op.path == "a"}) == 1
    assert [op.file for op in syncs if op.path == ""] == [-1, -1]
    assert syncs[0].file not in (-1, syncs[1].file)
    stores = [op for _, op in found if op.call == "mmap"]
    assert [(op.offset, op.data) for op in stores] == [(9096, b"b")]


def test_a_sync_stands_before_what_comes_after_it(prepare: Prepare, write_scenario: Write) -> None:
    """Also where its thread does nothing any more that is seen, while another one goes on."""
    file = write_scenario(
        """
        import threading

        @scenario
        def story(run: Run) -> None:
            a = os.open(run.dir / "a", os.O_WRONLY | os.O_CREAT)
            synced, written = threading.Event(), threading.Event()

            def other():
                synced.wait()
                os.pwrite(a, b"late", 5)
                os.pwrite(a, b"later", 9)
                written.set()

            thread = threading.Thread(target=other)
            thread.start()
            os.pwrite(a, b"early", 0)
            os.fsync(a)
            synced.set()
            written.wait()
            thread.join()
            os.pwrite(a, b"last", 14)
            run.ack()
        """
        + _OBSERVE
    )
    found = ops(prepare, file)
    assert [(op.kind, op.data, op.began) for _, op in found] == [
        ("create", b"", 0),
        ("write", b"early", 1),
        ("fsync", b"", 2),
        ("write", b"late", 3),
        ("write", b"later", 4),
        ("write", b"last", 5),
    ]


def test_a_sync_that_must_fail_makes_no_event(prepare: Prepare, write_scenario: Write) -> None:
    file = write_scenario(
        """
        import contextlib, ctypes, mmap

        @scenario(setup={"a": b"a" * 9000})
        def story(run: Run) -> None:
            (run.dir / "b").write_text("b")
            os.mkfifo(run.dir / "fifo")
            path_only = os.open(run.dir / "a", os.O_PATH)
            fifo = os.open(run.dir / "fifo", os.O_RDWR)
            a = os.open(run.dir / "a", os.O_RDWR)
            closed = os.dup(a)
            os.close(closed)
            libc = ctypes.CDLL(None, use_errno=True)
            for fd in (path_only, fifo, closed, os.pipe()[1], 1 << 20):
                for call in (os.fsync, os.fdatasync):
                    with contextlib.suppress(OSError):
                        call(fd)
                        raise AssertionError(f"{call} of {fd} succeeded")
            assert libc.syncfs(path_only) == -1
            for offset, size, flags in ((-1, 1, 2), (0, -1, 2), (0, 1, 8), (1 << 62, 1 << 62, 2)):
                assert libc.sync_file_range(a, ctypes.c_int64(offset), ctypes.c_int64(size), flags) == -1
            shared = mmap.mmap(a, 8192)
            at = ctypes.addressof(ctypes.c_char.from_buffer(shared))
            for start, flags in ((at + 1, 4), (at, 5), (at, 8)):
                assert libc.msync(ctypes.c_void_p(start), ctypes.c_size_t(4096), flags) == -1
            run.ack()
        """
        + _OBSERVE
    )
    assert [op.kind for _, op in ops(prepare, file) if op.kind in SYNCS] == []
