"""Plain values: what an observation or an ack may be, and how two of them are compared.

Guarantees: `canonical` gives equal text exactly for equal values, where equal means same type and same content
(1, 1.0 and True are three values; NaN equals itself; the order of dicts and sets does not matter); `parse` gives
the value back; neither executes anything. Does not accept subclasses, because what they add would be dropped.

Shapes: None, bool, int, float, str, bytes, and tuples, lists, dicts, sets of them.
"""

from __future__ import annotations

import json
from typing import Any

from crashtest.errors import UsageError


class NotPlain(UsageError):
    """A value is not made of plain values; the message names the place inside it."""


def _encode(value: Any, place: str) -> Any:
    kind = type(value)
    if value is None or kind in (bool, int, str):
        return value
    if kind is float:
        return ["f", repr(value)]
    if kind is bytes:
        return ["b", value.decode("latin-1")]
    if kind in (tuple, list):
        tag = "t" if kind is tuple else "l"
        return [tag, *(_encode(item, f"{place}[{i}]") for i, item in enumerate(value))]
    if kind in (set, frozenset):
        return ["s", *sorted((_encode(item, f"{place} (member)") for item in value), key=_order)]
    if kind is dict:
        pairs = [[_encode(key, f"{place} (key)"), _encode(item, f"{place}[{key!r}]")] for key, item in value.items()]
        return ["d", *sorted(pairs, key=lambda pair: _order(pair[0]))]
    raise NotPlain(
        f"{place} is a {kind.__module__}.{kind.__qualname__}, which is not a plain value; return None, bool, int, "
        "float, str, bytes, or tuples, lists, dicts and sets of them"
    )


def _order(encoded: Any) -> str:
    return json.dumps(encoded, separators=(",", ":"))


def canonical(value: Any, what: str = "the value") -> str:
    """The canonical text of a plain value.

    Raises `NotPlain` (a `UsageError`) when `value` is not made of plain values, nests too deeply or contains
    itself; `what` names it in the message.
    """
    try:
        return json.dumps(_encode(value, what), separators=(",", ":"))
    except (RecursionError, ValueError) as error:
        raise NotPlain(f"{what} is nested too deeply or too large to compare: {error}") from None


def _decode(encoded: Any, hashable: bool) -> Any:
    if not isinstance(encoded, list):
        return encoded
    tag, *items = encoded
    if tag == "f":
        return float(items[0])
    if tag == "b":
        return items[0].encode("latin-1")
    if tag == "t":
        return tuple(_decode(item, hashable) for item in items)
    if tag == "l":
        return [_decode(item, False) for item in items]
    if tag == "s":
        members = {_decode(item, True) for item in items}
        return frozenset(members) if hashable else members
    return {_decode(key, True): _decode(item, False) for key, item in items}


def parse(text: str) -> Any:
    """The plain value whose canonical text is `text`. Raises `ValueError` when it is not such a text."""
    try:
        return _decode(json.loads(text), False)
    except (TypeError, IndexError, KeyError, AttributeError) as error:
        raise ValueError(f"not the canonical text of a plain value: {error}") from None


def shown(text: str, limit: int = 300) -> str:
    """The value of a canonical text as Python would write it, on one line, at most `limit` characters."""
    words = repr(parse(text))
    return words if len(words) <= limit else words[: limit - 1] + "…"
