"""Reading a stopped thread: its memory, its descriptors, its directories, what program it is.

Guarantees: reads only, through /proc, of threads that the caller has stopped; a thread that is gone, or that cannot
be read, gives `Gone`. Files of /proc are kept open between stops where they say the present each time they are read:
those of a descriptor are looked up anew by the kernel at every read, so a number that was closed, or is another file
by now, is seen. Does not freeze other threads of the same program: what they change meanwhile is theirs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
import sys
from collections.abc import Hashable

_PIECE = 256
#: how file names are written, and what becomes of others (os.fsdecode)
_NAMES = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
#: how many files of each kind are kept open
_KEPT = 64


#: what a descriptor is: the file's offset, its open flags, its mount, and its inode number (-1: not told)
Opened = tuple[int, int, int, int]


class Gone(Exception):
    """The thread ended (or its memory cannot be read): its call does not happen, or fails with EFAULT."""


class _Kept:
    """Files of /proc kept open, the oldest closed when there are too many."""

    def __init__(self) -> None:
        self._fds: dict[Hashable, int] = {}
        self.get = self._fds.get

    def open(self, key: Hashable, path: str) -> int:
        """Open it, in place of what was kept under that key. Raises OSError."""
        self.drop(key)
        if len(self._fds) >= _KEPT:
            self.drop(next(iter(self._fds)))
        fd = self._fds[key] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return fd

    def read(self, key: Hashable, path: str) -> bytes:
        """Its beginning, as it is now; nothing when there is no such file."""
        fd = self.get(key)
        text = b"" if fd is None else _pread(fd, 1 << 14, 0)
        if not text:
            with contextlib.suppress(OSError):
                text = os.pread(self.open(key, path), 1 << 14, 0)
        return text

    def drop(self, key: Hashable) -> None:
        fd = self._fds.pop(key, -1)
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


def _pread(fd: int, size: int, address: int) -> bytes:
    try:
        return os.pread(fd, size, address)
    except (OSError, OverflowError):
        return b""


@functools.lru_cache(256)
def opened(info: bytes) -> Opened:
    """What a file of fdinfo says (proc(5); the inode number is told since Linux 5.14)."""
    words = info.split(None, 8)
    return int(words[1]), int(words[3], 8), int(words[5]), int(words[7]) if words[6:7] == [b"ino:"] else -1


class Processes:
    """Access to the threads under one listener."""

    def __init__(self) -> None:
        self._memory = _Kept()
        self._descriptors = _Kept()
        self._children = _Kept()
        self._status = _Kept()
        self._calls = _Kept()
        self._programs: dict[int, str] = {}
        self._owners: dict[int, int] = {}

    def forget(self, thread: int) -> None:
        """Before an exec by this thread: its /proc/PID/mem goes stale then, and the program is another one. If it is
        not the first thread of its process, it takes that one's number."""
        for one in {thread, self.owner(thread)}:
            self._memory.drop(one)
            self._programs.pop(one, None)

    def close(self) -> None:
        for kept in (self._memory, self._descriptors, self._children, self._status, self._calls):
            kept.close()

    def read(self, thread: int, address: int, size: int) -> bytes:
        """Up to `size` bytes of its memory: fewer where the mapping ends. Raises `Gone` when there are none."""
        fd = self._memory.get(thread)
        if fd is not None:
            try:
                data = os.pread(fd, size, address)
                if len(data) == size:
                    return data
            except (OSError, OverflowError):
                pass  # by now it may be another program's
        if not size:
            return b""
        try:
            fd = self._memory.open(thread, f"/proc/{thread}/mem")
        except OSError as error:
            raise Gone(f"thread {thread}: {error.strerror}") from None
        parts, got = [], 0
        while got < size and (data := _pread(fd, size - got, address + got)):
            parts.append(data)
            got += len(data)
        if not parts:
            raise Gone(f"thread {thread}: nothing mapped at {address:#x}")
        return b"".join(parts)

    def string(self, thread: int, address: int) -> str:
        """A file name argument (at most 4,096 bytes), undecodable bytes as surrogates."""
        name, at = b"", address
        while at - address < 4096:
            part = self.read(thread, at, min(_PIECE, 4096 - at % 4096))
            end = part.find(b"\0")
            if end >= 0:
                return (name + part[:end]).decode(*_NAMES)
            name += part
            at += len(part)
        raise Gone(f"thread {thread}: a name of more than 4,096 bytes")

    def vector(self, thread: int, address: int, count: int) -> list[tuple[int, int]]:
        """The (address, size) pairs of an array of struct iovec."""
        if not 0 < count <= 1024:
            raise Gone(f"thread {thread}: a vector of {count} parts")
        raw = self.read(thread, address, 16 * count)
        return list(struct.iter_unpack("<QQ", raw[: len(raw) // 16 * 16]))

    def descriptor(self, thread: int, fd: int) -> os.stat_result:
        """fstat of one of its descriptors. Raises `Gone` when it is not open."""
        try:
            return os.stat(f"/proc/{thread}/fd/{fd}")
        except OSError as error:
            raise Gone(f"thread {thread}: descriptor {fd}: {error.strerror}") from None

    def opened(self, thread: int, fd: int) -> Opened:
        """What one of its descriptors is (proc(5), fdinfo). Raises `Gone` when it is not open."""
        kept = self._descriptors.get((thread, fd))
        if kept is not None:
            try:
                return opened(os.pread(kept, 256, 0))
            except OSError:
                pass  # closed since; or the thread is gone, and another has its number
        try:
            kept = self._descriptors.open((thread, fd), f"/proc/{thread}/fdinfo/{fd}")
            return opened(os.pread(kept, 256, 0))
        except OSError as error:
            raise Gone(f"thread {thread}: descriptor {fd}: {error.strerror}") from None

    def path(self, thread: int, fd: int) -> str:
        """What one of its descriptors is open on, for people."""
        try:
            return os.readlink(f"/proc/{thread}/fd/{fd}")
        except OSError:
            return f"descriptor {fd}"

    def owner(self, thread: int) -> int:
        """The process id of a thread; the thread id itself when that cannot be read any more."""
        known = self._owners.get(thread)
        if known is None:
            known = self._owners[thread] = _owner(thread)
        return known

    def program(self, thread: int) -> str:
        """The command line of the thread's process, at most 300 characters."""
        known = self._programs.get(thread)
        if known is None:
            try:
                with open(f"/proc/{thread}/cmdline", "rb") as file:
                    words = file.read(1024).rstrip(b"\0").split(b"\0")
                known = os.fsdecode(b" ".join([os.path.basename(words[0]), *words[1:]]))[:300]
            except OSError:
                known = f"thread {thread}"
            self._programs[thread] = known
        return known

    def signals(self, thread: int) -> tuple[int, int, int]:
        """The signals it blocks, those it has handlers for and those it ignores, as masks (proc(5), status); all 0 when
        it is gone."""
        text = self._status.read(thread, f"/proc/{thread}/status")
        return _mask(text, b"\nSigBlk:"), _mask(text, b"\nSigCgt:"), _mask(text, b"\nSigIgn:")

    def identity(self, thread: int) -> tuple[int, int, int]:
        """Its effective user and group, and its effective capabilities as a mask (proc(5), status); -1 and 0 when it is
        gone."""
        text = self._status.read(thread, f"/proc/{thread}/status")
        ids = [text.partition(label)[2][:80].split(None, 2) for label in (b"\nUid:", b"\nGid:")]
        user, group = (int(words[1]) if len(words) > 1 else -1 for words in ids)
        return user, group, _mask(text, b"\nCapEff:")

    def current_call(self, thread: int) -> bytes:
        """What /proc/PID/syscall says of a thread (proc(5)); nothing when it is gone."""
        return self._calls.read(thread, f"/proc/{thread}/syscall")

    def children(self, process: int) -> list[int]:
        """As the function `children`, for a process that is asked often; of very many it may miss some."""
        found: list[int] = []
        try:
            for task in os.listdir(f"/proc/{process}/task"):
                kept = self._children.get(task)
                if kept is None:
                    kept = self._children.open(task, f"/proc/{process}/task/{task}/children")
                found.extend(map(int, os.pread(kept, 1 << 14, 0).split()))
        except OSError:
            return children(process)
        return found


def _mask(status: bytes, label: bytes) -> int:
    """One of the signal masks in the text of a status file; 0 when it is not there."""
    return int(status.partition(label)[2][:24].split(None, 1)[0], 16) if label in status else 0


def _owner(thread: int) -> int:
    with contextlib.suppress(OSError, AttributeError):
        os.close(os.pidfd_open(thread))  # the first thread of a process; refused for the others (pidfd_open(2))
        return thread
    try:
        with open(f"/proc/{thread}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Tgid:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return thread


def alive(process: int) -> bool:
    """Whether a process exists and has not ended (a zombie has)."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def children(process: int) -> list[int]:
    """The process ids of the direct children of `process`, zombies included."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{task}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
        return found
    except FileNotFoundError:
        pass  # a kernel without CONFIG_PROC_CHILDREN: look through all processes
    except OSError:
        return []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    if int(file.read().rpartition(b")")[2].split()[1]) == process:
                        found.append(int(name))
            except OSError:
                continue
    return found
