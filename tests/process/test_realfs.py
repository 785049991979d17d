"""Real power cuts: what is played is what is read, and nothing stays when the harness is killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from crashtest.errors import HarnessError
from crashtest.persist.player import Background
from crashtest.persist.realfs import FILE_SYSTEMS, Cut, Disks, missing
from crashtest.trace import Op
from tests.traces import Disk, shown

# they take a few seconds together, and are the kernel's business more than Python's
pytestmark = [pytest.mark.privileged, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = b"old " * 300, b"new! " * 300


@pytest.fixture(scope="module")
def disks() -> Iterator[Disks]:
    with Disks() as made:
        yield made


@pytest.fixture(params=sorted(FILE_SYSTEMS))
def name(request: pytest.FixtureRequest) -> str:
    reason = missing(request.param)
    if reason:
        pytest.skip(reason)
    return str(request.param)


def everything() -> Disk:
    """One of each change."""
    disk = Disk()
    for path in ("a", "b", "c"):
        disk.create(path, OLD)
    disk.start()
    disk.mkdir("d")
    disk.create("d/x", NEW)
    disk.symlink("../a", "d/link")
    disk.link("a", "d/a")
    disk.rename("b", "d/b")
    disk.exchange("a", "d/b")
    disk.truncate("c", 100)
    disk.append("c", NEW)
    disk.allocate("c", 9000)
    disk.chmod("c", 0o600)
    disk.chown("d/x", 1, 0o640)
    disk.setxattr("c", "user.k", b"v")
    disk.setxattr("c", "user.l", b"w")
    disk.removexattr("c", "user.k")
    disk.arrive("n", OLD)
    disk.mkdir("gone")
    disk.rmdir("gone")
    file = disk.tmpfile()
    disk.write(file, 0, NEW)
    disk.link(file, "named")
    disk.unlink("d/a")
    for kind in ("fsync", "fdatasync", "msync", "sync_file_range"):
        disk.sync(kind, "c")
    disk.depart("a")
    return disk


def test_after_a_sync_of_all_a_cut_leaves_everything(disks: Disks, name: str) -> None:
    disk = everything()
    disk.sync("sync")
    tree = disks.cut(name, disk.first, disk.events, [Cut(len(disk.events))])[0]
    assert disk.tree.differences(tree) == []


def test_a_cut_at_each_place_shows_what_was_synced_by_then(disks: Disks, name: str) -> None:
    disk = Disk().start()
    disk.create("f", OLD)
    disk.fsync("f")
    disk.fsync("")
    disk.write("f", 0, b"x")
    disk.fsync("f")
    trees = disks.cut(name, disk.first, disk.events, [Cut(6), Cut(4), Cut(0)])
    assert [shown(tree) for tree in trees] == [{"f": b"x" + OLD[1:]}, {"f": OLD}, {}]


def test_what_the_kernel_does_by_itself_can_be_asked_for(disks: Disks, name: str) -> None:
    disk = Disk().start()
    disk.create("f", OLD)
    events = [disk.events[0], Background("commit"), disk.events[1], Background("writeback", disk.file("f"))]
    trees = disks.cut(name, disk.first, [*events, Background("commit")], [Cut(1), Cut(2), Cut(5)])
    assert [shown(tree) for tree in trees] == [{}, {"f": b""}, {"f": OLD}]


def test_a_trace_that_does_not_fit_is_an_error_and_the_next_cut_works(disks: Disks, name: str) -> None:
    disk = Disk().start()
    disk.create("f", OLD)
    with pytest.raises(HarnessError, match=f"a real cut on {name} failed"):
        disks.cut(name, disk.first, [disk.events[0], disk.events[0]], [Cut(2)])
    with pytest.raises(HarnessError, match="a cut after 9 events of 1"):
        disks.cut(name, disk.first, disk.events[:1], [Cut(9)])
    assert shown(disks.cut(name, disk.first, disk.events, [Cut(0)])[0]) == {}


def test_what_was_played_is_proved_before_a_cut_is_believed(disks: Disks, name: str) -> None:
    disk = Disk().start()
    disk.create("f")
    wrong = disk.events[0]._replace(mode=0o600) if isinstance(disk.events[0], Op) else disk.events[0]
    events = [wrong, Op("chmod", disk.file("f"), mode=0o600), Op("utimes", disk.file("f"))]
    assert disks.cut(name, disk.first, events, [Cut(3)])
    hole = Op("allocate", disk.file("f"), size=5)
    with pytest.raises(HarnessError):
        disks.cut(name, disk.first, [wrong, hole, Op("write", disk.file("f"), offset=-1, data=b"x")], [Cut(3)])


def attached() -> list[str]:
    """Images of ours that a loop device still holds."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    found = []
    for file in files:
        try:
            found.append(file.read_text())
        except OSError:  # it was detached just now
            continue
    return [image for image in found if "crashtest-" in image]


_HARNESS = """
import os, sys
from crashtest.persist.realfs import Cut, Disks
from tests.traces import Disk
disk = Disk().start()
disk.create("f", b"x")
disks = Disks()
assert disks.refused == ""
print(disks._process.pid, flush=True)
disks.cut(sys.argv[1], disk.first, disk.events, [Cut(1, wait=600)])
"""


@pytest.mark.parametrize("victim", ["harness", "mounter"])
def test_nothing_stays_mounted_or_attached_when_it_is_killed_half_way(name: str, victim: str) -> None:
    before = Path("/proc/mounts").read_text(), sorted(os.listdir("/mnt")), len(attached())
    harness = subprocess.Popen(
        [sys.executable, "-c", _HARNESS, name], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert harness.stdout is not None
    mounter = int(harness.stdout.readline())
    until = time.monotonic() + 60
    while len(attached()) == before[2]:  # it is half-way when the image is attached
        assert time.monotonic() < until
        assert harness.poll() is None
        time.sleep(0.01)
    gone = os.pidfd_open(mounter)
    os.kill(harness.pid if victim == "harness" else mounter, signal.SIGKILL)
    harness.wait(60)
    harness.stdout.close()
    assert select.select([gone], [], [], 60)[0], "the process that mounts has outlived the harness"
    os.close(gone)
    while len(attached()) != before[2]:  # the kernel takes a namespace down after its last process has ended
        assert time.monotonic() < until
        time.sleep(0.01)
    assert (Path("/proc/mounts").read_text(), sorted(os.listdir("/mnt")), len(attached())) == before
