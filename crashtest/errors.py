"""The errors crashtest raises. Each message says what happened, where, and what to do next.

Guarantees: every error a user can cause is a `UsageError`; every error that is crashtest's own fault (or its
machine's) is a `HarnessError`. Neither is ever folded into a verdict.
"""

from __future__ import annotations


class CrashtestError(Exception):
    """Base of every error that crashtest raises on purpose."""


class UsageError(CrashtestError):
    """The scenario, the options or the configuration are wrong (exit code 2)."""


class CommandFailed(CrashtestError):
    """A command of a scenario did not end well; the message follows a part's name. It is the program's failure."""


class HarnessError(CrashtestError):
    """crashtest itself, or the machine under it, failed (exit code 3): the verdict is unknown, never 'held'."""


def quoted(text: object, limit: int = 200) -> str:
    """`text` on one line, with control characters, quotes and undecodable bytes escaped, at most `limit` long.

    Names and messages come from strangers: whatever is shown on a terminal or written to a report goes
    through here first.
    """
    shown = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in shown)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"
