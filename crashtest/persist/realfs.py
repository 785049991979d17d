"""A real power cut: a trace played on a mounted image, the image copied at the cut, the copy mounted and read.

Guarantees: what `Disks.cut` gives is what the file system of this kernel made of the copy, journal replay and all. It
is done in a process of its own with mounts of its own (`persist.mounts`), which ends with this one, also when this one
is killed; then nothing stays mounted, attached or on disk. Pristine images are made once in that process.

The device is memory: it loses nothing that was written to it and tears no page, so a real cut shows what the file
system does, not what a disk may do. One cut shows one outcome of several that are possible; only a model
(`persist.filesystems`) says which. Needs root. Standard library only.
"""

from __future__ import annotations

import os
import pickle
import select
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

from crashtest.errors import HarnessError, quoted
from crashtest.persist import mounts
from crashtest.persist.player import Background, Player
from crashtest.persist.tree import Tree
from crashtest.trace import Event, Op

#: seconds for one request; making an image and a hundred cuts of it take some seconds
PATIENCE = 300.0


class FileSystem(NamedTuple):
    """What is made and mounted. model: the name of the model that must allow what it leaves. size: of the image, in
    bytes; the least that mkfs takes, or thereabouts."""

    name: str
    model: str
    type: str
    mkfs: tuple[str, ...]
    size: int
    options: str = ""


#: blocks as on any larger disk
_EXT4 = ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0")

FILE_SYSTEMS: dict[str, FileSystem] = {
    made.name: made
    for made in (
        FileSystem("ext4", "ext4", "ext4", _EXT4, 32 << 20),
        FileSystem("ext4-noda", "ext4-noda", "ext4", _EXT4, 32 << 20, "noauto_da_alloc"),
        FileSystem("ext4-lock", "ext4-lock", "ext4", _EXT4, 32 << 20, "dioread_lock"),
        FileSystem("ext4-journal", "ext4", "ext4", _EXT4, 32 << 20, "data=journal"),
        FileSystem("xfs", "xfs", "xfs", ("mkfs.xfs", "-q", "-f"), 300 << 20),
        FileSystem("btrfs", "btrfs", "btrfs", ("mkfs.btrfs", "-q", "-f"), 128 << 20),
    )
}


class Cut(NamedTuple):
    """Where the power goes: when so many of the played events have happened, and after waiting so many seconds."""

    at: int
    wait: float = 0.0


def missing(name: str) -> str:
    """Why there can be no real cut on this file system, on this machine; "" when there can."""
    made = FILE_SYSTEMS[name]
    if sys.platform != "linux":
        return "real cuts need Linux"
    if os.geteuid() != 0:
        return "real cuts need root, to mount images"
    if not os.path.exists("/dev/loop-control"):
        return "this machine has no loop devices (/dev/loop-control)"
    if shutil.which(made.mkfs[0], path=_path()) is None:
        return f"{made.mkfs[0]} is not installed"
    with open("/proc/filesystems", encoding="ascii") as known:
        if made.type not in known.read().split() and not _module(made.type):
            return f"this kernel has no {made.type}"
    with Disks() as disks:
        return disks.refused


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _module(type: str) -> bool:
    """A module that mounting loads by itself."""
    folder = f"/lib/modules/{os.uname().release}/kernel/fs/{type}"
    return os.path.isdir(folder)


class Disks:
    """A process in which images are mounted; started when first asked. Not to be shared by threads."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Disks:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def refused(self) -> str:
        """Why this process may not mount anything; "" when it may."""
        try:
            return str(self._ask(("hello",)))
        except HarnessError as error:
            return str(error)

    def cut(
        self, name: str, first: Tree, events: Sequence[Event | Background], cuts: Sequence[Cut], options: str = ""
    ) -> list[Tree]:
        """What each cut leaves. first: what is there, durable, before the events. options: more mount options.

        Raises `HarnessError` when the trace cannot be played, or a copy cannot be mounted.
        """
        trees: list[Tree] = self._ask(("cut", name, first, list(events), list(cuts), options))
        return trees

    def close(self) -> None:
        """End the process, and with it all that it has mounted."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()

    def stop(self) -> None:
        """Kill the process from another thread: whatever is asked of it ends in a `HarnessError`."""
        process = self._process
        if process is not None:
            process.kill()

    def _ask(self, request: tuple[Any, ...]) -> Any:
        if self._process is None:
            # sys.path as it is here: the process may have been started without `site`
            program = (
                f"import sys; sys.path[:] = {sys.path!r}; from crashtest.persist.realfs import serve; "
                f"serve({os.getpid()})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-s", "-P", "-c", program],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        asked, answered = self._process.stdin, self._process.stdout
        assert asked is not None
        assert answered is not None
        try:
            pickle.dump(request, asked)
            asked.flush()
            if not select.select([answered], [], [], PATIENCE)[0]:
                raise HarnessError(f"a real cut did not come to an end in {PATIENCE:.0f} s")
            worked, answer = pickle.load(answered)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self.close()
            raise HarnessError(f"the process for real cuts ended: {error!r}") from None
        except BaseException:
            self.close()
            raise
        if not worked:
            raise HarnessError(answer)
        return answer


# -- in the process of its own -----------------------------------------------------------------------------------------


def serve(parent: int) -> None:
    """Answer requests until there are no more."""
    mounts.end_with_parent(parent)
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a tool prints is no answer
    os.umask(0)
    refused = ""
    try:
        mounts.private()
    except OSError as error:
        refused = f"no mounts of its own: {error}; real cuts need root with CAP_SYS_ADMIN"
    while True:
        try:
            request = pickle.load(asked)
        except EOFError:
            return
        try:
            answer: tuple[bool, Any] = (True, refused)
            if request[0] != "hello":
                answer = (False, refused) if refused else (True, _cut(*request[1:]))
        except (OSError, HarnessError, subprocess.SubprocessError) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            answer = (False, f"a real cut on {request[1]} failed: {quoted(error)} (in {last.name})")
        _answer(answers, answer)


def _answer(answers: IO[bytes], answer: tuple[bool, Any]) -> None:
    pickle.dump(answer, answers)
    answers.flush()


def _pristine(made: FileSystem) -> str:
    """An empty file system, made once; what mkfs has written zeros to becomes holes, so copies are small."""
    path = f"{mounts.PLACE}/crashtest-{made.type}-{made.size}.img"
    if not os.path.exists(path):
        with open(f"{path}.new", "wb") as image:
            image.truncate(made.size)
        here = os.getpid()
        run = subprocess.run(
            [*made.mkfs, f"{path}.new"], capture_output=True, text=True, check=False, env={"PATH": _path()},
            preexec_fn=lambda: mounts.end_with_parent(here),
        )  # fmt: skip
        if run.returncode:
            raise HarnessError(f"{made.mkfs[0]} failed: {quoted(run.stderr or run.stdout)}")
        _dig(f"{path}.new")
        os.rename(f"{path}.new", path)
    return path


def _dig(path: str) -> None:
    """Make holes of blocks that are zeros (as `fallocate --dig-holes` does), by copying all others."""
    block = 4096
    with open(path, "rb") as source, open(f"{path}.dug", "wb") as target:
        target.truncate(os.fstat(source.fileno()).st_size)
        at = 0
        while True:
            try:
                at = os.lseek(source.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            source.seek(at)
            data = source.read(block)
            if data.strip(b"\0"):
                target.seek(at)
                target.write(data)
            at += len(data)
    os.rename(f"{path}.dug", path)


def _cut(name: str, first: Tree, events: Sequence[Event | Background], cuts: Sequence[Cut], options: str) -> list[Tree]:
    made = FILE_SYSTEMS[name]
    if max(cuts).at > len(events):
        raise HarnessError(f"a cut after {max(cuts).at} events of {len(events)}")
    options = ",".join(filter(None, (made.options, options)))
    work = f"{mounts.PLACE}/crashtest-work.img"
    mounts.copy_image(_pristine(made), work)
    copies: dict[int, str] = {}
    with mounts.Mounted(work, f"{mounts.PLACE}/work", made.type, options) as disk:
        for folder in ("state", "outside"):
            os.mkdir(f"{disk.directory}/{folder}")
        with Player(first, f"{disk.directory}/state", f"{disk.directory}/outside") as player:
            player.play(Op("syncfs"))
            at, begun = 0, time.monotonic()
            for number, cut in sorted(enumerate(cuts), key=lambda one: one[1]):
                for event in events[at : cut.at]:
                    if isinstance(event, (Op, Background)):
                        player.play(event)
                    begun = time.monotonic()
                at = cut.at
                time.sleep(max(begun + cut.wait - time.monotonic(), 0))
                copies[number] = f"{mounts.PLACE}/crashtest-cut-{number}.img"
                disk.copy(copies[number])
            player.check()
    return [_left(made, options, copies[number]) for number in range(len(cuts))]


def _left(made: FileSystem, options: str, image: str) -> Tree:
    """What a mount of the copy shows. The copy is mounted when the original is not: they have one identity."""
    try:
        with mounts.Mounted(image, f"{mounts.PLACE}/left", made.type, options) as disk:
            return Tree.capture(f"{disk.directory}/state")
    finally:
        os.unlink(image)
