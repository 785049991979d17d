"""The settings of one run, as the command line gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is asked to do. Times are seconds.

    observation: "auto" (system calls; an error where that is impossible), "seccomp", or "steps" (named steps alone).
    """

    models: tuple[str, ...] = ("kill", "posix")
    #: how many losses of a power cut are tried for one sequence of operations
    losses: int = 150
    seed: int = 0
    jobs: int = 1
    #: the core of the first worker: several runs at a time are kept apart with it
    first_core: int = 0
    stop_on_first: bool = False
    timeout: float = 10.0
    max_time: float | None = None
    #: signals by which every scenario is ended as well (`scenario.SIGNALS`), and the time to end by itself then
    signals: tuple[str, ...] = ()
    grace: float = 2.0
    allow_partial: bool = False
    #: globs of paths outside the state directory that any scenario may change
    allow_outside: tuple[str, ...] = ()
    report_dir: Path = field(default_factory=lambda: Path(".crashtest"))
    observation: str = "auto"
    depth: int = 2
    #: how many operation sequences are drawn when a scenario's `ops` is a strategy
    examples: int = 5
    #: whether sequences that failed in an earlier run are tried first; without them a seed gives the same run again
    remember: bool = True
    #: seconds for shrinking the failing sequences of one scenario; 0: they are reported as they were drawn
    shrink: float = 120.0
    #: cells to try first (`cells.plan.family`), because they failed last
    first: frozenset[str] = frozenset()
