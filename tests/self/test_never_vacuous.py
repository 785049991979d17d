"""Nothing that proves nothing is counted as passed: each case has its own clear message and exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STORIES = Path(__file__).parent / "vacuous"
ROOT = Path(__file__).parents[2]

#: story -> (exit code, words that the output must hold)
CASES: dict[str, tuple[int, str]] = {
    "workload_changes_nothing": (3, "changed nothing in its directory"),
    "never_acks": (3, "never acked anything"),
    "writes_outside_only": (3, "only changes files outside its directory"),
    "exits_before_ack": (3, "ended its process with status 0 before it returned"),
    "raises": (3, "raised RuntimeError: the workload broke on purpose"),
    "leaves_daemon": (3, "left processes running"),
    "observe_constant": (3, "observe returns the same for every state"),
    "observe_random": (3, "two runs without a crash differ"),
    "observe_not_plain": (2, "which is not a plain value"),
    "blind_observe": (3, "observe cannot see operation 2"),
    "acked_before_written": (1, "acked before it was written"),
    "recovery_hangs": (3, "recovery did not end within 1 seconds"),
    "recovery_hangs_after_crash": (1, "recovery did not end within 1 seconds, twice"),
    "recovery_segfaults": (3, "recovery was killed by SIGSEGV"),
    "recovery_segfaults_after_crash": (1, "recovery was killed by SIGSEGV"),
    "unexpected_violation": (1, "atomic is violated under kill"),
    "wrong_expect": (1, "expected to be violated, but was not: atomic"),
}


def command(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`crashtest` as a user calls it."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "crashtest", *words]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=170)


def test_every_story_is_in_the_table() -> None:
    assert {path.stem for path in STORIES.glob("*.py")} == set(CASES)


@pytest.mark.parametrize("story", CASES)
def test_a_story_that_proves_nothing_is_not_passed(story: str, tmp_path: Path) -> None:
    code, words = CASES[story]
    done = command("run", str(STORIES / f"{story}.py"), cwd=tmp_path)
    assert words in " ".join(done.stdout.split()) + done.stderr, done.stdout + done.stderr
    assert done.returncode == code


def test_a_file_with_a_syntax_error_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text((STORIES / "syntax_error.py.txt").read_text())
    done = command("run", "broken.py", cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "broken.py has a syntax error at" in done.stdout + done.stderr


def test_a_selection_of_nothing_is_exit_5(tmp_path: Path) -> None:
    done = command("run", str(STORIES / "raises.py"), "-k", "no_such_scenario", cwd=tmp_path)
    assert done.returncode == 5
    assert "no_such_scenario" in done.stdout + done.stderr
