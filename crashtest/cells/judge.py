"""Judging one crash state: which guarantees an observation breaks. Pure functions, no I/O.

Guarantees: exactly the rules of docs/semantics (expected states S0..Sn, a acks, J = the states that match). An
observation is compared as canonical text (`crashtest.values`), so equal means equal in type and value.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from crashtest.looking import ignored as passed_over
from crashtest.values import shown

if TYPE_CHECKING:
    from crashtest.scenario import Scenario


class Fault(NamedTuple):
    """One broken guarantee, in words: what was wanted and what was found."""

    guarantee: str
    wanted: str
    observed: str


class Expected(NamedTuple):
    """What runs without a crash showed: the states S0..Sn as canonical text, the names in each, and the glances."""

    states: Sequence[str]
    names: Sequence[Sequence[str]] = ()
    glances: Sequence[str] = ()


#: guarantees that say what is wrong with the state, so that it need not be compared with one shown before
STATE = frozenset({"recovers", "atomic", "durable", "ordered"})


def faults(
    scenario: Scenario,
    expected: Expected,
    tree: dict[str, Any],
    acked: int,
    extra: dict[str, Any],
    shown: str | None = None,
) -> tuple[list[str], list[Fault]]:
    """Everything that is judged of one crash state: the guarantees that could be, and the claimed ones it breaks.

    tree: what recovery made of it (`recoveries.py`). extra: what depends on the acks as well (live, check). shown: what
    an earlier recovery had shown when it was done.
    """
    states = expected.states
    judged = ["recovers"]
    found: list[Fault | None] = []
    if tree["glance"] is not None:
        judged.append("visible")
        found.append(visible_fault(expected.glances, tree["glance"]["failure"], tree["glance"]["observed"]))
    if tree["failure"]:
        found.append(Fault("recovers", "recovery and observe end, in time and without an error", tree["failure"]))
        return judged, _claimed(scenario, found)
    judged += ["atomic", "durable", "ordered"]
    fault = state_fault(states, acked, tree["observed"])
    found.append(fault if fault is not None or shown is None else shown_fault(shown, tree["observed"]))
    if tree["again"] is not None:
        judged.append("idempotent")
        found.append(idempotent_fault(tree["observed"], tree["again"]["failure"], tree["again"]["observed"]))
    if "clean" in scenario.guarantees:
        judged.append("clean")
        last = len(expected.names) - 1
        allowed = [*expected.names[min(acked, last)], *expected.names[min(acked + 1, last)]]
        found.append(clean_fault(tree["names"], allowed, scenario.ignore))
    for key in ("live", "rest"):
        if key in extra:
            judged.append("live")
            live = extra[key]
            found.append(live_fault(states, live["from"], live["failure"], live["observed"], live["last"]))
    if "check" in extra:
        judged.append("check")
        if extra["check"]:
            found.append(Fault("check", "the scenario's own check passes", extra["check"]))
    return judged, _claimed(scenario, found)


def _claimed(scenario: Scenario, found: list[Fault | None]) -> list[Fault]:
    claimed = scenario.claimed()
    return [fault for fault in found if fault is not None and fault.guarantee in claimed]


def matching(states: Sequence[str], observed: str) -> list[int]:
    """J: the numbers of the expected states that equal the observation."""
    return [number for number, state in enumerate(states) if state == observed]


def _one_of(states: Sequence[str], first: int, last: int) -> str:
    wanted = dict.fromkeys(shown(states[i]) for i in range(first, min(last, len(states) - 1) + 1))
    return " or ".join(wanted)


def state_fault(states: Sequence[str], acked: int, observed: str) -> Fault | None:
    """`atomic`, `durable` or `ordered`, whichever the observation breaks after `acked` acks; None when all hold."""
    found = matching(states, observed)
    near = f"{_one_of(states, acked, acked + 1)} (after {acked} of {len(states) - 1} acks)"
    if not found:
        return Fault("atomic", near, f"{shown(observed)}, which is no state between two operations")
    if acked in found or acked + 1 in found:
        return None
    # a state that recurs may be too old and too new at once: then acked operations are missing all the same
    older = [number for number in found if number < acked]
    if older:
        return Fault("durable", near, f"{shown(observed)}, the state after operation {max(older)}")
    return Fault("ordered", near, f"{shown(observed)}, the state after operation {min(found)}")


def next_operation(states: Sequence[str], acked: int, observed: str) -> int | None:
    """How many operations the recovered state stands for, to go on from; None when it stands for none allowed."""
    allowed = [number for number in matching(states, observed) if acked <= number <= acked + 1]
    return min(allowed) if allowed else None


def live_fault(states: Sequence[str], number: int, failure: str, observed: str, last: int) -> Fault | None:
    """`live`: going on from state `number` to `last` must succeed and give that state."""
    wanted = f"operation {number + 1} succeeds and gives {shown(states[last])}"
    if last > number + 1:
        wanted = f"operations {number + 1} to {last} succeed and give {shown(states[last])}"
    if failure:
        return Fault("live", wanted, failure)
    if observed != states[last]:
        return Fault("live", wanted, shown(observed))
    return None


def clean_fault(names: Sequence[str], allowed: Sequence[str], ignored: Sequence[str]) -> Fault | None:
    """`clean`: no name is left that a normal run would not have, but for the `ignored` globs."""

    known = set(allowed)
    left = [name for name in names if name not in known and not passed_over(name, ignored)]
    if not left:
        return None
    more = f" and {len(left) - 5} more" if len(left) > 5 else ""
    return Fault(
        "clean", "only names that a run without a crash leaves", f"left over: {', '.join(map(repr, left[:5]))}{more}"
    )


def idempotent_fault(first: str, failure: str, second: str) -> Fault | None:
    """`idempotent`: recovering again shows the same."""
    if failure:
        return Fault("idempotent", f"recovering again gives {shown(first)}", failure)
    if first != second:
        return Fault("idempotent", f"recovering again gives {shown(first)}", shown(second))
    return None


def interrupted_fault(whole: str, killed: str) -> Fault:
    """`idempotent`: recovery that was killed in between and then run again shows what it would have shown."""
    return Fault("idempotent", f"recovery that is killed and run again gives {shown(whole)}", shown(killed))


def shown_fault(first: str, second: str) -> Fault | None:
    """`durable`: what a finished recovery has shown outlives a power cut after it."""
    wanted = f"what the finished recovery had shown: {shown(first)}"
    return Fault("durable", wanted, shown(second)) if first != second else None


def visible_fault(glances: Sequence[str], failure: str, seen: str) -> Fault | None:
    """`visible`: what a reader sees before recovery is one of the states, as such a reader sees them."""
    if failure:
        return Fault("visible", "a reader sees one of the states before recovery", failure)
    if seen not in glances:
        return Fault("visible", "a reader sees one of the states before recovery", f"{shown(seen)}, a mixture")
    return None
