"""Figures, ratios with their targets, and interleaved rounds.

Guarantees: what is compared is measured in turn within each round, in alternating order, and a ratio is the median
of the rounds' ratios; a target is a word beside a figure, never a test.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass
class Ratio:
    """A comparison. low, high: the quartiles of its rounds. target: ("at least" or "at most", value), or None."""

    name: str
    value: float
    low: float
    high: float
    unit: str = ""
    target: tuple[str, float] | None = None

    @property
    def verdict(self) -> str:
        if self.target is None:
            return ""
        word, limit = self.target
        return "met" if (self.value >= limit if word == "at least" else self.value <= limit) else "not met"


@dataclass
class Figure:
    """One absolute measurement, as a median."""

    name: str
    value: float
    unit: str


@dataclass
class Result:
    """What one benchmark found."""

    ratios: list[Ratio] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def rounds(number: int, contenders: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Measure each contender once a round, in turn; one round more goes first and is not counted."""
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for count in range(-1, number):
        for name in list(contenders)[:: 1 if count % 2 else -1]:
            value = contenders[name]()
            if count >= 0:
                found[name].append(value)
    return found


def summed(name: str, values: Sequence[float], target: tuple[str, float] | None = None, unit: str = "") -> Ratio:
    """The median and the quartiles of one value a round."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [values[0]]
    return Ratio(name, middle, low, high, unit, target)


def ratio(name: str, over: Sequence[float], under: Sequence[float], target: tuple[str, float] | None = None) -> Ratio:
    """The median of the rounds' over/under."""
    return summed(name, [one / other for one, other in zip(over, under, strict=True)], target)


def figure(name: str, values: Sequence[float], unit: str, factor: float = 1.0) -> Figure:
    return Figure(name, statistics.median(values) * factor, unit)
