"""The report on a terminal, or in a log.

Guarantees: on a stream that is no terminal, or in CI, or with TERM=dumb, only plain lines are written,
without a control code and whatever the width; with NO_COLOR no colour is written. Nothing of a name or
message is read as markup. Lines reach the stream as scenarios finish, not at the end. Does not promise that
progress is exact.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from crashtest.report import story, words
from crashtest.report.story import Line
from crashtest.verdict import (
    Event,
    Note,
    Progress,
    RunFinished,
    RunResult,
    RunStarted,
    ScenarioFinished,
    ScenarioStarted,
    Shrinking,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

#: seconds without a line after which a plain log is told how far a scenario is
HEARTBEAT = 30.0
#: seconds between two drawings of the bars
REDRAW = 0.1
#: running scenarios that get a bar of their own
BARS = 8


def interactive(stream: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `stream` is a terminal that may be redrawn."""
    if environ.get("CI", "").lower() not in ("", "0", "false") or environ.get("TERM", "") in ("", "dumb"):
        return False
    return stream.isatty()


def console(stream: TextIO) -> Console:
    """A rich console on `stream` that guesses nothing from what it prints."""
    from rich.console import Console

    return Console(
        file=stream, highlight=False, markup=False, emoji=False, force_terminal=True,
        no_color=True if os.environ.get("NO_COLOR") else None,
    )  # fmt: skip


def paint(screen: Console, line: Line) -> None:
    """One line on a rich console, with its styles; no wrapping, no markup."""
    from rich.text import Text

    screen.print(Text.assemble(*line), soft_wrap=True)


def printer(stream: TextIO) -> Callable[[Line], None]:
    """A function that prints one line as `stream` can show it."""
    if interactive(stream):
        screen = console(stream)
        return lambda line: paint(screen, line)
    return lambda line: print(story.plain(line), file=stream, flush=True)


class Plain:
    """Plain lines; now and then one that says how far a long scenario is."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._last = clock()

    def lines(self, lines: Iterable[Line]) -> None:
        for line in lines:
            print(story.plain(line), file=self._stream)
        self._stream.flush()
        self._last = self._clock()

    def begin(self, total: int) -> None:
        """Nothing to prepare."""

    def started(self, name: str) -> None:
        """A start is no news in a log."""

    def progress(self, name: str, done: int, total: int) -> None:
        if self._clock() - self._last >= HEARTBEAT:
            self.lines([(("running      ", "dim"), (f"{words.safe(name)}  {done} of {total} cells", ""))])

    def shrinking(self, name: str, runs: int, operations: int) -> None:
        if self._clock() - self._last >= HEARTBEAT:
            many = words.count(operations, "operation")
            self.lines([(("shrinking    ", "dim"), (f"{words.safe(name)}  run {runs}, with {many}", ""))])

    def finished(self, name: str) -> None:
        """The scenario's own line says so."""

    def close(self) -> None:
        """Nothing to put away."""


class Live:
    """A bar over all scenarios and one for each that runs, redrawn below the lines that stay.

    It starts no thread (the process may fork while it is shown), so it moves when an event comes.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._drawn = 0.0
        self._console = console(stream)
        self._bars: Bars | None = None
        self._whole: TaskID | None = None
        self._tasks: dict[str, TaskID] = {}

    def lines(self, lines: Iterable[Line]) -> None:
        for line in lines:
            paint(self._console, line)

    def begin(self, total: int) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars
        from rich.table import Column

        self._bars = Bars(
            BarColumn(bar_width=12, table_column=Column(min_width=12)),
            MofNCompleteColumn(table_column=Column(min_width=9)),
            TimeElapsedColumn(table_column=Column(min_width=7)),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            console=self._console,
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._bars.start()
        self._whole = self._bars.add_task("scenarios", total=total)

    def started(self, name: str) -> None:
        if self._bars is not None and name not in self._tasks:
            self._tasks[name] = self._bars.add_task(words.safe(name, 120), total=None, visible=len(self._tasks) < BARS)

    def progress(self, name: str, done: int, total: int) -> None:
        if self._bars is not None and name in self._tasks:
            self._bars.update(self._tasks[name], completed=done, total=total)
            now = self._clock()
            if now - self._drawn >= REDRAW:
                self._drawn = now
                self._bars.refresh()

    def shrinking(self, name: str, runs: int, operations: int) -> None:
        if self._bars is not None and name in self._tasks:
            text = f"shrinking, run {runs}: {words.safe(name, 120)}"
            self._bars.update(self._tasks[name], description=text)
            self._bars.refresh()

    def finished(self, name: str) -> None:
        if self._bars is None or self._whole is None:
            return
        task = self._tasks.pop(name, None)
        if task is not None:
            self._bars.remove_task(task)
        self._bars.advance(self._whole)
        self._bars.refresh()

    def close(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


class Terminal:
    """Reads the events of a run and tells them; `finish` writes the summary once the reports are on disk."""

    def __init__(self, stream: TextIO, report_dir: Path, version: str, *, display: Plain | Live | None = None) -> None:
        self._display = display or (Live(stream) if interactive(stream) else Plain(stream))
        self._report_dir = report_dir
        self._version = version
        self._names: list[str] = []
        self._width = 0
        self._told: set[str] = set()

    def __call__(self, event: Event) -> None:
        show = self._display
        match event:
            case RunStarted():
                self._names = event.names
                self._width = story.name_width(event.names)
                show.lines([story.opening(event, self._version)])
                show.begin(len(event.names))
            case ScenarioStarted():
                show.started(event.name)
            case Progress():
                show.progress(event.name, event.done, event.total)
            case Shrinking():
                show.shrinking(event.name, event.runs, event.operations)
            case ScenarioFinished():
                show.finished(event.result.name)
                show.lines(story.scenario_story(event.result, self._report_dir, self._width))
            case Note():
                self._told.add(event.text)
                show.lines([(("note: ", "dim"), (words.safe(event.text), ""))])
            case RunFinished():
                show.close()

    def finish(self, result: RunResult, written: list[Path]) -> None:
        """The summary. `written` are the report files that are on disk now."""
        self.close()
        self._display.lines(story.summary(result, self._names, written, self._told))

    def close(self) -> None:
        """Take the moving lines off the terminal. May be called again."""
        self._display.close()


class Replayed:
    """Reads the events of a replay; only notes are told before `finish`."""

    def __init__(self, stream: TextIO, report_dir: Path) -> None:
        self._print = printer(stream)
        self._report_dir = report_dir

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self._print((("note: ", "dim"), (words.safe(event.text), "")))

    def finish(self, result: RunResult) -> None:
        """The story of the violation, or that it did not come again."""
        for line in story.replayed(result, self._report_dir):
            self._print(line)
