"""Reading a stopped thread: its memory, its descriptors, its directories, what program it is.

Guarantees: reads only, through /proc, of threads that the caller has stopped; a thread that is gone, or that cannot
be read, gives `Gone`. Does not freeze other threads of the same program: what they change meanwhile is theirs.
"""

from __future__ import annotations

import os
import struct

_PIECE = 256
#: threads whose memory file is kept open
_KEPT = 128


class Gone(Exception):
    """The thread ended (or its memory cannot be read): its call does not happen, or fails with EFAULT."""


def _pread(fd: int, size: int, address: int) -> bytes:
    try:
        return os.pread(fd, size, address)
    except (OSError, OverflowError):
        return b""


class Processes:
    """Access to the threads under one listener, with their memory files kept open between stops."""

    def __init__(self) -> None:
        self._memory: dict[int, int] = {}
        self._programs: dict[int, str] = {}
        self._owners: dict[int, int] = {}

    def forget(self) -> None:
        """After an exec: /proc/PID/mem goes stale there, and the program is another one."""
        for fd in self._memory.values():
            os.close(fd)
        self._memory.clear()
        self._programs.clear()

    close = forget

    def _open(self, thread: int) -> int:
        if len(self._memory) >= _KEPT:
            os.close(self._memory.pop(next(iter(self._memory))))
        try:
            fd = self._memory[thread] = os.open(f"/proc/{thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Gone(f"thread {thread}: {error.strerror}") from None
        return fd

    def read(self, thread: int, address: int, size: int) -> bytes:
        """Up to `size` bytes of its memory: fewer where the mapping ends. Raises `Gone` when there are none."""
        if not size:
            return b""
        fd = self._memory.get(thread)
        data = b"" if fd is None else _pread(fd, size, address)
        if not data:
            if fd is not None:
                os.close(self._memory.pop(thread))
            fd = self._open(thread)
            data = _pread(fd, size, address)
            if not data:
                raise Gone(f"thread {thread}: nothing mapped at {address:#x}")
        if len(data) == size or fd is None:
            return data
        parts, got = [data], len(data)
        while got < size and (data := _pread(fd, size - got, address + got)):
            parts.append(data)
            got += len(data)
        return b"".join(parts)

    def string(self, thread: int, address: int) -> str:
        """A file name argument (at most 4,096 bytes), undecodable bytes as surrogates."""
        parts: list[bytes] = []
        at = address
        while at - address < 4096:
            part = self.read(thread, at, min(_PIECE, 4096 - at % 4096))
            end = part.find(b"\0")
            if end >= 0:
                parts.append(part[:end])
                return os.fsdecode(b"".join(parts))
            parts.append(part)
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

    def position(self, thread: int, fd: int) -> tuple[int, int]:
        """(offset, open flags) of one of its descriptors (proc(5), fdinfo)."""
        try:
            info = os.open(f"/proc/{thread}/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Gone(f"thread {thread}: descriptor {fd}: {error.strerror}") from None
        words = os.read(info, 256).split()
        os.close(info)
        return int(words[1]), int(words[3], 8)

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
            known = thread
            try:
                with open(f"/proc/{thread}/status", "rb") as status:
                    for line in status:
                        if line.startswith(b"Tgid:"):
                            known = int(line.split()[1])
                            break
            except (OSError, ValueError):
                pass
            self._owners[thread] = known
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
