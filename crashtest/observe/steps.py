"""Named steps: audit events (PEP 578) as crash points, on every platform.

Guarantees: an event raised with `sys.audit("package.part.step", ...)` is told through one write to the step pipe
before the program goes on. Events of Python itself and of its standard library are not steps; with `builtin=True`
(observation by steps alone) those that change files are told too. Costs nothing in a process without the hook.
Does not see what other programs, or C code without audit events, do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

_NOT_STEPS = frozenset({"builtins", "code", "compile", "cpython", "exec", "function", "import", "object", "open",
                        "setopencodehook"})  # fmt: skip
#: file-changing events that Python raises by itself (docs.python.org, "Audit events table")
BUILTIN = frozenset({"os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.removexattr", "os.rename",
                     "os.rmdir", "os.setxattr", "os.symlink", "os.truncate", "os.utime"})  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def is_step(event: str) -> bool:
    """Whether an audit event is a named step: it has a dotted name that is not one of Python's own modules."""
    first, dot, _ = event.partition(".")
    return bool(dot) and first not in _NOT_STEPS and first not in sys.stdlib_module_names


def install(tell: Callable[[str], None], builtin: bool) -> None:
    """Tell every named step of this process from now on; an audit hook cannot be removed.

    `tell` gets the step's name before the program goes on. It must not raise.
    """
    known: dict[str, bool] = {}

    def hook(event: str, args: tuple[Any, ...]) -> None:
        steps = known.get(event)
        if steps is None:
            steps = known[event] = is_step(event)
        if steps:
            tell(event)
        elif builtin and (event in BUILTIN or (event == "open" and _writes(args))):
            tell(f"python.{event}")

    sys.addaudithook(hook)


def _writes(args: tuple[Any, ...]) -> bool:
    flags = args[2] if len(args) > 2 else 0
    return isinstance(flags, int) and bool(flags & _WRITING) and not isinstance(args[0], int)
