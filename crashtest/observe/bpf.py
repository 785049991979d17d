"""The seccomp filter that stops a program before each call that may change a file, and how it is installed.

Guarantees: every call in `STOPS` of the process that installs the filter, and of all it starts, is announced to the
listener before it happens; flags are tested in the filter, so that opening to read never stops; a call of a foreign
architecture (32-bit, x32) is announced too and never passes unseen. Works without root (seccomp(2): it needs
no_new_privs instead, which takes set-user-ID programs their privilege: `privilege.py` names them).

Does not see stores into a shared mapping (the recorder compares those files), nor into a shared mapping that
mprotect(2) makes writable later: the record's own proof catches that. Numbers: asm/unistd.h of x86_64 and
asm-generic/unistd.h; struct layouts: linux/seccomp.h, linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import socket
import struct
import sys

O_TMPFILE_BIT = 0o20000000
_OPEN = os.O_CREAT | os.O_TRUNC | O_TMPFILE_BIT
_MAP_SHARED, _PROT_WRITE = 1, 2
FICLONE, FICLONERANGE = 0x40049409, 0x4020940D
_LOCK_COMMANDS = (6, 7, 37, 38)  # F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW

#: call name -> (x86_64 number, aarch64 number); -1 where an architecture does not have it
STOPS: dict[str, tuple[int, int]] = {
    "write": (1, 64), "pwrite64": (18, 68), "writev": (20, 66), "pwritev": (296, 70), "pwritev2": (328, 287),
    "sendfile": (40, 71), "copy_file_range": (326, 285), "splice": (275, 76),
    "ftruncate": (77, 46), "truncate": (76, 45), "fallocate": (285, 47),
    "creat": (85, -1), "openat2": (437, 437),
    "link": (86, -1), "linkat": (265, 37), "symlink": (88, -1), "symlinkat": (266, 36),
    "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276),
    "unlink": (87, -1), "unlinkat": (263, 35), "mkdir": (83, -1), "mkdirat": (258, 34), "rmdir": (84, -1),
    "mknod": (133, -1), "mknodat": (259, 33), "bind": (49, 200),
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, -1), "lchown": (94, -1), "fchown": (93, 55), "fchownat": (260, 54),
    "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "fsync": (74, 82), "fdatasync": (75, 83), "sync": (162, 81), "syncfs": (306, 267),
    "sync_file_range": (277, 84), "msync": (26, 227),
    "mount": (165, 40), "umount2": (166, 39), "move_mount": (429, 429), "pivot_root": (155, 41), "chroot": (161, 51),
    "setns": (308, 268),
    "execve": (59, 221), "execveat": (322, 281), "io_uring_setup": (425, 425), "io_submit": (209, 2), "flock": (73, 32),
}  # fmt: skip
#: announced only when an argument says so: name -> (numbers, argument index, mask)
STOPS_IF_SET: dict[str, tuple[tuple[int, int], tuple[tuple[int, int], ...]]] = {
    "open": ((2, -1), ((1, _OPEN),)),
    "openat": ((257, 56), ((2, _OPEN),)),
    "mmap": ((9, 222), ((3, _MAP_SHARED), (2, _PROT_WRITE))),
}
#: announced only for certain commands: name -> (numbers, argument index, values)
STOPS_IF_EQUAL: dict[str, tuple[tuple[int, int], int, tuple[int, ...]]] = {
    "ioctl": ((16, 29), 1, (FICLONE, FICLONERANGE)),
    "fcntl": ((72, 25), 1, _LOCK_COMMANDS),
}

_ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_SECCOMP_NR = (317, 277)
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_LOAD, _JEQ, _JGE, _JSET, _RET, _JA = 0x20, 0x15, 0x35, 0x45, 0x06, 0x05
_NEW_LISTENER, _WAIT_KILLABLE = 1 << 3, 1 << 5
_PR_SET_NO_NEW_PRIVS, _PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_GET_CHILD_SUBREAPER = 38, 1, 36, 37

_libc = ctypes.CDLL(None, use_errno=True)
#: without errno, which costs a worker pages of its own; looked up here for the same reason
_prctl = ctypes.CDLL(None).prctl


class Unavailable(Exception):
    """A listener cannot be installed here; the message says why and what to do."""


def supported() -> bool:
    """Whether this kind of machine can be observed at all (Linux on x86_64 or aarch64, little endian)."""
    return sys.platform == "linux" and os.uname().machine in _ARCHES and sys.byteorder == "little"


@functools.cache
def call_names() -> dict[int, str]:
    """System call number -> name, for every call that stops on this architecture; not to be changed."""
    which, _ = _ARCHES[os.uname().machine]
    table = {numbers[which]: name for name, numbers in STOPS.items()}
    table.update({numbers[which]: name for name, (numbers, _) in STOPS_IF_SET.items()})
    table.update({numbers[which]: name for name, (numbers, _, _) in STOPS_IF_EQUAL.items()})
    table.pop(-1, None)
    return table


def native_arch() -> int:
    """The AUDIT_ARCH value of this machine (linux/audit.h)."""
    return _ARCHES[os.uname().machine][1]


@functools.cache
def program(passing: int = -1) -> bytes:
    """The filter as an array of struct sock_filter for this architecture.

    passing: the number of a descriptor to which write(2) does not stop (`stacks.py` says when that is safe).
    """
    which, arch = _ARCHES[os.uname().machine]
    code: list[tuple[int, str | int, str | int, int]] = []

    def emit(op: int, k: int, yes: str | int = 0, no: str | int = 0) -> None:
        code.append((op, yes, no, k))

    labels: dict[str, int] = {}
    emit(_LOAD, 4)
    emit(_JEQ, arch, 0, "notify")
    emit(_LOAD, 0)
    if which == 0:
        emit(_JGE, 0x40000000, "notify", 0)
    for name, (numbers, _) in STOPS_IF_SET.items():
        if numbers[which] >= 0:
            emit(_JEQ, numbers[which], name, 0)
    for name, (numbers, _, _) in STOPS_IF_EQUAL.items():
        emit(_JEQ, numbers[which], name, 0)
    if passing >= 0:
        emit(_JEQ, STOPS["write"][which], "write", 0)
    for numbers in STOPS.values():
        if numbers[which] >= 0:
            emit(_JEQ, numbers[which], "notify", 0)
    emit(_RET, _ALLOW)
    for name, (_, tests) in STOPS_IF_SET.items():
        labels[name] = len(code)
        for argument, mask in tests:
            emit(_LOAD, 16 + 8 * argument)
            emit(_JSET, mask, 0, "allow")
        emit(_RET, _NOTIFY)
    for name, (_, argument, values) in STOPS_IF_EQUAL.items():
        labels[name] = len(code)
        emit(_LOAD, 16 + 8 * argument)
        for value in values:
            emit(_JEQ, value, "notify", 0)
        emit(_RET, _ALLOW)
    labels["write"] = len(code)
    emit(_LOAD, 16)
    emit(_JEQ, passing & 0xFFFFFFFF, "allow", "notify")
    labels["allow"] = len(code)
    emit(_RET, _ALLOW)
    labels["notify"] = len(code)
    emit(_RET, _NOTIFY)
    out = []
    for at, (op, yes, no, k) in enumerate(code):
        jumps = [labels[j] - at - 1 if isinstance(j, str) else j for j in (yes, no)]
        if max(jumps) > 255:
            raise AssertionError("the filter outgrew a conditional jump")
        out.append(struct.pack("<HBBI", op, jumps[0], jumps[1], k))
    return b"".join(out)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def install(filter_program: bytes) -> int:
    """Install the filter on the calling thread and what it will start; the listener's descriptor.

    Meant for a freshly forked child. Raises `Unavailable` with the reason.
    """
    which, _ = _ARCHES[os.uname().machine]
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise Unavailable(f"no_new_privs was refused: {os.strerror(ctypes.get_errno())}")
    wanted = _Program(len(filter_program) // 8, filter_program)
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE, _NEW_LISTENER):
        fd = int(_libc.syscall(_SECCOMP_NR[which], 1, flags, ctypes.byref(wanted)))
        if fd >= 0:
            return fd
        if ctypes.get_errno() != errno.EINVAL:
            break
    code = ctypes.get_errno()
    if code == errno.EBUSY:
        raise Unavailable(
            "this process already runs under a seccomp listener (a second one is refused, EBUSY): run crashtest "
            "outside that sandbox or supervisor, or ask for --observation steps"
        )
    raise Unavailable(
        f"seccomp user notification was refused: {os.strerror(code)} ({errno.errorcode.get(code, code)}); it needs "
        "Linux 5.5 or later and a container profile that allows seccomp(2); or ask for --observation steps"
    )


def holds_signals() -> bool:
    """Whether a stopped thread gets no signal but a deadly one until it is answered (since Linux 5.19)."""
    if not supported():
        return False
    which, _ = _ARCHES[os.uname().machine]
    # without a program: a flag that is not known is told first (EINVAL), then that there is no program
    refused = _libc.syscall(_SECCOMP_NR[which], 1, _NEW_LISTENER | _WAIT_KILLABLE, None) < 0
    return refused and ctypes.get_errno() == errno.EFAULT


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel to send this process `signal_number` when its parent ends (prctl(2), PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)


def become_subreaper(on: bool = True) -> bool:
    """Orphans below this process become its own children (prctl(2), PR_SET_CHILD_SUBREAPER); whether it worked."""
    return sys.platform == "linux" and bool(_libc.prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) == 0)


def is_subreaper() -> bool:
    """Whether orphans below this process become its own children (prctl(2), PR_GET_CHILD_SUBREAPER)."""
    answer = ctypes.c_int(0)
    asked = sys.platform == "linux" and _libc.prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0) == 0
    return asked and bool(answer.value)


def send_descriptor(sock: socket.socket, fd: int) -> None:
    """Hand a descriptor to the other end of a socket pair."""
    # as socket.send_fds, which would load one library more for all that is forked from here
    sock.sendmsg([b"L"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))])


def probe() -> str | None:
    """None when a listener can be installed here, else the reason in words. Tries it in a forked child."""
    if not supported():
        here = f"{sys.platform} {os.uname().machine}"
        return f"system calls can be observed on Linux on x86_64 or aarch64 only, not on {here}"
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            words = ""
            try:
                os.close(install(program()))
            except Unavailable as error:
                words = str(error)
            # after a successful installation a write would stop with nobody to answer it: say so by the exit code
            if words:
                os.write(write_end, words.encode())
            os._exit(1 if words else 0)
        finally:
            os._exit(2)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        words_back = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return None
    return words_back or f"the probe ended with status {code}"
