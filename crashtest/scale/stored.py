"""Violations on disk: everything needed to see one again elsewhere, and to look at it without running anything.

Guarantees: a record is data (JSON in ASCII; bytes in base 64), no part of it is ever executed by reading it, and what
does not have the shape of a record is refused with a message; it holds at most about `CONTENTS` bytes of file contents
and `EVENTS` events, and says in words what was left out; operations are never cut, because a replay needs all of them.
The file that is replayed is looked for below the project of the current directory first, so that a clone replays its
own. Does not promise that another machine, or another commit, shows the same: `differences` says what is not alike.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import Any

import msgspec

from crashtest import __version__
from crashtest.cells.example import Example
from crashtest.cells.matrix import find
from crashtest.cells.plan import Cell, short_hash
from crashtest.config import Settings
from crashtest.errors import UsageError, quoted
from crashtest.scale.jobs import Job
from crashtest.scenario import DECLARATIONS, GUARANTEES, MODELS, REAL, SIGNALS
from crashtest.trace import Event, to_plain
from crashtest.values import parse
from crashtest.verdict import ScenarioResult, Violation

#: bytes of contents (written data, first files, states) that one record holds at most
CONTENTS = 4 << 20
#: events of the recorded run that one record holds at most
EVENTS = 20_000
#: bytes of a file that is read as a record at most: contents in base 64, operations, and words
LARGEST = 64 << 20
#: names of files by which the top of a project is known
_TOPS = (".git", "pyproject.toml", "setup.cfg", "setup.py", "tox.ini")
_VARIANTS = ("group", "worker", "late", "rebuilt", *SIGNALS)


class Record(msgspec.Struct, kw_only=True):
    """One stored violation. Fields that a later version added have a default, so that older records are read."""

    schema: int
    id: str
    guarantee: str
    model: str
    scenario: str
    function: str
    #: the scenario file: absolute, where it was; and below the top of its project, "" outside of any
    file: str
    project_file: str = ""
    #: blake2b of the scenario file, in hexadecimal; the commit of its project and whether files in it were changed
    content: str = ""
    commit: str = ""
    changed: bool | None = None
    seed: int
    #: canonical texts, or None without an `ops` part
    ops: list[str] | None
    #: [cut, kind, torn, variant, nested places], or None: shown by the run without a crash
    cell: tuple[int, str, int, str, list[tuple[int, str, int]]] | None
    #: a power cut: the units it lost, by name; and those that the first of two crashes lost, None if it was a kill
    lost: list[tuple[int, int]] = []
    lost_first: list[tuple[int, int]] | None = None
    #: syncs whose effect is dropped, by the number of their event
    without: list[int] = []
    depth: int = 2
    observation: str = ""
    timeout: float = 0.0
    acked: int = 0
    point: str
    where: str = ""
    wanted: str
    observed: str
    #: the canonical text of what was observed, where recovery came to an end
    value: Any = None
    #: the canonical texts of S0..Sn
    states: list[Any] = []
    #: the first state, as `persist.tree.Tree.to_plain` gives it
    first: Any = None
    #: the recorded run in words, one line an event, and with its data (`trace.to_plain`)
    events: list[str] = []
    trace: list[Any] = []
    #: in words: what was too large
    left_out: list[str] = []
    versions: dict[str, str] = {}

    def crash(self) -> Cell:
        """The cell to try again. Only for a record that has one."""
        if self.cell is None:
            return Cell(0, "", 0, "group", model=self.model)
        cut, kind, torn, variant, inner = self.cell
        first = None if self.lost_first is None else tuple(self.lost_first)
        return Cell(cut, kind, torn, variant, tuple(inner), self.model, tuple(self.lost), first, tuple(self.without))


# -- writing ----------------------------------------------------------------------------------------------------------


def write(job: Job, made: ScenarioResult, settings: Settings) -> list[Path]:
    """Store each violation of a scenario below the report directory, atomically; the files. Raises `OSError`."""
    folder = settings.report_dir / "violations"
    paths = []
    project = _Project(job.file) if made.violations else None
    for violation in made.violations:
        assert project is not None
        record = _record(job, violation, settings, project)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{short_hash(violation.id)}-{violation.guarantee}.json"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(msgspec.to_builtins(record), indent=1), encoding="ascii")
        temporary.replace(path)
        paths.append(path)
    return paths


def _record(job: Job, violation: Violation, settings: Settings, project: _Project) -> Record:
    example, cell = find(job.examples, violation.id)
    shown = list(example.faults)
    for losses in example.losses.values():
        shown += [*losses.faults, *((cause.fault, cause.cell, cause.facts) for cause in losses.causes)]
    facts = next((facts for _, c, facts in shown if c == cell), None)
    tree = example.facts.get(facts["tree"]) if facts is not None else None
    room = _Room(CONTENTS)
    kept = example.events[:EVENTS]
    # what explains the violation comes first, so that it is the last to be left out
    value = room.text("what was observed", tree["observed"]) if tree is not None and not tree["failure"] else None
    states = [room.text("expected states", state) for state in example.states]
    trace = [room.plain("data of events", to_plain(event)) for event in kept]
    first = room.plain("contents of the first state", example.prepared["first"])
    left_out = room.words()
    if len(example.events) > EVENTS:
        left_out.append(f"the last {len(example.events) - EVENTS} of {len(example.events)} events")
    return Record(
        schema=2, id=violation.id, guarantee=violation.guarantee, model=violation.model,
        scenario=job.scenario.name, function=job.scenario.function,
        file=str(job.file), project_file=project.file, content=project.content, commit=project.commit,
        changed=project.changed, seed=settings.seed, ops=example.ops,
        cell=None if cell is None else (*cell[:4], list(cell.inner)), depth=job.depth,
        lost=[] if cell is None else list(cell.lost),
        without=[] if cell is None else list(cell.without),
        lost_first=None if cell is None or cell.lost_first is None else list(cell.lost_first),
        observation="seccomp" if example.seccomp else "steps", timeout=settings.timeout, acked=violation.acked,
        point=violation.point, where=violation.where, wanted=violation.wanted, observed=violation.observed,
        value=value, states=states, first=first, events=[event.describe() for event in kept], trace=trace,
        left_out=left_out, versions=versions(),
    )  # fmt: skip


def versions() -> dict[str, str]:
    """What a replay elsewhere may have to know: crashtest, Python, Hypothesis, the system."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"crashtest": __version__, "python": platform.python_version(), "system": platform.platform()}
    with contextlib.suppress(PackageNotFoundError):
        found["hypothesis"] = version("hypothesis")
    return found


class _Room:
    """What is left of a number of bytes; whatever does not fit is replaced by its size and its hash."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._missing: dict[str, list[int]] = {}

    def _fits(self, what: str, size: int) -> bool:
        if size > self._left:
            self._missing.setdefault(what, []).append(size)
            return False
        self._left -= size
        return True

    def text(self, what: str, text: str) -> Any:
        data = text.encode("utf-8", "surrogatepass")
        return text if self._fits(what, len(data)) else _absent(data)

    def plain(self, what: str, value: Any) -> Any:
        """The same lists and dicts, with bytes as `{"base64": text}`."""
        if isinstance(value, bytes):
            return {"base64": base64.b64encode(value).decode()} if self._fits(what, len(value)) else _absent(value)
        if isinstance(value, list | tuple):
            return [self.plain(what, item) for item in value]
        if isinstance(value, dict):
            return {key: self.plain(what, item) for key, item in value.items()}
        return value

    def words(self) -> list[str]:
        return [f"{what}: {len(sizes)} of {sum(sizes)} bytes in all" for what, sizes in self._missing.items()]


def _absent(data: bytes) -> dict[str, Any]:
    return {"left_out": len(data), "blake2b": hashlib.blake2b(data, digest_size=16).hexdigest()}


# -- where the scenario is --------------------------------------------------------------------------------------------


def _top(place: Path) -> Path | None:
    """The top of the project around a directory, known by git or by the files of a Python project."""
    above = [place, *place.parents]
    return next((one for name in _TOPS for one in above if (one / name).exists()), None)


class _Project:
    """What says which version of a scenario file this is."""

    def __init__(self, file: Path) -> None:
        file = file.resolve()
        top = _top(file.parent)
        self.file = "" if top is None else file.relative_to(top).as_posix()
        try:
            self.content = hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()
        except OSError:
            self.content = ""
        self.commit = _git(top, "rev-parse", "HEAD") or ""
        state = _git(top, "status", "--porcelain", "--untracked-files=no") if self.commit else None
        self.changed = None if state is None else bool(state)


def _git(place: Path | None, *arguments: str) -> str | None:
    """What git prints there; None when there is no git, no repository, or no answer within five seconds."""
    if place is None:
        return None
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=place,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def locate(record: Record, path: Path) -> tuple[Path, str]:
    """The scenario file of a record, and the path by which its ids name it. Raises `UsageError` when it is gone."""
    label = record.scenario.rpartition("::")[0]
    inside = Path(record.project_file)
    tops = [_top(Path.cwd()), _top(path.resolve().parent)] if record.project_file else []
    places = [top / inside for top in tops if top is not None and ".." not in inside.parts and not inside.is_absolute()]
    for place in [*places, Path(label), Path(record.file)]:
        if place.is_file():
            return place.resolve(), label
    if label.endswith(DECLARATIONS):
        raise UsageError(
            f"the declaration {quoted(label)} of this command is not here; type the command again, which stores it, or "
            "take the file along (a record alone never starts a command)"
        )
    raise UsageError(
        f"the scenario file {quoted(record.project_file or label)} is not here; run replay in a clone of its project"
        + (f" at commit {quoted(record.commit[:12])}" if record.commit else "")
    )


# -- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path) -> Record:
    """The record in a file. Raises `UsageError` when it is none."""
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is larger than {LARGEST} bytes")
        record = msgspec.convert(json.loads(path.read_bytes()), Record)
        problem = _problem(record)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{quoted(path)} is not a stored violation: {quoted(error)}") from None
    if problem:
        raise UsageError(f"{quoted(path)} is not a stored violation: {problem}")
    return record


def _problem(record: Record) -> str:
    """What cannot be, in a record that has the right shape."""
    if record.schema > 2:
        return f"its schema {record.schema} is of a later version of crashtest; update this one"
    if record.guarantee not in GUARANTEES or record.model not in (*MODELS, *REAL):
        return f"there is no guarantee {quoted(record.guarantee)} under {quoted(record.model)}"
    if "::" not in record.scenario or not record.function.isidentifier():
        return "its scenario is not named path::function"
    for op in record.ops or []:
        parse(op)
    if record.cell is not None:
        cut, _, torn, variant, inner = record.cell
        lost = [n for name in [*record.lost, *(record.lost_first or [])] for n in name]
        if (
            variant not in _VARIANTS
            or min([cut, torn, *lost, *record.without, *(n for c, _, t in inner for n in (c, t))]) < 0
        ):
            return "its cell is no place of a crash"
    return ""


# -- comparing --------------------------------------------------------------------------------------------------------


def differences(record: Record, file: Path, examples: Iterable[Example]) -> list[str]:
    """What is not as it was when a violation was stored, in words: the scenario file, the run up to the crash."""
    notes = []
    now = _Project(file)
    if record.content and now.content != record.content:
        then = f" (commit {quoted(record.commit[:12])})" if record.commit else ""
        notes.append(f"the scenario file {quoted(now.file or file)} is not the one that was stored{then}")
    elif record.commit and now.commit and record.commit != now.commit:
        notes.append(f"the violation was stored at commit {quoted(record.commit[:12])}, this is {now.commit[:12]}")
    for example in examples if record.events else ():
        notes += _first_difference(record, example.events)
    return notes


def _first_difference(record: Record, events: list[Event]) -> list[str]:
    """Where the recorded run leaves the stored one, if that is before the place of the crash."""
    until = record.crash().cut + 1 if record.cell is not None else len(record.events)
    then = [(words, _kind(event)) for words, event in zip(record.events, record.trace, strict=False)][:until]
    now = [(event.describe(), _kind(to_plain(event))) for event in events[:until]]
    end = ("its end", "")
    for number, (old, new) in enumerate(zip_longest(then, now, fillvalue=end)):
        if (old[1], *_alike(old[0])) != (new[1], *_alike(new[0])):
            return [
                f"the recorded run is not the stored one: event {number + 1} is {quoted(new[0], 300)}, and was "
                f"{quoted(old[0], 300)}"
            ]
    return []


def _kind(event: Any) -> str:
    """What sort of event this is: the kind of a change, else Step or Ack. event: as `trace.to_plain` gives it."""
    tag, first = (*event[:2], "")[:2] if isinstance(event, list) else ("", "")
    return str(first if tag == "Op" else tag)


def _alike(words: str) -> tuple[str, ...]:
    """The call and the directories of an event in words: the names of temp files may differ from run to run."""
    call, _, rest = words.partition("(")
    return call, *(path.rpartition("/")[0] for path in rest.split(" -> "))
