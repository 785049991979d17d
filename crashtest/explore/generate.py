"""Operation sequences: a fixed list, or examples drawn from a Hypothesis strategy.

Guarantees: the same seed and strategy give the same sequences; each is made of plain values; none is drawn twice.
Runs in the main process only, so that no worker ever loads Hypothesis.
"""

from __future__ import annotations

from typing import Any

from crashtest.errors import UsageError, quoted
from crashtest.scenario import Scenario
from crashtest.values import canonical


def sequences(scenario: Scenario, seed: int, count: int) -> list[list[str] | None]:
    """The operation sequences of a scenario as canonical texts; `[None]` when it has no `ops` part.

    Raises `UsageError` when `ops` fails, gives neither a list nor a strategy, or gives values that are not plain.
    """
    if scenario.make_ops is None:
        return [None]
    try:
        made = scenario.make_ops()
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{scenario.name}: ops raised {type(error).__name__}: {quoted(error)}") from error
    drawn = [list(made)] if isinstance(made, list | tuple) else _drawn(scenario, made, seed, count)
    distinct: dict[str, list[str] | None] = {}
    for ops in drawn:
        texts = [canonical(op, f"{scenario.name}: operation {number + 1}") for number, op in enumerate(ops)]
        distinct.setdefault("\n".join(texts), texts)
    return list(distinct.values())


def _drawn(scenario: Scenario, strategy: Any, seed: int, count: int) -> list[list[Any]]:
    import hypothesis
    from hypothesis.strategies import SearchStrategy

    if not isinstance(strategy, SearchStrategy):
        raise UsageError(
            f"{scenario.name}: ops returned a {type(strategy).__name__}; return a list of operations, or a Hypothesis "
            "strategy for one"
        )
    found: list[list[Any]] = []

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategy)
    def collect(ops: Any) -> None:
        if not isinstance(ops, list | tuple):
            raise UsageError(
                f"{scenario.name}: the strategy of ops drew a {type(ops).__name__}; draw lists of operations"
            )
        found.append(list(ops))

    collect()
    return found
