"""Running scenarios on this machine: slots, each with a zygote, and the order of their work.

Guarantees: every zygote and every process below it has ended when `run` returns, also after an interruption or the
death of a zygote; work that was given out and not finished is counted as not tried, never as passed. A zygote that
dies is a harness error of the scenario it worked on. Signals only its own descendants.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil

from crashtest import wire
from crashtest.cells.example import Example
from crashtest.cells.losses import late_cells
from crashtest.cells.matrix import result, unwalked
from crashtest.cells.plan import Cell, cell_id, example_id
from crashtest.cells.recoveries import Unbatchable
from crashtest.config import Settings
from crashtest.errors import HarnessError, UsageError, quoted
from crashtest.explore.generate import Enough, Source
from crashtest.observe import bpf
from crashtest.scale import shrinking, stored
from crashtest.scale.jobs import Job, Task, before, family
from crashtest.scale.real import is_real
from crashtest.scale.rundir import TOKEN, RunDirectory
from crashtest.scale.slot import Slot, Stopped
from crashtest.scale.work import do
from crashtest.scenario import SIGNALS, Scenario
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
    exit_code,
)

#: cells given to a zygote at once: small enough for two slots to share a scenario, large enough to talk little
CHUNK = 12
#: time-outs that came again alone, after which a scenario's other slow cells are not tried
ENOUGH_TIMEOUTS = 3
#: cells of each example that are also rebuilt from the record, besides every violation's
SAMPLE = 4


class Runner:
    """Runs jobs over slots; all bookkeeping happens in the thread that calls `run`."""

    def __init__(self, settings: Settings, seccomp: bool, directory: RunDirectory, emit: Emit) -> None:
        self.settings = settings
        self.seccomp = seccomp
        self.emit = emit
        self.stopped = ""
        self.finished: list[tuple[Job, ScenarioResult]] = []
        self._directory = directory
        self._todo: deque[Task] = deque()
        self._wake = threading.Condition()
        self._ending = False
        self._results: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._slots = [Slot(number, directory, seccomp, settings.first_core) for number in range(settings.jobs)]
        self._threads: list[threading.Thread] = []
        self._told = 0.0
        #: jobs whose violations were tried on real file systems
        self._seen: list[Job] = []
        self._began = 0.0
        self._only: list[Cell] | None = None
        #: tasks that were given out and have not come back
        self._out = 0

    def run(self, jobs: list[Job], only: list[Cell] | None = None) -> None:
        """Until every job has a result, or the run is stopped. only: realise just these cells (replay)."""
        self._only = only
        self._began = time.monotonic()
        self._threads = [threading.Thread(target=self._work, args=(slot,), daemon=True) for slot in self._slots]
        for thread in self._threads:
            thread.start()
        try:
            self._drive(jobs)
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        finally:
            self._end()
        for job in jobs:
            if job.started and not job.done:
                self._finish(job)

    def _drive(self, jobs: list[Job]) -> None:
        waiting = deque(jobs)
        active: list[Job] = []
        lonely: list[Job] = []
        failed: list[Job] = []
        limit = self.settings.max_time
        while waiting or active or lonely or failed:
            if lonely and not waiting and not active:
                active.append(lonely.pop(0))
                self._again_alone(active[0])
                continue
            if failed and not waiting and not active:
                self._shrink(failed.pop(0))
                continue
            while waiting and len(active) < len(self._slots) and not self.stopped:
                job = waiting.popleft()
                job.started = time.monotonic()
                self.emit(ScenarioStarted(name=job.scenario.name))
                active.append(job)
                for ops in job.sequences:
                    self._give(Task(job, "prepare", ops=ops))
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
                elif shrinking.wanted(job):
                    failed.append(job)
                    if self.settings.stop_on_first and not self._made(job).as_expected:
                        for other in (one for one in active if one is not job):
                            self._drop(other)
                        self._shrink(job)
                        break
                else:
                    self._finish(job)
            if limit is not None and time.monotonic() - self._began > limit and not self.stopped:
                self.stopped = "--max-time"
            if self.stopped:
                return

    def _shrink(self, job: Job) -> None:
        """What can only be done when nothing else is left to do; then the job has its result."""
        with contextlib.suppress(Enough):  # the run is stopped; what was found stands
            shrinking.shrink(job, self._alone, self.settings.shrink, self.emit)
        self._finish(job)

    def _alone(self, job: Job, until: float) -> None:
        """Judge what is missing of a job, with nothing beside it, until its goal is reached.

        Raises `Enough` at the time `until`, and when the run's own time is over.
        """
        limit = self.settings.max_time
        ends = float("inf") if limit is None else self._began + limit
        done = [example.ops for example in job.examples]
        for ops in job.sequences:
            if ops not in done:
                self._give(Task(job, "prepare", ops=ops))
        while job.open_tasks or job.slow:
            if not job.open_tasks and not self._out:
                self._again_alone(job)
                continue
            now = time.monotonic()
            if now > until or now > ends:
                self._drop(job)
                raise Enough("the run's time is over (--max-time)" if now > ends else "")
            try:
                task = self._results.get(timeout=0.2)
            except queue.Empty:
                continue
            self._take(task)
            if job.goal and job.goal in job.violated():
                self._drop(job)
                return

    def _drop(self, job: Job) -> None:
        """Take back what of a job has not begun; what has begun is not waited for, and counts for nothing."""
        with self._wake:
            kept = [task for task in self._todo if task.job is not job]
            self._out -= len(self._todo) - len(kept)
            self._todo = deque(kept)
        job.open_tasks, job.dropped = 0, True
        job.slow.clear()

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
                do(slot, task, self.settings, self._results.put, lambda: self._ending or bool(self.stopped))
            except wire.Closed as lost:
                if not self._ending:
                    slot.close()
                how = "was stopped by a signal, and nobody let it go on" if isinstance(lost, Stopped) else "died"
                task.error = HarnessError(f"the zygote of this scenario {how}; what it had started was ended")
            except Exception as error:
                task.error = error
            self._results.put(task)
        slot.disks.close()
        slot.close()

    # -- bookkeeping, in the main thread -------------------------------------------------------------------------

    def _give(self, task: Task, first: bool = False) -> None:
        task.job.open_tasks += 1
        self._out += 1
        with self._wake:
            (self._todo.appendleft if first else self._todo.append)(task)
            self._wake.notify()

    def _take(self, task: Task) -> None:
        job = task.job
        self._out -= not task.more
        if job.dropped:
            return
        job.open_tasks -= not task.more
        if task.example is not None and task.example.void:
            return
        if isinstance(task.error, Unbatchable):
            assert task.example is not None
            self._without_batches(job, task.example, str(task.error))
            return
        if task.error is not None:
            if isinstance(task.error, UsageError):
                job.usage = job.usage or str(task.error)
            else:
                job.error = job.error or str(task.error)
            self._drop(job)  # whatever else it shows, it cannot be judged
            return
        if task.do == "prepare":
            example = Example(job.scenario, task.ops, task.answers[0], self.seccomp)
            job.take_example(example)
            self._try_all(job, example)
        elif task.do in ("power", "power_again", "real"):
            assert task.example is not None
            self._take_cuts(job, task, task.example)
        elif task.do == "seen":
            assert task.example is not None and task.fault is not None
            losses = task.example.walk(task.fault[1].model)
            losses.take_seen(task.fault[0].guarantee, task.fault[1], task.model, task.answers)
        elif task.do == "reduce":
            assert task.example is not None and task.fault is not None
            losses = task.example.walk(task.model)
            losses.take_reduced(*task.fault, task.answers[0])
            if losses.disagreement:
                task.example.harness_error = task.example.harness_error or (
                    f"a power cut that broke a guarantee did not do so in processes of its own: {losses.disagreement}"
                )
        elif task.do == "kill":
            assert task.example is not None
            for cell, facts in zip(task.cells, task.answers, strict=True):
                if facts["timed_out"] and not task.alone:
                    job.take_cell(task.example, cell, None)
                    job.slow.append((task.example, cell))
                    continue
                if task.example.missed(cell, facts) and cell.variant == "group":
                    job.take_cell(task.example, cell, None)
                    self._give(Task(job, "kill", task.example, cells=[cell._replace(variant="rebuilt")]))
                    continue
                job.timeouts += facts["timed_out"]
                job.take_cell(task.example, cell, facts)
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
        if not job.open_tasks and not job.slow:
            job.take_rest()
            if not job.goal:
                self._confirm(job)
                self._reduce(job)
            if not job.goal and not job.open_tasks:
                self._see(job)

    def _try_all(self, job: Job, example: Example) -> None:
        """Give out all cells of an example, the most telling first: they are judged in the order of the plan."""
        cells = self._planned(job, example)
        first = self.settings.first
        self._walk(job, example)
        if job.rebuilt:
            cells = [cell for cell in cells if cell.variant in ("group", "rebuilt")]
        if job.likely:
            cells = sorted(cells, key=lambda cell: before(example, cell) not in job.likely)
        elif first:
            name, ops = job.scenario.name, example_id(example.ops)
            cells = sorted(cells, key=lambda cell: family(cell_id(name, ops, cell, "kill")) not in first)
        job.planned += len(cells)
        for at in reversed(range(0, len(cells), CHUNK)):
            self._give(Task(job, "kill", example, cells=cells[at : at + CHUNK]), first=True)

    def _planned(self, job: Job, example: Example) -> list[Cell]:
        """The cells that are kills, or made like one."""
        if self._only is not None:
            return [cell for cell in self._only if cell.model == "kill"]
        return example.plan.cells if "kill" in job.models else []

    def _walk(self, job: Job, example: Example) -> None:
        """Give out the states that a power cut may leave, as many shards as there are slots."""
        if example.reason or not self.seccomp:
            return
        if self._only is not None:
            for cell in self._only:
                if cell.model != "kill":
                    example.walk(cell.model).given += 1
                    self._give(Task(job, _again(cell), example, cells=[cell], model=cell.model))
            return
        for model in job.models:
            if is_real(model):
                example.walk(model).given += 1
                self._give(Task(job, "real", example, model=model))
            elif model != "kill":
                of = len(self._slots)
                example.walk(model).given += of
                for index in range(of):
                    self._give(Task(job, "power", example, model=model, shard=(index, of)))

    def _take_cuts(self, job: Job, task: Task, example: Example) -> None:
        for told in task.answers:
            late = late_cells(task.model, told)
            if late and not task.alone:
                job.slow += [(example, cell) for cell in late]
                if told["timed_out"]:
                    continue
                told["inner"] = [inner for inner in told["inner"] if not inner["timed_out"]]
            job.timeouts += bool(late)
            example.take_cut(task.model, told)
        if task.alone:
            self._again_alone(job)
        if task.coverage is not None:
            example.walk(task.model).finish(task.coverage)
        if job.goal:
            job.take_rest()

    def _reduce(self, job: Job) -> None:
        """Reduce the next fault of each walk to the fewest lost changes; what is told is of one cause then."""
        for example in job.examples:
            for model, losses in example.losses.items():
                fault = losses.next_to_reduce() if not example.harness_error else None
                if fault is not None:
                    self._give(Task(job, "reduce", example, model=model, fault=fault))

    def _see(self, job: Job) -> None:
        """All violations are reduced: try each of a model on the real file systems."""
        if self._only is not None or job in self._seen:
            return
        self._seen.append(job)
        for example in job.examples:
            for losses in [one for model, one in example.losses.items() if not is_real(model)]:
                for cause in losses.causes:
                    for model in job.models if not cause.cell.inner and not cause.cell.without else ():
                        if is_real(model):
                            fault = (cause.fault, cause.cell, cause.facts)
                            self._give(Task(job, "seen", example, cells=[cause.cell], model=model, fault=fault))

    def _without_batches(self, job: Job, example: Example, words: str) -> None:
        """Recovery remembers something from one state to the next: judge the example anew, each in its own process."""
        example.void = True
        job.planned -= len(self._planned(job, example))
        job.slow = [(one, cell) for one, cell in job.slow if one is not example]
        anew = Example(job.scenario, example.ops, example.prepared, self.seccomp)
        anew.remembers = words
        job.replace_example(example, anew)
        self._try_all(job, anew)

    def _again_alone(self, job: Job) -> None:
        """A time-out counts when it comes again with nothing else running; three that did are enough."""
        if job.timeouts >= ENOUGH_TIMEOUTS:
            for example, cell in job.slow:  # they stay untried, and are counted so
                if cell.model != "kill":
                    example.walk(cell.model).given += 1
            job.slow.clear()
        if job.slow:
            example, cell = job.slow.pop(0)
            do = "kill" if cell.model == "kill" else _again(cell)
            self._give(Task(job, do, example, cells=[cell], model=cell.model, alone=True))

    def _confirm(self, job: Job) -> None:
        """All cells are in: do every violation, and a sample, the other way as well."""
        for example in job.examples:
            if example in job.confirmed:
                continue
            job.confirmed.append(example)
            pairs = [*example.to_confirm(SAMPLE), *example.to_kill(), *example.inner_to_confirm()]
            if pairs:
                cells, killed = [cell for cell, _ in pairs], [facts for _, facts in pairs]
                self._give(Task(job, "rebuild", example, cells=cells, killed=killed), first=True)

    def _progress(self, job: Job) -> None:
        now = time.monotonic()
        if job.goal:
            return
        if now - self._told > 0.2 or job.tried == job.planned:
            self._told = now
            self.emit(Progress(name=job.scenario.name, done=job.tried, total=job.planned))

    def _made(self, job: Job) -> ScenarioResult:
        """What the facts of a job come to, as far as they are in."""
        job.take_rest()
        unrun, depth = job.planned - job.tried, job.depth if self.seccomp else 1
        if self.stopped and not job.error and not job.usage and len(job.examples) < len(job.sequences):
            unrun = max(unrun, 1)
        spent = time.monotonic() - job.started
        made = result(job.scenario, job.examples, spent, unrun, job.error, depth, job.models)
        if job.usage:
            made.usage_error, made.as_expected = True, False
            made.reason = job.usage.removeprefix(f"{job.scenario.name}: ")
            made.verdict = "violated" if made.violations else "inconclusive"
            for verdicts in (model.guarantees for model in made.models.values()):
                verdicts.update(
                    {name: "inconclusive" for name, verdict in verdicts.items() if verdict == "not reached"}
                )
        if unrun and not self.stopped and made.verdict == "held":
            made.verdict, made.as_expected = "inconclusive", False
        if self.stopped and unrun and made.verdict in ("held", "inconclusive") and not made.reason:
            made.verdict, made.as_expected = "inconclusive", False
            made.reason = f"stopped ({self.stopped}) with {unrun} cells not tried; give it more time"
        elif self.stopped and not made.reason and unwalked(job.examples, job.models) and made.verdict != "violated":
            made.verdict, made.as_expected = "inconclusive", False
            made.reason = f"stopped ({self.stopped}) before all power cuts were tried; give it more time"
        if job.drawn:
            shrinking.tell(made, job, self.stopped)
        return made

    def _finish(self, job: Job) -> None:
        job.done = True
        made = self._made(job)
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


def _again(cell: Cell) -> str:
    """How one state of a power cut is tried again."""
    return "real" if is_real(cell.model) else "power_again"


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


def _reap_orphans(known: set[int]) -> None:
    """What a killed zygote had started has come to this process when it ended. known: children from before the run."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error, ChildProcessError):
            if process.pid not in known and process.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(process.pid, os.WNOHANG)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Orphans come to this process, and a SIGTERM ends the run the way Ctrl-C does."""
    subreaper = bpf.is_subreaper()
    known = {process.pid for process in psutil.Process().children()}
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
        _reap_orphans(known)


def observation(settings: Settings) -> bool:
    """Whether system calls are observed. Raises `HarnessError` when they cannot be and nothing less was asked for."""
    if settings.observation == "steps":
        return False
    reason = bpf.probe()
    if reason is not None:
        raise HarnessError(f"system calls cannot be observed here: {reason}")
    return True


def run(scenarios: list[Scenario], files: dict[str, Path], settings: Settings, emit: Emit) -> RunResult:
    """Run scenarios; their results. files: label -> path of each scenario's file.

    A scenario that cannot be judged as it is written has that as its result (`usage_error`), and the others go on.
    Raises `HarnessError` when nothing can run here. An interruption ends everything and comes back as a result.
    """
    seccomp = observation(settings)
    if not seccomp:
        if "kill" not in settings.models:
            raise UsageError("power cuts need the record of system calls; leave --observation steps out")
        settings = replace(settings, models=("kill",))
    for scenario in scenarios:
        scenario.allow_outside = (*scenario.allow_outside, *settings.allow_outside)
        scenario.signals = tuple(dict.fromkeys((*scenario.signals, *settings.signals)))
    jobs = [_job(scenario, files[scenario.file], settings) for scenario in scenarios]
    return run_jobs(jobs, settings, seccomp, emit, None)


def _job(scenario: Scenario, file: Path, settings: Settings) -> Job:
    """A scenario with its sequences drawn; one whose `ops` or first state cannot be used gets the reason instead."""
    try:
        note = scenario.examine() if scenario.examine is not None else ""
        source = Source(scenario, settings.seed, settings.examples, settings.report_dir / "examples", settings.remember)
        return Job(scenario, file, source.sequences(), source, settings.depth, settings.models, note=note)
    except UsageError as error:
        return Job(scenario, file, [], models=settings.models, usage=str(error))


def run_jobs(
    jobs: list[Job], settings: Settings, seccomp: bool, emit: Emit, only: list[Cell] | None, keep: bool = True
) -> RunResult:
    """only: just these cells (nothing is stored then). keep: whether violations are stored."""
    began = time.monotonic()
    by_signal = any(job.scenario.signals for job in jobs) or any(cell.variant in SIGNALS for cell in only or ())
    if by_signal and seccomp and not bpf.holds_signals():
        raise UsageError(
            "--signal needs Linux 5.19 or later, which keeps a signal back from a stopped call; leave it out"
        )
    with guarded():
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
            notes = [*_first_notes(directory, seccomp), *(job.note for job in jobs if job.note)]
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
    if only is None and keep:
        try:
            for job, made in runner.finished:
                stored.write(job, made, settings)
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
            "observed by named steps alone: crashes inside other calls and in other programs are not tried, nor are "
            "power cuts, no signals but SIGKILL are sent, and records do not prove themselves"
        )
    return notes


def _descriptors() -> int:
    return int(psutil.Process().num_fds()) if hasattr(psutil.Process, "num_fds") else 0
