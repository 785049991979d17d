"""One stream of events, many readers.

Guarantees: every reader gets every event in order; a reader that fails is taken off the stream and
remembered, so that a full disk or a closed terminal never ends a run in the middle of a crash cell.
`KeyboardInterrupt` is not an error of a reader and passes through. Main process only, one thread.
"""

from __future__ import annotations

from crashtest.verdict import Emit, Event, RunStarted, ScenarioFinished, ScenarioResult


class FanOut:
    """Sends each event to all readers; `failures` holds what went wrong in those that were taken off."""

    def __init__(self, *readers: Emit) -> None:
        self._readers = list(readers)
        self.failures: list[Exception] = []

    def __call__(self, event: Event) -> None:
        for reader in list(self._readers):
            try:
                reader(event)
            except Exception as error:
                self._readers.remove(reader)
                self.failures.append(error)


class Ledger:
    """Remembers what has been judged so far, so that a run that breaks still has a report."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.observation = ""
        self.finished: list[ScenarioResult] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.names = event.names
            self.observation = event.observation
        elif isinstance(event, ScenarioFinished):
            self.finished.append(event.result)
