"""Where a run keeps its states: a directory on tmpfs that never outlives its owners for long.

Guarantees: a run's directory is in use exactly as long as some process holds its lock (flock on `owner`, inherited by
the zygotes), so a directory whose lock is free is nobody's and the next run removes it; nothing is judged by age or
process id. Falls back to the ordinary temp directory, and says so, where /dev/shm cannot be used.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
import tempfile

from crashtest.errors import HarnessError, quoted
from crashtest.persist.tree import remove

#: the name of the environment variable by which a run's processes are known
TOKEN = "CRASHTEST_RUN"
#: the name of the environment variable that says where states are kept, instead of /dev/shm
BASE = "CRASHTEST_STATE_DIR"


class RunDirectory:
    """One run's directory. `path`: absolute; `token`: what is in its processes' environment; `owner`: the lock's fd.

    place: where it is made, instead of where all runs keep their states. Raises `HarnessError`.
    """

    def __init__(self, place: str = "") -> None:
        base, self.note = _base(place)
        self.token = secrets.token_hex(8)
        self.path = f"{base}/run-{self.token}"
        gate = os.open(f"{base}/gate", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(gate, fcntl.LOCK_EX)
        try:
            self.cleaned = [entry for entry in sorted(os.listdir(base)) if _remove_if_free(f"{base}/{entry}")]
            os.mkdir(self.path, 0o700)
            self.owner = os.open(f"{self.path}/owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.owner, fcntl.LOCK_EX)
        finally:
            os.close(gate)

    def close(self) -> None:
        """Remove the directory and let the lock go."""
        try:
            remove(self.path)
            os.rmdir(self.path)
        except FileNotFoundError:
            pass
        os.close(self.owner)


def _base(place: str = "") -> tuple[str, str]:
    """The directory all runs of this user share there, and a word when it is not on tmpfs."""
    note = ""
    root = place or os.environ.get(BASE, "/dev/shm")
    if place and not (os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)):
        raise HarnessError(f"{quoted(place)} is no directory that can be written to; name another one")
    if root != "/dev/shm" and not os.path.isdir(root):
        raise HarnessError(f"{BASE} names {quoted(root)}, which is no directory; make it, or leave the variable out")
    if not (os.path.isdir(root) and os.access(root, os.W_OK | os.X_OK)):
        wanted, root = root, tempfile.gettempdir()
        note = f"{quoted(wanted)} cannot be used here, so states are kept below {root}, which may be slower"
    base = f"{root}/crashtest-{os.getuid()}"
    try:
        os.mkdir(base, 0o700)
    except FileExistsError:
        info = os.lstat(base)
        if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid():
            raise HarnessError(f"{quoted(base)} belongs to somebody else; remove it and run again") from None
    return base, note


def _remove_if_free(path: str) -> bool:
    """Remove a run's directory whose owners are all gone; whether it was removed."""
    if not os.path.basename(path).startswith("run-") or os.path.islink(path):
        return False
    try:
        owner = os.open(f"{path}/owner", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        owner = -1
    try:
        if owner >= 0:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        remove(path)
        os.rmdir(path)
    except FileNotFoundError:
        pass
    except OSError:
        return False  # in use, or something in it cannot be removed: no reason not to run
    finally:
        if owner >= 0:
            os.close(owner)
    return True
