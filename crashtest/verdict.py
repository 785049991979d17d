"""The words of a result: what one run of crashtest found, and the events it tells while it is finding it.

These records are `result.json` (schema 1): later versions add fields and rename nothing. Everything that reports
(terminal, JSON) is a reader of these events. Main process only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

Verdict = Literal["held", "violated", "inconclusive", "not reached"]
GuaranteeVerdict = Literal["held", "violated", "inconclusive", "not reached", "not claimed"]


class Violation(msgspec.Struct, kw_only=True):
    """One violation: a (guarantee, model, cause), shown at its earliest crash state, with its count."""

    id: str
    guarantee: str
    model: str
    expected: bool
    count: int
    #: where it died, in words: "before rename(refs/heads/b.lock -> refs/heads/b)"
    point: str
    #: code line ("app.py:12 in save") or program ("git update-ref --stdin") that issues that call
    where: str
    acked: int
    wanted: str
    observed: str
    #: power cuts: the changes that were lost, what was kept though it came later, and the sync that is missing
    lost: list[str] = []
    kept: list[str] = []
    barrier: str = ""
    #: of a mixture whose observation is a dict: which of its parts are those of which operation, in words
    mixed: list[str] = []
    #: names below the state, after recovery, that no run without a crash leaves there
    left: list[str] = []
    #: syncs whose effect was dropped from the record: the program itself does not break the guarantee there
    without: list[str] = []
    #: the program got a signal that it may handle: what it did after that, and how it ended; else empty
    after: list[str] = []
    ended: str = ""
    #: real file systems on which a power cut at this place broke the guarantee too, and those on which none did
    seen: list[str] = []
    not_seen: list[str] = []
    hint: str = ""
    #: the operations of the sequence that showed it, in words, where they were drawn; else empty
    operations: list[str] = []
    #: how that sequence was made smaller, in words; "" when it was not
    shrunk: str = ""


#: as many losses left out are told as more than that: what JSON carries exactly
MOST = 1 << 53


class ModelResult(msgspec.Struct, kw_only=True):
    """What was walked under one persistence model. Nested cells are not counted here."""

    crash_points: int = 0
    cells: int = 0
    #: how many of the cells are real kills; the others were made from the record
    kills: int = 0
    #: how many of those sent a signal that the program may handle, by its name
    signals: dict[str, int] = {}
    #: distinct trees recovered
    trees: int = 0
    #: distinct (tree, acks) judged
    unique_states: int = 0
    #: power cuts in recovery that were tried
    nested: int = 0
    #: whether these were all that are possible at depth 2, and not a sample
    nested_exhaustive: bool = True
    #: at most `MOST`
    skipped: int = 0
    exhaustive: bool = True
    guarantees: dict[str, GuaranteeVerdict] = {}


class Boundary(msgspec.Struct, kw_only=True):
    """Between which models a guarantee breaks; each list from the strongest model to the weakest."""

    held: list[str] = []
    violated: list[str] = []


class Nested(msgspec.Struct, kw_only=True):
    """Crashes inside recovery: how deep, and how many cells."""

    depth: int = 1
    cells: int = 0
    #: distinct (tree, acks) judged that no crash of the workload alone led to
    unique_states: int = 0
    #: the depth at which nothing new appeared, so that deeper crashes lead to nothing else; None: not seen
    closed: int | None = None


class ScenarioResult(msgspec.Struct, kw_only=True):
    """The verdict on one scenario. `as_expected` is what the exit code is made of, together with `verdict`."""

    name: str
    verdict: Verdict
    as_expected: bool
    reason: str = ""
    operations: int = 0
    #: how many different operation sequences were tried; 1 where none are drawn
    sequences: int = 0
    seconds: float = 0.0
    models: dict[str, ModelResult] = {}
    #: by guarantee: the models under which it was held, and those under which it breaks
    boundaries: dict[str, Boundary] = {}
    nested: Nested = msgspec.field(default_factory=Nested)
    violations: list[Violation] = []
    #: declared named steps that no crash point reached
    steps_not_reached: list[str] = []
    steps_killed: list[str] = []
    #: how often a killed run's own record was compared with the disk, byte for byte
    self_proofs: int = 0
    #: how many of the killed states were also rebuilt from the record, recovered and judged
    rebuilt: int = 0
    notes: list[str] = []
    #: set when crashtest itself failed here; then the verdict is inconclusive
    harness_error: str = ""
    #: it cannot be judged as it is written; `reason` says why
    usage_error: bool = False


class RunResult(msgspec.Struct, kw_only=True):
    """The whole run, as written to result.json."""

    schema: int = 1
    seed: int
    exit: int
    seconds: float
    observation: str
    scenarios: list[ScenarioResult] = []
    #: why the run ended before its end ("interrupted", "--max-time", "-x"), or ""
    stopped: str = ""
    #: declared steps (over all scenarios) that no cell of the whole run was killed at
    steps_not_reached: list[str] = []
    notes: list[str] = []


class RunStarted(msgspec.Struct, tag="run-started"):
    names: list[str]
    seed: int
    jobs: int
    models: list[str]
    observation: str
    state_root: str


class ScenarioStarted(msgspec.Struct, tag="scenario-started"):
    name: str


class Progress(msgspec.Struct, tag="progress"):
    """`done` of `total` cells of one scenario; sent at most a few times a second."""

    name: str
    done: int
    total: int


class Shrinking(msgspec.Struct, tag="shrinking"):
    """A failing sequence of a scenario is made smaller: one more, of so many operations, is tried."""

    name: str
    runs: int
    operations: int


class ScenarioFinished(msgspec.Struct, tag="scenario-finished"):
    result: ScenarioResult


class Note(msgspec.Struct, tag="note"):
    """Something the user should know that belongs to no scenario (a degraded observation, a clean-up)."""

    text: str


class RunFinished(msgspec.Struct, tag="run-finished"):
    result: RunResult


Event = RunStarted | ScenarioStarted | Progress | Shrinking | ScenarioFinished | Note | RunFinished
Emit = Callable[[Event], None]


def exit_code(results: list[ScenarioResult], stopped: str, allow_partial: bool = False) -> int:
    """The exit code by precedence (semantics): 130 interrupted, 2 usage, 1 violated, 3 unknown, 5 nothing, 0."""
    if stopped == "interrupted":
        return 130
    if any(r.usage_error for r in results):
        return 2
    if any(not r.as_expected and r.verdict == "violated" for r in results):
        return 1
    if any(not r.as_expected and r.verdict == "held" for r in results):
        return 1
    if any(r.harness_error or not r.as_expected or r.verdict in ("inconclusive", "not reached") for r in results):
        return 3
    if stopped == "--max-time" and not allow_partial:
        return 3
    return 0 if results else 5
