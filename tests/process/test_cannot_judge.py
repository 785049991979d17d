"""What cannot be recorded, or run as it is, is named by the command line's verdict, which is never "held" then."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashtest.observe import privilege
from crashtest.verdict import ScenarioResult

#: interpreters after the oldest leave these out (tox.ini)
pytestmark = pytest.mark.slow

Crash = Callable[..., ScenarioResult]
Judge = Callable[..., ScenarioResult]

RING = """
#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void) {
    char params[120] = {0};
    long ring = syscall(SYS_io_uring_setup, 1, params);
    if (ring >= 0) close(ring);                 /* a real one would write through it; else it falls back */
    int fd = open("n", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    return write(fd, "new", 3) != 3 || close(fd) || rename("n", "a");
}
"""
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may do that")


@pytest.fixture
def judge(crash: Crash, tmp_path: Path) -> Judge:
    """judge(run, **parts): one command under kills; its state has a file `a`."""

    def run(command: str | list[str], **parts: Any) -> ScenarioResult:
        path = tmp_path / "declared.json"
        path.write_text(json.dumps({"commands": {"one": {"run": command, "setup": "echo old > a", **parts}}}))
        return crash(path, depth=1)

    return run


def copy_with(mode: int, owner: int, group: int, tmp_path: Path) -> str:
    """A copy of `mv` of that owner with those bits. Only root may give one away."""
    if os.statvfs(tmp_path).f_flag & os.ST_NOSUID:
        pytest.skip("the bits count for nothing in the temp directory, which is mounted nosuid")
    made = shutil.copy(shutil.which("mv") or "/bin/mv", tmp_path / "mv")
    os.chown(made, owner, group)
    os.chmod(made, mode)
    return str(made)


@root_only
@pytest.mark.parametrize(
    ("mode", "word"), [(0o4755, "set-user-ID nobody"), (0o2755, "set-group-ID nogroup"), (0o2745, "")]
)
def test_a_program_that_would_run_as_another_is_not_judged(judge: Judge, tmp_path: Path, mode: int, word: str) -> None:
    """Group bits without execution by the group mean something else (stat(2))."""
    move = copy_with(mode, 65534, 65534, tmp_path)
    made = judge(f"echo new > n; {move} n a", recover="rm -f n")
    if not word:
        assert (made.verdict, made.reason) == ("held", "")
        return
    assert (made.verdict, made.as_expected) == ("inconclusive", False)
    assert f"{move} runs under observation without being {word} (run crashtest " in made.reason


def test_a_set_user_id_program_of_the_same_user_is_judged(judge: Judge, tmp_path: Path) -> None:
    move = copy_with(0o6755, os.geteuid(), os.getegid(), tmp_path)
    made = judge(f"echo new > n; {move} n a", recover="rm -f n")
    assert (made.verdict, made.reason) == ("held", "")


def test_bits_of_a_script_are_those_of_its_interpreter(judge: Judge, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\nmv n a\n")
    os.chmod(script, 0o4755)
    if os.geteuid() == 0:
        os.chown(script, 65534, 65534)
        os.chmod(script, 0o4755)
    made = judge(f"echo new > n; {script}", recover="rm -f n")
    assert (made.verdict, made.reason) == ("held", "")


@root_only
def test_recovery_that_would_run_as_another_is_not_judged_either(crash: Crash, tmp_path: Path) -> None:
    move = copy_with(0o4755, 65534, 65534, tmp_path)
    parts = {"run": "echo new > n; mv n a", "setup": "echo old > a", "recover": f"{move} --version; rm -f n"}
    path = tmp_path / "declared.json"
    path.write_text(json.dumps({"commands": {"one": parts}}))
    made = crash(path)
    assert made.verdict == "inconclusive"
    assert made.reason.startswith("recovery does what cannot be recorded, or run, as it is:")
    assert "set-user-ID nobody" in made.reason


def test_io_uring_is_named_where_the_kernel_lets_a_program_have_it(judge: Judge, compiled: Callable[..., str]) -> None:
    made = judge([compiled(RING)])
    if privilege.io_uring_allowed():
        assert made.verdict == "inconclusive"
        assert "io_uring, whose writes cannot be recorded, by program" in made.reason
    else:
        assert (made.verdict, made.reason) == ("held", "")


def test_a_change_outside_the_state_is_named(judge: Judge, tmp_path: Path) -> None:
    made = judge(f"echo new > n; mv n a; echo 1 > {tmp_path}/elsewhere", recover="rm -f n")
    assert made.verdict == "inconclusive"
    assert f"{tmp_path}/elsewhere" in made.reason and "--allow-outside" in made.reason


@root_only
def test_names_that_lead_elsewhere_are_named(judge: Judge) -> None:
    made = judge("mkdir -p d; chroot . /none; echo new > n; mv n a", recover="rm -f n")
    assert made.verdict == "inconclusive"
    assert "chroot, after which names lead to other files" in made.reason
