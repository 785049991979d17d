"""What this machine can do: each check says ok, degraded or missing, what that means, and what to do.

Guarantees: what can be tried is really tried (a seccomp listener is installed, a file is made on the state
file system), in a child where it would change this process; nothing is left behind; a check that breaks or
hangs is reported as missing and never as ok. Does not promise that a machine stays as it was found.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crashtest.errors import quoted
from crashtest.report.story import Line, field

State = Literal["ok", "degraded", "missing"]

DISTRIBUTION = "jin-crashtest"
MEBIBYTE = 1 << 20
#: free bytes on the state file system below which scenarios may fail for lack of space
ROOM = 64 * MEBIBYTE
#: seconds that one check may take
PATIENCE = 10.0

_STEPS = "use --observation steps, which sees named steps alone"
_STYLE = {"ok": "green", "degraded": "bold yellow", "missing": "bold red"}


@dataclass(frozen=True)
class Check:
    """One finding. `blocks` says that runs with full observation are impossible because of it."""

    name: str
    state: State
    found: str
    means: str = ""
    do: str = ""
    blocks: bool = False


def in_child(attempt: Callable[[], str | None], patience: float = PATIENCE) -> str | None:
    """Call `attempt` in a forked child: what it returned (None, or a reason), or how the child ended.

    `patience` is in seconds; a child that takes longer is killed.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            os.setpgid(0, 0)
            reason = attempt()
            os.write(writing, b"+" if reason is None else b"-" + os.fsencode(reason)[:4000])
            status = 0
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(
                    writing,
                    b"-" + f"{type(error).__name__}: {error}".encode("utf-8", "backslashreplace")[:4000],
                )
        finally:
            os._exit(status)
    os.close(writing)
    ready: list[int] = []
    try:
        ready, _, _ = select.select([reading], [], [], patience)
        answer = os.read(reading, 4096) if ready else None
    finally:
        os.close(reading)
        if not ready:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if answer is None:
        return f"it did not end within {patience:g} s"
    if answer == b"+":
        return None
    if answer:
        return answer[1:].decode("utf-8", "backslashreplace")
    if os.WIFSIGNALED(status):
        return f"the child that tried it died of {signal.Signals(os.WTERMSIG(status)).name}"
    return f"the child that tried it ended with {os.waitstatus_to_exitcode(status)}"


def kernel() -> Check:
    """Linux, and new enough to let a supervisor decide about system calls."""
    system, release, machine = platform.system(), platform.release(), platform.machine()
    found = f"{system} {release} on {machine}"
    if system != "Linux":
        return Check("kernel", "missing", found, "system calls can only be observed on Linux", _STEPS, blocks=True)
    numbers = re.match(r"(\d+)\.(\d+)", release)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if version < (5, 5):
        means = "seccomp user notification needs Linux 5.5"
        return Check("kernel", "missing", found, means, f"use a newer kernel, or {_STEPS}", blocks=True)
    if version < (5, 19):
        means = "before Linux 5.19 a call that a signal interrupts is announced twice; crashtest sorts that out"
        return Check("kernel", "degraded", found, means, "nothing has to be done; a newer kernel is quicker")
    return Check("kernel", "ok", found)


def try_listener() -> str | None:
    """Install a seccomp listener here, for good: None, or why not. Call it in a child."""
    from crashtest.observe import bpf

    return bpf.probe()


def seccomp() -> Iterator[Check]:
    """Whether a listener can be installed, and whether another one is in the way."""
    reason = in_child(try_listener)
    what = "every system call that changes a file can be observed"
    if reason is None:
        yield Check("seccomp", "ok", f"a listener was installed in a child: {what}")
        yield Check("supervisor", "ok", "no other seccomp listener supervises this process")
        return
    busy = "EBUSY" in reason or "busy" in reason.lower()
    yield Check(
        "seccomp", "missing", f"no listener can be installed: {reason}", f"not {what}",
        f"run outside the other supervisor, or {_STEPS}" if busy
        else f"in a container, allow seccomp (docker: --security-opt seccomp=unconfined), or {_STEPS}",
        blocks=True,
    )  # fmt: skip
    if busy:
        yield Check(
            "supervisor", "degraded", "another seccomp listener supervises this process (EBUSY)",
            "Linux allows one listener for a process, so programs cannot be observed from in here",
            "leave that sandbox (a crashtest inside a crashtest is one)",
            blocks=True,
        )  # fmt: skip


def try_subreaper() -> str | None:
    """Become the one who reaps orphans: None, or why not. Call it in a child."""
    from crashtest.observe import bpf

    return None if bpf.become_subreaper() else "prctl(PR_SET_CHILD_SUBREAPER) was refused"


def subreaper() -> Check:
    """Whether processes that a killed program leaves behind come to us."""
    reason = in_child(try_subreaper)
    if reason is None:
        return Check("subreaper", "ok", "orphans of a killed program are reaped")
    means = "processes that a killed program leaves behind cannot be accounted for"
    return Check("subreaper", "missing", reason, means, f"run on Linux, or {_STEPS}", blocks=True)


def mount(path: Path, mounts: Path) -> tuple[str, set[str]]:
    """The type and options of the file system that `path` is on; "unknown" where it cannot be told."""
    best, kind, options = "", "unknown", ""
    with contextlib.suppress(OSError):
        for line in mounts.read_text("utf-8", "backslashreplace").splitlines():
            parts = line.split()
            if len(parts) < 4:
                continue
            place = parts[1]
            inside = place == "/" or str(path) == place or str(path).startswith(place + "/")
            if inside and len(place) >= len(best):
                best, kind, options = place, parts[2], parts[3]
    return kind, set(options.split(","))


def state(place: Path = Path("/dev/shm"), mounts: Path = Path("/proc/self/mounts")) -> Check:
    """Whether crash states can be kept in memory, and how many bytes are free there."""
    means = "crash states are kept on the disk, which is several times slower"
    kind, options = mount(place, mounts)
    if kind != "tmpfs":
        return Check("state", "missing", f"{place} is no tmpfs ({kind})", means, f"mount -t tmpfs tmpfs {place}")
    try:
        with tempfile.TemporaryFile(dir=place):
            numbers = os.statvfs(place)
    except OSError as error:
        return Check("state", "missing", f"{place}: {error.strerror}", means, f"make {place} writable")
    free = numbers.f_bavail * numbers.f_frsize
    found = f"{place} is a tmpfs with {free // MEBIBYTE} MiB free"
    if free < ROOM:
        means = "a scenario with large files may run out of space, which ends in exit 3"
        return Check("state", "degraded", found, means, "docker: --shm-size=1g; else free some memory there")
    if "noexec" in options:
        means = "a program that stands in the state directory (a git hook) cannot be executed"
        return Check("state", "degraded", f"{found}, mounted noexec", means, f"mount -o remount,exec {place}")
    return Check("state", "ok", found)


def git() -> Check:
    """git, which scenarios about git need."""
    means = "scenarios that use git cannot be run"
    try:
        said = subprocess.run(["git", "--version"], capture_output=True, timeout=PATIENCE, check=True).stdout
    except FileNotFoundError:
        return Check("git", "missing", "git is not on PATH", means, "install git (apt-get install git)")
    except (OSError, subprocess.SubprocessError) as error:
        return Check("git", "missing", f"git --version failed: {error}", means, "install git again")
    text = said.decode("utf-8", "backslashreplace").strip()
    numbers = re.search(r"(\d+)\.(\d+)", text)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < (2, 27):
        means = "git update-ref --stdin has no transactions before git 2.27, so scenarios that use them fail"
        return Check("git", "degraded", text, means, "install a newer git")
    return Check("git", "ok", text)


def python() -> Check:
    """The interpreter."""
    found = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    if sys.implementation.name != "cpython":
        return Check("python", "degraded", found, "only CPython is tested", "use CPython 3.11 or newer")
    return Check("python", "ok", found)


def import_name() -> Check:
    """Whether another distribution has files under the import name `crashtest`."""
    owners = set(importlib.metadata.packages_distributions().get("crashtest", []))
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("crashtest")
        owners.add("crashtest")
    others = sorted(name for name in owners if re.sub(r"[-_.]+", "-", name).lower() != DISTRIBUTION)
    if not others:
        return Check("import name", "ok", "no other distribution owns the import name crashtest")
    versions = []
    for name in others:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(name)
    return Check(
        "import name", "degraded", f"{', '.join(versions)} is installed under the same import name",
        "both write to one directory, so a file of either may be the other's (old Poetry brings one)",
        f"pip uninstall {' '.join(others)}; pip install --force-reinstall {DISTRIBUTION}",
    )  # fmt: skip


def user() -> Check:
    """root, or not."""
    if os.geteuid() != 0:
        return Check("user", "ok", f"user {os.geteuid()}; crashtest needs no root")
    means = "file modes do not bind root, so a scenario about permissions proves less than it would for a user"
    return Check("user", "ok", "root", means, "nothing has to be done; crashtest needs no root")


def examine() -> list[Check]:
    """All checks, in the order they are shown. A check that breaks is reported as missing."""
    checks: list[Check] = []

    def add(name: str, look: Callable[[], list[Check]], blocks: bool = False) -> None:
        try:
            checks.extend(look())
        except Exception as error:
            found = f"could not be examined: {type(error).__name__}: {error}"
            checks.append(Check(name, "missing", found, "nothing is known about it", blocks=blocks))

    add("kernel", lambda: [kernel()], blocks=True)
    add("seccomp", lambda: list(seccomp()), blocks=True)
    add("subreaper", lambda: [subreaper()], blocks=True)
    add("state", lambda: [state()])
    add("git", lambda: [git()])
    add("python", lambda: [python()])
    add("import name", lambda: [import_name()])
    add("user", lambda: [user()])
    return checks


def exit_code(checks: list[Check]) -> int:
    """0 when runs with full observation are possible here, 3 when they are not."""
    return 3 if any(check.blocks and check.state != "ok" for check in checks) else 0


def lines(checks: list[Check]) -> Iterator[Line]:
    """The checks as lines, and what follows from them."""
    for check in checks:
        yield (
            (f"{check.state:<10}", _STYLE[check.state]),
            (f"{check.name}: ", "bold"),
            (quoted(check.found, 600), ""),
        )
        if check.means:
            yield field("means", quoted(check.means, 600))
        if check.do:
            yield field("do", quoted(check.do, 600), "cyan")
    if exit_code(checks):
        words = "runs with full observation are not possible here; --observation steps sees named steps alone"
        yield ((words, "bold yellow"),)
    else:
        yield (("runs with full observation are possible here", "bold green"),)
