"""The command line: run, list, doctor; `replay` and `export` are in `cli_violations`, `syncs` in `cli_syncs`.

Guarantees: every way out is one of the exit codes 0 (all as expected), 1 (violated), 2 (usage or
configuration), 3 (inconclusive or a fault of the harness), 5 (nothing selected), 130 (interrupted), and
whatever breaks is never 0; a user sees a message of one paragraph, never a traceback (that is written to a
file, and the message says where); a report that was asked for is written for every run that began, also an
interrupted one. What is not needed to print the help is imported when it is needed.
"""

from __future__ import annotations

import io
import os
import secrets
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from crashtest import __version__
from crashtest.cli_session import DEFAULT_REPORT_DIR, Session, quietly
from crashtest.cli_syncs import syncs
from crashtest.cli_violations import export, replay
from crashtest.commandline import command_options, declaration, split
from crashtest.errors import HarnessError, UsageError, quoted
from crashtest.options import GRACE, OBSERVATION, PATHS, SELECT, SIGNAL, TIMEOUT, Duration, Jobs, Names, flat
from crashtest.scenario import GUARANTEES, MODELS, REAL
from crashtest.selection import NothingSelected, SeveralErrors, failed_last, gather

if TYPE_CHECKING:
    from crashtest.config import Settings
    from crashtest.report.events import FanOut, Ledger
    from crashtest.report.story import Line
    from crashtest.scenario import Scenario
    from crashtest.verdict import RunResult

VIOLATED, USAGE, UNKNOWN, NOTHING, INTERRUPTED = 1, 2, 3, 5, 130

REPORTS = ("json",)


# --- commands -------------------------------------------------------------------------------------------


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", prog_name="crashtest", message="%(prog)s %(version)s")
def cli() -> None:
    """Prove that a program recovers from a crash, or show the smallest way in which it does not.

    Exit codes: 0 all held, 1 a guarantee is violated, 2 usage or configuration, 3 inconclusive or a fault of
    crashtest, 5 nothing selected, 130 interrupted.
    """


@cli.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=str))
@command_options
@SELECT
@click.option(
    "--model", "models", multiple=True, type=Names("persistence model", MODELS), default=["kill,posix"],
    show_default=True, metavar="NAMES", help=f"Persistence models, comma separated: {', '.join(MODELS)}.",
)  # fmt: skip
@click.option(
    "--real", "real", multiple=True, type=Names("file system", [name.removeprefix("real-") for name in REAL]),
    metavar="NAMES", help="Real file systems, comma separated: the recorded run is played on a mounted image, which is "
    "cut everywhere, and each violation of a model is tried there. Needs root.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0, 2**63 - 1),
    help="Seed of generated operations. If it is not given it is random, and sequences that failed in an earlier run "
    "are tried first.",
)  # fmt: skip
@click.option(
    "--examples", type=click.IntRange(1, 10**6), default=5, show_default=True, metavar="N",
    help="Sequences of operations drawn for a scenario whose ops is a strategy.",
)  # fmt: skip
@click.option(
    "--shrink", type=Duration(zero=True), default="120", show_default=True, metavar="TIME",
    help="How long the failing sequences of one scenario may be shrunk; 0: not at all.",
)  # fmt: skip
@click.option(
    "--lf", "--last-failed", "last_failed", is_flag=True,
    help="Run only what failed last, the cells that failed first; everything if nothing did.",
)  # fmt: skip
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
@SIGNAL
@GRACE
@click.option("--max-time", type=Duration(), metavar="TIME", help="Stop the run after this time: 90, 5m, 1h.")
@click.option("--allow-partial", is_flag=True, help="A run that --max-time stopped may still end in exit 0.")
@OBSERVATION
@click.option(
    "--depth", type=click.IntRange(1, 9), default=2, show_default=True, metavar="N",
    help="1 kills the workload only, 2 kills recovery as well, 3 the recovery after that, and so on.",
)  # fmt: skip
@click.option(
    "--losses", type=click.IntRange(1), default=150, show_default=True, metavar="N",
    help="How many losses of a power cut are tried for one sequence of operations.",
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
    /,
    paths: tuple[str, ...],
    expression: str | None,
    models: tuple[tuple[str, ...], ...],
    real: tuple[tuple[str, ...], ...],
    seed: int | None,
    examples: int,
    losses: int,
    shrink: float,
    last_failed: bool,
    jobs: int,
    stop_on_first: bool,
    timeout: float,
    signals: tuple[tuple[str, ...], ...],
    grace: float,
    max_time: float | None,
    allow_partial: bool,
    observation: str,
    allow_outside: tuple[str, ...],
    depth: int,
    reports: tuple[tuple[str, ...], ...],
    report_dir: Path,
    **command: Any,
) -> int:
    """Kill scenarios everywhere, recover, judge.

    PATHS are files with scenarios, or directories of them. A command behind `--` is a scenario of its own:

    \b
      crashtest run --state repo --recover 'git fsck --strict' -- git commit -qam x
    """
    from crashtest.config import Settings
    from crashtest.report import failed

    session.report_dir = report_dir
    remembered = failed.read(report_dir) if last_failed else {}
    settings = Settings(
        models=(*flat(models), *_mounted(flat(real))),
        seed=secrets.randbits(32) if seed is None else seed,
        jobs=jobs,
        stop_on_first=stop_on_first,
        timeout=timeout,
        signals=flat(signals),
        grace=grace,
        max_time=max_time,
        allow_partial=allow_partial,
        report_dir=report_dir,
        observation=observation,
        allow_outside=allow_outside,
        depth=depth,
        examples=examples,
        losses=losses,
        shrink=shrink,
        remember=seed is None,
        first=frozenset(cell for cells in remembered.values() for cell in cells),
    )
    wanted = flat(reports)
    _prepare(report_dir, wanted)
    declared = declaration(session.words, {**command, "allow_outside": allow_outside}, report_dir)
    paths = paths if declared is None else (*paths, declared)
    if not paths:
        raise UsageError("nothing to run; give files or directories with scenarios, or a command behind --")
    chosen, _, files = gather(paths, expression)
    if last_failed:
        from crashtest.report.terminal import printer

        chosen, words = failed_last(chosen, remembered)
        quietly(lambda: printer(sys.stdout)((("note: ", "dim"), (words, ""))))
    return _judge(chosen, files, settings, wanted)


def _mounted(names: tuple[str, ...]) -> tuple[str, ...]:
    """Real file systems as models. Raises `UsageError` when one of them cannot be mounted here."""
    from crashtest.persist.realfs import missing

    for name in names:
        reason = missing(name)
        if reason:
            raise UsageError(f"--real {name}: {reason}; leave it out, or run where it can be had")
    return tuple(f"real-{name}" for name in names)


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
    from crashtest.report import failed as last
    from crashtest.report import json_
    from crashtest.report.events import FanOut, Ledger
    from crashtest.report.terminal import Terminal

    terminal = Terminal(sys.stdout, settings.report_dir, __version__)
    ledger = Ledger()
    stream = FanOut(ledger, terminal)
    try:
        result = _run_engine(chosen, files, settings, stream, ledger)
    finally:
        quietly(terminal.close)
    failed = [error for error in stream.failures if not isinstance(error, BrokenPipeError)]
    for failure in failed:
        result.notes.append(f"a reader of the run failed: {type(failure).__name__}: {failure}")
    if failed:
        result.exit = _at_best_unknown(result.exit)
    problem = last.remember(result, settings.report_dir)
    if problem:
        result.notes.append(problem)
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
    return code if code in (VIOLATED, USAGE, INTERRUPTED) else UNKNOWN


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
        expected: dict[tuple[str, ...], list[str]] = {}
        for model in MODELS:
            expected.setdefault(tuple(n for n in GUARANTEES if n in one.expected(model)), []).append(model)
        for guarantees, models in expected.items():
            if guarantees:
                where = "every model" if len(models) == len(MODELS) else " and ".join(models)
                yield field("expects", f"{', '.join(guarantees)} violated under {where}", "yellow")
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

    quietly(all_of_them)
    return 0


cli.add_command(replay)
cli.add_command(export)


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

    quietly(all_of_them)
    return examination.exit_code(checks)


cli.add_command(syncs)


# --- the way out ----------------------------------------------------------------------------------------


def complain(message: str, stream: TextIO | None = None) -> None:
    """One paragraph on standard error, printable whatever is in it."""
    quietly(lambda: print(f"crashtest: {quoted(message, 4000)}", file=stream or sys.stderr, flush=True))


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
    arguments, session.words = split(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(args=arguments, prog_name="crashtest", standalone_mode=False, obj=session)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return USAGE
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
    try:
        os.getcwd()
    except OSError as error:
        complain(f"the current directory is gone ({error.strerror}); go to one that is there, and run this again")
        return USAGE
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
