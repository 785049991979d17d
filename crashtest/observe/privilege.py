"""What a program may do under observation and what it may not: a privilege of its file that counts for nothing there.

Guarantees: says of a file that is about to be executed whether it would have run as another user or group, or with
capabilities, were it not for no_new_privs (execve(2), capabilities(7)); looks only, and asks the kernel by name, so a
file that is replaced at that very moment is judged as it is then. Does not know of user namespaces that map no such
user, where the kernel passes the bits over too.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import stat

from crashtest.observe.process import Processes

CAP_SYS_CHROOT, CAP_SYS_ADMIN = 18, 21
_IO_URING_SETUP = 425
#: interpreters of interpreters (execve(2) allows four)
_SCRIPTS = 4

_libc = ctypes.CDLL(None, use_errno=True)


def lost_at_exec(path: str, thread: int, processes: Processes) -> str:
    """What the file at `path` would give the thread that executes it, and what to do; "" when that is nothing more."""
    for _ in range(_SCRIPTS):
        try:
            info = os.stat(path)
            interpreter = _interpreter(path) if info.st_mode & (stat.S_ISUID | stat.S_ISGID) else ""
        except OSError:
            return ""  # the call fails
        if not interpreter:
            break
        path = interpreter  # the bits of a script count for nothing anywhere
    if not stat.S_ISREG(info.st_mode) or not info.st_mode & 0o111 or os.statvfs(path).f_flag & os.ST_NOSUID:
        return ""
    user, group, _ = processes.identity(thread)
    if info.st_mode & stat.S_ISUID and info.st_uid != user:
        return f"set-user-ID {_user(info.st_uid)} (run crashtest as that user)"
    if info.st_mode & stat.S_ISGID and info.st_mode & stat.S_IXGRP and info.st_gid != group:
        return f"set-group-ID {_group(info.st_gid)} (run crashtest with that group)"
    with contextlib.suppress(OSError):
        if user != 0 and os.getxattr(path, "security.capability"):
            return "given capabilities (run crashtest as root)"
    return ""


def _interpreter(path: str) -> str:
    with open(path, "rb") as file:
        line = file.readline(256)
    words = line[2:].split() if line.startswith(b"#!") else []
    return os.fsdecode(words[0]) if words else ""


def _user(number: int) -> str:
    import pwd  # here, because every fork of a zygote would carry it along

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    import grp

    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


@functools.cache
def io_uring_allowed() -> bool:
    """Whether this process may set up io_uring. One that it has started, and that is refused no less, may not either
    where this one may not (a kernel without it, `kernel.io_uring_disabled`, a container's profile)."""
    wanted = ctypes.create_string_buffer(120)  # struct io_uring_params
    fd = int(_libc.syscall(_IO_URING_SETUP, 1, wanted))
    if fd >= 0:
        os.close(fd)
    return fd >= 0
