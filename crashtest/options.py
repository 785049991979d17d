"""The options of the command line, and how their values are read.

Guarantees: a value that is not understood is refused with what would be understood. Reads nothing but the limits of
this process (`usable_cores`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from crashtest.scenario import SIGNALS

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", re.ASCII)


class Duration(click.ParamType[float]):
    """A time such as 90, 1.5, 90s, 5m or 1h30m; seconds, more than 0, or 0 as well where that means something."""

    name = "time"

    def __init__(self, zero: bool = False) -> None:
        self.zero = zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(value)
        hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
        total = hours * 3600 + minutes * 60 + seconds
        if not (0 < total < 1e9 or (self.zero and value == "0")):
            self.fail(f"{value!r} is not a time; give seconds, or such as 90s, 5m, 1h30m", param, ctx)
        return total


class Jobs(click.ParamType[int]):
    """A number of workers, or `auto` for every usable core."""

    name = "jobs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value == "auto":
            return usable_cores()
        if not re.fullmatch(r"[0-9]{1,4}", value) or int(value) < 1:
            self.fail(f"{value!r} is not a number of workers; give 1 or more, or auto", param, ctx)
        return int(value)


class Names(click.ParamType[tuple[str, ...]]):
    """Comma separated names out of a known set."""

    name = "names"

    def __init__(self, what: str, known: Sequence[str]) -> None:
        self.what = what
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in value.split(","))
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is not a {self.what}; known: {', '.join(self.known)}", param, ctx)
        return names


class Signals(Names):
    """Names of signals, with or without the SIG that they begin with."""

    def __init__(self) -> None:
        super().__init__("signal that a run can be ended by", SIGNALS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, str):
            value = ",".join(part.strip().upper().removeprefix("SIG") for part in value.split(","))
        return super().convert(value, param, ctx)


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many cores this process may use: its affinity, and the limit of its control group. At least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        share, period = quota.read_text().split()
        if share != "max":
            cores = min(cores, int(share) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return max(cores, 1)
    return max(cores, 1)


def flat(several: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The names of a repeated option, each once, in order."""
    return tuple(dict.fromkeys(name for names in several for name in names))


TIMEOUT = click.option(
    "--timeout", type=Duration(), default="10", show_default=True, metavar="TIME",
    help="How long one run of a part of a scenario may take, where the scenario does not say so itself.",
)  # fmt: skip
SIGNAL = click.option(
    "--signal", "signals", multiple=True, type=Signals(), metavar="NAMES",
    help=f"Signals, comma separated: {', '.join(SIGNALS)}. At each crash point the program is also sent each of these, "
    "and may end by itself.",
)  # fmt: skip
GRACE = click.option(
    "--grace", type=Duration(), default="2", show_default=True, metavar="TIME",
    help="How long a program may take to end by itself after a signal, until it is killed.",
)  # fmt: skip
OBSERVATION = click.option(
    "--observation", type=click.Choice(["auto", "seccomp", "steps"]), default="auto", show_default=True,
    help="What is seen of a program: every system call that changes a file (seccomp), or its named steps "
    "alone. auto is seccomp, and exit 3 where that is impossible.",
)  # fmt: skip
SELECT = click.option(
    "-k", "expression", metavar="EXPR",
    help="Only scenarios whose path::function contains this word; words may be joined by and, or, not, ( ).",
)  # fmt: skip
PATHS = click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=str))
