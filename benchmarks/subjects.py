"""The scenarios that are measured."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from crashtest.scenario import Run, Scenario, scenario

FILES = ("a", "b", "c")
OLD = {name: b"old %s\n" % name.encode() for name in FILES}


# -- three small files, each replaced by a temporary one ----------------------------------------------------------


def replace_three(directory: str, ack: Callable[[], object]) -> None:
    for name in FILES:
        replace(directory, name, b"new %s\n" % name.encode(), sync=True)
        ack()


def replace(directory: str, name: str, content: bytes, sync: bool) -> None:
    fd = os.open(f"{directory}/{name}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, content)
    if sync:
        os.fsync(fd)
    os.close(fd)
    os.rename(f"{directory}/{name}.tmp", f"{directory}/{name}")


def drop_temporaries(directory: str) -> None:
    for name in os.listdir(directory):
        if name.endswith(".tmp"):
            os.unlink(f"{directory}/{name}")


def contents(directory: str) -> dict[str, bytes]:
    found = {}
    for name in os.listdir(directory):
        with open(f"{directory}/{name}", "rb") as file:
            found[name] = file.read()
    return found


def three_files(run: Run) -> None:
    replace_three(str(run.dir), run.ack)


def recover(directory: Path) -> None:
    drop_temporaries(str(directory))


def observe(directory: Path) -> dict[str, bytes]:
    return contents(str(directory))


THREE_FILES: Scenario = scenario(three_files, setup=OLD)
THREE_FILES.recover(recover)
THREE_FILES.observe(observe)


# -- the same, as any number of operations --------------------------------------------------------------------------


def many_operations(run: Run) -> None:
    for number in run.ops:
        replace(str(run.dir), FILES[number % len(FILES)], b"operation %d\n" % number, sync=False)
        run.ack()


# -- an append-only log whose records have checksums, and nothing is synced ------------------------------------------


def record(number: int) -> bytes:
    body = b"%04d" % number * 200
    return b"%08x" % zlib.crc32(body) + body


def append_records(run: Run) -> None:
    fd = os.open(f"{run.dir}/log", os.O_WRONLY)
    for number in run.ops:
        os.write(fd, record(number))
        run.ack()
    os.close(fd)


def whole_records(directory: str) -> int:
    """How many records there are before the first that is not whole."""
    with open(f"{directory}/log", "rb") as file:
        data = file.read()
    size, number = len(record(0)), 0
    while (part := data[number * size : (number + 1) * size]) and part == record(number):
        number += 1
    return number


def cut_log(directory: Path) -> None:
    """What starting again does: what stands behind the last whole record is cut off."""
    path = f"{directory}/log"
    size = whole_records(str(directory)) * len(record(0))
    if os.stat(path).st_size != size:
        os.truncate(path, size)


LOG: Scenario = scenario(append_records, setup={"log": b""}, guarantees={"recovers", "atomic", "idempotent"})
LOG.recover(cut_log)
LOG.observe(lambda directory: whole_records(str(directory)))


# -- many times one call, with its time in the ack ------------------------------------------------------------------


def pwrites_timed(path: str, calls: int) -> int:
    """Nanoseconds that `calls` calls of pwrite(2) took."""
    fd = os.open(path, os.O_WRONLY)
    data = bytes(64)
    began = time.perf_counter_ns()
    for _ in range(calls):
        os.pwrite(fd, data, 0)
    return time.perf_counter_ns() - began


def pwrites(run: Run) -> None:
    run.ack(pwrites_timed(f"{run.dir}/data", run.ops[0]))


PWRITES: Scenario = scenario(pwrites, setup={"data": bytes(64)})
PWRITES.observe(observe)


# -- git commit, with its time in the ack ---------------------------------------------------------------------------


def make_repository(directory: Path) -> None:
    import subprocess  # here: what is loaded with the file is in every fork of every benchmark

    for number in range(20):
        (directory / f"file-{number}").write_text(f"{number}\n" * 100)
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *command], cwd=directory, check=True)
    for number in range(5):
        (directory / f"file-{number}").write_text(f"changed {number}\n" * 100)


def git_commit(run: Run) -> None:
    """ops: the words to put before `git`."""
    import subprocess

    began = time.perf_counter_ns()
    subprocess.run([*run.ops, "git", "commit", "-q", "-a", "-m", "second"], cwd=run.dir, check=True)
    run.ack(time.perf_counter_ns() - began)


GIT_COMMIT: Scenario = scenario(git_commit, setup=make_repository)
GIT_COMMIT.observe(lambda directory: None)
