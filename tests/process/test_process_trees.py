"""Programs that are more than one process, or that lock themselves in: each is judged as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from crashtest.verdict import ScenarioResult

#: interpreters after the oldest leave these out (tox.ini)
pytestmark = pytest.mark.slow

Crash = Callable[..., ScenarioResult]
Judge = Callable[..., ScenarioResult]

#: forbids itself mkdir; with LISTENER it wants to supervise itself
FILTERED = """
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef LISTENER
#define ACTION SECCOMP_RET_USER_NOTIF
#define FLAGS SECCOMP_FILTER_FLAG_NEW_LISTENER
#else
#define ACTION (SECCOMP_RET_ERRNO | EXDEV)
#define FLAGS 0
#endif

int main(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mkdirat, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, ACTION),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, FLAGS, &program) < 0) {
        perror("no filter");
        return 3;
    }
    if (mkdirat(AT_FDCWD, "d", 0755) != -1 || errno != EXDEV) return 4;
    int fd = open("n", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (write(fd, "new\\n", 4) != 4) return 5;
#ifndef PLANTED
    if (fsync(fd)) return 6;
#endif
    return close(fd) || rename("n", "a") || fsync(open(".", O_RDONLY));
}
"""
#: a daemon: started through a parent that ends at once, in a session of its own; it saves what it is asked, and answers
DAEMON = """
mkfifo "$TMPDIR/ask" "$TMPDIR/told"
exec 3<> "$TMPDIR/told"
(setsid sh -c 'read word < "$TMPDIR/ask"; {save}; echo done >&3' &)
echo new > "$TMPDIR/ask"
read answer <&3
"""


@pytest.fixture
def judge(crash: Crash, tmp_path: Path) -> Judge:
    """judge(run, models, depth, **parts): one command, whose state has a file `a`."""

    def run(
        command: str | list[str], models: tuple[str, ...] = ("kill",), depth: int = 1, **parts: Any
    ) -> ScenarioResult:
        path = tmp_path / "declared.json"
        path.write_text(json.dumps({"commands": {"one": {"run": command, "setup": "echo old > a", **parts}}}))
        return crash(path, models=models, depth=depth)

    return run


def broken(made: ScenarioResult) -> set[tuple[str, str]]:
    assert (made.harness_error, made.reason) == ("", "")
    return {(v.guarantee, v.model) for v in made.violations}


def test_a_program_with_a_filter_of_its_own_is_judged(judge: Judge, compiled: Callable[..., str]) -> None:
    """Its filter has its way where it forbids, and does not hide what it lets pass."""
    made = judge([compiled(FILTERED)], ("kill", "posix"))
    assert (made.verdict, made.reason) == ("held", "")
    made = judge([compiled(FILTERED, "-DPLANTED")], ("kill", "posix"))
    assert broken(made) == {("atomic", "posix")}
    assert made.violations[0].barrier == "fsync of n"


def test_a_program_that_wants_to_supervise_itself_is_told_why_it_cannot(
    judge: Judge, compiled: Callable[..., str]
) -> None:
    made = judge([compiled(FILTERED, "-DLISTENER")])
    assert made.verdict == "inconclusive"
    assert "ended with status 3; it last said no filter: Device or resource busy" in made.reason


def test_a_daemon_that_has_left_its_parent_and_session_is_judged(judge: Judge) -> None:
    whole = "echo $word > n; sync n; mv n a; sync ."
    made = judge(DAEMON.replace("{save}", whole), ("kill", "posix"))
    assert (made.verdict, made.reason, made.notes) == ("held", "", [])
    assert made.models["kill"].cells > made.models["kill"].crash_points, "the shell is killed alone as well"
    made = judge(DAEMON.replace("{save}", "echo $word > a"))
    assert broken(made) == {("atomic", "kill")}
    assert "sh -c read word" in made.violations[0].where


def test_a_daemon_that_is_left_running_is_named_and_ended(judge: Judge) -> None:
    made = judge("echo new > n; mv n a; (setsid sleep 1003 &)")
    assert made.verdict == "inconclusive"
    assert "left processes running: " in made.reason and "(sleep 1003)" in made.reason
    assert ["sleep", "1003"] not in [process.info["cmdline"] for process in psutil.process_iter(["cmdline"])]


def test_a_child_that_goes_on_beside_recovery_is_caught_where_its_shell_was_killed_alone(judge: Judge) -> None:
    parts = {"recover": "rm -f log kept n", "guarantees": ["atomic", "clean"]}
    command = "sh -c 'echo x > log; mv log kept'; echo new > n; mv n a; rm kept"
    made = judge(command, **parts)
    assert broken(made) == {("clean", "kill")}
    assert "was killed alone; its children were held until recovery waited for them" in made.violations[0].point
    assert judge(command, whole=True, **parts).verdict == "held"
