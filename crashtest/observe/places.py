"""Where a call's name arguments lead: from (thread, directory descriptor, path) to a directory of the state and a name.

Guarantees: a place inside the state is named by directory id and last name, after following the symbolic links the
call would follow; a place outside comes back as its real path; a path that leads nowhere as None (the call fails).
Reads the live file system while the thread is stopped, so another thread that moves directories at the same moment
can make it wrong: the record's own proof catches that. Not aware of chroot(2) and mount namespaces.
"""

from __future__ import annotations

import functools
import os
import stat
from typing import NamedTuple, Protocol

from crashtest.observe.process import opened

AT_FDCWD = 0xFFFFFF9C  # -100 as the unsigned 32 bits a filter sees
#: directories kept open; a call that is under way needs two of them
_KEPT = 64
#: file systems on which a mount and an inode number name one file (not so with subvolumes and overlays)
_PLAIN = {b"ext2", b"ext3", b"ext4", b"tmpfs", b"xfs"}
_LINKS = 40  # path_resolution(7): more symbolic links than this are ELOOP


class Shadow(Protocol):
    """The recorder's own picture of the state, kept in step with every event it records."""

    def new_id(self) -> int: ...
    def size(self, file: int) -> int: ...
    def content(self, file: int) -> bytearray: ...
    def path(self, file: int) -> str: ...


class Place(NamedTuple):
    """A name in a directory of the state. fd: an O_PATH descriptor of that directory. path: for people."""

    dir: int
    fd: int
    name: str
    path: str

    def look(self) -> os.stat_result | None:
        """lstat of the place, or None when there is nothing."""
        try:
            return os.stat(self.name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return None


class State:
    """The state directory on disk and which of its inodes has which file id."""

    def __init__(self, root: str, shadow: Shadow, inodes: dict[int, int]) -> None:
        self.device = os.stat(root).st_dev
        self.root, self.mount = _where(root, self.device)
        self.shadow = shadow
        self.inodes = inodes
        self._directories: dict[int, int] = {}
        self._paths: dict[int, str] = {}
        #: inode numbers that are known to be plain files of the state
        self._regular: set[int] = set()

    def close(self) -> None:
        for fd in self._directories.values():
            os.close(fd)
        self._directories.clear()

    def path(self, file: int) -> str:
        """Its path in the record, relative to the state; for people, and to find it on disk."""
        known = self._paths.get(file)
        if known is None:
            known = self._paths[file] = self.shadow.path(file)
        return known

    def renamed(self) -> None:
        """Names have changed: no path is known any more."""
        self._paths.clear()

    def file(self, info: os.stat_result) -> int | None:
        """The file id of an inode, or None when it is not one of the state's."""
        return self.inodes.get(info.st_ino) if info.st_dev == self.device else None

    def regular(self, mount: int, inode: int) -> int | None:
        """The file id of what is open there, when it is known to be a plain file of the state."""
        if inode in self._regular and mount == self.mount:
            return self.inodes.get(inode)
        return None

    def learn(self, mount: int, inode: int, info: os.stat_result) -> None:
        """What is open there has turned out to be a plain file of the state: `regular` knows it from now on."""
        if mount == self.mount and inode == info.st_ino:
            self._regular.add(inode)

    def register(self, info: os.stat_result) -> int:
        """Give a new inode its file id."""
        if stat.S_ISREG(info.st_mode):
            self._regular.add(info.st_ino)
        else:
            self._regular.discard(info.st_ino)
        made = self.inodes[info.st_ino] = self.shadow.new_id()
        old = self._directories.pop(made, None)
        if old is not None:
            os.close(old)
        return made

    def stat(self, file: int) -> os.stat_result | None:
        """lstat of a file by its id; None when it has no name any more."""
        try:
            info = os.lstat(f"{self.root}/{self.path(file)}")
        except OSError:
            return None
        return info if self.inodes.get(info.st_ino) == file else None

    def read(self, file: int) -> bytes | None:
        """The content of a file by its id, as it is on disk; None when it has no name any more."""
        if self.stat(file) is None:
            return None
        try:
            with open(f"{self.root}/{self.path(file)}", "rb", buffering=0) as opened:
                return opened.readall()
        except OSError:
            return None

    def _directory(self, file: int, path: str) -> int:
        """An O_PATH descriptor of a directory; those not used for long are closed."""
        fd = self._directories.pop(file, -1)
        if fd < 0:
            if len(self._directories) >= _KEPT:
                os.close(self._directories.pop(next(iter(self._directories))))
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directories[file] = fd
        return fd

    def place(self, thread: int, directory: int, path: str, follow: bool) -> Place | str | None:
        """Where (directory descriptor, path) leads for a stopped thread; `follow`: the last name's links too."""
        full = absolute(thread, directory, path)
        for _ in range(_LINKS):
            head, _, name = full.rstrip("/").rpartition("/")
            if not path or name in ("", ".", ".."):
                return None
            try:
                info = os.stat(head or "/")
            except OSError:
                return None
            if not stat.S_ISDIR(info.st_mode):
                return None
            file = self.file(info)
            if file is None:
                found: Place | str = f"{os.path.realpath(head or '/')}/{name}"
                here, base = full, head
            else:
                fd = self._directory(file, head or "/")
                shown = self.path(file)
                found = Place(file, fd, name, name if shown == "." else f"{shown}/{name}")
                here, base = f"/proc/self/fd/{fd}/{name}", f"/proc/self/fd/{fd}"
            if not follow:
                return found
            try:
                target = os.readlink(here)
            except OSError:
                return found
            full = _rewritten(thread, target) if target.startswith("/") else f"{base}/{target}"
        return None


@functools.lru_cache(64)
def _where(directory: str, device: int) -> tuple[str, int]:
    """The real path of a state directory and its mount. It is made anew for each run, but at its place."""
    real = os.path.realpath(directory)
    return real, mount_of(real)


def mount_of(directory: str) -> int:
    """The mount that a directory lies on, as fdinfo names it; -1 where that says too little (`_PLAIN`)."""
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}", "rb", buffering=0) as info:
            _, _, mount, _ = opened(info.read(256))
    finally:
        os.close(fd)
    return mount if _is_plain(mount) else -1


@functools.cache
def _is_plain(mount: int) -> bool:
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:  # proc(5): mount id first, the type after a lone dash
            if line.startswith(b"%d " % mount):
                return line.partition(b" - ")[2].split()[0] in _PLAIN
    return False


def absolute(thread: int, directory: int, path: str) -> str:
    """A path of the stopped thread as a path for this process."""
    if path.startswith("/"):
        return _rewritten(thread, path)
    if directory & 0xFFFFFFFF == AT_FDCWD:
        return f"/proc/{thread}/cwd/{path}"
    return f"/proc/{thread}/fd/{directory & 0xFFFFFFFF}/{path}"


def _rewritten(thread: int, path: str) -> str:
    for prefix in ("/proc/self/", "/proc/thread-self/"):
        if path.startswith(prefix):
            return f"/proc/{thread}/{path[len(prefix) :]}"
    return f"/proc/{thread}/fd/{path[8:]}" if path.startswith("/dev/fd/") else path
