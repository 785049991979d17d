"""crashtest: prove that a program recovers from a crash, or show the smallest way in which it does not.

This package root is loaded inside every worker process, so it imports the standard library only.
"""

from typing import TYPE_CHECKING, Any

from crashtest.errors import CrashtestError, HarnessError, UsageError
from crashtest.scenario import ALL, DEFAULT, Run, Scenario, scenario

if TYPE_CHECKING:
    from crashtest.commands import command

__version__ = "0.1.0"

__all__ = [
    "ALL",
    "DEFAULT",
    "CrashtestError",
    "HarnessError",
    "Run",
    "Scenario",
    "UsageError",
    "__version__",
    "command",
    "scenario",
]


def __getattr__(name: str) -> Any:
    """`command` is loaded where it is used: what it imports costs every worker of the others a page or two."""
    if name == "command":
        from crashtest.commands import command

        return command
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
