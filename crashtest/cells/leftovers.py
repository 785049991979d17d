"""What runs leave behind: processes that have become children of this one, found and ended.

Guarantees: signals only children of this process, and never a forker or what the caller names. Whatever session or
group a process moved to, it comes here when its parent is gone, because this process is a subreaper.
"""

from __future__ import annotations

import contextlib
import os
import signal

from crashtest.cells.forker import forkers
from crashtest.observe.process import Processes, alive

#: for asking of this process itself
_own = Processes()


def others(but: frozenset[int]) -> list[int]:
    """The children of this process, less those of `but` and the forkers: what runs have left behind."""
    return [pid for pid in _own.children(os.getpid()) if pid not in but and pid not in forkers]


def reap_all(but: frozenset[int] = frozenset()) -> None:
    """SIGKILL and reap every descendant of this process, except the trees of `but` and of the forkers."""
    while mine := others(but):
        for pid in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in mine:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def reap_dead(mine: list[int]) -> None:
    for pid in mine:
        if not alive(pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
