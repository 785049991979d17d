"""The two messages of a seccomp listener: what a stopped thread is about to do, and what it is told.

Guarantees: a stop is answered at most once; an answer to a thread that died meanwhile is a no-op, because the call
then did not happen. Layouts and ioctl numbers: linux/seccomp.h (struct seccomp_notif 80 bytes, _resp 24 bytes).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import struct

_RECV, _SEND, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082104
_SYNC_WAKE_UP = 1
_NOTIF = struct.Struct("<QI4xiI8x6Q")  # without flags and the instruction pointer
_RESP = struct.Struct("<QqiI")
_CONTINUE = 1
_EMPTY = bytes(_NOTIF.size)
_ioctl, _notification, _response = fcntl.ioctl, _NOTIF.unpack, _RESP.pack_into
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
        # bytearrays, because fcntl.ioctl takes `bytes` only after a failed attempt to take them as one
        self._stopped = bytearray(_NOTIF.size)
        self._answer = bytearray(_RESP.size)
        # wakes the stopped thread on this core at once (Linux 6.6); only speed depends on it
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, _SET_FLAGS, struct.pack("<Q", _SYNC_WAKE_UP))

    def receive(self) -> Stop | None:
        """The next stop; None when the thread died before it was read."""
        stopped = self._stopped
        stopped[:] = _EMPTY  # the kernel refuses a message that is not empty
        try:
            _ioctl(self.fd, _RECV, stopped)
        except OSError as error:
            if error.errno in _NOBODY:
                return None
            raise
        return Stop(*_notification(stopped))

    def waiting(self) -> list[Stop]:
        """The threads that have stopped and were not received yet."""
        found = []
        while select.select([self.fd], [], [], 0)[0] and (stop := self.receive()) is not None:
            found.append(stop)
        return found

    def let_go(self, stop: Stop, value: int = 0, error: int = 0, flags: int = _CONTINUE) -> bool:
        """Let the call happen. False when the thread is gone, so that it did not."""
        answer = self._answer
        _response(answer, 0, stop.id, value, error, flags)
        try:
            _ioctl(self.fd, _SEND, answer)
        except OSError as failure:
            if failure.errno in _NOT_WAITING:
                return False
            raise
        return True

    def pretend(self, stop: Stop, value: int) -> bool:
        """The call does not happen and returns `value`."""
        return self.let_go(stop, value, 0, 0)

    def fail(self, stop: Stop, error: int) -> bool:
        """The call does not happen and fails with `error` (a positive errno value)."""
        return self.let_go(stop, 0, -error, 0)
