"""`crashtest syncs`: which sync of a scenario is needed, and which one is missing.

Guarantees: ends in 0 when every sync was judged, in 1 when one is missing, in 3 when some could not be judged; the
proofs are stored before anything is shown. One scenario at a time.
"""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Any

import click

from crashtest.cli_session import DEFAULT_REPORT_DIR, Session
from crashtest.commandline import NAMES, command_options, declaration
from crashtest.errors import UsageError, quoted
from crashtest.options import OBSERVATION, SELECT, TIMEOUT, Jobs, Names, flat
from crashtest.scenario import MODELS
from crashtest.selection import gather

#: where the syncs are timed, if it is there: it is meant to outlive a reboot, so it lies on a disk
TIMED_IN = "/var/tmp"


@click.command()
@click.argument("paths", nargs=-1, type=click.Path(path_type=str), metavar="[SCENARIO] [-- CMD ARGS]")
@SELECT
@command_options
@click.option(
    "--model", "models", multiple=True, type=Names("persistence model", [m for m in MODELS if m != "kill"]),
    default=["posix"], show_default=True, metavar="NAMES", help="Persistence models, comma separated.",
)  # fmt: skip
@click.option(
    "--losses", type=click.IntRange(8), default=150, show_default=True, metavar="N",
    help="How many losses of a power cut are tried for each question: is it needed without these syncs?",
)  # fmt: skip
@click.option(
    "--depth", type=click.IntRange(1, 2), default=2, show_default=True, metavar="N",
    help="1 leaves out the syncs of recovery, and what they cover.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), help="Seed of generated operations and of samples.")
@click.option(
    "--examples", type=click.IntRange(1, 10**6), default=1, show_default=True, metavar="N",
    help="Sequences of operations drawn for a scenario whose ops is a strategy.",
)  # fmt: skip
@click.option(
    "--state-on", "place", type=click.Path(path_type=str), metavar="DIR", show_default=TIMED_IN,
    help="Time the syncs in three runs on the disk of this directory; '' for none. All else is done in memory.",
)  # fmt: skip
@click.option("-j", "--jobs", type=Jobs(), default="auto", show_default=True, metavar="N|auto", help="Workers.")
@TIMEOUT
@OBSERVATION
@click.option(
    "--allow-outside", "allow_outside", multiple=True, metavar="GLOB",
    help="Paths outside the state directory that the scenario may change.",
)  # fmt: skip
@click.option(
    "--report", "reports", multiple=True, type=Names("report", ("json",)), metavar="NAMES",
    help="Reports to write: json (syncs.json).",
)  # fmt: skip
@click.option(
    "--report-dir", type=click.Path(path_type=Path, file_okay=False), default=DEFAULT_REPORT_DIR, show_default=True,
    metavar="DIR", help="Where the report and the records of the proofs go.",
)  # fmt: skip
@click.pass_obj
def syncs(
    session: Session, /, paths: tuple[str, ...], expression: str | None, place: str | None, **options: Any
) -> int:
    """Which fsync is needed? A verdict for every sync of a scenario, each with a proof or its bound.

    SCENARIO is a file with scenarios (-k chooses among several), or a command stands behind --, as for run. The effect
    of each sync is dropped from the record of one run, and the power cuts that this adds are judged: nothing is run
    again but recovery.
    """
    from crashtest.config import Settings
    from crashtest.explore.syncs import analyse
    from crashtest.report import json_
    from crashtest.report import syncs as report
    from crashtest.report.terminal import interactive, printer

    session.report_dir = options["report_dir"]
    command = {name: options.pop(name) for name in NAMES} | {"allow_outside": options["allow_outside"]}
    declared = declaration(session.words, command, options["report_dir"])
    paths = paths if declared is None else (*paths, declared)
    if not paths:
        raise UsageError("nothing to judge; give a file with a scenario, or a command behind --")
    chosen, _, files = gather(paths, expression)
    reports, seed = flat(options.pop("reports")), options.pop("seed")
    models, observation = flat(options.pop("models")), options.pop("observation")
    settings = Settings(
        models=models, seed=secrets.randbits(32) if seed is None else seed, observation=observation, **options
    )
    if len(chosen) > 1 and "json" in reports:
        raise UsageError(f"--report json is for one scenario, and {len(chosen)} are chosen; choose one with -k")
    if place is None:
        place = TIMED_IN if Path(TIMED_IN).is_dir() else ""
    if place and not Path(place).is_dir():
        raise UsageError(f"--state-on {quoted(place)} is no directory; name one on the disk that matters")
    show, code = printer(sys.stdout), 0

    def tell(words: str) -> None:
        if interactive(sys.stderr):
            print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)

    for one in chosen:
        result = analyse(one, files[one.file], settings, place, tell)
        if interactive(sys.stderr):
            tell("")
        if "json" in reports:
            json_.write(result, settings.report_dir, report.NAME)
        try:
            for line in report.lines(result, settings.report_dir):
                show(line)
        except BrokenPipeError:
            pass
        code = max((code, result.exit), key=(0, 3, 1).index)
    return code
