"""The rows of the table of known software, as `known.toml` and `alice.toml` declare them: what is said by hand.

Guarantees: a part that is unknown, missing or of the wrong kind is a `UsageError` that names the file and the place; no
row is declared twice. What a row is *expected* to break is not said here but by its scenario (`expect`), and is judged
by the run.
"""

import re
import shlex
import tomllib
from collections import Counter
from pathlib import Path
from typing import TypeVar

import msgspec

from crashtest.errors import UsageError, quoted

from . import POWER

MODELS = ("kill", *POWER)


class Row(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """One command and what is to be said of it. scenario: `path::function`; select: for `-k`, where the function's name
    would select others too; promise: what the program's authors say; why: the explanation of what was found (Markdown).
    """

    title: str
    scenario: str
    select: str = ""
    promise: str
    why: str

    @property
    def command(self) -> str:
        """What a reader pastes."""
        path, _, function = self.scenario.partition("::")
        return f"crashtest run {path} -k {shlex.quote(self.select or function)} --model {','.join(MODELS)}"


class Program(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A program and its rows. version: a command (words; `python` is this one) that says its name and version, and
    fails where it is missing; needs: how to get it; varies: what has another value in each run, such as the random part
    of a temporary name (a regular expression); about: Markdown.
    """

    name: str
    language: str
    version: list[str]
    needs: str
    about: str
    varies: str = ""
    row: list[Row]


class Evidence(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """What the run of a row must show: that the guarantee held under every model, or, with a model and a story (a
    regular expression), a violation of it under that model that tells this story.
    """

    scenario: str
    guarantee: str
    model: str = ""
    story: str = ""


class Finding(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """A published finding and what became of it here. published: what it is, in its authors' terms; count: how many of
    theirs it is; verdict: in a few words; text: why (Markdown); shown: the runs that bear it out.
    """

    program: str
    published: str
    count: int
    verdict: str
    text: str
    shown: list[Evidence] = []


class Known(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`known.toml`. head: what stands above the table (Markdown, with `{made}` where date and machine go)."""

    head: str
    program: list[Program]


class Alice(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`alice.toml`. head, foot: what stands around the findings (Markdown, as above)."""

    head: str
    foot: str
    finding: list[Finding]


Page = TypeVar("Page", Known, Alice)


def read(path: Path, kind: type[Page]) -> Page:
    """A page's source. Raises `UsageError`."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), kind)
    except (OSError, ValueError) as error:
        raise UsageError(f"{quoted(path)} does not say what a page must say: {quoted(error)}") from None
    if isinstance(found, Known):
        _refuse_senseless(found, path.name)
    return found


def _refuse_senseless(known: Known, file: str) -> None:
    rows = [row for program in known.program for row in program.row]
    named = [row.scenario for row in rows] + [row.title for row in rows] + [one.name for one in known.program]
    for name, times in Counter(named).items():
        if times > 1:
            raise UsageError(f"{file}: {quoted(name)} is there twice")
    for one in known.program:
        try:
            re.compile(one.varies)
        except re.error as error:
            raise UsageError(f"{file}: varies of {quoted(one.name)} is no regular expression: {error}") from None
