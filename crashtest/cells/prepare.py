"""The runs without a crash: the first state, the expected states S0..Sn, and the trace of the whole run.

Guarantees: every expected state is observed after a run that ended normally (or, without operations, on a copy taken
at the ack and once more after the end), twice, and the two must agree. With more operations than `FEW` each state is
taken at its ack, and a sample of them is held against runs that ended normally: when one differs, all are made the
long way. So the cost grows with the number of operations, not with its square. What cannot be judged comes back as a
problem in words, never as an expected state.
"""

from __future__ import annotations

from typing import Any

from crashtest.cells.batch import Batch, Unfit
from crashtest.cells.realise import Bench, Ran, Restarted, failure
from crashtest.errors import HarnessError, quoted
from crashtest.persist.tree import Tree
from crashtest.trace import to_plain
from crashtest.values import shown

#: operations up to which every expected state comes from a run of its own that ends normally
FEW = 24
#: runs that end normally among more operations than that
NORMAL_ENDS = 12


class Problem(Exception):
    """The scenario cannot be judged; the message says why and what to do. guarantee: set when it is a violation."""

    def __init__(self, words: str, guarantee: str = "", wanted: str = "", observed: str = "") -> None:
        super().__init__(words)
        self.guarantee = guarantee
        self.wanted = wanted
        self.observed = observed


class Expected:
    """What the runs without a crash taught: states S0..Sn, names and glances by number, and the recorded run."""

    def __init__(self) -> None:
        self.states: list[str] = []
        self.names: list[list[str]] = []
        self.glances: list[str] = []
        self.notes: list[str] = []
        self.observe_changed: list[str] = []
        self.recorded: Ran | None = None

    def forget(self) -> None:
        """Begin anew."""
        for learnt in (self.states, self.names, self.glances):
            learnt.clear()


def prepare(bench: Bench, ops: list[str] | None, once: bool = False) -> dict[str, Any]:
    """All the runs without a crash, as a message. `ops`: canonical texts, or None without an `ops` part.

    once: one run, with the expected states taken at its acks; only for a guess whose result is judged in full later.
    """
    first = bench.first_state()
    expected = Expected()
    problem: Problem | None = None
    try:
        (_guess if once and ops else _learn)(bench, first, ops, expected)
    except Problem as found:
        problem = found
    recorded = expected.recorded
    trace = recorded.outcome.trace if recorded is not None else None
    return {
        "first": first.to_plain(),
        "states": expected.states,
        "names": expected.names,
        "glances": expected.glances,
        "notes": expected.notes,
        "observe_changed": expected.observe_changed,
        "problem": str(problem) if problem else "",
        "fault": [problem.guarantee, problem.wanted, problem.observed] if problem and problem.guarantee else [],
        "events": [to_plain(event) for event in trace.events] if trace else [],
        "outside": trace.outside if trace else [],
        "unmodelled": trace.unmodelled if trace else [],
        "company": recorded.outcome.company if recorded else [],
        "proof": recorded.proof if recorded else [],
        "uncertain": recorded.outcome.uncertain if recorded else 0,
    }


def _learn(bench: Bench, first: Tree, ops: list[str] | None, expected: Expected) -> None:
    if ops is None:
        _learn_at_acks(bench, first, expected)
        return
    if len(ops) > FEW and _learn_along(bench, first, ops, expected):
        return
    expected.forget()
    for number in range(len(ops) + 1):
        whole = number == len(ops)
        ran, _ = bench.run(first, ops[:number], record=whole, stacks=whole)
        if whole:
            expected.recorded = ran
        _normal(bench, ran, number)
        names = ran.disk.names()
        state, after = _observed(bench, ran.disk, expected, number)
        _checked(bench, ran, number, number)
        expected.states.append(state)
        expected.names.append(sorted({*names, *after.names()}))
    for number in range(len(ops) + 1):
        ran, _ = bench.run(first, ops[:number])
        _normal(bench, ran, number)
        state, _ = _observed(bench, ran.disk, None, number)
        _agree(expected.states[number], state, number)


def _learn_along(bench: Bench, first: Tree, ops: list[str], expected: Expected) -> bool:
    """Many operations: each state as it is at its ack, twice. False when a run that ended there shows another one."""
    runs = [bench.run(first, ops, record=True, stacks=not attempt, keep_acked=True)[0] for attempt in range(2)]
    expected.recorded = runs[0]
    for ran in runs:
        _normal(bench, ran, len(ops))
    batch: Batch | None = Batch(bench, record=False)
    try:
        for attempt, ran in enumerate(runs):
            for number, tree in enumerate([first, *ran.at_acks]):
                try:
                    state, after = _observed(bench, tree, None if attempt else expected, number, batch)
                except Unfit:
                    if batch is not None:
                        batch.close()
                    batch = None
                    state, after = _observed(bench, tree, None if attempt else expected, number)
                if attempt:
                    _agree(expected.states[number], state, number)
                else:
                    expected.states.append(state)
                    expected.names.append(after.names())
    finally:
        if batch is not None:
            batch.close()
    return _as_if_ended(bench, first, ops, expected)


def _as_if_ended(bench: Bench, first: Tree, ops: list[str], expected: Expected) -> bool:
    """Whether the states at the acks are those of runs that end normally, where that was tried."""
    last = len(ops)
    for number in sorted({round(at * last / NORMAL_ENDS) for at in range(NORMAL_ENDS + 1)}):
        ran, _ = bench.run(first, ops[:number])
        _normal(bench, ran, number)
        state, after = _observed(bench, ran.disk, None, number)
        names = sorted({*ran.disk.names(), *after.names()})
        if number == 0:  # the workload may have made something before its first operation
            expected.names[0] = names
        unlike = "clean" in bench.scenario.claimed() and names != expected.names[number]
        if unlike or state != expected.states[number]:
            return False
    return True


def _guess(bench: Bench, first: Tree, ops: list[str] | None, expected: Expected) -> None:
    """What `_learn` would find if every operation is written when it is acked, for the price of one run."""
    ran, _ = bench.run(first, ops or [], record=True, keep_acked=True)
    expected.recorded = ran
    _normal(bench, ran, len(ops or []))
    for number, tree in enumerate([first, *ran.at_acks]):
        state, after = _observed(bench, tree, expected, number)
        expected.states.append(state)
        expected.names.append(sorted({*tree.names(), *after.names()}))


def _learn_at_acks(bench: Bench, first: Tree, expected: Expected) -> None:
    runs = []
    for attempt in range(2):
        ran, _ = bench.run(first, [], record=True, stacks=not attempt, keep_acked=True)
        runs.append(ran)
        expected.recorded = expected.recorded or ran
        _normal(bench, ran, None)
    trees = [first, *runs[0].at_acks]
    for number, tree in enumerate(trees):
        last = number == len(trees) - 1
        names = {*tree.names(), *(runs[0].disk.names() if last else [])}
        state, after = _observed(bench, tree, expected, number)
        expected.states.append(state)
        expected.names.append(sorted({*names, *after.names()}))
    end, after = _observed(bench, runs[0].disk, None, len(trees) - 1)
    _checked(bench, runs[0], len(trees) - 1, len(runs[0].outcome.acks))
    if len(trees) == 1 or "durable" not in bench.scenario.claimed():
        if end != expected.states[-1]:  # what follows the last ack is one more operation, without an ack
            expected.states.append(end)
            expected.names.append(sorted({*runs[0].disk.names(), *after.names()}))
        trees.append(runs[0].disk)
    elif end != expected.states[-1]:
        raise Problem(
            f"acked before it was written: after the normal end the state is not the one at the last ack "
            f"({len(trees) - 1}); send the ack after the data has left the program's own buffers",
            "durable",
            f"{shown(end)}, the state after the normal end",
            f"{shown(expected.states[-1])} at ack {len(trees) - 1}",
        )
    again = [first, *runs[1].at_acks]
    if len(again) < len(trees) and len(runs[0].at_acks) == len(runs[1].at_acks):
        again.append(runs[1].disk)
    if len(again) != len(trees):
        raise Problem(
            f"two runs without a crash sent {len(trees) - 1} and {len(again) - 1} acks; make the workload do the "
            "same each time"
        )
    for number, tree in enumerate(again[: len(expected.states)]):
        state, _ = _observed(bench, tree, None, number)
        _agree(expected.states[number], state, number)


def _normal(bench: Bench, ran: Ran, acks: int | None) -> None:
    """Raises `Problem` unless the run ended normally with that many acks."""
    out = ran.outcome
    words = failure(out, bench.timeout)
    if words:
        raise Problem(f"in a run without a crash the workload {words}")
    if out.strays:
        raise Problem(
            f"the workload ended but left processes running: {', '.join(map(quoted, out.strays))}; end them and wait"
        )
    if acks is not None and len(out.acks) != acks:
        raise Problem(
            f"the workload acked {len(out.acks)} of {acks} operations in a run without a crash; call run.ack() once "
            "for each of run.ops, also for one that was refused"
        )
    if ran.proof and not out.trace.unmodelled:
        cause = "a change that no recorded call made (a shared mapping made writable by mprotect, a foreign process)"
        raise Problem(f"the record does not give what is on disk: {quoted(ran.proof[0], 400)}; likely cause: {cause}")


def _observed(
    bench: Bench, tree: Tree, expected: Expected | None, number: int, batch: Batch | None = None
) -> tuple[str, Tree]:
    """Start again on a copy of `tree` and look. (state, the tree after it). Raises `Unfit`."""
    bench.restore(tree)
    glance = None
    if bench.scenario.do_glance is not None and expected is not None:
        seen = bench.glance(batch)
        if seen.failure:
            raise Problem(f"in a run without a crash glance {seen.failure}")
        glance = seen.value
    restarted: Restarted = bench.restart(batch=batch)
    if restarted.failure:
        raise Problem(f"in a run without a crash (after operation {number}) {restarted.failure}")
    if restarted.tree is None:
        raise HarnessError("the recovered state was not captured")
    if expected is not None:
        expected.glances += [] if glance is None else [glance]
        expected.notes.extend(note for note in restarted.notes if note not in expected.notes)
        expected.observe_changed = expected.observe_changed or restarted.observe_changed
    return restarted.value, restarted.tree


def _checked(bench: Bench, ran: Ran, number: int, acked: int) -> None:
    """The user's own check on what lies there, which must hold where nothing crashed. Raises `Problem`."""
    words = bench.check([line[1:].decode() for line in ran.outcome.acks[:acked]])
    if words:
        raise Problem(f"in a run without a crash (after operation {number}) check {words}")


def _agree(one: str, other: str, number: int) -> None:
    if one != other:
        raise Problem(
            f"two runs without a crash differ after operation {number}: {shown(one, 120)} and {shown(other, 120)}; "
            "observe only what is the same each time (no times, random names, process ids)"
        )
