"""Calls that sync and that no run came to, found in the source of the files that the program was seen in.

Guarantees: reads source, imports and runs nothing; a file that cannot be read or parsed is left out. Sees calls by
their names alone (`fsync`, `fdatasync`, and `sync` of os), in Python, and in no file in which nothing was recorded but
the scenario's own.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

_NAMES = frozenset({"fsync", "fdatasync", "sync_file_range"})


def frames(wheres: Iterable[str]) -> dict[str, set[int]]:
    """The lines that stand in some stacks (`trace.Op.where`), by file."""
    found: dict[str, set[int]] = {}
    for where in wheres:
        for frame in where.split(" < "):
            file, _, rest = frame.rpartition(":")
            number = rest.partition(" ")[0]
            if file.endswith(".py") and number.isdigit():
                found.setdefault(file, set()).add(int(number))
    return found


def never_called(scenario: Path, synced: Iterable[str], seen: Iterable[str]) -> list[tuple[str, str]]:
    """(call, "file:line in function") of each call that syncs and is in no stack of a sync.

    scenario: the scenario's file. synced: the stacks of the syncs recorded. seen: those of all events.
    """
    reached = frames(synced)
    files = {Path(file).resolve(): file for file in frames(seen)}
    files.setdefault(scenario.resolve(), str(scenario))
    found = []
    for path, shown in sorted(files.items()):
        lines = reached.get(shown, set())
        for call, first, last, function in _calls(path):
            if not any(first <= line <= last for line in lines):
                found.append((call, f"{shown}:{first} in {function}"))
    return found


def _calls(path: Path) -> list[tuple[str, int, int, str]]:
    """The calls that sync in a file: name, first and last line, and the function it stands in."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return []
    found: list[tuple[str, int, int, str]] = []

    def look(node: ast.AST, function: str) -> None:
        for child in ast.iter_child_nodes(node):
            inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
            if isinstance(child, ast.Call) and _syncs(child.func):
                name = child.func.attr if isinstance(child.func, ast.Attribute) else ast.unparse(child.func)
                found.append((name, child.lineno, child.end_lineno or child.lineno, function))
            look(child, inside)

    look(tree, "<module>")
    return found


def _syncs(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        of_os = isinstance(function.value, ast.Name) and function.value.id == "os"
        return function.attr in _NAMES or (of_os and function.attr == "sync")
    return isinstance(function, ast.Name) and function.id in _NAMES
