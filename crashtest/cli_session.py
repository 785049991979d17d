"""What the commands of the command line have in common. Nothing of it is more than words and paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DEFAULT_REPORT_DIR = Path(".crashtest")


@dataclass
class Session:
    """What the way out of a command needs to know about it."""

    report_dir: Path = DEFAULT_REPORT_DIR
    #: the words behind `--`
    words: list[str] | None = None


def quietly(show: Callable[[], None]) -> None:
    """Show something to a reader who may have gone: a closed pipe changes no verdict."""
    try:
        show()
    except BrokenPipeError:
        return
