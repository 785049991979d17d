"""What becomes of a whole scenario: unknown is never folded into passed, nor chance into violated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from crashtest.verdict import ScenarioResult, exit_code

Write = Callable[[str], Path]
Crash = Callable[..., ScenarioResult]


def test_a_known_bad_scenario_with_an_example_that_proves_nothing_is_not_caught(
    crash: Crash, write_scenario: Write
) -> None:
    file = write_scenario(
        """
        from hypothesis import strategies as st

        @scenario(setup={"a": b"-"}, expect={"atomic"})
        def in_place(run: Run) -> None:
            for op in run.ops:
                (run.dir / "a").write_text(op)
                run.ack()

        @in_place.ops
        def ops() -> object:
            return st.sampled_from([[], ["one", "two"]])

        @in_place.observe
        def look(directory: Path) -> str:
            return (directory / "a").read_text()
        """
    )
    made = crash(file, examples=10)
    assert {violation.guarantee for violation in made.violations} == {"atomic"}
    assert (made.verdict, made.as_expected) == ("inconclusive", False)
    assert "changed nothing" in made.reason
    assert exit_code([made], "") == 3


def test_a_guarantee_that_is_not_claimed_is_not_violated(crash: Crash, write_scenario: Write) -> None:
    file = write_scenario(
        """
        @scenario(setup={"a": b"old"}, guarantees={"atomic", "ordered", "idempotent"})
        def acks_first(run: Run) -> None:
            run.ack()
            with open(run.dir / "b", "w") as file:
                file.write("new")
            os.replace(run.dir / "b", run.dir / "a")

        @acks_first.observe
        def look(directory: Path) -> str:
            return (directory / "a").read_text()
        """
    )
    made = crash(file)
    assert made.violations == []
    assert made.models["kill"].guarantees["durable"] == "not claimed"


def test_an_operation_seen_before_the_one_before_it_is_acked_is_not_ordered(
    crash: Crash, write_scenario: Write
) -> None:
    file = write_scenario(
        """
        @scenario(setup={"log": b""}, expect={"ordered"})
        def ahead(run: Run) -> None:
            with open(run.dir / "log", "ab", buffering=0) as log:
                for op in run.ops:
                    log.write(op)
                for op in run.ops:
                    run.ack()

        @ahead.ops
        def ops() -> list[bytes]:
            return [b"1", b"2"]

        @ahead.observe
        def look(directory: Path) -> bytes:
            return (directory / "log").read_bytes()
        """
    )
    made = crash(file)
    assert (made.verdict, made.as_expected) == ("violated", True)
    assert [violation.point for violation in made.violations] == ["before ack 1"]


def test_a_time_out_that_does_not_come_again_alone_is_no_violation(
    crash: Crash, write_scenario: Write, tmp_path: Path
) -> None:
    """Recovery hangs on one state, the first time only: a slow moment of the machine, not a bug."""
    file = write_scenario(
        f"""
        import time

        @scenario(setup={{"a": b"old"}}, timeout=1)
        def slow_once(run: Run) -> None:
            (run.dir / "b").write_text("new")
            os.replace(run.dir / "b", run.dir / "a")
            run.ack()

        @slow_once.recover
        def recover(directory: Path) -> None:
            hung = Path({str(tmp_path / "hung")!r})
            if (directory / "b").exists() and not hung.exists():
                hung.touch()
                time.sleep(60)
            (directory / "b").unlink(missing_ok=True)

        @slow_once.observe
        def look(directory: Path) -> str:
            return (directory / "a").read_text()
        """
    )
    made = crash(file)
    assert (tmp_path / "hung").exists()
    assert (made.verdict, made.as_expected, made.reason) == ("held", True, "")
    assert made.models["kill"].cells == 5 and made.models["kill"].exhaustive


def test_a_change_outside_the_state_needs_leave(crash: Crash, write_scenario: Write, tmp_path: Path) -> None:
    file = write_scenario(
        f"""
        @scenario(setup={{"a": b"old"}})
        def notes(run: Run) -> None:
            Path({str(tmp_path / "note")!r}).write_text("noted")
            (run.dir / "b").write_text("new")
            os.replace(run.dir / "b", run.dir / "a")
            run.ack()

        @notes.observe
        def look(directory: Path) -> str:
            return (directory / "a").read_text()
        """
    )
    assert "changes files outside its directory" in crash(file).reason
    assert crash(file, allow_outside=(f"{tmp_path}/*",)).verdict == "held"
