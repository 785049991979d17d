"""Scenarios made of commands: any program in any language, with nothing to write.

`Command` is a declaration in plain data (from the command line, from `[tool.crashtest.commands.NAME]` of a
pyproject.toml, or from `command(...)` in a scenario file); `declare` makes a scenario of it. Guarantees: commands run
in the copy of the state, never in the state itself; what a command says on its standard output is an ack or an
observation exactly where the declaration says so; a declaration with an unknown or senseless part is a `UsageError`
that names it. Standard library only: the zygote loads it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any

from crashtest import given
from crashtest.errors import CommandFailed, UsageError, quoted
from crashtest.looking import look_at
from crashtest.scenario import DEFAULT, Run, Scenario

#: a text is for the shell, a list of words is one program and its arguments
Words = str | list[str]


@dataclass(kw_only=True)
class Command:
    """What `crashtest run --state DIR ... -- CMD ARGS` says, as data. `{dir}` in a command is the state directory.

    run: the command; or commands: one for each operation. state: a directory that the first state is a copy of, None
    for an empty one. setup: run in that copy once. recover: what starting again is. observe: its standard output is
    the state; without it, a git repository is looked at as one, anything else as names and contents (`looking`).
    check: exit 0 holds. ack_line: a regular expression; each line on the standard output of `run` that has it is an
    ack; without it exit 0 is the one ack. same: an operation may change nothing that can be observed. whole: only the
    whole group is killed, never the command alone while what it started goes on. server: started before each command
    and ended (SIGTERM) after it; ready: asked until it ends with exit 0. ignore: globs of names that neither `clean`
    nor the observation sees. env: variables. signals: names (`scenario.SIGNALS`) of those by which the command is ended
    as well. timeout: seconds for one part.
    """

    run: Words | None = None
    commands: list[str] | None = None
    state: str | None = None
    setup: Words | None = None
    recover: Words | None = None
    observe: Words | None = None
    check: Words | None = None
    server: Words | None = None
    ready: Words | None = None
    ack_line: str | None = None
    same: bool = False
    whole: bool = False
    ignore: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    guarantees: list[str] | None = None
    expect: list[str] | dict[str, list[str]] = field(default_factory=list)
    allow_outside: list[str] = field(default_factory=list)
    signals: list[str] = field(default_factory=list)
    timeout: float | None = None

    def plain(self) -> dict[str, Any]:
        """What differs from the defaults, for a file; `from_plain` gives it back."""
        default = asdict(Command())
        return {name: value for name, value in asdict(self).items() if value != default[name]}

    def shown(self) -> str:
        """The command as a person would type it."""
        if self.run is None:
            return f"{len(self.commands or [])} commands"
        return self.run if isinstance(self.run, str) else " ".join(self.run)


def from_plain(name: str, plain: object) -> Command:
    """A declaration from data, such as a table of a TOML file; `-` in a key is `_`. Raises `UsageError`."""
    if not isinstance(plain, Mapping):
        raise UsageError(f"{name} is not a table; write its parts below [tool.crashtest.commands.{name}]")
    values = {str(key).replace("-", "_"): value for key, value in plain.items()}
    if len(values) < len(plain):
        raise UsageError(f"{name}: a part is given twice, once with - and once with _ in its name")
    kinds = {one.name: str(one.type) for one in fields(Command)}
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise UsageError(f"{name}: there is no {quoted(', '.join(unknown))}; known: {', '.join(kinds)}")
    for key, value in values.items():
        if not _fits(kinds[key], value):
            raise UsageError(f"{name}: {key} is {quoted(repr(value), 80)}, and must be {_MEANT[kinds[key]]}")
    return Command(**values)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


#: how a field's type is told to people
_MEANT = {
    "Words | None": "a text for the shell, or a list of words",
    "list[str] | None": "a list of texts",
    "str | None": "a text",
    "bool": "true or false",
    "list[str]": "a list of texts",
    "dict[str, str]": "a table of texts",
    "list[str] | dict[str, list[str]]": "a list of guarantees, or a table of such lists by model",
    "float | None": "a number of seconds",
}


def _fits(kind: str, value: object) -> bool:
    if kind == "Words | None":
        return (isinstance(value, str) and bool(value.strip())) or (_texts(value) and bool(value) and value != [""])
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "str | None":
        return isinstance(value, str) and bool(value)
    if kind == "float | None":
        return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9
    if isinstance(value, Mapping) and kind.startswith(("dict", "list[str] | dict")):
        inner = (lambda one: isinstance(one, str)) if kind == "dict[str, str]" else _texts
        return all(isinstance(key, str) and inner(one) for key, one in value.items())
    return kind != "dict[str, str]" and _texts(value)


def command(run: Words | None = None, **parts: Any) -> Scenario:
    """A scenario made of commands, for a scenario file: `commit = command("git commit -qam x", state="repo")`.

    run, parts: the fields of `Command`. Its name is that of the variable it is bound to. A relative `state` is looked
    for beside the file. Raises `UsageError`.
    """
    source = sys._getframe(1).f_code.co_filename
    plain = {key: sorted(value) if isinstance(value, set | frozenset) else value for key, value in parts.items()}
    made = from_plain("command", {**plain, **({} if run is None else {"run": run})})
    return declare(made, "command", source)


def declare(made: Command, name: str, source: str) -> Scenario:
    """The scenario of a declaration that stands in the file `source`. Raises `UsageError`."""
    _refuse_senseless(made, name)
    shell = _Shell(made)
    base = Path(source).resolve().parent

    def workload(run: Run) -> None:
        with shell.serving(run.dir):
            if made.ack_line is not None:
                shell.run(run.dir, made.run or [], stdout=run.ack_fd)
                return
            for text in [made.run] if made.run is not None else run.ops:
                shell.run(run.dir, text)
                run.ack(text if made.run is None else None, same=made.same)

    def setup(directory: Path) -> None:
        if made.state is not None:
            given.copy(base / made.state, directory, made.allow_outside)
        if made.setup is not None:
            shell.run(directory, made.setup)

    def observe(directory: Path) -> Any:
        with shell.serving(directory):
            if made.observe is None:
                return look_at(directory, made.ignore, shell.environment(directory))
            return shell.said(directory, made.observe)

    def recover(directory: Path) -> None:
        with shell.serving(directory):
            if made.recover is not None:
                shell.run(directory, made.recover)

    def check(directory: Path, acked: list[Any]) -> None:
        with shell.serving(directory):
            shell.run(directory, made.check or [])

    workload.__name__ = name
    commands, state = made.commands, made.state
    declared = Scenario(
        workload=workload,
        setup=setup,
        guarantees=frozenset(DEFAULT if made.guarantees is None else made.guarantees),
        expect=made.expect if isinstance(made.expect, Mapping) else frozenset(made.expect),
        ignore=tuple(made.ignore),
        allow_outside=tuple(made.allow_outside),
        timeout=made.timeout,
        source=source,
        signals=tuple(made.signals),
    )
    declared.make_ops = None if commands is None else lambda: list(commands)
    declared.do_recover = recover if made.recover is not None or made.server is not None else None
    declared.do_observe = observe
    declared.do_check = check if made.check is not None else None
    if state is not None:
        declared.examine = lambda: given.examine(base / state, made.allow_outside)
    declared.looks = made.observe is None
    declared.ack_line = made.ack_line
    declared.driven = True
    declared.whole = made.whole or made.server is not None
    declared.validate()
    return declared


def _refuse_senseless(made: Command, name: str) -> None:
    if (made.run is None) == (made.commands is None):
        have = "neither" if made.run is None else "both"
        raise UsageError(f"{name} has {have} of run (a command) and commands (a list of them); give one")
    if "\\x00" in repr(made.plain()):
        raise UsageError(f"{name}: no part can hold a NUL character")
    for variable in made.env:
        if not variable or "=" in variable:
            raise UsageError(f"{name}: {quoted(variable)!r} is no name of an environment variable")
    if made.commands is not None and (not made.commands or made.ack_line is not None):
        raise UsageError(f"{name}: commands must not be empty, and each is acked by its exit 0, without an ack_line")
    if (made.ready is None) != (made.server is None):
        raise UsageError(f"{name}: server and ready go together: ready is asked until the server can be used")
    if made.ack_line is not None:
        try:
            re.compile(made.ack_line)
        except re.error as error:
            raise UsageError(f"{name}: ack_line {quoted(made.ack_line)} is no regular expression: {error}") from None


class _Shell:
    """Runs the commands of one declaration, each in the state directory."""

    def __init__(self, made: Command) -> None:
        self._made = made

    def environment(self, directory: Path) -> dict[str, str]:
        """The worker's own (fixed zone, language, HOME; `cells.realise.ENVIRONMENT`) and what was declared."""
        return {**os.environ, **{key: _at(value, directory) for key, value in self._made.env.items()}}

    def _start(self, directory: Path, words: Words, stdout: int | IO[bytes] | None) -> subprocess.Popen[bytes]:
        line = (
            ["/bin/sh", "-c", _at(words, directory)] if isinstance(words, str) else [_at(w, directory) for w in words]
        )
        try:
            # a process group of its own, as under a shell: a signal for it is none for the worker
            return subprocess.Popen(
                line, cwd=directory, env=self.environment(directory), stdin=subprocess.DEVNULL, stdout=stdout,
                process_group=0,
            )  # fmt: skip
        except OSError as error:
            raise UsageError(f"{quoted(line[0])} cannot be started: {quoted(error.strerror)}") from None

    def run(self, directory: Path, words: Words, stdout: int | None = None) -> None:
        """Run it to its end. Raises `CommandFailed` unless that is exit 0."""
        _expect_success(self._start(directory, words, stdout).wait(), words)

    def said(self, directory: Path, words: Words) -> str | bytes:
        """Its standard output: a text, or bytes that are none. Raises `CommandFailed`."""
        started = self._start(directory, words, subprocess.PIPE)
        data, _ = started.communicate()
        _expect_success(started.returncode, words)
        data = data.replace(os.fsencode(directory), b"{dir}")
        try:
            return data.decode()
        except UnicodeDecodeError:
            return data

    @contextmanager
    def serving(self, directory: Path) -> Iterator[None]:
        """While the server runs and is ready; nothing where there is none. Raises `CommandFailed`."""
        made = self._made
        if made.server is None or made.ready is None:
            yield
            return
        server = self._start(directory, made.server, None)
        try:
            # Each question takes the time of a process; the part's own time limit ends a server that is never ready.
            while self._start(directory, made.ready, subprocess.DEVNULL).wait():
                if server.poll() is not None:
                    raise CommandFailed(f"the server {how(server.returncode)} before it was ready")
            yield
        finally:
            if server.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(server.pid, 15)  # its group: a shell that does not exec passes nothing on
            ended = server.wait()
        if ended not in (0, -15, 143):
            raise CommandFailed(f"the server {how(ended)}")


def _at(words: str, directory: Path) -> str:
    return words.replace("{dir}", str(directory))


def how(status: int) -> str:
    """How a command ended, in words that follow its name. status: as subprocess gives it."""
    if status >= 0:
        return f"ended with status {status}"
    import signal

    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _expect_success(status: int, words: Words) -> None:
    if status:
        name = words if isinstance(words, str) else " ".join(words)
        raise CommandFailed(f"{quoted(name, 80)} {how(status)}")


# -- files of declarations --------------------------------------------------------------------------------------------


def read(path: Path, label: str) -> list[Scenario]:
    """The scenarios that a declaration file declares: `.json` as `crashtest run` writes it, or a `pyproject.toml`.

    Raises `UsageError` when it cannot be read, or declares none.
    """
    import json
    import tomllib

    parse: Callable[[str], Any] = json.loads if path.suffix == ".json" else tomllib.loads
    try:
        whole = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{label} cannot be read as a declaration of commands: {quoted(error)}") from None
    place: Any = whole
    for key in ("commands",) if path.suffix == ".json" else ("tool", "crashtest", "commands"):
        place = place.get(key) if isinstance(place, Mapping) else None
    if not isinstance(place, Mapping) or not place:
        how_to = (
            '{"commands": {"NAME": {"run": "..."}}}' if path.suffix == ".json" else "[tool.crashtest.commands.NAME]"
        )
        raise UsageError(f"{label} declares no commands; write {how_to}")
    found = []
    for name, plain in place.items():
        if not str(name).isidentifier():
            raise UsageError(f"{label}: {quoted(name)} cannot be a scenario's name; take letters, digits and _")
        found.append(declare(from_plain(f"{label}: {name}", plain), str(name), str(path)))
    for one in found:
        one.file = label
    return found


def plain_file(name: str, made: Command) -> dict[str, Any]:
    """The content of a `.json` declaration file."""
    return {"schema": 1, "commands": {name: made.plain()}}


def name_of(words: Sequence[str]) -> str:
    """A scenario's name for a command: its program's, as an identifier."""
    name = re.sub(r"\W+", "_", os.path.basename(words[0].split()[0]) if words and words[0].split() else "", flags=re.A)
    return name if name.isidentifier() else f"run_{name}".rstrip("_")
