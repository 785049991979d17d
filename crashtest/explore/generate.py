"""Operation sequences: a fixed list, or examples drawn from a Hypothesis strategy and shrunk by it.

Guarantees: the same seed, strategy and version of Hypothesis give the same sequences, whatever else is loaded; each
is made of plain values; none is given twice. Sequences that failed in an earlier run (Hypothesis's example database)
come first. `Source.smallest` is Hypothesis's own shrinking: it draws the same sequences again, so that the choices
behind the failing one are its own, and is told from the facts which of them failed. Runs in the main process only:
no worker ever loads Hypothesis, and a worker that is killed loses no choice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

from crashtest.errors import UsageError, quoted
from crashtest.scenario import Scenario
from crashtest.values import canonical

if TYPE_CHECKING:
    from hypothesis.database import ExampleDatabase

#: old failures of one scenario and guarantee that are tried again, at least; the smallest of them first
REMEMBERED = 2

Sequence = list[str]
#: whether a sequence fails; may raise `Enough`
Fails = Callable[[Sequence], bool]


class Enough(BaseException):
    """Raised while shrinking, through Hypothesis: the time or the runs are used up. No `Exception`, so that Hypothesis
    takes it for no failure of the sequence."""


class _Found(Exception):
    """Tells Hypothesis that a sequence fails; always raised at one place, so it is one failure to it."""


class Source:
    """Where the operation sequences of one scenario come from.

    seed, count: what is drawn, and how often at most, where `ops` gives a strategy. database: the directory that
    remembers sequences that failed, or None; again: whether these are tried again. Raises `UsageError` when `ops`
    fails, or gives neither a list nor a strategy.
    """

    def __init__(
        self, scenario: Scenario, seed: int, count: int, database: Path | None = None, again: bool = True
    ) -> None:
        self._name = scenario.name
        self._seed = seed
        self._count = count
        self._database = database
        self._again = again
        self._guarantees = sorted(scenario.claimed())
        self._fixed: list[Any] | None = None
        self._strategy: Any = None
        #: the sequences among `sequences` that failed in an earlier run
        self.old: list[Sequence] = []
        if scenario.make_ops is None:
            return
        try:
            made = scenario.make_ops()
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"{self._name}: ops raised {type(error).__name__}: {quoted(error)}") from error
        if isinstance(made, list | tuple):
            self._fixed = list(made)
            return
        from hypothesis.strategies import SearchStrategy

        if not isinstance(made, SearchStrategy):
            raise UsageError(
                f"{self._name}: ops returned a {type(made).__name__}; return a list of operations, or a Hypothesis "
                "strategy for one"
            )
        self._strategy = made

    @property
    def drawn(self) -> bool:
        """Whether the sequences are drawn, and can be shrunk."""
        return self._strategy is not None

    def sequences(self) -> list[Sequence | None]:
        """The sequences as canonical texts, old failures first; `[None]` without an `ops` part.

        Raises `UsageError` when values are not plain, or the strategy cannot be drawn from.
        """
        if self._strategy is None:
            return [None if self._fixed is None else self._texts(self._fixed)]
        distinct: dict[str, Sequence | None] = {}

        def collect(sequence: Sequence) -> bool:
            distinct.setdefault("\n".join(sequence), sequence)
            return False

        if self._database is not None and self._again:
            for guarantee in self._guarantees:
                self._find(collect, ["reuse"], guarantee, REMEMBERED)
            self.old = [one for one in distinct.values() if one is not None]
        self._find(collect, ["generate"], "", self._count)
        return list(distinct.values())

    def smallest(self, guarantee: str, fails: Fails, known: Fails) -> Sequence | None:
        """The smallest sequence for which `fails`, as far as Hypothesis can shrink; None when it finds none.

        fails: answers from what is known where it can (all that `sequences` gave is), and runs what is new. known: the
        same, without running anything. What fails is remembered for `guarantee` at once, also when `fails` ends the
        search with `Enough`.
        """
        if self._find(known, ["reuse"], guarantee, REMEMBERED) is not None:
            return self._find(fails, ["reuse", "shrink"], guarantee, REMEMBERED, keep=True)
        return self._find(fails, ["generate", "shrink"], guarantee, self._count, keep=True)

    def forget(self, guarantee: str) -> None:
        """What was remembered for `guarantee` has been tried again and does not fail any more: the smallest of it, and
        then what it was shrunk from need not be tried either."""
        if self.old:
            self._find(lambda sequence: False, ["reuse"], guarantee, 10**6, keep=True)

    def _find(self, fails: Fails, phases: list[str], guarantee: str, count: int, keep: bool = False) -> Sequence | None:
        """One search of Hypothesis, for the first or (with the phase shrink) the smallest that fails.

        keep: whether the database learns what it finds, and forgets what does not fail.
        """
        import hypothesis
        from hypothesis.errors import HypothesisException

        smallest: list[Sequence] = []

        @hypothesis.seed(self._seed)
        @hypothesis.given(self._strategy)
        def search(ops: Any) -> None:
            sequence = self._texts(ops)
            if fails(sequence):
                smallest[:] = [sequence]  # Hypothesis does the smallest one last
                raise _Found

        vars(search)["_hypothesis_internal_database_key"] = self._key(guarantee)  # as hypothesis.find sets it
        settings = hypothesis.settings(
            max_examples=count,
            database=self._opened(keep) if guarantee else None,
            deadline=None,
            derandomize=False,
            phases=[hypothesis.Phase[phase] for phase in phases],
            verbosity=hypothesis.Verbosity.quiet,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        try:
            with _no_local_constants():
                settings(search)()  # after seed, which takes the database away
        except _Found:
            return smallest[0]
        except SkipTest:  # nothing is remembered
            return None
        except Enough:
            self._unfinished(guarantee)
            raise
        except HypothesisException as error:
            if phases == ["reuse"]:
                return None  # nothing that is remembered fits the strategy any more
            raise UsageError(
                f"{self._name}: Hypothesis cannot draw from the strategy of ops: {quoted(error, 400)}"
            ) from error
        return None

    def _key(self, guarantee: str) -> bytes:
        return f"{self._name}\n{guarantee}".encode("utf-8", "surrogatepass")

    def _unfinished(self, guarantee: str) -> None:
        """Hypothesis never shrinks again what stands under the key itself; what is not at its end goes beside it."""
        database, key = self._opened(keep=True), self._key(guarantee)
        if database is not None:
            for choices in list(database.fetch(key)):
                database.move(key, key + b".secondary", choices)

    def _opened(self, keep: bool) -> ExampleDatabase | None:
        from hypothesis.database import DirectoryBasedExampleDatabase, ReadOnlyDatabase

        if self._database is None:
            return None
        directory = DirectoryBasedExampleDatabase(self._database)
        return directory if keep else ReadOnlyDatabase(directory)

    def _texts(self, ops: Any) -> Sequence:
        if not isinstance(ops, list | tuple):
            raise UsageError(f"{self._name}: the strategy of ops drew a {type(ops).__name__}; draw lists of operations")
        return [canonical(op, f"{self._name}: operation {number + 1}") for number, op in enumerate(ops)]


@contextlib.contextmanager
def _no_local_constants() -> Iterator[None]:
    """Keep Hypothesis from mixing in constants that stand in modules loaded by chance.

    It takes some from the source of every local module (`hypothesis.internal.conjecture.providers`, since 6.131), so
    that one seed draws other sequences when another file is loaded beside it. Older versions do not.
    """
    from hypothesis.internal.conjecture import providers as module

    providers: Any = module
    theirs = getattr(providers, "_get_local_constants", None)
    if theirs is None:
        yield
        return
    nothing = providers.Constants()
    providers.CONSTANTS_CACHE.cache.clear()
    providers._get_local_constants = lambda: nothing
    try:
        yield
    finally:
        providers._get_local_constants = theirs
        providers.CONSTANTS_CACHE.cache.clear()


def sequences(scenario: Scenario, seed: int, count: int) -> list[Sequence | None]:
    """The operation sequences of a scenario, without any that is remembered (see `Source`)."""
    return Source(scenario, seed, count).sequences()
