"""Images of file systems, mounted where nobody else sees them: mount namespace, loop devices, copies.

Guarantees: everything is made on a tmpfs in a mount namespace of this process, and loop devices detach with the last
unmount (LO_FLAGS_AUTOCLEAR). So when the process ends, in whatever way, the kernel takes down the mounts, the devices
and the files, and nothing is left for anybody to clean up; no name on the machine's own file systems is ever made.
`private` makes the process end with the one that started it. A copy of an image is taken only while nothing is written
to it. Needs root, and Linux with loop devices. Standard library only.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import struct
import time

from crashtest.errors import HarnessError, quoted

#: covered by the tmpfs, in this process's namespace only; the Filesystem Hierarchy Standard (3.12) has it everywhere
PLACE = "/mnt"
#: most that the images may take
_ROOM = "8g"

_CLONE_NEWNS = 0x00020000  # linux/sched.h
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18  # linux/mount.h
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LOOP_CONFIGURE, _LOOP_CTL_GET_FREE, _LO_FLAGS_AUTOCLEAR = 0x4C0A, 0x4C82, 4  # linux/loop.h
#: struct loop_config: fd, block size, struct loop_info64 (five u64, four u32 with the flags last, names and key,
#: two u64), eight u64 that are reserved
_LOOP_CONFIG = struct.Struct("=II 5Q 3II 64s64s32s 2Q 8Q")
_COPY = 1 << 30
#: seconds for an image to be left alone for as long as copying it takes
_QUIET = 30.0

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def end_with_parent(parent: int) -> None:
    """This process is killed when the thread that started it ends (PR_SET_PDEATHSIG), or ends now if it has."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os._exit(1)


def private() -> None:
    """A mount namespace of this process, and an empty tmpfs at `PLACE` in it. Raises OSError without the right to."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare")
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "mount")
    _check(_libc.mount(b"tmpfs", PLACE.encode(), b"tmpfs", 0, f"size={_ROOM},mode=700".encode()), f"mount on {PLACE}")


class Mounted:
    """An image on a loop device, mounted; leaving it unmounts, and with that the device is free."""

    def __init__(self, image: str, directory: str, type: str, options: str) -> None:
        self.image = image
        self.directory = directory
        self._type = type
        self._options = options
        self._stat = ""

    def __enter__(self) -> Mounted:
        device, path = _attach(self.image)
        try:
            self._stat = f"/sys/block/{os.path.basename(path)}/stat"
            os.makedirs(self.directory, exist_ok=True)
            words = (path.encode(), self.directory.encode(), self._type.encode(), 0, self._options.encode())
            _check(_libc.mount(*words), f"mount of {self._type} with options {quoted(self._options)!r}")
        finally:
            os.close(device)  # the mount keeps the device from now on
        return self

    def __exit__(self, *_: object) -> None:
        _check(_libc.umount2(self.directory.encode(), 0), f"umount of {self._type}")

    def copy(self, to: str) -> None:
        """The image as it is at one moment, which is what a power cut leaves of it.

        Raises `HarnessError` when there is no such moment: the file system never stops writing.
        """
        until = time.monotonic() + _QUIET
        while time.monotonic() < until:
            before, busy = self._written()
            if not busy:
                copy_image(self.image, to)
                if self._written() == (before, 0):
                    return
        raise HarnessError(f"the image of {self._type} was written to all the time for {_QUIET:.0f} s: no cut was made")

    def _written(self) -> tuple[int, int]:
        """Writes that the device has completed, and requests under way (Documentation/block/stat.rst)."""
        with open(self._stat, encoding="ascii") as file:
            fields = file.read().split()
        return int(fields[4]), int(fields[8])


def _attach(image: str) -> tuple[int, str]:
    """A loop device over the image: an open descriptor of it, and its path."""
    backing = os.open(image, os.O_RDWR | os.O_CLOEXEC)
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        while True:
            path = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
            device = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            name = os.path.basename(image).encode()[:63]
            config = _LOOP_CONFIG.pack(
                backing, 0, 0, 0, 0, 0, 0, 0, 0, 0, _LO_FLAGS_AUTOCLEAR, name, b"", b"", *[0] * 10
            )  # fmt: skip
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(device)
                if not isinstance(error, BlockingIOError) and error.errno != 16:  # EBUSY: another took it first
                    raise
                continue
            return device, path
    finally:
        os.close(control)
        os.close(backing)


def copy_image(image: str, to: str) -> None:
    """Copy a sparse file, holes as holes."""
    source = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    target = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(source).st_size
        os.truncate(target, size)
        at = 0
        while at < size:
            try:
                at = os.lseek(source, at, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                break
            end = os.lseek(source, at, os.SEEK_HOLE)
            while at < end:
                at += os.copy_file_range(source, target, min(end - at, _COPY), at, at)
    finally:
        os.close(source)
        os.close(target)
