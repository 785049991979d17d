"""`-k`: a small language that is parsed, never executed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crashtest import UsageError
from crashtest.selection import Expression

NAME = "scenarios/git/refs.py::update_three"


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("refs", True),
        ("REFS", True),
        ("refs.py::update_three", True),
        ("wal", False),
        ("not wal", True),
        ("not refs", False),
        ("not not refs", True),
        ("refs and three", True),
        ("refs and wal", False),
        ("wal or three", True),
        ("wal and refs or three", True),
        ("three or refs and wal", True),
        ("wal and (refs or three)", False),
        ("not (wal or four)", True),
        ("not wal and not four", True),
        ("(((refs)))", True),
        ("(refs)and(three)", True),
        ("'refs.py'", True),
        ('"and"', False),
        ("'up' and \"date\"", True),
        ("android", False),
        ("notes or refs", True),
        ("  refs  ", True),
    ],
)
def test_an_expression_selects_as_pytest_would(text: str, matches: bool) -> None:
    assert Expression(text)(NAME) is matches


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "and",
        "or",
        "not",
        "not and",
        "a and",
        "and a",
        "a or or b",
        "a b",
        "(",
        ")",
        "()",
        "(a",
        "a)",
        "a (b)",
        "'a",
        '"',
        "a and 'b",
        "not (",
        "(" * 100 + "a" + ")" * 100,
        "not " * 100 + "a",
    ],
)
def test_a_malformed_expression_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not an expression"):
        Expression(text)


@pytest.mark.parametrize("text", ["__import__('os')", "[].__class__", "a;b", "1+1", "\x00", "a\nb or c"])
def test_nothing_of_an_expression_is_executed(text: str) -> None:
    try:
        assert Expression(text)(NAME) is False
    except UsageError as error:
        assert "is not an expression" in str(error)


@given(st.text(st.sampled_from("ab ()'\"\tnotdr\x1b"), max_size=30) | st.text(max_size=30))
def test_any_text_is_an_expression_or_a_usage_error(text: str) -> None:
    try:
        assert Expression(text)(NAME) in (True, False)
    except UsageError as error:
        assert "is not an expression" in str(error)


words = st.text("abc", min_size=1, max_size=3).filter(lambda word: word not in ("and", "or", "not"))
trees = st.recursive(
    words,
    lambda inner: st.tuples(st.just("not"), inner) | st.tuples(st.sampled_from(["and", "or"]), inner, inner),
    max_leaves=8,
)


def _text(tree: object) -> str:
    match tree:
        case ("not", inner):
            return f"not ({_text(inner)})"
        case (str(word), left, right):
            return f"({_text(left)}) {word} ({_text(right)})"
    return str(tree)


def _value(tree: object, name: str) -> bool:
    match tree:
        case ("not", inner):
            return not _value(inner, name)
        case ("and", left, right):
            return _value(left, name) and _value(right, name)
        case ("or", left, right):
            return _value(left, name) or _value(right, name)
    return str(tree) in name


@given(trees, st.text("abc", max_size=6))
def test_an_expression_means_what_its_tree_means(tree: object, name: str) -> None:
    assert Expression(_text(tree))(name) is _value(tree, name)
