"""A stored violation as a pytest file that stands alone.

Guarantees: whatever a record holds, the file is valid Python that does nothing but call `crashtest.testing.crash_again`
with plain values: names and values of strangers stand in it as literals, and in the docstring escaped. It names the
scenario's file relative to itself. Does not carry the program: it needs crashtest and the scenario's project.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any

from crashtest.cells.plan import Cell
from crashtest.errors import UsageError, quoted
from crashtest.report import story
from crashtest.report.words import MEANING, count
from crashtest.scale.stored import Record
from crashtest.scenario import SIGNALS
from crashtest.values import parse, shown

_TEMPLATE = '''"""{docstring}"""

from pathlib import Path

from crashtest.testing import crash_again

HERE = Path(__file__).resolve().parent


def test_{name}() -> None:
    crash_again(
        HERE / {file},
        scenario={scenario},
        guarantee={guarantee},
        model={model},{ops}
        cut={cut},  # {point}
        kind={kind},
        torn={torn},
        variant={variant},
        nested={nested},{losses}
        depth={depth},
    )
'''


def name(record: Record) -> str:
    """The file to write when nobody names one."""
    return f"test_{_test(record)}.py"


def _test(record: Record) -> str:
    example, point = record.id.rsplit("/", 4)[1:3]
    return re.sub(r"\W+", "_", f"{record.function}_{record.guarantee}_{example}_{point}", flags=re.ASCII)


def source(record: Record, file: Path, label: str, target: Path) -> str:
    """The text of the test file `target` for a violation whose scenario is in `file`. Raises `UsageError`."""
    if file.suffix != ".py":
        raise UsageError(f"{quoted(file)} is no Python file")
    relative = os.path.relpath(file, target.resolve().parent)
    ops = "\n        ops=None," if record.ops is None else _operations([parse(op) for op in record.ops])
    cell = record.crash()
    cut = "None" if record.cell is None else str(cell.cut)
    return _TEMPLATE.format(
        docstring=_docstring(record, label), name=_test(record), file=literal(relative),
        scenario=literal(record.function), guarantee=literal(record.guarantee), model=literal(record.model), ops=ops,
        cut=cut, point=_plain(record.point), kind=literal(cell.kind), torn=cell.torn, variant=literal(cell.variant),
        nested=literal([tuple(place) for place in cell.inner]), depth=record.depth, losses=_losses(cell),
    )  # fmt: skip


def _losses(cell: Cell) -> str:
    """The arguments that say what a power cut lost; none for a kill."""
    if cell.model == "kill":
        return ""
    first = "" if cell.lost_first is None else f"\n        lost_first={literal(list(cell.lost_first))},"
    return f"\n        lost={literal(list(cell.lost))},{first}"


def literal(value: Any) -> str:
    """A plain value as Python source that gives it back, on one line and printable."""
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if type(value) in (list, tuple):
        inside = ", ".join(map(literal, value))
        if type(value) is list:
            return f"[{inside}]"
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if type(value) in (set, frozenset):
        inside = ", ".join(sorted(map(literal, value)))
        name = "frozenset" if type(value) is frozenset else "set"
        return f"{name}([{inside}])"
    if type(value) is dict:
        return "{" + ", ".join(f"{literal(key)}: {literal(item)}" for key, item in value.items()) + "}"
    return repr(value)


def _operations(ops: list[Any]) -> str:
    lines = "".join(f"\n            {literal(op)}," for op in ops)
    return f"\n        ops=[{lines}\n        ]," if ops else "\n        ops=[],"


def _plain(text: str) -> str:
    return quoted(text, 1000)


def _docstring(record: Record, label: str) -> str:
    """The story, escaped so that nothing in it ends the string or escapes from it."""
    lines = [
        f"{record.guarantee} is violated under {record.model}: {record.function} in {label}",
        "",
        *_story(record),
        "",
        f"Stored as {record.id}",
        f"{_where_from(record)}.",
        "This test fails as long as the guarantee is violated. If the crash at its place shows nothing any more, every",
        "crash of the same operations is tried.",
    ]
    text = "\n".join(_plain(line) for line in lines)
    return text.replace("\\", "\\\\").replace('"', '\\"') + "\n"


def _story(record: Record) -> list[str]:
    told = [
        ("promise", MEANING.get(record.guarantee, "")),
        ("ops", ", ".join(shown(op, 200) for op in (record.ops or [])[:50])),
        ("got" if record.crash().variant in SIGNALS else "died", record.point),
        ("in", record.where),
        ("acked", count(record.acked, "operation")),
        ("wanted", record.wanted),
        ("found", record.observed),
    ]
    return [story.plain(story.field(label, text)) for label, text in told if text]


def _where_from(record: Record) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    commit = f"commit {record.commit}" + (" with changes" if record.changed else "") if record.commit else "no commit"
    return f"at {commit}, with seed {record.seed}" + (f" ({versions})" if versions else "")
