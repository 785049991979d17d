"""What a run is asked for and what came of it: where it is to be killed, its acks, and how it ended.

Guarantees: plain data; an ack counts from the moment its line is whole. Standard library only: the zygote loads it.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from crashtest.trace import Event, Trace
from crashtest.values import canonical

#: how long processes that outlive their workload, or got a signal, may take to end by themselves, in seconds
GRACE = 2.0
#: bytes of a line in which an ack is looked for, at most
LONGEST = 1 << 16


class Acks:
    """What comes through the ack pipe, cut into acks (as `trace.Ack.line` has them).

    Without a pattern each line is one. With a pattern (a regular expression) the lines are a program's output, and
    those that it is found in are acks; a line that has not ended yet is none.
    """

    def __init__(self, pattern: str | None) -> None:
        self._pattern = None if pattern is None else re.compile(pattern)
        self._begun = bytearray()

    def take(self, data: bytes) -> list[bytes]:
        """The acks that are complete when `data` has come too."""
        found, begun = self._split(data)
        if begun is None:
            self._begun += data[: max(0, LONGEST - len(self._begun))]
        else:
            self._begun = begun[:LONGEST]
        return found

    def would(self, data: bytes) -> list[bytes]:
        """What `take` would give, were it asked now."""
        return self._split(data)[0]

    def _split(self, data: bytes) -> tuple[list[bytes], bytearray | None]:
        """The acks, and what of a line has begun after them; None: no line has ended."""
        if self._pattern is None:
            return data.splitlines(), bytearray()
        if b"\n" not in data:
            return [], None
        *lines, begun = (self._begun + data).split(b"\n")
        texts = [line.decode("utf-8", "backslashreplace") for line in lines]
        return [b"0" + canonical(text).encode() for text in texts if self._pattern.search(text)], begun


class Crash(NamedTuple):
    """Where to kill: after `cut` events, when the next one is of `kind` ("" for whatever comes).

    torn: let this many bytes of the write at the cut through first. variant: "group" (everything), "worker" (the
    worker alone, its children then run on to their end), "late" (the same, but they are held until recovery waits), or
    the name of a signal (`scenario.SIGNALS`) that everything gets instead, and then `grace` seconds to end by itself.
    """

    cut: int
    kind: str = ""
    torn: int = 0
    variant: str = "group"
    grace: float = GRACE


class Outcome:
    """How one run ended.

    end: "normal", "killed" (as asked), "died" (exit status or signal in `status`), "timeout".
    """

    def __init__(self) -> None:
        self.end = "normal"
        self.status = 0
        self.answer: dict[str, Any] = {}
        self.acks: list[bytes] = []
        self.trace = Trace([], [], [])
        self.strays: list[str] = []
        #: a signal that may be handled: how many events had happened when it was sent, None: none was
        self.signalled: int | None = None
        #: the programs that had not ended when their grace was over, and were killed
        self.outlasted: list[str] = []
        self.output = ""
        #: the event that was about to happen when the kill struck, if any
        self.before: Event | None = None
        #: cuts at which the worker had children
        self.company: list[int] = []
        self.uncertain = 0
