"""The command line: run, list, replay, doctor.

Guarantees: every way out is one of the exit codes 0 (all as expected), 1 (violated), 2 (usage or
configuration), 3 (inconclusive or a fault of the harness), 5 (nothing selected), 130 (interrupted), and
whatever breaks is never 0; a user sees a message of one paragraph, never a traceback (that is written to a
file, and the message says where); a report that was asked for is written for every run that began, also an
interrupted one, unless a usage error came up in it (exit 2). What is not needed to print the help is imported
when it is needed.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from crashtest import __version__
from crashtest.errors import HarnessError, UsageError, quoted
from crashtest.scenario import GUARANTEES, MODELS

if TYPE_CHECKING:
    from crashtest.config import Settings
    from crashtest.report.events import FanOut, Ledger
    from crashtest.report.story import Line
    from crashtest.scenario import Scenario
    from crashtest.verdict import Emit, RunResult

VIOLATED, USAGE, UNKNOWN, NOTHING, INTERRUPTED = 1, 2, 3, 5, 130

DEFAULT_REPORT_DIR = Path(".crashtest")
REPORTS = ("json",)


class NothingSelected(UsageError):
    """There is nothing to run (exit code 5)."""


class SeveralErrors(UsageError):
    """More than one thing is wrong; each has a message of its own."""

    def __init__(self, messages: list[str]) -> None:
        super().__init__("; ".join(messages))
        self.messages = messages


@dataclass
class Session:
    """What the way out of a command needs to know about it."""

    report_dir: Path = DEFAULT_REPORT_DIR


# --- selection ------------------------------------------------------------------------------------------

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
        many = f"none of the {len(scenarios)} scenarios" if len(scenarios) > 1 else "not the one scenario"
        raise NothingSelected(
            f"-k {quoted(expression)!r} selects {many} in {places}; `crashtest list` shows their names"
        )
    used = {one.file for one in chosen}
    return chosen, len(scenarios), {label: file for label, file in files.items() if label in used}


# --- options --------------------------------------------------------------------------------------------

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s?)?", re.ASCII)


class Duration(click.ParamType[float]):
    """A time such as 90, 1.5, 90s, 5m or 1h30m; seconds, more than 0."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = _DURATION.fullmatch(value)
        hours, minutes, seconds = (float(part or 0) for part in found.groups()) if found else (0.0, 0.0, 0.0)
        total = hours * 3600 + minutes * 60 + seconds
        if not 0 < total < 1e9:
            self.fail(f"{value!r} is not a time; give seconds, or such as 90s, 5m, 1h30m", param, ctx)
        return total


class Jobs(click.ParamType[int]):
    """A number of workers, or `auto` for every usable core."""

    name = "jobs"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value == "auto":
            return usable_cores()
        if not re.fullmatch(r"[0-9]{1,4}", value) or int(value) < 1:
            self.fail(f"{value!r} is not a number of workers; give 1 or more, or auto", param, ctx)
        return int(value)


class Names(click.ParamType[tuple[str, ...]]):
    """Comma separated names out of a known set."""

    name = "names"

    def __init__(self, what: str, known: Sequence[str]) -> None:
        self.what = what
        self.known = known

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = tuple(part.strip() for part in value.split(","))
        for name in names:
            if name not in self.known:
                self.fail(f"{name!r} is not a {self.what}; known: {', '.join(self.known)}", param, ctx)
        return names


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """How many cores this process may use: its affinity, and the limit of its control group. At least 1."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    try:
        share, period = quota.read_text().split()
        if share != "max":
            cores = min(cores, int(share) // int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return max(cores, 1)
    return max(cores, 1)


def _flat(several: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    """The names of a repeated option, each once, in order."""
    return tuple(dict.fromkeys(name for names in several for name in names))


#: how long one file may take to load, in seconds
LOADING = 60.0
TIMEOUT = click.option(
    "--timeout", type=Duration(), default="10", show_default=True, metavar="TIME",
    help="How long one run of a part of a scenario may take, where the scenario does not say so itself.",
)  # fmt: skip
OBSERVATION = click.option(
    "--observation", type=click.Choice(["auto", "seccomp", "steps"]), default="auto", show_default=True,
    help="What is seen of a program: every system call that changes a file (seccomp), or its named steps "
    "alone. auto is seccomp, and exit 3 where that is impossible.",
)  # fmt: skip
SELECT = click.option(
    "-k", "expression", metavar="EXPR",
    help="Only scenarios whose path::function contains this word; words may be joined by and, or, not, ( ).",
)  # fmt: skip
PATHS = click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=str))


# --- commands -------------------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="crashtest", message="%(prog)s %(version)s")
def cli() -> None:
    """Prove that a program recovers from a crash, or show the smallest way in which it does not.

    Exit codes: 0 all held, 1 a guarantee is violated, 2 usage or configuration, 3 inconclusive or a fault of
    crashtest, 5 nothing selected, 130 interrupted.
    """


@cli.command()
@PATHS
@SELECT
@click.option(
    "--model", "models", multiple=True, type=Names("persistence model", MODELS), default=["kill"],
    show_default=True, metavar="NAMES", help="Persistence models, comma separated.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of generated operations; random if not given.")
@click.option(
    "-j",
    "--jobs",
    type=Jobs(),
    default="auto",
    show_default=True,
    metavar="N|auto",
    help="Workers at a time.",
)
@click.option("-x", "stop_on_first", is_flag=True, help="Stop after the first scenario that is not as expected.")
@TIMEOUT
@click.option("--max-time", type=Duration(), metavar="TIME", help="Stop the run after this time: 90, 5m, 1h.")
@click.option("--allow-partial", is_flag=True, help="A run that --max-time stopped may still end in exit 0.")
@OBSERVATION
@click.option(
    "--depth", type=click.IntRange(1, 9), default=2, show_default=True, metavar="N",
    help="1 kills the workload only, 2 kills recovery as well, 3 the recovery after that, and so on.",
)  # fmt: skip
@click.option(
    "--allow-outside", "allow_outside", multiple=True, metavar="GLOB",
    help="Paths outside the state directory that a scenario may change; may be given more than once.",
)  # fmt: skip
@click.option(
    "--report", "reports", multiple=True, type=Names("report", REPORTS), metavar="NAMES",
    help="Reports to write, comma separated: json (result.json).",
)  # fmt: skip
@click.option(
    "--report-dir", type=click.Path(path_type=Path, file_okay=False), default=DEFAULT_REPORT_DIR,
    show_default=True, metavar="DIR", help="Where reports and the records of violations go.",
)  # fmt: skip
@click.pass_obj
def run(
    session: Session,
    paths: tuple[str, ...],
    expression: str | None,
    models: tuple[tuple[str, ...], ...],
    seed: int | None,
    jobs: int,
    stop_on_first: bool,
    timeout: float,
    max_time: float | None,
    allow_partial: bool,
    observation: str,
    allow_outside: tuple[str, ...],
    depth: int,
    reports: tuple[tuple[str, ...], ...],
    report_dir: Path,
) -> int:
    """Kill scenarios everywhere, recover, judge.

    PATHS are files with scenarios, or directories of them.
    """
    from crashtest.config import Settings

    session.report_dir = report_dir
    settings = Settings(
        models=_flat(models),
        seed=secrets.randbits(32) if seed is None else seed,
        jobs=jobs,
        stop_on_first=stop_on_first,
        timeout=timeout,
        max_time=max_time,
        allow_partial=allow_partial,
        report_dir=report_dir,
        observation=observation,
        allow_outside=allow_outside,
        depth=depth,
    )
    wanted = _flat(reports)
    _prepare(report_dir, wanted)
    chosen, _, files = gather(paths, expression)
    return _judge(chosen, files, settings, wanted)


def _prepare(report_dir: Path, wanted: tuple[str, ...]) -> None:
    """Find out before the run, not after it, whether its reports can be written. Raises `UsageError`."""
    from crashtest.report import json_

    if not wanted:
        return
    try:
        report_dir.mkdir(parents=True, exist_ok=True)
        if not os.access(report_dir, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(report_dir))
        json_.discard(report_dir)
    except OSError as error:
        raise UsageError(
            f"reports cannot be written to {quoted(report_dir)}: {quoted(error.strerror)}; give another --report-dir"
        ) from error


def _judge(chosen: list[Scenario], files: dict[str, Path], settings: Settings, wanted: tuple[str, ...]) -> int:
    """Run the engine, tell what it finds, write the reports; the exit code."""
    from crashtest.report import json_
    from crashtest.report.events import FanOut, Ledger
    from crashtest.report.terminal import Terminal

    terminal = Terminal(sys.stdout, settings.report_dir, __version__)
    ledger = Ledger()
    stream = FanOut(ledger, terminal)
    try:
        result = _run_engine(chosen, files, settings, stream, ledger)
    finally:
        _quietly(terminal.close)
    failed = [error for error in stream.failures if not isinstance(error, BrokenPipeError)]
    for failure in failed:
        result.notes.append(f"a reader of the run failed: {type(failure).__name__}: {failure}")
    if failed:
        result.exit = _at_best_unknown(result.exit)
    written: list[Path] = []
    if "json" in wanted:
        try:
            written.append(json_.write(result, settings.report_dir))
        except OSError as error:
            complain(f"{quoted(settings.report_dir / json_.NAME)} could not be written: {quoted(error)}")
            result.exit = _at_best_unknown(result.exit)
    try:
        terminal.finish(result, written)
    except BrokenPipeError:
        return result.exit
    except OSError as error:
        complain(f"the report could not be shown: {quoted(error)}")
        return _at_best_unknown(result.exit)
    return result.exit


def _at_best_unknown(code: int) -> int:
    """The exit code when crashtest itself failed after the run: what outranks that stays."""
    return code if code in (VIOLATED, INTERRUPTED) else UNKNOWN


def _run_engine(
    chosen: list[Scenario], files: dict[str, Path], settings: Settings, stream: FanOut, ledger: Ledger
) -> RunResult:
    """What the engine found; when it breaks, what it had found until then, never with exit 0."""
    from crashtest.verdict import RunResult, exit_code

    began = time.monotonic()
    stopped = ""
    try:
        import crashtest.scale.local as engine

        return engine.run(chosen, files, settings, stream)
    except UsageError:
        raise
    except KeyboardInterrupt:
        stopped = "interrupted"
    except HarnessError as error:
        stopped = f"crashtest failed: {error}"
        complain(str(error))
    except Exception as error:
        stopped = f"crashtest failed: {type(error).__name__}: {error}"
        complain(_unforeseen(error, settings.report_dir))
    return RunResult(
        seed=settings.seed,
        exit=_at_best_unknown(exit_code(ledger.finished, stopped)),
        seconds=time.monotonic() - began,
        observation=ledger.observation or settings.observation,
        scenarios=ledger.finished,
        stopped=stopped,
    )


@cli.command("list")
@PATHS
@SELECT
def list_(paths: tuple[str, ...], expression: str | None) -> int:
    """Show scenarios, their claims and their parts.

    PATHS are files with scenarios, or directories of them.
    """
    from crashtest.report.story import field
    from crashtest.report.terminal import printer
    from crashtest.report.words import count

    chosen, total, _ = gather(paths, expression)
    show = printer(sys.stdout)

    def lines(one: Scenario) -> Iterable[Line]:
        yield ((quoted(one.name, 4096), "bold"),)
        yield field("claims", ", ".join(name for name in GUARANTEES if name in one.claimed()))
        for model in MODELS:
            expected = [name for name in GUARANTEES if name in one.expected(model)]
            if expected:
                yield field("expects", f"{', '.join(expected)} violated under {model}", "yellow")
        parts = {
            "setup": one.setup, "ops": one.make_ops, "recover": one.do_recover, "observe": one.do_observe,
            "glance": one.do_glance, "check": one.do_check,
        }  # fmt: skip
        yield field("parts", ", ".join(name for name, part in parts.items() if part))
        if one.steps:
            first = ", ".join(quoted(step) for step in one.steps[:3])
            more = ", ..." if len(one.steps) > 3 else ""
            yield field("steps", f"{count(len(one.steps), 'named step')}: {first}{more}")

    def all_of_them() -> None:
        for one in chosen:
            for line in lines(one):
                show(line)
        show(((f"{len(chosen)} of {total} scenarios", "dim"),))

    _quietly(all_of_them)
    return 0


@cli.command()
@click.argument("identity", metavar="ID")
@click.option(
    "--from", "report_dir", type=click.Path(path_type=Path, file_okay=False), default=DEFAULT_REPORT_DIR,
    show_default=True, metavar="DIR", help="The report directory that holds the violation.",
)  # fmt: skip
@TIMEOUT
@OBSERVATION
@click.pass_obj
def replay(session: Session, identity: str, report_dir: Path, timeout: float, observation: str) -> int:
    """Do one stored violation again.

    ID is what a report shows, or the file of the record.
    """
    from crashtest.config import Settings
    from crashtest.report.events import FanOut
    from crashtest.report.terminal import Replayed

    session.report_dir = report_dir
    record = find_record(identity, report_dir)
    import crashtest.scale.local as engine

    settings = Settings(report_dir=report_dir, timeout=timeout, observation=observation)
    told = Replayed(sys.stdout, report_dir)
    emit: Emit = FanOut(told)
    result = engine.replay(record, settings, emit)
    _quietly(lambda: told.finish(result))
    return result.exit


def find_record(identity: str, report_dir: Path) -> Path:
    """The record of the violation `identity` below `report_dir`, or the file that `identity` names.

    Raises `UsageError` when there is none.
    """
    import json

    if Path(identity).is_file():
        return Path(identity)
    folder = report_dir / "violations"
    stored: list[str] = []
    damaged = 0
    for path in sorted(folder.glob("*.json")):
        try:
            record = json.loads(path.read_bytes())
            known = record["id"]
        except (OSError, ValueError, KeyError, TypeError):
            damaged += 1
            continue
        if known == identity:
            return path
        stored.append(str(known))
    if not stored:
        hint = f"there is no violation in {quoted(folder)}; give the report directory of the run with --from DIR"
    else:
        import difflib

        near = difflib.get_close_matches(identity, stored, 1, 0.0)[0]
        hint = f"{quoted(folder)} holds {len(stored)} others, the nearest is {quoted(near, 1000)}"
    if damaged:
        hint += f" ({damaged} files there cannot be read)"
    raise UsageError(f"no violation is stored as {quoted(identity, 1000)}: {hint}")


@cli.command()
def doctor() -> int:
    """Find out what this machine can do.

    Ends in exit 0 when runs with full observation are possible here, else in exit 3.
    """
    from crashtest import doctor as examination
    from crashtest.report.terminal import printer

    checks = examination.examine()
    show = printer(sys.stdout)

    def all_of_them() -> None:
        for line in examination.lines(checks):
            show(line)

    _quietly(all_of_them)
    return examination.exit_code(checks)


# --- the way out ----------------------------------------------------------------------------------------


def complain(message: str, stream: TextIO | None = None) -> None:
    """One paragraph on standard error, printable whatever is in it."""
    _quietly(lambda: print(f"crashtest: {quoted(message, 4000)}", file=stream or sys.stderr, flush=True))


def _quietly(show: Callable[[], None]) -> None:
    """Show something to a reader who may have gone: a closed pipe changes no verdict."""
    try:
        show()
    except BrokenPipeError:
        return


def _unforeseen(error: BaseException, report_dir: Path) -> str:
    """Write the traceback to a file; the message that says where."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error)).encode("utf-8", "backslashreplace")
    place = ""
    for directory in (report_dir, Path(tempfile.gettempdir())):
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "traceback.txt").write_bytes(text)
        except OSError:
            continue
        place = f"; the traceback is in {directory / 'traceback.txt'}"
        break
    what = f"{type(error).__name__}: {quoted(error, 500)}"
    return f"this is a fault of crashtest, nothing was proven: {what}{place}"


def _command(arguments: list[str] | None, session: Session) -> int:
    """Run the command; every exception becomes a message and an exit code."""
    try:
        code = cli.main(args=arguments, prog_name="crashtest", standalone_mode=False, obj=session)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        usage = f" ({context.command_path} --help shows the usage)" if context is not None else ""
        complain(error.format_message() + usage)
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        complain("interrupted")
        return INTERRUPTED
    except NothingSelected as error:
        complain(str(error))
        return NOTHING
    except SeveralErrors as error:
        for message in error.messages:
            complain(message)
        return USAGE
    except UsageError as error:
        complain(str(error))
        return USAGE
    except HarnessError as error:
        complain(str(error))
        return UNKNOWN
    except (Exception, SystemExit) as error:
        complain(_unforeseen(error, session.report_dir))
        return UNKNOWN


def main(arguments: list[str] | None = None) -> int:
    """The console script: the exit code of the command that `arguments` (default: the command line) name."""
    sys.stdout = sys.stdout or io.StringIO()  # closed by whoever started this
    sys.stderr = sys.stderr or io.StringIO()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    code = _command(arguments, Session())
    try:
        sys.stdout.flush()
    except OSError as error:  # keep the interpreter from failing over it once more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            complain(f"the output could not be written: {error}")
            return code or UNKNOWN
    return code


if __name__ == "__main__":
    sys.exit(main())
