"""The two messages of a seccomp listener: what a stopped thread is about to do, and what it is told.

Guarantees: a stop is answered at most once; an answer to a thread that died meanwhile is a no-op, because the call
then did not happen. Layouts and ioctl numbers: linux/seccomp.h (struct seccomp_notif 80 bytes, _resp 24 bytes).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import struct

_RECV, _SEND, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082104
_SYNC_WAKE_UP = 1
_NOTIF = struct.Struct("<QI4xiI8x6Q")  # without flags and the instruction pointer
_RESP = struct.Struct("<QqiI")
_CONTINUE = 1
_EMPTY = bytes(_NOTIF.size)
#: these errno values of _RECV and _SEND mean that the thread is gone
_NOBODY, _NOT_WAITING = (errno.ENOENT, errno.EINTR, errno.ENOTCONN), (errno.ENOENT, errno.EINPROGRESS)


class Stop:
    """A thread stopped before a call: `thread` is its id, `args` the six raw arguments (unsigned 64 bit)."""

    __slots__ = ("arch", "args", "id", "number", "thread")

    def __init__(self, id: int, thread: int, number: int, arch: int, *args: int) -> None:
        self.id = id
        self.thread = thread
        self.number = number
        self.arch = arch
        self.args = args


class Listener:
    """The supervisor's end of one filter; `fd` becomes readable when a thread has stopped."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._notification = bytearray(_NOTIF.size)
        # wakes the stopped thread on this core at once (Linux 6.6); only speed depends on it
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _SET_FLAGS, struct.pack("<Q", _SYNC_WAKE_UP))

    def receive(self) -> Stop | None:
        """The next stop; None when the thread died before it was read."""
        buffer = self._notification
        buffer[:] = _EMPTY  # the kernel refuses a message that is not empty
        try:
            fcntl.ioctl(self.fd, _RECV, buffer, True)
        except OSError as error:
            if error.errno in _NOBODY:
                return None
            raise
        return Stop(*_NOTIF.unpack(buffer))

    def _send(self, answer: bytes) -> bool:
        try:
            fcntl.ioctl(self.fd, _SEND, answer)
        except OSError as failure:
            if failure.errno in _NOT_WAITING:
                return False
            raise
        return True

    def let_go(self, stop: Stop) -> bool:
        """Let the call happen. False when the thread is gone, so that it did not."""
        return self._send(_RESP.pack(stop.id, 0, 0, _CONTINUE))

    def pretend(self, stop: Stop, value: int) -> bool:
        """The call does not happen and returns `value`."""
        return self._send(_RESP.pack(stop.id, value, 0, 0))

    def fail(self, stop: Stop, error: int) -> bool:
        """The call does not happen and fails with `error` (a positive errno value)."""
        return self._send(_RESP.pack(stop.id, 0, -error, 0))
