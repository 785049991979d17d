"""One `git update-ref --stdin` child: started, told to prepare, told to commit, or let go.

Guarantees: the child holds the store's lock for as long as it lives, so nobody recovers while it still
works; its standard input ends when this process dies, and then it gives its locks back unless it was told
to commit; what it says on failure is kept; no variable of the caller's environment leads it to another
repository.
Does not guarantee: that it ends soon: a hook of the repository may hang, and so may a file system.
"""

from __future__ import annotations

import os
import selectors
import subprocess
from collections.abc import Sequence
from contextlib import suppress

from jin_core.errors import GitFailed, escape

# Variables that tie git to a repository, an index or objects other than the ones it is told to use.
_LEADS_ASTRAY = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES",
        "GIT_COMMON_DIR",
        "GIT_CONFIG",
        "GIT_CONFIG_COUNT",
        "GIT_CONFIG_PARAMETERS",
        "GIT_DIR",
        "GIT_GRAFT_FILE",
        "GIT_IMPLICIT_WORK_TREE",
        "GIT_INDEX_FILE",
        "GIT_INTERNAL_SUPER_PREFIX",
        "GIT_NAMESPACE",
        "GIT_NO_REPLACE_OBJECTS",
        "GIT_OBJECT_DIRECTORY",
        "GIT_PREFIX",
        "GIT_QUARANTINE_PATH",
        "GIT_REPLACE_REF_BASE",
        "GIT_SHALLOW_FILE",
        "GIT_WORK_TREE",
    }
)
_QUIET = ("-c", "core.hooksPath=/dev/null")


class UpdateRefs:
    """A running child. `code` is its exit code once it has ended; negative: the signal that killed it."""

    def __init__(self, git_dir: str, lock_fd: int, reason: str, hooks: bool = True) -> None:
        """Start the child; `reason` is for the reflogs.

        Without `hooks`, no hook of the repository runs. Raises `GitFailed`.
        """
        keep = {key: value for key, value in os.environ.items() if key not in _LEADS_ASTRAY}
        keep["LC_ALL"] = "C"
        options = () if hooks else _QUIET
        command = ["git", "--git-dir", git_dir, *options, "update-ref", "-m", reason, "--stdin", "-z"]
        self.code: int | None = None
        self._said = b""
        self._errors = b""
        try:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=git_dir,
                env=keep,
                pass_fds=(lock_fd,),
            )
        except OSError as error:
            raise GitFailed("refs", f"git could not be started ({error.strerror})", "install git") from error

    def prepare(self, commands: Sequence[bytes]) -> None:
        """Have all locks taken and old values verified. Raises `GitFailed`; the child has ended then."""
        self._send(b"start\0" + b"".join(commands) + b"prepare\0", b"prepare: ok\n")

    def commit(self) -> None:
        """Have the prepared changes made, and wait for the end of the child. Raises `GitFailed`."""
        self._send(b"commit\0", b"commit: ok\n")
        if self.close() != 0:
            raise self._failed()

    def close(self) -> int:
        """End of input: a child that was not told to commit gives its locks back. Returns its exit code."""
        if self.code is None:
            assert self._child.stdin is not None
            with suppress(BrokenPipeError):
                self._child.stdin.close()
            self._read_until(None)
            self.code = self._child.wait()
            for pipe in (self._child.stdout, self._child.stderr):
                if pipe is not None:
                    pipe.close()
        return self.code

    def _send(self, data: bytes, answer: bytes) -> None:
        assert self._child.stdin is not None
        view = memoryview(data)
        with suppress(BrokenPipeError):
            while view:
                view = view[os.write(self._child.stdin.fileno(), view) :]
        if not self._read_until(answer):
            self.close()
            raise self._failed()

    def _read_until(self, answer: bytes | None) -> bool:
        """Read what the child says until it says `answer` or ends."""
        assert self._child.stdout is not None and self._child.stderr is not None
        with selectors.DefaultSelector() as ready:
            ready.register(self._child.stdout, selectors.EVENT_READ)
            ready.register(self._child.stderr, selectors.EVENT_READ)
            while ready.get_map():
                if answer is not None and self._said.endswith(answer):
                    return True
                for key, _ in ready.select():
                    part = os.read(key.fd, 65536)
                    if not part:
                        ready.unregister(key.fileobj)
                    elif key.fileobj is self._child.stdout:
                        self._said += part
                    else:
                        self._errors = (self._errors + part)[-65536:]
        return answer is not None and self._said.endswith(answer)

    def _failed(self) -> GitFailed:
        words = escape(self._errors.strip()) or "no message"
        if self.code is not None and self.code < 0:
            words = f"killed by signal {-self.code}; {words}"
        return GitFailed("refs", f"git update-ref failed: {words}", "see what git says and try again")
