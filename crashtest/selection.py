"""Which scenarios a command is about: files are found and loaded, `-k` and `--lf` choose among them.

Guarantees: nothing of an expression is ever executed; every file is loaded before anything is raised, and all that are
broken are named; a selection of nothing is an error of its own (exit code 5); labels are printable, and each stands for
one file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from crashtest.errors import UsageError, quoted

if TYPE_CHECKING:
    from crashtest.scenario import Scenario

#: how long one file may take to load, in seconds
LOADING = 60.0


class NothingSelected(UsageError):
    """There is nothing to run (exit code 5)."""


class SeveralErrors(UsageError):
    """More than one thing is wrong; each has a message of its own."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages


_TOKEN = re.compile(r"""\s*(?:(?P<paren>[()])|"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<word>[^\s()"']+))""")
_DEEPEST = 50


class Expression:
    """A `-k` expression: words, quoted words, `and`, `or`, `not` and parentheses, as in pytest.

    A word matches when it is part of the name, upper and lower case alike. Raises `UsageError` when the text
    is no such expression; nothing of it is ever executed.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split()
        self._next = 0
        self._matches = self._any_of(0)
        if self._next < len(self._tokens):
            raise self._wrong(f"{self._tokens[self._next][1]!r} is not expected there")

    def __call__(self, name: str) -> bool:
        return self._matches(name.lower())

    def _wrong(self, why: str) -> UsageError:
        return UsageError(
            f"-k {quoted(self._text)!r} is not an expression: {why}; give words joined by and, or, not and "
            "parentheses, such as -k 'refs and not (slow or git)'"
        )

    def _split(self) -> list[tuple[str, str]]:
        """The tokens: ("(", "("), ("and", "and"), ("word", text) and so on."""
        tokens: list[tuple[str, str]] = []
        at = 0
        text = self._text.rstrip()
        while at < len(text):
            found = _TOKEN.match(text, at)
            if found is None:
                raise self._wrong(f"the quote {text[at:].strip()[0]} is never closed")
            at = found.end()
            if found["paren"] or found["word"] in ("and", "or", "not"):
                tokens.append(((found["paren"] or found["word"]),) * 2)
            else:
                tokens.append(("word", found["word"] or found["double"] or found["single"] or ""))
        if not tokens:
            raise self._wrong("it is empty")
        return tokens

    def _take(self, kind: str) -> bool:
        if self._next < len(self._tokens) and self._tokens[self._next][0] == kind:
            self._next += 1
            return True
        return False

    def _any_of(self, depth: int) -> Callable[[str], bool]:
        parts = [self._all_of(depth)]
        while self._take("or"):
            parts.append(self._all_of(depth))
        return lambda name: any(part(name) for part in parts)

    def _all_of(self, depth: int) -> Callable[[str], bool]:
        parts = [self._one(depth)]
        while self._take("and"):
            parts.append(self._one(depth))
        return lambda name: all(part(name) for part in parts)

    def _one(self, depth: int) -> Callable[[str], bool]:
        if depth > _DEEPEST:
            raise self._wrong(f"it nests more than {_DEEPEST} deep")
        if self._take("not"):
            inner = self._one(depth + 1)
            return lambda name: not inner(name)
        if self._take("("):
            inside = self._any_of(depth + 1)
            if not self._take(")"):
                raise self._wrong("a parenthesis is never closed")
            return inside
        if self._take("word"):
            word = self._tokens[self._next - 1][1].lower()
            return lambda name: word in name
        got = self._tokens[self._next][1] if self._next < len(self._tokens) else "the end"
        raise self._wrong(f"a word is missing before {got!r}")


def collect(paths: Sequence[str]) -> tuple[list[Scenario], dict[str, Path]]:
    """The scenarios below `paths`, in order, and the file behind each label.

    Labels are printable and each stands for one file. Every file is loaded before anything is raised: a
    `UsageError` names all that are broken.
    """
    from crashtest.scenario import discover, load, probe_loading

    if "" in paths:
        raise UsageError("a path is empty; give a scenario file or a directory of them")
    try:
        found = discover(paths)
    except OSError as error:
        raise UsageError(f"{quoted(error.filename or '')} cannot be searched: {quoted(error.strerror)}") from error
    probe_loading([(path, quoted(label, 4096)) for path, label in found], LOADING)
    scenarios: list[Scenario] = []
    files: dict[str, Path] = {}
    broken: list[str] = []
    for path, label in found:
        shown = quoted(label, 4096)
        try:
            if shown in files:
                raise UsageError(f"two files would both be called {shown}; rename one of them")
            files[shown] = path
            scenarios.extend(load(path, shown))
        except UsageError as error:
            broken.append(str(error))
    if broken:
        raise SeveralErrors(broken)
    return scenarios, files


def gather(paths: Sequence[str], expression: str | None) -> tuple[list[Scenario], int, dict[str, Path]]:
    """The scenarios below `paths` that `expression` names, of how many, and the files they are in.

    Raises `UsageError`, and `NothingSelected` when none is left. The expression is read before any file is.
    """
    places = ", ".join(quoted(path) for path in paths)
    matches = None if expression is None else Expression(expression)
    scenarios, files = collect(paths)
    if not scenarios:
        raise NothingSelected(
            f"there is no scenario in {places}; a scenario is a function decorated with @crashtest.scenario, "
            "in a *.py file whose name does not begin with _ or test_"
        )
    chosen = [one for one in scenarios if matches is None or matches(one.name)]
    if not chosen:
        if len(scenarios) == 1:
            words = f"does not match {scenarios[0].name}, the only scenario in {places}"
        else:
            words = f"matches none of the {len(scenarios)} scenarios in {places}; `crashtest list` shows their names"
        raise NothingSelected(f"-k {quoted(expression)!r} {words}")
    used = {one.file for one in chosen}
    return chosen, len(scenarios), {label: file for label, file in files.items() if label in used}


def failed_last(chosen: list[Scenario], failed: Mapping[str, object]) -> tuple[list[Scenario], str]:
    """Those of the chosen scenarios that failed last, or all of them when none did; and that in words."""
    again = [one for one in chosen if one.name in failed]
    if not again:
        return chosen, "--lf: none of these scenarios failed last, so all are run"
    return again, f"--lf: {len(again)} of {len(chosen)} scenarios failed last; the others are not run"
