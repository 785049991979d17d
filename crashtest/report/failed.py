"""What failed last, for `--lf`: the scenarios that did not end as expected, and which of their cells did not hold.

Guarantees: a run changes only what it says something new about: a scenario that ended as expected is taken out, one
that failed is put in, one that was not run or not finished stays as it was. The file is replaced as a whole; one that
cannot be read counts as none. Names and ids only, nothing that is run.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from crashtest.errors import quoted
from crashtest.scale.jobs import family
from crashtest.verdict import RunResult

NAME = "last-failed.json"

#: by scenario name, the cells (`scale.jobs.family`) that showed a violation
Failed = dict[str, list[str]]


def read(directory: Path) -> Failed:
    """What failed last below a report directory; {} when nothing did, or when nothing is known."""
    try:
        stored = json.loads((directory / NAME).read_bytes())["scenarios"]
        return {str(name): [str(cell) for cell in cells] for name, cells in stored.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def remember(result: RunResult, directory: Path) -> str:
    """Write down what this run changes. Returns what went wrong, in words, or ""."""
    failed = read(directory)
    before = dict(failed)
    for one in result.scenarios:
        if one.as_expected:
            failed.pop(one.name, None)
        elif one.verdict == "violated" or not result.stopped:
            failed[one.name] = sorted({family(violation.id) for violation in one.violations})
    if failed == before:
        return ""
    temporary = directory / f".{NAME}.{os.getpid()}.tmp"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"schema": 1, "scenarios": failed}, indent=1), encoding="ascii")
        temporary.replace(directory / NAME)
    except OSError as error:
        return f"what failed could not be written down for --lf: {quoted(error)}; name another --report-dir"
    return ""
