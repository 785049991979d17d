"""A recorded trace played on a mounted file system: the same changes and syncs, in the same order.

Guarantees: after n events the directory is, as seen through the page cache, the tree that the trace says (`check`
proves it); descriptors are held open from the first use of a file to the `close` event that says it was closed, and
with no such event to the end, because file systems act on the last close. A synchronous write syncs the whole file,
where the program's synced its own range; times are not set. Standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
from typing import NamedTuple

from crashtest.errors import HarnessError, quoted
from crashtest.persist.tree import Tree
from crashtest.trace import Op

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_BTRFS_IOC_START_SYNC, _BTRFS_IOC_WAIT_SYNC = 0x80089418, 0x40089416  # linux/btrfs.h

_libc = ctypes.CDLL(None, use_errno=True)


class Background(NamedTuple):
    """What a kernel does by itself, whenever it likes, here at a place in the trace. what: "commit" (the journal, or
    the transaction) or "writeback" (the dirty pages of `file`)."""

    what: str
    file: int = -1


class Player:
    """Plays on `state`, an empty directory; `outside` is one beside it for what arrives and departs."""

    def __init__(self, first: Tree, state: str, outside: str) -> None:
        self.state = state
        self.outside = outside
        self.tree = first.copy()
        self._open: dict[int, int] = {}
        self._strangers = 0
        first.restore(state)

    def __enter__(self) -> Player:
        return self

    def __exit__(self, *_: object) -> None:
        for file in list(self._open):
            self._shut(file)

    def check(self) -> None:
        """Raises `HarnessError` when what was played is not what the trace says."""
        wrong = self.tree.differences(Tree.capture(self.state))
        if wrong:
            raise HarnessError(f"the trace played on a real file system gave something else: {quoted(wrong[0])}")

    def play(self, event: Op | Background) -> None:
        """Raises OSError, or `HarnessError` when the trace does not fit."""
        if isinstance(event, Background):
            self._background(event)
            return
        getattr(self, f"_{event.kind}", self._at_path)(event)
        if event.kind != "close":
            self.tree.apply(event)

    # -- files ---------------------------------------------------------------------------------------------------

    def _path(self, file: int) -> str:
        """A path to the file; one that has lost its names is reached through its descriptor (proc(5))."""
        path = self.tree.path(file)
        if self.tree.lookup(path) != file:  # it has lost the name that it had last
            named = next((name for name, other in self.tree.walk() if other == file), None)
            if named is None and file not in self._open:
                raise HarnessError(f"{quoted(path)} has no name and is not open: the trace cannot be played")
            if named is None:
                return f"/proc/self/fd/{self._open[file]}"
            path = named
        return f"{self.state}/{path}"

    def _name(self, directory: int, name: str) -> str:
        return f"{self._path(directory)}/{name}"

    def _file(self, file: int) -> int:
        """An open descriptor of a file, kept; of a directory too."""
        if file not in self._open:
            directory = self.tree.nodes[file].type == "d"
            self._open[file] = os.open(self._path(file), os.O_RDONLY if directory else os.O_RDWR)
        return self._open[file]

    def _shut(self, file: int) -> None:
        fd = self._open.pop(file, -1)
        if fd >= 0:
            os.close(fd)

    # -- changes -------------------------------------------------------------------------------------------------

    def _create(self, op: Op) -> None:
        fd = self._open[op.file] = os.open(self._name(op.dir, op.name), os.O_RDWR | os.O_CREAT | os.O_EXCL, op.mode)
        self._own(op, fd)

    def _tmpfile(self, op: Op) -> None:
        fd = self._open[op.file] = os.open(self.outside, os.O_RDWR | os.O_TMPFILE, op.mode)
        self._own(op, fd)

    def _own(self, op: Op, fd: int) -> None:
        if (op.uid, op.gid) != (-1, -1) and (op.uid, op.gid) != (os.geteuid(), os.getegid()):
            os.fchown(fd, op.uid, op.gid)
        if os.fstat(fd).st_mode & 0o7777 != op.mode:
            os.fchmod(fd, op.mode)

    def _arrive(self, op: Op) -> None:
        """Its content was there before: whatever synced it is not in the trace."""
        path = f"{self.outside}/{op.file}"
        with open(path, "wb") as file:
            file.write(op.data)
            self._own(op, file.fileno())
            os.fsync(file.fileno())
        os.rename(path, self._name(op.dir, op.name))

    def _depart(self, op: Op) -> None:
        self._strangers += 1
        os.rename(self._name(op.dir, op.name), f"{self.outside}/departed-{self._strangers}")

    def _write(self, op: Op) -> None:
        fd, at, left = self._file(op.file), op.offset, memoryview(op.data)
        while left:
            done = os.pwrite(fd, left, at)
            at, left = at + done, left[done:]

    def _truncate(self, op: Op) -> None:
        os.ftruncate(self._file(op.file), op.size)

    def _allocate(self, op: Op) -> None:
        os.posix_fallocate(self._file(op.file), 0, op.size)

    def _link(self, op: Op) -> None:
        old, new = self._path(op.file), self._name(op.dir2, op.name2)
        if old.startswith("/proc/"):  # it has no name: followed to the file, as open(2) says for O_TMPFILE
            os.link(old, new, src_dir_fd=self._open[op.file], follow_symlinks=True)
        else:
            os.link(old, new, follow_symlinks=False)

    def _rename(self, op: Op) -> None:
        os.rename(self._name(op.dir, op.name), self._name(op.dir2, op.name2))

    def _exchange(self, op: Op) -> None:
        old, new = (os.fsencode(self._name(d, n)) for d, n in ((op.dir, op.name), (op.dir2, op.name2)))
        if _libc.renameat2(_AT_FDCWD, old, _AT_FDCWD, new, _RENAME_EXCHANGE):
            raise OSError(ctypes.get_errno(), "renameat2")

    def _mknod(self, op: Op) -> None:
        path = self._name(op.dir, op.name)
        if op.text == "p":
            os.mkfifo(path, op.mode)
        elif op.text == "s":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path)
        else:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, op.mode))
        os.chmod(path, op.mode)

    def _at_path(self, op: Op) -> None:
        """Changes of names and attributes that are one call of `os`."""
        name = self._name(op.dir, op.name) if op.dir >= 0 else ""
        if op.kind == "mkdir":
            os.mkdir(name, op.mode)
            os.chmod(name, op.mode)
        elif op.kind == "symlink":
            os.symlink(op.text, name)
        elif op.kind == "unlink":
            os.unlink(name)
        elif op.kind == "rmdir":
            os.rmdir(name)
        elif op.kind == "chmod":
            os.chmod(self._path(op.file), op.mode)
        elif op.kind == "chown":
            os.chown(self._path(op.file), op.uid, op.gid, follow_symlinks=False)
            if self.tree.nodes[op.file].type != "l":
                os.chmod(self._path(op.file), op.mode)
        elif op.kind == "setxattr":
            os.setxattr(self._path(op.file), op.text, op.data, follow_symlinks=False)
        elif op.kind == "removexattr":
            os.removexattr(self._path(op.file), op.text, follow_symlinks=False)
        elif op.kind != "utimes":
            raise HarnessError(f"{quoted(op.describe())} cannot be played on a real file system")

    def _close(self, op: Op) -> None:
        self._shut(op.file)

    # -- syncs ---------------------------------------------------------------------------------------------------

    def _fsync(self, op: Op) -> None:
        os.fsync(self._file(op.file))

    def _fdatasync(self, op: Op) -> None:
        os.fdatasync(self._file(op.file))

    _msync = _fdatasync  # msync(2) is vfs_fsync_range() with datasync (mm/msync.c)

    def _sync(self, op: Op) -> None:
        """Of this file system only: the machine has others."""
        directory = os.open(self.state, os.O_RDONLY)
        try:
            if _libc.syncfs(directory):
                raise OSError(ctypes.get_errno(), "syncfs")
        finally:
            os.close(directory)

    _syncfs = _sync

    def _sync_file_range(self, op: Op) -> None:
        self._write_back(op.file, op.offset, op.size)

    def _write_back(self, file: int, offset: int = 0, size: int = 0) -> None:
        """Write pages and wait for them, and nothing else (sync_file_range(2))."""
        place, length = ctypes.c_int64(offset), ctypes.c_int64(size)
        if _libc.sync_file_range(self._file(file), place, length, ctypes.c_uint(7)):
            raise OSError(ctypes.get_errno(), "sync_file_range")

    def _background(self, event: Background) -> None:
        if event.what == "writeback":
            if event.file in self._open or event.file in self.tree.nodes:
                self._write_back(event.file)
            return
        fd = os.open(self.outside, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # any other file system does not know the call
                number = bytearray(8)
                fcntl.ioctl(fd, _BTRFS_IOC_START_SYNC, number)
                fcntl.ioctl(fd, _BTRFS_IOC_WAIT_SYNC, struct.pack("=Q", *struct.unpack("=Q", number)))
                return
        finally:
            os.close(fd)
        self._strangers += 1  # a new file that is synced takes the journal along on ext4 and xfs
        fd = os.open(f"{self.outside}/commit-{self._strangers}", os.O_WRONLY | os.O_CREAT)
        os.fsync(fd)
        os.close(fd)
