"""Which sync is needed: a verdict for every sync of a scenario, each with a proof or the bound it was judged within.

The effect of a sync is dropped in the record, not in the program; `cells.drops` walks the states that this adds. Places
are judged one after the other, from the last one of the run to the first and then those of recovery, and one that is
not needed stays dropped for the rest. So the verdicts hold together: all syncs that are not needed can go at once. Of
two that stand in for one another the later is called not needed.

Guarantees: "needed" has a proof, stored for `crashtest replay`; "not needed" is said only where no state that was
tried broke a claimed guarantee, and comes with how many were tried and left out; what could not be judged is
"inconclusive". A question that was answered beside another is asked again when that other was answered "not needed";
a proof stands, because dropping more only adds states. Main process only. Does not judge kills, which need no sync.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crashtest.cells.example import Example
from crashtest.cells.judge import Fault
from crashtest.cells.matrix import violation_of
from crashtest.cells.plan import Cell
from crashtest.config import Settings
from crashtest.doctor import mount
from crashtest.errors import UsageError
from crashtest.explore.generate import Source
from crashtest.explore.needs import NEEDED, NOT_NEEDED, NOT_REACHED, UNKNOWN, Missing, SyncsResult, SyncVerdict
from crashtest.explore.unreached import never_called
from crashtest.scale import local, stored
from crashtest.scale.jobs import Job
from crashtest.scale.rundir import RunDirectory
from crashtest.scale.team import Team
from crashtest.scenario import Scenario
from crashtest.trace import Ack
from crashtest.verdict import ScenarioResult, Violation

#: runs of the workload whose syncs are timed
RUNS = 3


@dataclass
class _Site:
    """A place on its way to its verdict."""

    facts: dict[str, Any]
    #: the ordinals that were not dropped
    kept: list[int]
    proofs: dict[str, dict[str, Any]] = field(default_factory=dict)
    example: Example | None = None
    tried: int = 0
    left: int = 0
    exhaustive: bool = True
    untried: int = 0
    until: str = ""
    weaker: bool = False

    def take(self, answers: dict[str, dict[str, Any]]) -> None:
        """What was tried without finding a proof."""
        for answer in answers.values():
            self.tried += answer["losses"]
            self.left = min(self.left + answer["skipped"], 1 << 53)
            self.exhaustive = self.exhaustive and answer["exhaustive"]
            self.untried += answer["untried"]
            self.until = self.until or answer["until"]


@dataclass
class _Question:
    """Whether some syncs of a place can go, all of them or one."""

    site: _Site
    ordinals: list[int]

    def names(self) -> list[list[Any]]:
        return [[self.site.facts["key"], ordinal] for ordinal in self.ordinals]


class Judging:
    """The verdicts of one example, asked of a team of zygotes."""

    def __init__(self, team: Team, example: Example, settings: Settings, tell: Callable[[str], None]) -> None:
        self.team = team
        self.example = example
        self.settings = settings
        self.tell = tell
        self.models = [model for model in settings.models if model != "kill"]
        self.dropped: list[list[Any]] = []
        self.weakened: list[list[Any]] = []
        self.recoveries = 0

    def open(self) -> list[dict[str, Any]]:
        """The places that issue syncs."""
        prepared = self.example.prepared
        common = {"do": "syncs", "losses": self.settings.losses, "seed": self.settings.seed}
        common.update(names=prepared["names"], glances=prepared["glances"])
        answers = self.team.begin(self.example, [{**common, "model": model} for model in self.models])
        self.recoveries = max(answer["recoveries"] for answer in answers)
        return list({site["key"]: site for answer in answers for site in answer["sites"]}.values())

    def judge(self, sites: list[_Site]) -> None:
        """Ask about each place, from the last to the first, and about each sync of those that are needed."""
        waiting = deque(_Question(site, list(site.kept)) for site in sites)
        while waiting:
            self.tell(f"{len(waiting)} questions to go")
            asked = [waiting.popleft() for _ in range(min(self.team.size, len(waiting)))]
            answers = self._ask([question.names() for question in asked], weaker=False)
            later: list[_Question] = []
            changed = False
            for question, answer in zip(asked, answers, strict=True):
                if any(one["proof"] for one in answer.values()):
                    later += self._needed(question, answer)
                elif changed:
                    later.append(question)  # it was answered while another was still in place
                else:
                    changed = self._not_needed(question, answer)
            waiting.extendleft(reversed(later))

    def _needed(self, question: _Question, answers: dict[str, dict[str, Any]]) -> Iterator[_Question]:
        site = question.site
        proofs = {model: answer["proof"] for model, answer in answers.items() if answer["proof"]}
        if not site.proofs or _size(proofs) < _size(site.proofs):
            site.proofs, site.example = proofs, self.example
        if len(question.ordinals) > 1:
            yield from (_Question(site, [ordinal]) for ordinal in reversed(question.ordinals))

    def _not_needed(self, question: _Question, answers: dict[str, dict[str, Any]]) -> bool:
        """Drop them for the rest; whether they were."""
        site = question.site
        if site.proofs and site.kept == question.ordinals:
            return False  # the last one that is left: without it the place is gone, and that has a proof
        if not site.proofs:
            site.take(answers)
        if any(answer["untried"] for answer in answers.values()):
            return False
        site.kept = [ordinal for ordinal in site.kept if ordinal not in question.ordinals]
        self.dropped += question.names()
        return True

    def weaken(self, sites: Iterable[_Site]) -> None:
        """Ask whether an fdatasync would do for each fsync of a file that is needed."""
        for site in sites:
            if site.example is not self.example or site.facts["call"] != "fsync" or site.facts["directory"]:
                continue
            names = [[site.facts["key"], ordinal] for ordinal in site.kept]
            (answers,) = self._ask([names], weaker=True)
            if not any(one["proof"] or one["untried"] for one in answers.values()):
                self.weakened += names
                site.weaker = True

    def missing(self) -> dict[str, dict[str, Any]]:
        """By model, what `cells.barriers` finds."""
        requests = [{"do": "syncs_missing", "model": model} for model in self.models]
        return dict(zip(self.models, self.team.ask(requests), strict=True))

    def _ask(self, questions: list[list[list[Any]]], weaker: bool) -> list[dict[str, dict[str, Any]]]:
        common = {"do": "syncs_drop", "dropped": self.dropped, "weakened": self.weakened, "weaker": weaker}
        requests = [{**common, "model": model, "asked": names} for names in questions for model in self.models]
        answers = iter(self.team.ask(requests))
        return [{model: next(answers) for model in self.models} for _ in questions]


def analyse(scenario: Scenario, file: Path, settings: Settings, place: str, tell: Callable[[str], None]) -> SyncsResult:
    """Judge every sync of a scenario.

    place: a directory on the disk on which syncs are timed, "" for none. tell: takes words about how far it is. Raises
    `UsageError` when the scenario cannot be used, `HarnessError` when nothing can be observed here.
    """
    if not [model for model in settings.models if model != "kill"]:
        raise UsageError("kill loses nothing, so no sync is needed under it; name another --model")
    if not local.observation(settings):
        raise UsageError("which sync is needed is read from the record of system calls; leave --observation steps out")
    began = time.monotonic()
    scenario.allow_outside = (*scenario.allow_outside, *settings.allow_outside)
    source = Source(scenario, settings.seed, settings.examples, settings.report_dir / "examples", again=False)
    job = Job(scenario, file, source.sequences(), depth=settings.depth, models=settings.models)
    made = SyncsResult(
        scenario=scenario.name, file=str(file), exit=0, models=list(settings.models), seed=settings.seed,
        guarantees=sorted(scenario.claimed()), losses=settings.losses, depth=settings.depth,
    )  # fmt: skip
    with local.guarded():
        directory = RunDirectory()
        try:
            team = Team(settings.jobs, directory, job, settings)
            try:
                _analyse(job, settings, team, made, tell)
            finally:
                team.close()
        finally:
            directory.close()
        if place and not made.reason:
            _measure(job, settings, place, made)
    made.seconds = round(time.monotonic() - began, 3)
    return made


def _analyse(job: Job, settings: Settings, team: Team, made: SyncsResult, tell: Callable[[str], None]) -> None:
    sites: dict[str, _Site] = {}
    made.mended = True
    for ops in job.sequences:
        example = Example(job.scenario, ops, team.prepare(ops), True)
        made.reason = made.reason or example.reason or example.harness_error
        if made.reason:
            made.exit = 3
            return
        job.take_example(example)
        judging = Judging(team, example, settings, tell)
        here: list[_Site] = []
        for facts in judging.open():
            site = sites.setdefault(facts["key"], _Site(facts, []))
            if not site.proofs:
                site.kept = list(range(1, facts["count"] + 1))
                here.append(site)
        parts = [[site for site in reversed(here) if site.facts["part"] == part] for part in ("run", "recovery")]
        tell(f"{len(here)} places that sync")
        judging.judge([site for part in parts for site in part])
        judging.weaken(sites.values())
        made.recoveries += judging.recoveries
        made.operations = max(made.operations, sum(isinstance(event, Ack) for event in example.events))
        tell("looking for missing syncs")
        _take_missing(example, judging.missing(), made)
    made.sequences = len(job.examples)
    made.syncs = [_verdict(job, site) for site in sites.values()]
    made.syncs += [
        SyncVerdict(part="", call=call, where=where, verdict=NOT_REACHED)
        for call, where in never_called(job.file, [site.facts["where"] for site in sites.values()], _places(job))
    ]
    _conclude(job, settings, made)


def _places(job: Job) -> set[str]:
    return {event.where for example in job.examples for event in example.events}


def _conclude(job: Job, settings: Settings, made: SyncsResult) -> None:
    """Store the proofs; the exit code."""
    violations = [sync.violation for sync in made.syncs if sync.violation is not None]
    violations += [one.violation for one in made.missing]
    found = ScenarioResult(name=made.scenario, verdict="violated", as_expected=False, violations=violations)
    stored.write(job, found, settings)
    if any(not one.violation.expected for one in made.missing):
        made.exit = 1
    elif any(sync.verdict == UNKNOWN for sync in made.syncs):
        made.exit = 3


def _size(proofs: dict[str, dict[str, Any]]) -> tuple[int, ...]:
    """By which of two proofs the simpler one is known: crashes, syncs dropped, units lost, and how early."""
    cell = next(iter(proofs.values()))["cell"]
    return len(cell["path"]), len(cell["without"]), len(cell["lost"]), cell["cut"]


def _verdict(job: Job, site: _Site) -> SyncVerdict:
    facts = site.facts
    made = SyncVerdict(
        key=facts["key"], part=facts["part"], call=facts["call"], paths=facts["paths"][:3], where=facts["where"],
        count=facts["count"], verdict=NEEDED if site.proofs else NOT_NEEDED, models=list(site.proofs),
        tried=site.tried, left=site.left, exhaustive=site.exhaustive,
    )  # fmt: skip
    if site.proofs:
        assert site.example is not None
        made.needed = site.kept
        made.violation = _violation(site.example, next(iter(site.proofs.values())))
        weaker = ["fdatasync"] if site.weaker else []
        if len(site.kept) < facts["count"]:
            weaker.append(f"{len(site.kept)} of {facts['count']} calls")
        made.weaker = ", ".join(weaker)
    elif site.untried:
        made.verdict = UNKNOWN
        made.reason = f"recovery of {site.untried} states timed out; give it more time with --timeout"
    elif site.until:
        words, _, where = site.until.partition("\0")
        made.covered = f"{words}, in {where.partition(' < ')[0]}" if where else words
    return made


def _violation(example: Example, proof: dict[str, Any]) -> Violation:
    """A proof as a violation that can be stored and replayed."""
    cell, reduced = proof["cell"], proof["reduced"]
    named = Cell(
        cell["cut"], "", 0, "group", tuple((cut, kind, torn) for cut, kind, torn in cell["path"]), proof["model"],
        lost=tuple((event, part) for event, part in reduced["lost"]),
        lost_first=None if cell["lost_first"] is None else tuple((event, part) for event, part in cell["lost_first"]),
        without=tuple(cell["without"]),
    )  # fmt: skip
    losses = example.walk(proof["model"])
    losses.take_reduced(Fault(proof["guarantee"], "", ""), named, proof["facts"], reduced)
    if losses.disagreement:
        raise UsageError(f"what was judged in two processes differs: {losses.disagreement}")
    return violation_of(example, losses.causes[-1]._replace(number=1))


def _take_missing(example: Example, answers: dict[str, dict[str, Any]], made: SyncsResult) -> None:
    """Violations that the same syncs remove are told once, under the first of their models."""
    whole = all(answer["finished"] and not answer["left"] for answer in answers.values())
    made.mended = made.mended and whole
    for model, answer in answers.items():
        for proof in [*answer["found"], *answer["left"]]:
            barriers = [_in_words(one) for one in proof.get("barriers", ())]
            alike = (one for one in made.missing if one.violation.guarantee == proof["guarantee"])
            known = next((one for one in alike if one.barriers == barriers), None)
            if known is None:
                known = Missing(violation=_violation(example, proof), barriers=barriers)
                made.missing.append(known)
            if model not in known.models:
                known.models.append(model)


def _in_words(added: dict[str, Any]) -> str:
    call, path = added["call"], added["path"]
    words = f"{call} {'' if ' ' in call else 'of '}{path}" if path else str(call)
    return f"{words}, {added['where']}" if added["where"] else words


def _measure(job: Job, settings: Settings, place: str, made: SyncsResult) -> None:
    """Time the syncs of the workload on a disk: the median of each place's."""
    directory = RunDirectory(place)
    try:
        team = Team(1, directory, job, settings)
        try:
            runs = team.measure(job.sequences[0], RUNS)
        finally:
            team.close()
    finally:
        directory.close()
    times: dict[str, list[float]] = {}
    for key, _, seconds in (one for run in runs for one in run):
        times.setdefault(key, []).append(seconds * 1000)
    for sync in made.syncs:
        if sync.key in times:
            sync.milliseconds = round(statistics.median(times[sync.key]), 3)
    made.disk = f"{place} ({mount(Path(place).resolve(), Path('/proc/self/mounts'))[0]})"
