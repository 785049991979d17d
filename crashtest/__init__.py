"""crashtest: prove that a program recovers from a crash, or show the smallest way in which it does not.

This package root is loaded inside every worker process, so it imports the standard library only.
"""

from crashtest.errors import CrashtestError, HarnessError, UsageError
from crashtest.scenario import ALL, DEFAULT, Run, Scenario, scenario

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
    "scenario",
]
