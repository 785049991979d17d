"""Any program: commands are run, killed and judged as they are, with nothing written for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from crashtest import given
from crashtest.config import Settings
from crashtest.scale import local
from crashtest.scenario import load
from crashtest.verdict import Event, Note, ScenarioResult, ScenarioStarted

#: interpreters after the oldest leave these out (tox.ini)
pytestmark = pytest.mark.slow

Crash = Callable[..., ScenarioResult]
Declare = Callable[..., Path]

THREADS = """
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *save(void *name) {
    char temp[64];
    snprintf(temp, sizeof temp, "%s.new", (const char *)name);
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, "new\\n", 4) != 4) abort();
#ifndef PLANTED
    if (fsync(fd)) abort();
#endif
    close(fd);
    if (rename(temp, name)) abort();
    return 0;
}

int main(void) {
    pthread_t one, other;
    if (pthread_create(&one, 0, save, "a") || pthread_create(&other, 0, save, "b")) abort();
    pthread_join(one, 0);
    pthread_join(other, 0);
    int fd = open(".", O_RDONLY);
    return fsync(fd);
}
"""
#: each file is old or new, whatever the other one is
EACH_WHOLE = 'for f in a b; do case "$(cat $f)" in old|new) ;; *) echo "$f is broken"; exit 1;; esac; done'
SERVER = """
import os, pathlib, signal, socket, sys
data = pathlib.Path("data")
count = int(data.read_text()) if data.exists() else 0
listening = socket.socket(socket.AF_UNIX)
pathlib.Path("sock").unlink(missing_ok=True)
listening.bind("sock")
listening.listen()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
while True:
    client, _ = listening.accept()
    word = client.recv(10)
    if word == b"add":
        count += 1
        with open("data.new", "w") as file:
            file.write(str(count))
            file.flush()
            if "unsynced" not in sys.argv:
                os.fsync(file.fileno())
        os.rename("data.new", "data")
        directory = os.open(".", os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
    client.send(b"%d" % count)
    client.close()
"""
CLIENT = """
import socket, sys
client = socket.socket(socket.AF_UNIX)
client.connect("sock")
client.send(sys.argv[1].encode())
print(client.recv(10).decode())
"""


@pytest.fixture
def declare_command(tmp_path: Path) -> Declare:
    """declare_command(state, **parts): a declaration file of one command, with a state directory of these files."""

    def declare(state: dict[str, str], **parts: Any) -> Path:
        directory = tmp_path / "given"
        directory.mkdir(exist_ok=True)
        for name, text in state.items():
            (directory / name).write_text(text)
        path = tmp_path / "declared.json"
        path.write_text(json.dumps({"commands": {"one": {"state": str(directory), **parts}}}))
        return path

    return declare


def broken(made: ScenarioResult) -> set[tuple[str, str]]:
    assert not made.harness_error and not made.reason, (made.harness_error, made.reason)
    return {(v.guarantee, v.model) for v in made.violations}


BOTH = ("kill", "posix")
MENDED = "sort names > names.new && sync names.new && mv names.new names && sync ."


def test_a_pipeline_of_shell_commands_holds_when_it_syncs(crash: Crash, declare_command: Declare) -> None:
    made = crash(declare_command({"names": "b\na\n"}, run=MENDED), models=BOTH)
    assert (made.verdict, made.models["posix"].exhaustive) == ("held", True)


def test_the_sync_that_a_pipeline_forgets_is_told_with_the_commands(crash: Crash, declare_command: Declare) -> None:
    made = crash(declare_command({"names": "b\na\n"}, run="sort names | uniq > n && mv n names; sync ."), models=BOTH)
    assert broken(made) == {("atomic", "posix")}
    (violation,) = made.violations
    assert violation.barrier == "fsync of n"
    assert "in mv n names" in violation.kept[0]


def test_a_pipeline_that_writes_in_place_is_caught_by_a_kill(crash: Crash, declare_command: Declare) -> None:
    made = crash(declare_command({"names": "b\na\n"}, run="sort names | cat > n; cat n > names; rm n"))
    assert broken(made) == {("atomic", "kill")}
    assert "killed alone" not in made.violations[0].point


def test_each_file_of_a_threaded_program_in_c_is_whole_when_it_syncs(
    crash: Crash, declare_command: Declare, compiled: Callable[..., str]
) -> None:
    parts = {"check": EACH_WHOLE, "guarantees": ["recovers"]}
    made = crash(
        declare_command({"a": "old\n", "b": "old\n"}, run=[compiled(THREADS, "-static")], **parts), models=BOTH
    )
    assert made.verdict == "held"
    made = crash(declare_command({}, run=[compiled(THREADS, "-static", "-DPLANTED")], **parts), models=BOTH)
    assert broken(made) == {("check", "posix")}


def test_a_line_on_the_output_is_an_ack_at_its_place(crash: Crash, declare_command: Declare) -> None:
    """`durable` is judged at the line, not at the end: the second file is written after its ack."""
    good = "echo 1 > a; echo saved a; echo noise; echo 2 > b; echo saved b"
    made = crash(declare_command({}, run=good, ack_line="^saved", guarantees=["durable"]))
    assert (made.verdict, made.operations) == ("held", 2)
    early = "echo 1 > a; echo saved a; echo saved b; echo 2 > b"
    made = crash(declare_command({}, run=early, ack_line="^saved", guarantees=["durable"]))
    assert "acked before it was written" in made.reason
    assert {(v.guarantee, v.acked) for v in made.violations} == {("durable", 2)}


def test_commands_in_a_row_are_operations_and_can_go_on_after_a_crash(crash: Crash, declare_command: Declare) -> None:
    locked = "set -C; : > lock; echo {} > n; mv n data; rm lock"
    commands = [locked.replace("{}", text) for text in ("1", "2")]
    made = crash(declare_command({"data": "0"}, commands=commands, guarantees=["atomic", "durable", "live"]))
    assert broken(made) == {("live", "kill")}
    assert made.operations == 2
    freed = crash(declare_command({}, commands=commands, recover="rm -f lock n", guarantees=["live", "clean"]))
    assert freed.verdict == "held"


def test_a_command_that_fails_is_told_with_its_status_and_its_words(crash: Crash, declare_command: Declare) -> None:
    made = crash(declare_command({}, run="echo no luck >&2; exit 4"))
    assert made.verdict == "inconclusive"
    assert "ended with status 4; it last said no luck" in made.reason
    made = crash(declare_command({"data": "0"}, run="echo 1 > n; mv n data", check="exit 3"))
    assert made.verdict == "inconclusive", "a check that fails where nothing crashed says nothing of the program"
    assert "check failed: exit 3 ended with status 3" in made.reason
    made = crash(declare_command({"data": "0"}, run=["no-such-command"]))
    assert made.usage_error and "no-such-command cannot be started: No such file" in made.reason
    made = crash(declare_command({"data": "0"}, run=": > data; echo 1 > data", recover="test -s data"))
    assert ("recovers", "kill") in broken(made)
    assert "recovery failed: test -s data ended with status 1" in made.violations[0].observed


def test_a_server_is_started_driven_and_ended(crash: Crash, declare_command: Declare, tmp_path: Path) -> None:
    for name, text in (("server.py", SERVER), ("client.py", CLIENT)):
        (tmp_path / name).write_text(text)
    client = f"{sys.executable} {tmp_path}/client.py"
    parts: dict[str, Any] = {
        "server": f"exec {sys.executable} {tmp_path}/server.py",
        "ready": f"{client} get 2>&-",
        "commands": [f"{client} add"],
        "observe": f"{client} get",
        "ignore": ["sock"],
    }
    made = crash(declare_command({}, **parts), models=BOTH, depth=1)
    assert (made.verdict, made.operations) == ("held", 1), (made.reason, made.violations)
    assert made.notes == []
    parts["server"] += " unsynced"
    made = crash(declare_command({}, **parts), models=("posix",), depth=1, losses=8)
    assert broken(made) == {("recovers", "posix")}
    assert "the server ended with status 1 before it was ready" in made.violations[0].observed


def test_a_command_that_writes_elsewhere_is_inconclusive(
    crash: Crash, declare_command: Declare, tmp_path: Path
) -> None:
    made = crash(declare_command({}, run=f"echo 1 > a; echo 1 > {tmp_path}/elsewhere"))
    assert made.verdict == "inconclusive"
    assert "elsewhere" in made.reason


def test_a_state_is_looked_through_before_anything_runs(
    crash: Crash, declare_command: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = declare_command({"data": "0"}, run="echo 1 > n; mv n data", setup=f"touch {tmp_path}/ran")
    os.mkfifo(tmp_path / "given/pipe")
    made = crash(file)
    assert made.usage_error and made.reason.startswith("pipe in the state is a named pipe (FIFO)")
    assert not (tmp_path / "ran").exists()
    (tmp_path / "given/pipe").unlink()
    monkeypatch.setattr(given, "LARGE_NUMBER", 0)
    told: list[Event] = []
    settings = Settings(models=("kill",), depth=1, report_dir=tmp_path / "report", allow_outside=(f"{tmp_path}/ran",))
    local.run(load(file), {str(file): file}, settings, told.append)
    kinds = [type(one) for one in told]
    assert kinds.index(Note) < kinds.index(ScenarioStarted)
    assert "is large: 0.0 MiB in 1 files and directories" in next(one.text for one in told if isinstance(one, Note))


def test_git_commit_is_judged_as_it_is_typed(tmp_path: Path) -> None:
    """The command of the README, its story, and its replay."""

    def git(*words: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.invalid"]
        subprocess.run(["git", "-C", "repo", *identity, *words], cwd=tmp_path, check=True)

    (tmp_path / "repo").mkdir()
    git("init", "-q")
    (tmp_path / "repo/notes").write_text("first\n")
    git("add", "notes")
    git("commit", "-qm", "first")
    (tmp_path / "repo/notes").write_text("second\n")
    before = sorted((str(p), p.stat().st_mtime_ns) for p in (tmp_path / "repo").rglob("*"))

    def crashtest(*words: str) -> tuple[int, str]:
        environment = {**os.environ, "COLUMNS": "200"}
        command = [sys.executable, "-m", "crashtest", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    code, said = crashtest(
        "run",
        "--model",
        "kill",
        "--state",
        "repo",
        "--recover",
        "git fsck --strict",
        "--",
        "git",
        "commit",
        "-qam",
        "x",
    )
    assert code == 1, said
    assert "atomic is violated under kill" in said
    assert "HEAD, refs: as after operation 1, new" in said
    assert "index: as after operation 0, old" in said
    assert ".git/index.lock, which no run without a crash leaves" in said
    assert sorted((str(p), p.stat().st_mtime_ns) for p in (tmp_path / "repo").rglob("*")) == before
    identity = next(one for one in said.splitlines() if "replay: " in one).partition("replay ")[2].strip("'")
    code, said = crashtest("replay", identity)
    assert code == 1, said
    assert "the violation came again" in said


def test_a_command_in_a_scenario_file_is_named_after_its_variable(crash: Crash, tmp_path: Path) -> None:
    path = tmp_path / "story.py"
    path.write_text(
        dedent("""
        from crashtest import command
        tidy = command("sort -o names names", setup="printf 'b\\\\na\\\\n' > names", expect={"atomic"})
        """)
    )
    made = crash(path)
    assert (made.name, made.verdict, made.as_expected) == (f"{path}::tidy", "violated", True)


def test_a_program_is_never_sent_a_signal_that_it_handles_itself(crash: Crash, declare_command: Declare) -> None:
    """Python workers tell their code line when they get one; a program that handles all signals is no such worker."""
    script = "trap 'exit 9' RTMAX-1; echo 1 > n; mv n data"
    made = crash(declare_command({"data": "0"}, run=["bash", "-c", script]))
    assert (made.verdict, made.reason) == ("held", "")
