"""Running scenarios on this machine: slots, each with a zygote, and the order of their work.

Guarantees: every zygote and every process below it has ended when `run` returns, also after an interruption or the
death of a zygote; work that was given out and not finished is counted as not tried, never as passed. A zygote that
dies is a harness error of the scenario it worked on. Signals only its own descendants.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from crashtest import wire
from crashtest.cells.matrix import Example, find, result
from crashtest.cells.plan import Cell, short_hash
from crashtest.cells.recoveries import Unbatchable
from crashtest.config import Settings
from crashtest.errors import HarnessError, UsageError, quoted
from crashtest.explore.generate import sequences
from crashtest.observe import bpf
from crashtest.scale.rundir import TOKEN, RunDirectory
from crashtest.scenario import Scenario, load
from crashtest.trace import Step, to_plain
from crashtest.verdict import (
    Emit,
    Note,
    Progress,
    RunFinished,
    RunResult,
    RunStarted,
    ScenarioFinished,
    ScenarioResult,
    ScenarioStarted,
    Violation,
    exit_code,
)

#: cells given to a zygote at once: small enough for two slots to share a scenario, large enough to talk little
CHUNK = 12
#: time-outs that came again alone, after which a scenario's other slow cells are not tried
ENOUGH_TIMEOUTS = 3
#: cells of each example that are also rebuilt from the record, besides every violation's
SAMPLE = 4
#: variables of the caller that would make a program behave differently here and there; the last four are of test runs
_NOT_HANDED_ON = ("GIT_", "PYTHON", "PYTEST_", "COV_CORE_", "COVERAGE_", "TOX_")
_START = (
    "import sys, json; sys.path[:0] = json.loads(sys.argv[3]); from crashtest.cells.zygote import main; "
    "main(int(sys.argv[1]), sys.argv[2])"
)


class Slot:
    """One zygote at a time, used by one thread. Raises `wire.Closed` when the zygote dies."""

    def __init__(self, number: int, directory: RunDirectory, seccomp: bool, first_core: int = 0) -> None:
        self.number = number
        self._core = first_core + number
        self._directory = directory
        self._seccomp = seccomp
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._file = ""
        self._serving: Example | None = None
        self._starts = 0

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request and its answer. Raises what the zygote reports: `UsageError`, `HarnessError`."""
        if self._sock is None:
            raise wire.Closed("no zygote")
        wire.send(self._sock, request)
        answer = wire.receive(self._sock)
        if "usage" in answer:
            raise UsageError(answer["usage"])
        if "unbatchable" in answer:
            raise Unbatchable(answer["unbatchable"])
        if "harness" in answer:
            raise HarnessError(answer["harness"])
        return answer

    def open(self, scenario: Scenario, file: Path) -> None:
        """Have a zygote that has loaded the scenario's file."""
        if self._process is not None and self._process.poll() is None and self._file == str(file):
            return
        self.close()
        self._starts += 1
        root = f"{self._directory.path}/slot-{self.number}-{self._starts}"
        os.mkdir(root, 0o700)
        ours, theirs = socket.socketpair()
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_HANDED_ON)}
        environment.update({TOKEN: self._directory.token, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"})
        paths = json.dumps([os.path.abspath(path or ".") for path in sys.path])
        command = [sys.executable, "-S", "-s", "-P", "-c", _START, str(theirs.fileno()), root, paths]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno(), self._directory.owner],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._sock, self._file, self._serving = ours, str(file), None
        core = None
        if hasattr(os, "sched_getaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            core = cores[self._core % len(cores)]
        self.ask({"do": "load", "file": str(file), "label": scenario.file, "core": core})

    def serve(self, example: Example, timeout: float, depth: int) -> None:
        """Have the zygote know the example's first and expected states."""
        if self._serving is not example:
            request = self.request("expect", example.scenario, example.ops, timeout)
            expected = {"first": example.prepared["first"], "states": example.states, "depth": depth}
            events = [to_plain(event) for event in example.events]
            self.ask({**request, **expected, "batches": not example.remembers, "events": events})
            self._serving = example

    def request(self, do: str, scenario: Scenario, ops: list[str] | None, timeout: float) -> dict[str, Any]:
        return {"do": do, "scenario": scenario.function, "ops": ops, "timeout": timeout, "seccomp": self._seccomp}

    def hang_up(self) -> None:
        """Close the line from another thread: the zygote ends what it does, and itself."""
        sock = self._sock
        if sock is not None:
            with contextlib.suppress(OSError, wire.Closed):
                wire.send(sock, {"do": "end"})
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the zygote and all below it."""
        if self._process is None:
            return
        if self._sock is not None:
            with contextlib.suppress(wire.Closed):
                wire.send(self._sock, {"do": "end"})
            self._sock.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = self._sock = None


@dataclass
class _Task:
    """prepare an example, realise a chunk of its cells (alone: with nothing beside it), or rebuild some."""

    job: _Job
    do: str
    example: Example | None = None
    ops: list[str] | None = None
    cells: list[Cell] = field(default_factory=list)
    killed: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)
    error: BaseException | None = None
    alone: bool = False


@dataclass
class _Job:
    """One scenario on its way: its examples, and how much of them is still out."""

    scenario: Scenario
    file: Path
    sequences: list[list[str] | None]
    examples: list[Example] = field(default_factory=list)
    open_tasks: int = 0
    planned: int = 0
    tried: int = 0
    started: float = 0.0
    error: str = ""
    done: bool = False
    #: cells in which something timed out, to be tried again when nothing else runs
    slow: list[tuple[Example, Cell]] = field(default_factory=list)
    timeouts: int = 0


def _told(example: Example, cell: Cell) -> dict[str, Any]:
    """What is known of a crash state that no kill has made."""
    event = example.events[cell.cut] if cell.cut < len(example.events) else None
    return {
        "end": "killed", "problem": "", "events": cell.cut, "step": event.name if isinstance(event, Step) else "",
        "proof": [], "proved": False, "strays": [], "outside": [],
        "before": event.describe() if event else "", "where": event.where if event else "",
    }  # fmt: skip


class Runner:
    """Runs jobs over slots; all bookkeeping happens in the thread that calls `run`."""

    def __init__(self, settings: Settings, seccomp: bool, directory: RunDirectory, emit: Emit) -> None:
        self.settings = settings
        self.seccomp = seccomp
        self.emit = emit
        self.stopped = ""
        self.finished: list[tuple[_Job, ScenarioResult]] = []
        self._directory = directory
        self._todo: deque[_Task] = deque()
        self._wake = threading.Condition()
        self._ending = False
        self._results: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._slots = [Slot(number, directory, seccomp, settings.first_core) for number in range(settings.jobs)]
        self._threads: list[threading.Thread] = []
        self._told = 0.0
        self._only: list[Cell] | None = None

    def run(self, jobs: list[_Job], only: list[Cell] | None = None) -> None:
        """Until every job has a result, or the run is stopped. only: realise just these cells (replay)."""
        self._only = only
        began = time.monotonic()
        self._threads = [threading.Thread(target=self._work, args=(slot,), daemon=True) for slot in self._slots]
        for thread in self._threads:
            thread.start()
        try:
            self._drive(jobs, began)
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        finally:
            self._end()
        for job in jobs:
            if job.started and not job.done:
                self._finish(job)

    def _drive(self, jobs: list[_Job], began: float) -> None:
        waiting = deque(jobs)
        active: list[_Job] = []
        lonely: list[_Job] = []
        limit = self.settings.max_time
        while waiting or active or lonely:
            if lonely and not waiting and not active:
                active.append(lonely.pop(0))
                self._again_alone(active[0])
                continue
            while waiting and len(active) < len(self._slots) and not self.stopped:
                job = waiting.popleft()
                job.started = time.monotonic()
                self.emit(ScenarioStarted(name=job.scenario.name))
                active.append(job)
                for ops in job.sequences:
                    self._give(_Task(job, "prepare", ops=ops))
            try:
                task = self._results.get(timeout=0.2)
            except queue.Empty:
                task = None
            if task is not None:
                self._take(task)
            for job in [job for job in active if not job.open_tasks]:
                active.remove(job)
                if job.slow:
                    lonely.append(job)
                else:
                    self._finish(job)
            if limit is not None and time.monotonic() - began > limit and not self.stopped:
                self.stopped = "--max-time"
            if self.stopped:
                return

    # -- work, in the slots' threads -----------------------------------------------------------------------------

    def _work(self, slot: Slot) -> None:
        while True:
            with self._wake:
                while not self._todo and not self._ending:
                    self._wake.wait()
                if self._ending:
                    break
                task = self._todo.popleft()
            try:
                self._do(slot, task)
            except wire.Closed:
                if not self._ending:
                    slot.close()
                task.error = HarnessError("the zygote of this scenario died; what it had started was ended")
            except Exception as error:
                task.error = error
            self._results.put(task)
        slot.close()

    def _do(self, slot: Slot, task: _Task) -> None:
        job, timeout = task.job, self.settings.timeout
        slot.open(job.scenario, job.file)
        if task.do == "prepare":
            task.answers = [slot.ask(slot.request("prepare", job.scenario, task.ops, timeout))]
            return
        assert task.example is not None
        slot.serve(task.example, timeout, self.settings.depth)
        if task.do == "kill":
            for from_record, cells in itertools.groupby(task.cells, lambda c: c.variant in ("rebuilt", "computed")):
                if from_record:
                    task.answers += self._rebuild(slot, task.example, list(cells), alone=task.alone)
                    continue
                for cell in cells:
                    request = {"do": "kill", "crashes": [list(cell[:4])], "alone": task.alone}
                    task.answers += slot.ask(request)["cells"]
            return
        for cell in task.cells:
            crash = [cell.cut, cell.kind, cell.torn, "group" if cell.variant == "computed" else cell.variant]
            if cell.inner:
                task.answers.append(
                    slot.ask({"do": "kill_inner", "crash": crash, "path": [list(p) for p in cell.inner]})
                )
            elif cell.variant == "computed":
                task.answers += slot.ask({"do": "kill", "crashes": [crash], "alone": False})["cells"]
            else:
                task.answers += self._rebuild(slot, task.example, [cell], compare=True)

    def _rebuild(
        self, slot: Slot, example: Example, cells: list[Cell], compare: bool = False, alone: bool = False
    ) -> list[dict[str, Any]]:
        """Crash states from the record, told like killed ones. compare: nothing remembered, in own processes."""
        request = {
            "do": "rebuild",
            "cells": [[cell.cut, cell.torn] for cell in cells],
            "compare": compare,
            "alone": alone,
        }
        return [
            {**_told(example, cell), **facts} for cell, facts in zip(cells, slot.ask(request)["cells"], strict=True)
        ]

    # -- bookkeeping, in the main thread -------------------------------------------------------------------------

    def _give(self, task: _Task, first: bool = False) -> None:
        task.job.open_tasks += 1
        with self._wake:
            (self._todo.appendleft if first else self._todo.append)(task)
            self._wake.notify()

    def _take(self, task: _Task) -> None:
        job = task.job
        job.open_tasks -= 1
        if task.example is not None and task.example.void:
            return
        if isinstance(task.error, Unbatchable):
            assert task.example is not None
            self._without_batches(job, task.example, str(task.error))
            return
        if task.error is not None:
            if isinstance(task.error, UsageError):
                raise task.error
            job.error = job.error or str(task.error)
            return
        if task.do == "prepare":
            example = Example(job.scenario, task.ops, task.answers[0], self.seccomp)
            job.examples.append(example)
            self._try_all(job, example)
        elif task.do == "kill":
            assert task.example is not None
            for cell, facts in zip(task.cells, task.answers, strict=True):
                if facts["timed_out"] and not task.alone:
                    job.slow.append((task.example, cell))
                    continue
                if task.example.missed(cell, facts) and cell.variant == "group":
                    self._give(_Task(job, "kill", task.example, cells=[cell._replace(variant="rebuilt")]))
                    continue
                job.timeouts += facts["timed_out"]
                job.tried += 1
                task.example.add(cell, facts)
            self._progress(job)
            if task.alone:
                self._again_alone(job)
        else:
            assert task.example is not None
            for cell, facts, answer in zip(task.cells, task.killed, task.answers, strict=True):
                if cell.inner:
                    task.example.confirm_inner(cell, facts, answer)
                elif cell.variant == "computed":
                    task.example.confirm_by_kill(cell, facts, answer)
                else:
                    task.example.confirm(cell, facts, answer)
        if not job.open_tasks and task.do != "rebuild" and not job.slow:
            self._confirm(job)

    def _try_all(self, job: _Job, example: Example) -> None:
        cells = example.plan.cells if self._only is None else self._only
        job.planned += len(cells)
        for at in reversed(range(0, len(cells), CHUNK)):
            self._give(_Task(job, "kill", example, cells=cells[at : at + CHUNK]), first=True)

    def _without_batches(self, job: _Job, example: Example, words: str) -> None:
        """Recovery remembers something from one state to the next: judge the example anew, each in its own process."""
        example.void = True
        job.planned -= len(example.plan.cells if self._only is None else self._only)
        job.tried -= len(example.cells)
        job.slow = [(one, cell) for one, cell in job.slow if one is not example]
        anew = Example(job.scenario, example.ops, example.prepared, self.seccomp)
        anew.remembers = words
        job.examples[job.examples.index(example)] = anew
        self._try_all(job, anew)

    def _again_alone(self, job: _Job) -> None:
        """A time-out counts when it comes again with nothing else running; three that did are enough."""
        if job.timeouts >= ENOUGH_TIMEOUTS:
            job.slow.clear()  # they stay untried, and are counted so
        if job.slow:
            example, cell = job.slow.pop(0)
            self._give(_Task(job, "kill", example, cells=[cell], alone=True))

    def _confirm(self, job: _Job) -> None:
        """All cells are in: do every violation, and a sample, the other way as well."""
        for example in job.examples:
            pairs = [*example.to_confirm(SAMPLE), *example.to_kill(), *example.inner_to_confirm()]
            if pairs:
                cells, killed = [cell for cell, _ in pairs], [facts for _, facts in pairs]
                self._give(_Task(job, "rebuild", example, cells=cells, killed=killed), first=True)

    def _progress(self, job: _Job) -> None:
        now = time.monotonic()
        if now - self._told > 0.2 or job.tried == job.planned:
            self._told = now
            self.emit(Progress(name=job.scenario.name, done=job.tried, total=job.planned))

    def _finish(self, job: _Job) -> None:
        job.done = True
        unrun, depth = job.planned - job.tried, self.settings.depth if self.seccomp else 1
        if self.stopped and not job.error and len(job.examples) < len(job.sequences):
            unrun = max(unrun, 1)
        made = result(job.scenario, job.examples, time.monotonic() - job.started, unrun, job.error, depth)
        if unrun and not self.stopped and made.verdict == "held":
            made.verdict, made.as_expected = "inconclusive", False
        if self.stopped and unrun and made.verdict in ("held", "inconclusive") and not made.reason:
            made.verdict, made.as_expected = "inconclusive", False
            made.reason = f"stopped ({self.stopped}) with {unrun} cells not tried; give it more time"
        self.finished.append((job, made))
        self.emit(ScenarioFinished(result=made))
        if self.settings.stop_on_first and not made.as_expected and not self.stopped:
            self.stopped = "-x"

    def _end(self) -> None:
        """End every zygote, also one that is busy, and whatever is left below this process."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # it is ending already
        with self._wake:
            self._ending = True
            self._todo.clear()
            self._wake.notify_all()
        for slot in self._slots:
            slot.hang_up()
        for thread in self._threads:
            thread.join(60)
        end_strays(self._directory.token)


def end_strays(token: str) -> int:
    """SIGKILL and reap descendants of this process that carry the run's token; how many there were."""
    ended = 0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(TOKEN) == token:
                process.kill()
                ended += 1
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(10)
    return ended


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
    """Orphans come to this process, and a SIGTERM ends the run the way Ctrl-C does."""
    subreaper = bpf.is_subreaper()
    bpf.become_subreaper()

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if main else None
    before_int = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if main:
            # None: a handler that is not Python's, which nobody can put back
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
            signal.signal(signal.SIGINT, signal.SIG_DFL if before_int is None else before_int)
        bpf.become_subreaper(subreaper)


def _observation(settings: Settings) -> bool:
    """Whether system calls are observed. Raises `HarnessError` when they cannot be and nothing less was asked for."""
    if settings.observation == "steps":
        return False
    reason = bpf.probe()
    if reason is not None:
        raise HarnessError(f"system calls cannot be observed here: {reason}")
    return True


def run(scenarios: list[Scenario], files: dict[str, Path], settings: Settings, emit: Emit) -> RunResult:
    """Run scenarios; their results. files: label -> path of each scenario's file.

    Raises `UsageError` when a scenario cannot be judged as it is written, `HarnessError` when nothing can run here.
    An interruption ends everything and comes back as a result.
    """
    seccomp = _observation(settings)
    for scenario in scenarios:
        scenario.allow_outside = (*scenario.allow_outside, *settings.allow_outside)
    jobs = [
        _Job(scenario, files[scenario.file], sequences(scenario, settings.seed, settings.examples))
        for scenario in scenarios
    ]
    return _run(jobs, settings, seccomp, emit, None)


def _run(jobs: list[_Job], settings: Settings, seccomp: bool, emit: Emit, only: list[Cell] | None) -> RunResult:
    began = time.monotonic()
    with _guarded():
        directory = RunDirectory()
        try:
            words = "seccomp" if seccomp else "steps"
            names = [job.scenario.name for job in jobs]
            emit(
                RunStarted(
                    names=names,
                    seed=settings.seed,
                    jobs=settings.jobs,
                    models=list(settings.models),
                    observation=words,
                    state_root=directory.path,
                )
            )
            notes = _first_notes(directory, seccomp)
            for note in notes:
                emit(Note(text=note))
            runner = Runner(settings, seccomp, directory, emit)
            descriptors = _descriptors()
            runner.run(jobs, only)
            leaked = _descriptors() - descriptors
            if leaked > 0:
                notes.append(f"crashtest itself left {leaked} descriptors open; please report this")
        finally:
            directory.close()
    results = [made for _, made in runner.finished]
    try:
        for job, made in runner.finished if only is None else []:
            store(job, made, settings)
    except OSError as error:
        notes.append(f"the violations could not be stored for replay: {quoted(error)}; name another --report-dir")
        emit(Note(text=notes[-1]))
    whole = RunResult(
        seed=settings.seed,
        exit=exit_code(results, runner.stopped, settings.allow_partial),
        seconds=round(time.monotonic() - began, 3),
        observation=words,
        scenarios=results,
        stopped=runner.stopped,
        notes=notes,
    )
    declared = {step for job in jobs for step in job.scenario.steps}
    whole.steps_not_reached = sorted(declared - {step for one in results for step in one.steps_killed})
    emit(RunFinished(result=whole))
    return whole


def _first_notes(directory: RunDirectory, seccomp: bool) -> list[str]:
    notes = [directory.note] if directory.note else []
    if directory.cleaned:
        notes.append(f"removed the states of {len(directory.cleaned)} earlier runs that were killed")
    if not seccomp:
        notes.append(
            "observed by named steps alone: crashes inside other calls and in other programs are not tried, and "
            "records do not prove themselves"
        )
    return notes


def _descriptors() -> int:
    return int(psutil.Process().num_fds()) if hasattr(psutil.Process, "num_fds") else 0


# -- violations on disk, and their replay -----------------------------------------------------------------------------


def store(job: _Job, made: ScenarioResult, settings: Settings) -> None:
    """Write each violation to the report directory, as data that `replay` runs again."""
    folder = settings.report_dir / "violations"
    for violation in made.violations:
        example, cell = find(job.examples, violation.id)
        signature = [event.describe() for event in example.events]
        record = {
            "schema": 1,
            "id": violation.id,
            "scenario": made.name,
            "file": str(job.file),
            "function": job.scenario.function,
            "guarantee": violation.guarantee,
            "model": violation.model,
            "seed": settings.seed,
            "ops": example.ops,
            "cell": [*cell[:4], [list(place) for place in cell.inner]] if cell is not None else None,
            "point": violation.point,
            "wanted": violation.wanted,
            "observed": violation.observed,
            "events": signature,
        }
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1)
        path = folder / f"{short_hash(violation.id)}-{violation.guarantee}.json"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(text)
        temporary.replace(path)


def replay(record_path: Path, settings: Settings, emit: Emit) -> RunResult:
    """Re-execute one stored violation: the runs without a crash, then just its cell.

    Raises `UsageError` when the record or its scenario cannot be read any more.
    """
    try:
        record = json.loads(record_path.read_text())
        cells, depth = _stored_cell(record["cell"])
        ops, file, label = record["ops"], Path(record["file"]), record["scenario"].rpartition("::")[0]
        function, identity, seed = record["function"], record["id"], int(record["seed"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{quoted(record_path)} is not a stored violation: {quoted(error)}") from None
    if not file.exists() and Path(label).exists():
        file = Path(label)
    if not file.exists():
        raise UsageError(f"the scenario file {quoted(file)} is gone; run replay where {quoted(label)} lies")
    found = [one for one in load(file, label) if one.function == function]
    if not found:
        raise UsageError(f"{quoted(label)} has no scenario {quoted(function)} any more")
    seccomp = _observation(settings)
    settings = replace(settings, seed=seed, depth=depth)
    made = _run([_Job(found[0], file, [ops])], settings, seccomp, emit, cells)
    _same_place(made, record, identity)
    return made


def _stored_cell(stored: list[Any] | None) -> tuple[list[Cell], int]:
    """The cell to kill again, and how deep: nested crashes are found below the first one."""
    if stored is None:
        return [], 1
    cut, kind, torn, variant, inner = stored
    return [Cell(int(cut), str(kind), int(torn), str(variant))], 1 + len(inner)


def _same_place(made: RunResult, record: dict[str, Any], identity: str) -> None:
    """Say it when the violation came elsewhere, or not at all."""
    again: list[Violation] = [v for one in made.scenarios for v in one.violations if v.id == identity]
    if not again:
        made.notes.append(f"the stored violation {quoted(identity)} did not come again")
    elif again[0].point != record["point"]:
        made.notes.append(f"stored as: died {quoted(record['point'], 400)}; the program does something else there now")
