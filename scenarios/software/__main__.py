"""Runs every row of the table of known software and writes `docs/known-software.md` and `docs/alice.md`.

    python -m scenarios.software

Guarantees: each row's command is run as it is printed (with a seed, and its result stored below `.crashtest`); nothing
is written unless every row that could be run ended as its scenario expects, was judged in full and proved its records
(`flaws`), and every comparison is borne out by a run; a program that is missing is named on the page as not run. Exit
0: written, with every row; 1: a row or a comparison is not as declared, nothing is written; 2: `known.toml` or
`alice.toml` cannot be read; 3: a row could not be judged (nothing is written), or a program is missing; 130:
interrupted.
"""

import contextlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from crashtest import __version__
from crashtest.cli import main as crashtest
from crashtest.errors import UsageError, quoted
from crashtest.verdict import RunResult, ScenarioResult, Violation

from ._page import Made, alice, held, known
from ._rows import MODELS, Alice, Evidence, Known, Program, Row, read

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
#: the sample of power cuts is drawn by it
SEED = 1
#: below the project: where results go
REPORTS = ".crashtest/known-software"
DIFFERS, UNREADABLE, UNKNOWN, INTERRUPTED = 1, 2, 3, 130


class Failed(Exception):
    """A row or a comparison that cannot be on the page. code: the exit code that says of which kind."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


def version(program: Program) -> str:
    """The version that a program says it is, "1.2.3" or "1.2.3 in other 4.5".

    Raises `OSError` or `subprocess.SubprocessError` where it is missing, `ValueError` where it says no version.
    """
    words = [sys.executable if word == "python" else word for word in program.version]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60, stdin=subprocess.DEVNULL)
    found = re.search(r"\d+(\.\d+)+( in [\w-]+ \d+(\.\d+)+)?", said.stdout)
    if found is None:
        raise ValueError(f"no version in {quoted(said.stdout, 80)!r}")
    return found[0]


def present(programs: list[Program]) -> tuple[dict[str, str], dict[str, str]]:
    """By program name: the versions of those that are there, and why the others are not run."""
    versions, missing = {}, {}
    for program in programs:
        try:
            versions[program.name] = version(program)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            missing[program.name] = f"it did not tell its version here ({quoted(error, 200)})"
    return versions, missing


def flaws(result: RunResult, row: Row) -> Iterator[str]:
    """Why the result of a row's run is no evidence, in words; nothing when it is.

    That a killed run's record rebuilds what it left, byte for byte, is checked by the run itself for each kill
    (`self_proofs`); a difference is a `harness_error`.
    """
    if result.stopped or result.observation != "seccomp":
        yield f"it was stopped ({result.stopped or 'no'}), or observed by {result.observation} alone"
    if [one.name for one in result.scenarios] != [row.scenario]:
        yield f"its command ran {', '.join(quoted(one.name) for one in result.scenarios) or 'nothing'}"
        return
    (one,) = result.scenarios
    if one.harness_error or one.reason:
        yield one.harness_error or one.reason
    if not one.self_proofs:
        yield "no killed run was compared with its own record"
    for name in MODELS:
        verdicts = one.models[name].guarantees if name in one.models else {}
        unknown = sorted(key for key, word in verdicts.items() if word not in ("held", "violated", "not claimed"))
        if unknown or "held" not in verdicts.values():
            yield f"not everything was judged under {name}: {', '.join(unknown) or 'nothing held'}"


def run(row: Row) -> ScenarioResult:
    """What the run of a row's command, in the current directory, found. Raises `Failed`."""
    code = crashtest(shlex.split(f"{row.command} --seed {SEED} --report json --report-dir {REPORTS}")[1:])
    if code == DIFFERS:
        raise Failed(code, f"{row.scenario} is not what its expect= says; explain that, or mend it")
    if code:
        raise Failed(code, f"{row.scenario} was not judged: exit {code}")
    result = msgspec.json.decode(Path(REPORTS, "result.json").read_bytes(), type=RunResult)
    for flaw in flaws(result, row):
        raise Failed(UNKNOWN, f"{row.scenario} is no evidence: {flaw}")
    return result.scenarios[0]


def borne_out(one: Evidence, result: ScenarioResult) -> Violation | None:
    """The violation that a comparison speaks of; None when all held, as it says. Raises `Failed` when it is not so."""
    if not one.model:
        if one.guarantee not in held(result):
            raise Failed(DIFFERS, f"alice.toml: {one.guarantee} does not hold in {one.scenario} under every model")
        return None
    for violation in result.violations:
        told = "\n".join([violation.point, *violation.lost, violation.observed])
        if (violation.guarantee, violation.model) == (one.guarantee, one.model) and re.search(one.story, told):
            return violation
    wanted = f"of {one.guarantee} under {one.model} in {one.scenario}"
    raise Failed(DIFFERS, f"alice.toml: no violation {wanted} tells {quoted(one.story)!r}")


def generate(page: Known, published: Alice, root: Path) -> int:
    """Run all in the project at `root`, write both pages in its `docs`; the exit code 0 or 3.

    Raises `Failed`; then nothing was written.
    """
    versions, missing = present(page.program)
    results: dict[str, ScenarioResult] = {}
    failed: list[Failed] = []
    for program in page.program:
        for row in program.row if program.name in versions else []:
            print(f"\n## {program.name}: {row.title}\n$ {row.command}", flush=True)
            try:
                with contextlib.chdir(root):
                    results[row.scenario] = run(row)
            except Failed as error:
                if error.code == INTERRUPTED:
                    raise
                failed.append(error)
    if failed:
        code = DIFFERS if any(error.code == DIFFERS for error in failed) else failed[0].code
        raise Failed(code, "; ".join(map(str, failed)))
    made = Made(
        when=datetime.now(UTC).date().isoformat(),
        machine=machine(),
        seed=SEED,
        root=root,
        results=results,
        versions=versions,
        missing=missing,
    )
    wanted = [one for finding in published.finding for one in finding.shown if one.scenario in results]
    stories = {one: borne_out(one, results[one.scenario]) for one in wanted}
    docs = root / "docs"
    docs.mkdir(exist_ok=True)
    (docs / "known-software.md").write_text(known(page, made), encoding="utf-8")
    (docs / "alice.md").write_text(alice(published, page.program, made, stories), encoding="utf-8")
    print(f"\nwritten: {docs / 'known-software.md'} and {docs / 'alice.md'}, {len(results)} rows")
    for name, why in missing.items():
        print(f"NOT RUN: {name}: {why}")
    return UNKNOWN if missing else 0


def machine() -> str:
    """Where the rows were run: kernel, architecture, Python, crashtest."""
    kernel = re.match(r"[\d.]*\d", platform.release())
    system = f"{platform.system()} {kernel[0] if kernel else ''}".strip()
    return f"{system} on {platform.machine()}, Python {platform.python_version()}, crashtest {__version__}"


def main() -> int:
    try:
        return generate(read(HERE / "known.toml", Known), read(HERE / "alice.toml", Alice), ROOT)
    except UsageError as error:
        words, code = str(error), UNREADABLE
    except Failed as error:
        words, code = str(error), error.code
    except KeyboardInterrupt:
        words, code = "interrupted", INTERRUPTED
    print(f"known software: {words}; nothing was written", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
