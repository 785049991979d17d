"""`crashtest replay` and `crashtest export`: what is done with a violation that is stored.

Guarantees: a violation is found by its id below the report directory, or by its file; one that is not there is a usage
error which names the nearest; a file that is there is never written over.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crashtest.cli_session import DEFAULT_REPORT_DIR, Session, quietly
from crashtest.errors import UsageError, quoted
from crashtest.options import GRACE, OBSERVATION, TIMEOUT

if TYPE_CHECKING:
    from crashtest.verdict import Emit


@click.command()
@click.argument("identity", metavar="ID")
@click.option(
    "--from", "report_dir", type=click.Path(path_type=Path, file_okay=False), default=DEFAULT_REPORT_DIR,
    show_default=True, metavar="DIR", help="The report directory that holds the violation.",
)  # fmt: skip
@TIMEOUT
@GRACE
@OBSERVATION
@click.pass_obj
def replay(session: Session, identity: str, report_dir: Path, timeout: float, grace: float, observation: str) -> int:
    """Do one stored violation again.

    ID is what a report shows, or the file of the record, from this machine or another. Its scenario is looked for in
    the project of the current directory first. If its place shows nothing any more, every crash of the same operations
    is tried. Ends in exit 1 when the guarantee is violated, in 0 when it held, in 3 when that cannot be said.
    """
    from crashtest.config import Settings
    from crashtest.report.events import FanOut
    from crashtest.report.terminal import Replayed

    session.report_dir = report_dir
    record = find_record(identity, report_dir)
    import crashtest.scale.replay as engine

    settings = Settings(report_dir=report_dir, timeout=timeout, grace=grace, observation=observation)
    told = Replayed(sys.stdout, report_dir)
    emit: Emit = FanOut(told)
    result = engine.replay(record, settings, emit)
    quietly(lambda: told.finish(result))
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


@click.command()
@click.argument("identity", metavar="ID")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE",
    help="The file to write, which must not be there; by default test_NAME.py in the current directory.",
)  # fmt: skip
@click.option(
    "--from", "report_dir", type=click.Path(path_type=Path, file_okay=False), default=DEFAULT_REPORT_DIR,
    show_default=True, metavar="DIR", help="The report directory that holds the violation.",
)  # fmt: skip
@click.pass_obj
def export(session: Session, identity: str, output: Path | None, report_dir: Path) -> int:
    """Write a stored violation as a pytest file of its own.

    ID is what a report shows, or the file of the record. The file names the scenario relative to itself, so it runs in
    every clone of the project. It fails as long as the guarantee is violated, and passes once the bug is mended.
    """
    from crashtest.report import exported
    from crashtest.report.terminal import printer
    from crashtest.scale import stored

    session.report_dir = report_dir
    path = find_record(identity, report_dir)
    record = stored.read(path)
    file, label = stored.locate(record, path)
    target = output or Path(exported.name(record))
    text = exported.source(record, file, label, target)
    try:
        with open(target, "x", encoding="utf-8") as writing:
            writing.write(text)
    except FileExistsError:
        raise UsageError(f"{quoted(target)} is there already; name another file with -o") from None
    except OSError as error:
        raise UsageError(
            f"{quoted(target)} cannot be written: {quoted(error.strerror)}; give another with -o"
        ) from error
    quietly(lambda: printer(sys.stdout)((("written: ", "dim"), (f"{quoted(target)}; run it with pytest", ""))))
    return 0
