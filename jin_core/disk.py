"""Every call of the engine to the operating system that looks at or changes the disk, in one place.

Guarantees: a write is complete or raises (short writes are continued, EINTR is retried by Python); a
directory is synced through a descriptor of its own; nothing follows a symbolic link in the last component;
every descriptor is close-on-exec. A failed sync is raised and never tried again here.
Does not guarantee: order between calls, or what is durable when: that is the business of the callers.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat as _stat

_FDATASYNC = getattr(os, "fdatasync", os.fsync)
_CHUNK = 1 << 20
_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def open_dir(path: str, dir_fd: int | None = None, follow: bool = False) -> int:
    """Descriptor of a directory; a symbolic link as last component is refused unless `follow`."""
    return os.open(path, _DIR | (0 if follow else os.O_NOFOLLOW), dir_fd=dir_fd)


def open_keep(path: str) -> int:
    """Descriptor for reading and writing of a file that is created if it is missing and never truncated."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)


def open_existing(path: str) -> int:
    """Descriptor for reading and writing of a file that must exist."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def create_new(path: str, dir_fd: int | None = None) -> int:
    """Descriptor for writing of a file that must not exist yet; mode 0600 until told otherwise."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    return os.open(path, flags, 0o600, dir_fd=dir_fd)


def close(fd: int) -> None:
    os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Write all of `data` at the descriptor's position."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data` at `offset` bytes from the beginning."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def read_fd(fd: int) -> bytes:
    """Everything in the file behind `fd`, from its beginning."""
    parts = []
    offset = 0
    while part := os.pread(fd, _CHUNK, offset):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


def read(path: str) -> bytes | None:
    """Content of the file `path`, or None when there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        return read_fd(fd)
    finally:
        os.close(fd)


def digest(name: str, dir_fd: int) -> str:
    """SHA-256 of a regular file, in hexadecimal."""
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        total = hashlib.sha256()
        while part := os.read(fd, _CHUNK):
            total.update(part)
        return total.hexdigest()
    finally:
        os.close(fd)


def link_target(name: str, dir_fd: int) -> bytes:
    return os.fsencode(os.readlink(name, dir_fd=dir_fd))


def look(path: str, dir_fd: int | None = None) -> os.stat_result | None:
    """`lstat` of `path`, or None when nothing is there."""
    try:
        return os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def stat_fd(fd: int) -> os.stat_result:
    return os.fstat(fd)


def is_dir(path: str) -> bool:
    found = look(path)
    return found is not None and _stat.S_ISDIR(found.st_mode)


def names(path: str) -> list[str]:
    """Names in the directory `path`, sorted; none when it is not there."""
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []


def sync(fd: int) -> None:
    """fsync: data, size and attributes."""
    os.fsync(fd)


def sync_data(fd: int) -> None:
    """fdatasync: data and size."""
    _FDATASYNC(fd)


def sync_dir(path: str) -> None:
    """Make the names in the directory `path` durable."""
    fd = open_dir(path, follow=True)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: str) -> os.stat_result:
    """fsync the file `path`; returns its `stat`. Raises FileNotFoundError when it is not there."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(fd)
        return os.fstat(fd)
    finally:
        os.close(fd)


def truncate(fd: int, size: int) -> None:
    os.ftruncate(fd, size)


def set_mode(fd: int, mode: int) -> None:
    os.fchmod(fd, mode)


def set_owner(fd: int, uid: int, gid: int) -> None:
    """Give the file to `uid` and `gid` as far as this process may; a refusal is not an error."""
    mine = os.fstat(fd)
    if (mine.st_uid, mine.st_gid) == (uid, gid):
        return
    for wanted in ((uid, gid), (-1, gid)):
        try:
            os.fchown(fd, *wanted)
            return
        except PermissionError:
            continue


def make_dir(path: str, dir_fd: int | None = None) -> bool:
    """Make a directory; False when something of that name is there already."""
    try:
        os.mkdir(path, 0o777, dir_fd=dir_fd)
    except FileExistsError:
        return False
    return True


def remove_dir(path: str, dir_fd: int | None = None) -> bool:
    """Remove a directory if it is there, is one, and is empty; says whether it did."""
    try:
        os.rmdir(path, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EBUSY):
            return False
        raise
    return True


def rename(old: str, new: str, dir_fd: int) -> None:
    """Rename within one directory, replacing what is there."""
    os.replace(old, new, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)


def unlink(path: str, dir_fd: int | None = None) -> bool:
    """Remove a name; False when it was not there."""
    try:
        os.unlink(path, dir_fd=dir_fd)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def umask() -> int:
    """The file mode creation mask of this process, read without changing it where the system tells it."""
    for line in (read("/proc/self/status") or b"").splitlines():
        if line.startswith(b"Umask:"):
            return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
