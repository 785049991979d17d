"""A command on the command line: `crashtest run --state DIR --recover CMD -- CMD ARGS` becomes a declaration file.

Guarantees: what stands behind `--` is taken as it is, word by word, and never read as an option; the declaration is
stored below the report directory, under a name made of its content, so that a violation of it can be replayed as that
of any scenario file; the state directory is only read. An option that makes no sense without a command is refused.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from crashtest.cells.plan import short_hash
from crashtest.commands import Command, declare, name_of, plain_file
from crashtest.errors import UsageError, quoted

#: the commands of crashtest that take a command behind `--`
TAKES_COMMAND = ("run", "syncs")


def split(arguments: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """(the arguments of crashtest, the words behind `--` or None), where the command is one that takes such words."""
    words = list(arguments)
    if "--" not in words or not words or words[0] not in TAKES_COMMAND:
        return words, None
    at = words.index("--")
    return words[:at], words[at + 1 :]


class Variable(click.ParamType[tuple[str, str]]):
    """An environment variable as NAME=VALUE."""

    name = "variable"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not equals or not name:
            self.fail(f"{quoted(value)!r} is not NAME=VALUE", param, ctx)
        return name, text


Decorate = Callable[[Callable[..., Any]], Callable[..., Any]]


def _option(name: str, metavar: str | None, help_: str, **more: Any) -> Decorate:
    return click.option(f"--{name}", metavar=metavar, help=help_, **more)


_OPTIONS = (
    _option("state", "DIR", "With a command: a directory of which it gets a copy; without it, an empty one.",
            type=click.Path(path_type=Path, file_okay=False)),
    _option("setup", "CMD", "With a command: what is run in the copy once, before everything else."),
    _option("recover", "CMD", "With a command: what starting again after a crash is; exit 0 is success."),
    _option("observe", "CMD", "With a command: its standard output is the state. Without it a git repository is looked "
            "at as one, anything else as its names and contents."),
    _option("check", "CMD", "With a command: exit 0 says that the recovered state is good."),
    _option("commands", "FILE", "Instead of a command behind --: a file with one on each line, each an operation.",
            type=click.Path(path_type=Path, dir_okay=False), default=None),
    _option("server", "CMD", "With a command: started before each of the others, and ended by SIGTERM after it."),
    _option("ready", "CMD", "With --server: asked until it ends with exit 0; then the server can be used."),
    _option("ack-line", "REGEX", "With a command: each line on its standard output that has this is an ack. Without it "
            "its exit 0 is."),
    _option("same", None, "With a command: an operation may change nothing that can be observed.", is_flag=True),
    _option("whole", None, "With a command: only everything at once is killed, never a process alone.", is_flag=True),
    _option("ignore", "GLOB", "With a command: names below the directory that are passed over.", multiple=True),
    _option("env", "NAME=VALUE", "With a command: a variable of its environment.", multiple=True, type=Variable()),
    _option("guarantees", "NAMES", "With a command: the guarantees it claims, comma separated, instead of the default "
            "ones."),
)  # fmt: skip
NAMES = ("state", "setup", "recover", "observe", "check", "commands", "server", "ready", "ack_line", "same", "whole",
         "ignore", "env", "guarantees")  # fmt: skip

#: those whose values a declaration takes as they are
_TAKEN = ("setup", "recover", "observe", "check", "server", "ready", "ack_line", "same", "whole")


def command_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command the options that declare a command (`NAMES`)."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def declaration(words: list[str] | None, given: dict[str, Any], report_dir: Path) -> str | None:
    """The path of the declaration file that these options make; None when nothing of them was given.

    words: what stood behind `--`. given: the values of the options `NAMES`. Raises `UsageError`.
    """
    if words is None and given["commands"] is None:
        odd = [f"--{name.replace('_', '-')}" for name in NAMES if given[name]]
        if odd:
            raise UsageError(f"{', '.join(odd)} belongs to a command; give it behind --, as in: crashtest run --state "
                             "DIR -- CMD ARGS")  # fmt: skip
        return None
    if words is not None and given["commands"] is not None:
        raise UsageError("give either a command behind -- or --commands FILE, not both")
    if words is not None and not words:
        raise UsageError("there is no command behind --")
    state = given["state"]
    if state is not None and not state.is_dir():
        raise UsageError(f"the state directory {quoted(state)} is not there; give an existing one with --state")
    made = Command(
        run=words,
        commands=None if words is not None else _lines(given["commands"]),
        state=None if state is None else os.path.relpath(state, report_dir / "commands"),
        ignore=list(given["ignore"]),
        env=dict(given["env"]),
        allow_outside=list(given["allow_outside"]),
        guarantees=None if not given["guarantees"] else [one.strip() for one in given["guarantees"].split(",")],
    )
    made = dataclasses.replace(made, **{name: given[name] for name in _TAKEN})
    name = name_of(words if words is not None else [given["commands"].stem])
    text = json.dumps(plain_file(name, made), indent=1)
    path = report_dir / "commands" / f"{name}-{short_hash(text)}.json"
    declare(made, name, str(path))  # what is wrong with it shows before it is stored
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"the declaration of this command cannot be written to {quoted(path)}: {quoted(error.strerror)}; give "
            "another --report-dir"
        ) from error
    return str(path)


def _lines(path: Path) -> list[str]:
    """The commands in a file: one on each line; empty lines, and those that begin with #, are passed over."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UsageError(f"{quoted(path)} cannot be read: {quoted(error)}") from None
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise UsageError(f"{quoted(path)} has no command; write one on each line")
    return found
