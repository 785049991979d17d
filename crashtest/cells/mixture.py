"""What a state that is no expected one is made of, and what lies beside it, for people who do not know the program.

Guarantees: compares values that were observed, and names that were captured; guesses nothing. Main process only.
"""

from __future__ import annotations

from typing import Any

from crashtest.cells.judge import Expected
from crashtest.errors import quoted
from crashtest.looking import ignored
from crashtest.values import parse

#: names told at most
MOST = 5


def parts(states: list[str], acked: int, observed: str) -> list[str]:
    """Of which expected state each part of an observed mixture is: "HEAD, refs: as after operation 1, new".

    states, observed: canonical texts. Parts that are alike in both states that would be right are left out. Empty where
    they are no dicts with the same keys.
    """
    right = [number for number in (acked, acked + 1) if number < len(states)]
    values = [parse(state) for state in states]
    found = parse(observed)
    if not isinstance(found, dict) or any(not isinstance(v, dict) or v.keys() != found.keys() for v in values):
        return []
    groups: dict[str, list[str]] = {}
    for key, value in found.items():
        if all(_same(values[number][key], value) for number in right):
            continue
        others = [*right, *(number for number in range(len(values)) if number not in right)]
        as_in = next((number for number in others if _same(values[number][key], value)), None)
        age = {acked: ", old", acked + 1: ", new"}.get(-1 if as_in is None else as_in, "")
        words = "as in no state" if as_in is None else f"as after operation {as_in}{age}"
        groups.setdefault(words, []).append(quoted(key))
    return [f"{', '.join(keys)}: {words}" for words, keys in groups.items()]


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def left(names: list[str], expected: Expected, acked: int, ignore: tuple[str, ...]) -> list[str]:
    """Names below the state that no run without a crash has there, neither before nor after the next operation."""
    known = {name for number in (acked, acked + 1) if number < len(expected.names) for name in expected.names[number]}
    found = [quoted(name) for name in names if name not in known and not ignored(name, ignore)]
    return found[:MOST] + ([f"{len(found) - MOST} more"] if len(found) > MOST else [])
