"""doctor: each finding, what follows from it, and that nothing it tries is left behind."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crashtest import cli, doctor
from crashtest.doctor import Check
from crashtest.report.story import plain


def no_children() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


# --- trying things in a child -----------------------------------------------------------------------------


def raises() -> str | None:
    raise RuntimeError("no\x1b way")


def hangs() -> str | None:
    time.sleep(60)
    return None


@pytest.mark.parametrize(
    ("attempt", "answer"),
    [
        (lambda: None, None),
        (lambda: "refused", "refused"),
        (lambda: "", ""),
        (raises, "RuntimeError: no\x1b way"),
        (lambda: os._exit(7), "the child that tried it ended with 7"),
        (lambda: os.kill(os.getpid(), signal.SIGSYS), "the child that tried it died of SIGSYS"),
    ],
)
def test_a_child_tells_how_it_went(attempt: Callable[[], str | None], answer: str | None) -> None:
    assert doctor.in_child(attempt) == answer
    assert no_children()


def test_a_child_that_hangs_is_killed_with_all_it_started() -> None:
    began = time.monotonic()
    assert doctor.in_child(hangs, 0.1) == "it did not end within 0.1 s"
    assert time.monotonic() - began < 10
    assert no_children()


def test_no_descriptor_is_left_open() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        doctor.in_child(lambda: None)
    doctor.in_child(hangs, 0.05)
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- each check -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("system", "release", "state", "blocks"),
    [
        ("Linux", "6.1.0-18-amd64", "ok", False),
        ("Linux", "5.19.0", "ok", False),
        ("Linux", "5.10.0-28", "degraded", False),
        ("Linux", "5.4.0", "missing", True),
        ("Linux", "strange", "missing", True),
        ("Darwin", "23.1.0", "missing", True),
    ],
)
def test_a_kernel_that_cannot_be_observed_blocks(
    monkeypatch: pytest.MonkeyPatch, system: str, release: str, state: str, blocks: bool
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "release", lambda: release)
    found = doctor.kernel()
    assert (found.state, found.blocks) == (state, blocks)
    assert release in found.found


def test_a_listener_that_can_be_installed_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "try_listener", lambda: None)
    assert [(one.name, one.state) for one in doctor.seccomp()] == [("seccomp", "ok"), ("supervisor", "ok")]


def test_a_refused_listener_blocks_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "try_listener", lambda: "Operation not permitted (EPERM)")
    (found,) = doctor.seccomp()
    assert (found.state, found.blocks) == ("missing", True)
    assert "EPERM" in found.found
    assert "--security-opt" in found.do


def test_a_second_listener_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "try_listener", lambda: "a second one is refused, EBUSY")
    first, second = doctor.seccomp()
    assert (first.state, second.state) == ("missing", "degraded")
    assert "another seccomp listener" in second.found
    assert doctor.exit_code([first, second]) == 3


@pytest.mark.seccomp
def test_a_real_second_listener_is_found_in_a_child_that_has_one() -> None:
    from crashtest.observe import bpf

    if bpf.probe() is not None:
        pytest.skip("no listener can be installed here")
    # A filter that announces what no test does, so that nobody has to answer: return ALLOW.
    allow = (0x06).to_bytes(2, "little") + b"\0\0" + (0x7FFF0000).to_bytes(4, "little")

    def nested() -> str | None:
        bpf.install(allow)
        return bpf.probe() or "not found"

    assert "EBUSY" in str(doctor.in_child(nested))
    assert bpf.probe() is None, "this process itself is not changed"


def mounts(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "mounts"
    path.write_text("".join(line + "\n" for line in lines))
    return path


def room(mebibytes: int) -> Callable[[Any], os.statvfs_result]:
    numbers = (4096, 4096, 0, 0, mebibytes * 256, 0, 0, 0, 0, 255)
    return lambda _: os.statvfs_result(numbers)


@pytest.mark.parametrize(
    ("kind", "options", "free", "state", "words"),
    [
        ("tmpfs", "rw,nosuid", 512, "ok", "512 MiB free"),
        ("tmpfs", "rw,nosuid", 63, "degraded", "63 MiB free"),
        ("tmpfs", "rw,noexec", 512, "degraded", "mounted noexec"),
        ("ext4", "rw", 512, "missing", "is no tmpfs (ext4)"),
    ],
)
def test_where_state_is_kept(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    options: str,
    free: int,
    state: str,
    words: str,
) -> None:
    place = tmp_path / "shm"
    place.mkdir()
    monkeypatch.setattr(os, "statvfs", room(free))
    table = mounts(tmp_path, "/dev/sda / ext4 rw 0 0", f"shm {place} {kind} {options} 0 0", f"x {place}x ext4 rw 0 0")
    found = doctor.state(place, table)
    assert (found.state, found.blocks) == (state, False)
    assert words in found.found
    assert list(place.iterdir()) == []


def test_a_tmpfs_that_cannot_be_written_is_missing(tmp_path: Path) -> None:
    place = tmp_path / "gone"
    found = doctor.state(place, mounts(tmp_path, f"shm {place} tmpfs rw 0 0"))
    assert found.state == "missing"
    assert "No such file or directory" in found.found


def test_an_unreadable_mount_table_is_missing_and_not_ok(tmp_path: Path) -> None:
    assert doctor.state(tmp_path, tmp_path / "none").state == "missing"


@pytest.mark.parametrize(
    ("said", "state"),
    [
        ("git version 2.39.5", "ok"),
        ("git version 2.27.0 (Apple Git-1)", "ok"),
        ("git version 2.25.1", "degraded"),
    ],
)
def test_git_by_its_version(monkeypatch: pytest.MonkeyPatch, said: str, state: str) -> None:
    done = subprocess.CompletedProcess(["git"], 0, said.encode() + b"\n", b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert (doctor.git().state, doctor.git().found) == (state, said)


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "no git"), PermissionError(13, "no"), subprocess.TimeoutExpired("git", 10)]
)
def test_git_that_cannot_be_started_is_missing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert doctor.git().state == "missing"
    assert not doctor.git().blocks


def owners(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    def distribution(name: str) -> object:
        if name in names:
            return object()
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"crashtest": list(names)})
    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.4.1")


@pytest.mark.parametrize("names", [(), ("jin-crashtest",), ("jin_crashtest", "jin-crashtest")])
def test_our_own_distribution_is_no_rival(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    owners(monkeypatch, *names)
    assert doctor.import_name().state == "ok"


def test_another_owner_of_the_import_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    owners(monkeypatch, "jin-crashtest", "crashtest")
    found = doctor.import_name()
    assert found.state == "degraded"
    assert found.found.startswith("crashtest 0.4.1 is installed")
    assert "pip uninstall crashtest" in found.do


def test_root_is_told_what_root_cannot_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert "file modes do not bind root" in doctor.user().means
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert doctor.user().found.startswith("user 1000")


def test_a_subreaper_that_is_refused_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "try_subreaper", lambda: "it was refused")
    assert (doctor.subreaper().state, doctor.subreaper().blocks) == ("missing", True)


# --- all together -----------------------------------------------------------------------------------------


def test_a_check_that_breaks_is_a_finding_and_never_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Check:
        raise RuntimeError("no")

    for name in ("kernel", "seccomp", "subreaper", "state", "git", "python", "import_name", "user"):
        monkeypatch.setattr(doctor, name, fail)
    checks = doctor.examine()
    assert {one.state for one in checks} == {"missing"}
    assert len(checks) == 8
    assert doctor.exit_code(checks) == 3


@pytest.mark.parametrize(
    ("checks", "code"),
    [
        ([Check("a", "ok", ""), Check("b", "ok", "")], 0),
        ([Check("a", "ok", ""), Check("state", "missing", "")], 0),
        ([Check("kernel", "degraded", "")], 0),
        ([Check("a", "ok", ""), Check("seccomp", "missing", "", blocks=True)], 3),
    ],
)
def test_only_what_blocks_observation_is_exit_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], checks: list[Check], code: int
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: checks)
    assert cli.main(["doctor"]) == code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("runs with full observation are " + ("not possible" if code else "possible"))


def test_every_finding_that_is_not_ok_says_what_it_means_and_what_to_do() -> None:
    text = [plain(line) for line in doctor.lines([Check("x", "missing", "none\x1b[31m", "it is slow", "buy\none")])]
    assert text[:3] == ["missing   x: none\\x1b[31m", "    means   it is slow", "    do      buy\\none"]


def test_this_machine_can_be_examined_and_nothing_is_left() -> None:
    names = [one.name for one in doctor.examine()]
    assert [name for name in names if name != "supervisor"] == [
        "kernel",
        "seccomp",
        "subreaper",
        "state",
        "git",
        "python",
        "import name",
        "user",
    ]
    assert no_children()
