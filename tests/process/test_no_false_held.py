"""Programs that are wrong must not pass, and programs that are right must not fail: what fresh eyes once found."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import indent

import pytest

from crashtest.errors import UsageError
from crashtest.scenario import load, probe_loading
from crashtest.verdict import ScenarioResult, exit_code

Write = Callable[[str], Path]
Crash = Callable[..., ScenarioResult]

OPS = indent(
    """
@x.ops
def ops() -> list[str]:
    return ["1", "2"]

@x.observe
def look(directory: Path) -> str:
    return (directory / "s").read_text()
""",
    " " * 8,
)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import os\nos._exit(0)\n", "ended its process with status 0"),
        ("while True: pass\n", "does not come to an end"),
    ],
)
def test_a_file_that_ends_the_process_or_never_loads_is_a_usage_error(tmp_path: Path, source: str, words: str) -> None:
    file = tmp_path / "story.py"
    file.write_text(source)
    with pytest.raises(UsageError, match=words):
        probe_loading([(file, "story.py")], 1.0)


def test_the_command_refuses_a_file_that_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "story.py").write_text("import os\nos._exit(0)\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    line = [sys.executable, "-m", "crashtest", "run", "story.py"]
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "ended its process with status 0 while it was loaded" in " ".join((done.stdout + done.stderr).split())


def test_parts_that_a_call_does_not_run_are_refused(write_scenario: Write) -> None:
    file = write_scenario(
        """
        @scenario(setup={"s": "0"})
        def x(run: Run) -> None:
            run.ack()

        @x.check
        async def check(directory: Path, acks: list) -> None:
            assert False
        """
        + OPS
    )
    with pytest.raises(UsageError, match="check is async or a generator"):
        load(file)


def test_a_check_that_says_false_is_refused(crash: Crash, write_scenario: Write) -> None:
    file = write_scenario(
        """
        @scenario(setup={"s": "0"})
        def x(run: Run) -> None:
            for op in run.ops:
                (run.dir / "t").write_text(op)
                os.replace(run.dir / "t", run.dir / "s")
                run.ack()

        @x.check
        def check(directory: Path, acks: list) -> bool:
            return False
        """
        + OPS
    )
    made = crash(file)
    assert (made.verdict, made.as_expected, made.usage_error) == ("inconclusive", False, True)
    assert "a check says no with assert" in made.reason
    assert exit_code([made], "") == 2


def test_the_state_before_a_store_into_a_mapping_is_tried(crash: Crash, write_scenario: Write) -> None:
    file = write_scenario(
        """
        import mmap

        @scenario(setup={"f": b"0" * 10, "g": b"0"}, expect={"atomic"})
        def stores(run: Run) -> None:
            with open(run.dir / "f", "r+b") as f, open(run.dir / "g", "r+b", buffering=0) as g:
                shared = mmap.mmap(f.fileno(), 10)
                g.write(b"1")
                shared[0:1] = b"1"
                shared.flush()
                run.ack()

        @stores.observe
        def both(directory: Path) -> list[bytes]:
            return [(directory / "f").read_bytes()[:1], (directory / "g").read_bytes()]
        """
    )
    made = crash(file)
    assert (made.verdict, made.as_expected) == ("violated", True)
    assert any("rebuilt from the record" in violation.point for violation in made.violations)


def test_what_lies_beside_the_state_directory_is_outside_and_gone_in_the_next_run(
    crash: Crash, write_scenario: Write
) -> None:
    file = write_scenario(
        """
        @scenario(setup={"s": "0000"})
        def x(run: Run) -> None:
            for op in run.ops:
                (run.dir / "s").write_text(op * 4)
                run.dir.with_name("state.bak").write_text(op * 4)
                run.ack()

        @x.recover
        def recover(directory: Path) -> None:
            if len((directory / "s").read_text()) != 4:
                (directory / "s").write_text(directory.with_name("state.bak").read_text())
        """
        + OPS
    )
    made = crash(file)
    assert not made.as_expected
    assert made.verdict in ("inconclusive", "violated")
    assert "state.bak" in made.reason


def test_a_helper_that_lost_its_parent_is_left_alive_too(crash: Crash, write_scenario: Write) -> None:
    file = write_scenario(
        """
        @scenario(setup={"s": "0"}, expect={"atomic"})
        def x(run: Run) -> None:
            reading, writing = os.pipe()
            if os.fork() == 0:
                if os.fork() == 0:
                    os.setsid()
                    os.close(writing)
                    if os.read(reading, 1) == b"":  # the worker is dead
                        (run.dir / "s").write_text("broken")
                os._exit(0)
            os.wait()
            for op in run.ops:
                (run.dir / "t").write_text(op)
                os.replace(run.dir / "t", run.dir / "s")
                run.ack()
            os.write(writing, b"!")
        """
        + OPS
    )
    made = crash(file)
    assert (made.verdict, made.as_expected) == ("violated", True), made
    assert "killed alone" in made.violations[0].point or "/0w" in made.violations[0].id


def test_what_c_buffers_is_written_at_the_end_of_recovery(crash: Crash, write_scenario: Write) -> None:
    file = write_scenario(
        """
        import ctypes
        libc = ctypes.CDLL(None)
        libc.fopen.restype = ctypes.c_void_p

        @scenario(setup={"s": "0", "seen": "0"})
        def x(run: Run) -> None:
            for op in run.ops:
                (run.dir / "t").write_text(op)
                os.replace(run.dir / "t", run.dir / "s")
                run.ack()

        @x.recover
        def recover(directory: Path) -> None:
            file = ctypes.c_void_p(libc.fopen(os.fsencode(directory / "seen"), b"w"))
            libc.fputs((directory / "s").read_bytes(), file)

        @x.ops
        def ops() -> list[str]:
            return ["1", "2"]

        @x.observe
        def look(directory: Path) -> list[str]:
            return [(directory / name).read_text() for name in ("s", "seen")]
        """
    )
    made = crash(file, depth=1)
    assert (made.verdict, made.harness_error) == ("held", ""), made


def test_names_and_attributes_of_any_kind_are_carried(crash: Crash, write_scenario: Write) -> None:
    file = write_scenario(
        """
        @scenario(setup={"$b": "0", "s": "0"})
        def x(run: Run) -> None:
            for op in run.ops:
                os.setxattr(run.dir, "user.last", op.encode())
                os.chmod(run.dir, 0o750)
                (run.dir / "$b").write_text(op)
                os.replace(run.dir / "$b", run.dir / "s")
                run.ack()
        """
        + OPS
    )
    made = crash(file)
    assert (made.verdict, made.harness_error) == ("held", ""), made


def test_a_file_kept_open_by_the_module_is_flushed_at_the_normal_end(crash: Crash, write_scenario: Write) -> None:
    """What an imported module holds is freed by the last collection of Python's end; it must not be set aside."""
    made = crash(
        write_scenario(
            """
            KEPT: list[object] = []

            @scenario(setup={"log": b""})
            def kept_open(run: Run) -> None:
                log = open(run.dir / "log", "a")
                KEPT.append(log)
                log.write("done")
                run.ack()

            @kept_open.observe
            def look(directory: Path) -> str:
                return (directory / "log").read_text()
            """
        )
    )
    assert [violation.guarantee for violation in made.violations] == ["durable"], made.reason
    assert "acked before it was written" in made.violations[0].hint
