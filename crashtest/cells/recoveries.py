"""What recovery makes of each distinct tree: realise a cell, recover it once, kill that recovery too, go on from it.

Guarantees: a tree is recovered and observed once, however many cells lead to it; a nested crash is the recorded
recovery cut at one of its own crash points, down to the depth asked for, and a tree that has been recovered is not
walked again. Cells are real kills; nested crash states are rebuilt from the record of recovery, which proves itself
against the disk each time, and `kill_inner` makes any of them by a real kill. Judges nothing itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from crashtest.cells import judge
from crashtest.cells.batch import ENOUGH, Batch, Unfit
from crashtest.cells.judge import next_operation
from crashtest.cells.outcome import Crash, Outcome
from crashtest.cells.plan import kind_of, tears_tried
from crashtest.cells.realise import Bench, Ran, Restarted, failure, summary
from crashtest.cells.supervise import Supervision
from crashtest.errors import HarnessError, quoted
from crashtest.persist.tree import Tree
from crashtest.trace import Ack, Event, Op, Step, Trace, crash_points

#: states that a batch turned out unfit for, after which no more is tried
ENOUGH_UNFIT = 3
#: events after a signal that are told
TOLD = 6
#: one in so many batched states is also recovered in processes of its own
SAMPLED = 64


class Unbatchable(Exception):
    """Recovery shows something else in a process that has recovered before; the message says what."""


class Cells:
    """The crash states of one example: realises them, recovers each distinct tree once, judges nothing itself.

    states: S0..Sn as canonical text. depth: 1 kills the workload only, 2 recovery as well, and so on. Results are
    plain dicts for a message; `matrix.py` reads them. events: the recorded run, from which states are computed.
    """

    def __init__(
        self,
        bench: Bench,
        first: Tree,
        ops: list[str] | None,
        states: list[str],
        depth: int,
        batches: bool = True,
        events: list[Event] | None = None,
    ) -> None:
        self.bench = bench
        self.events = events or []
        #: the tree after so many events
        self._at, self._tree = 0, first.copy()
        self._acked: list[bytes] = []
        self.first = first
        self.ops = ops
        self.states = states
        self.depth = depth if bench.program else 1
        self._fresh: dict[str, dict[str, Any]] = {}
        self._settled: set[tuple[str, int]] = set()
        self.known: dict[str, dict[str, Any]] = {}
        self._observed: dict[str, str] = {}
        self._again: dict[str, dict[str, Any]] = {}
        bench.end = "quick"
        self._live: dict[tuple[str, int], dict[str, Any]] = {}
        self._checked: dict[tuple[str, int], str] = {}
        self._rest_done = False
        self._timeouts = 0
        #: what is recovered now decides, so it is tried however many timed out before
        self._certain = False
        #: by whether it records; None where batches proved unfit
        self._batches: dict[bool, Batch | None] = {} if batches else {False: None, True: None}
        self._batched = self._unfit = 0

    def close(self) -> None:
        """End the processes that serve batches."""
        for record in list(self._batches):
            self._drop(record)

    def kill(self, crash: Crash, alone: bool = False) -> dict[str, Any]:
        """One real kill, then recovery (`_kill`); alone: nothing else runs now, so a time-out is no chance.

        A cell in which anything timed out says so (`timed_out`), and nothing of it is remembered.
        """
        self.bench.timed_out = False
        with self.certain(alone):
            return self.timed(self._kill(crash), alone)

    def timed(self, cell: dict[str, Any], alone: bool) -> dict[str, Any]:
        """Say whether anything timed out; then nothing of the cell is remembered, unless it came again alone."""
        cell["timed_out"] = self.bench.timed_out
        if alone:
            for facts in cell["new"].values():
                facts["failure"] += ", twice" if facts["timeout"] else ""
        if self.bench.timed_out and not alone:
            self._timeouts += 1
            for remembered in (self._observed, self._again, self._live, self._checked):
                remembered.clear()
            for digest in cell["new"]:
                self.known.pop(digest, None)
            self._settled.clear()
        return cell

    def _kill(self, crash: Crash) -> dict[str, Any]:
        """One real kill, then recovery. `proof` in the answer says how the run's record and the disk differ."""
        ran, supervision = self.bench.run(self.first, self.ops or [], record=True, crash=crash)
        if crash.variant == "late" and supervision.held():
            return self._late(crash, ran, supervision)
        out = supervision.finish() if crash.variant == "late" else ran.outcome
        if crash.variant == "late":
            ran = ran._replace(disk=self.bench.capture())
        cell = self._cell(crash, ran, out)
        cell.update(self.settle(ran.disk, out.acks, alone=True))
        return cell

    def _cell(self, crash: Crash, ran: Ran, out: Outcome, held: bool = False) -> dict[str, Any]:
        before, where = summary(out.before)
        step = out.before.name if isinstance(out.before, Step) else ""
        return {
            "cut": crash.cut,
            "torn": crash.torn,
            "variant": crash.variant,
            "end": out.end,
            "problem": "" if out.end in ("killed", "normal") else f"the workload {failure(out, self.bench.timeout)}",
            "events": len(out.trace.events),
            "before": before,
            "where": where,
            "step": step,
            "proof": ran.proof,
            "strays": out.strays,
            **self._since_signal(out),
            "outside": out.trace.outside,
            "proved": self.bench.program is not None and not held,
            "acks": len(out.acks),
        }

    def _since_signal(self, out: Outcome) -> dict[str, Any]:
        """What the program did after a signal, and how it ended; nothing where it was sent none."""
        if out.signalled is None:
            return {"after": [], "ended": "", "outlasted": []}
        ended = failure(out, self.bench.timeout).removeprefix("failed: ") or "the program ended normally"
        if out.outlasted:
            ended = "had not ended when its grace was over, and was killed"
        after = [event.describe() for event in out.trace.events[out.signalled :]]
        return {"after": after[:TOLD] + ([f"{len(after) - TOLD} more"] if after[TOLD:] else []), "ended": ended,
                "outlasted": out.outlasted}  # fmt: skip

    def _late(self, crash: Crash, ran: Ran, supervision: Supervision) -> dict[str, Any]:
        """Recovery starts while the killed worker's children are held; they go on when it waits for a lock."""
        but = supervision.held()
        restarted = self.bench.restart_beside(but, supervision.drain)
        out = supervision.finish()
        cell = self._cell(crash, ran, out, held=True)
        tree = self.bench.capture()
        if not restarted.failure:
            restarted = self.bench.look()
        digest = f"late:{tree.digest()}"
        facts = self._facts(restarted, tree)
        self.known[digest] = {**facts, "_killed": True}  # what children did meanwhile cannot be rebuilt
        extra = self._extra(digest, tree, restarted, out.acks)
        cell.update({"tree": digest, "new": {digest: facts}, "extra": extra, "inner": [], "scratch": False})
        return cell

    def settle(self, disk: Tree, acks: list[bytes], alone: bool, on_disk: bool = True) -> dict[str, Any]:
        """Recover what is on disk (its tree is `disk`) and kill that recovery, unless that tree is known already.

        alone: in processes of its own (`batch.py`); the states that killing recovery leaves are for batches. on_disk:
        it lies there already.
        """
        digest, scratch = disk.digest(), self.bench.scratch() if on_disk else ""
        if scratch:  # recovery may look there too, so the same tree beside other leftovers is another state
            digest += f"+{scratch}"
        if not self._walked(digest, 1):
            if not on_disk:
                self.bench.restore(disk)
            self._learn(digest, disk, 1, alone)
        inner: list[dict[str, Any]] = []
        if (digest, len(acks)) not in self._settled:
            self._settled.add((digest, len(acks)))
            self._collect(digest, [], acks, inner, {digest})
            for one in {digest: 0, **{below["tree"]: 0 for below in inner}}:
                self._make_sure(one, len(acks))
        new = self.fresh()
        extra = self._extra_of(digest, acks)
        return {"tree": digest, "new": new, "extra": extra, "inner": inner, "scratch": bool(scratch)}

    def fresh(self) -> dict[str, dict[str, Any]]:
        """What was learnt since it was last asked for, for a message."""
        fresh, self._fresh = self._fresh, {}
        return {key: {k: v for k, v in facts.items() if k[0] != "_"} for key, facts in fresh.items()}

    @contextlib.contextmanager
    def shallow(self) -> Iterator[None]:
        """Within it no recovery is killed."""
        depth, self.depth = self.depth, 1
        try:
            yield
        finally:
            self.depth = depth

    @contextlib.contextmanager
    def certain(self, yes: bool = True) -> Iterator[None]:
        """Within it no recovery is left out because others timed out."""
        self._certain = yes
        try:
            yield
        finally:
            self._certain = False

    def forget(self, digest: str, acked: int) -> None:
        """Let a tree be recovered anew."""
        self.known.pop(digest, None)
        self._settled.discard((digest, acked))
        for remembered in (self._observed, self._again):
            remembered.clear()

    def _extra_of(self, digest: str, acks: list[bytes]) -> dict[str, Any]:
        facts = self.known[digest]
        if facts.get("_tree") is None:
            return {}
        return self._extra(
            digest, facts["_tree"], Restarted(facts["failure"], facts["timeout"], facts["observed"]), acks
        )

    def _walked(self, digest: str, level: int) -> bool:
        """Whether a tree is known, and its recovery was killed too if this level asks for it."""
        facts = self.known.get(digest)
        return facts is not None and (level >= self.depth or facts["_killed"] or facts["skipped"])

    def _learn(self, digest: str, disk: Tree, level: int, alone: bool) -> None:
        """Recover the tree that is on disk, and then each tree that killing this recovery leaves."""
        facts, trace = self._recover(disk, level, alone)
        facts["_killed"] = level < self.depth
        self.known[digest] = self._fresh[digest] = facts
        if trace is None:
            return
        # killed before any of them, recovery leaves the tree it began with, one that follows here, or its last
        facts["steps"] = sorted({event.name for event in trace.events if type(event) is Step})
        for cut, torn, tree in cuts_of(disk, trace):
            below = tree.digest()
            event = trace.events[cut]
            before, where = summary(event)
            step = event.name if isinstance(event, Step) else ""
            facts["nested"].append([cut, torn, kind_of(trace.events, cut), below, before, where, step])
            if not self._walked(below, level + 1):
                self.bench.restore(tree)
                self._learn(below, tree, level + 1, False)

    def _collect(
        self, digest: str, path: list[list[Any]], acks: list[bytes], inner: list[dict[str, Any]], seen: set[str]
    ) -> None:
        """Every nested crash state below a tree, each tree once, with what depends on the acks."""
        for cut, torn, kind, below, before, where, step in self.known[digest].get("nested", []):
            at = [*path, [cut, kind, torn]]
            told = {"path": at, "tree": below, "outer": digest, "before": before, "where": where, "step": step}
            inner.append({**told, "extra": self._extra_of(below, acks)})
            if below not in seen and len(at) < self.depth - 1:
                seen.add(below)
                self._collect(below, at, acks, inner, seen)

    def _recover(self, disk: Tree, level: int, alone: bool) -> tuple[dict[str, Any], Trace | None]:
        """The facts about the tree on disk; the record of its recovery, when that is to be killed in turn."""
        if self._timeouts >= 3 and not self._certain:
            words = "was not tried: three recoveries timed out already"
            return {**self._facts(Restarted(words), None), "skipped": True}, None
        return (None if alone else self._in_batch(disk, level)) or self._tried(disk, level, None)

    def _in_batch(self, disk: Tree, level: int) -> tuple[dict[str, Any], Trace | None] | None:
        """The same by a process that recovers one state after the other; None where that will not do.

        What would be a violation by itself, and a sample, is done again in processes of its own.
        """
        record = level < self.depth
        batch = self.batch(record)
        if batch is None:
            return None
        try:
            facts, trace = self._tried(disk, level, batch)
        except Unfit:
            self._unfit += 1
            for one in (False, True):
                self._drop(one, for_good=self._unfit >= ENOUGH_UNFIT)
            self.bench.restore(disk)
            return None
        self._batched += 1
        facts["_batched"] = disk
        good = not facts["failure"] and facts["observed"] in self.states
        again = facts["again"]
        good = good and (again is None or (not again["failure"] and again["observed"] == facts["observed"]))
        if not good or self._batched <= 2 or self._batched % SAMPLED == 0:
            self._compare(facts, level)
        return facts, trace

    def batch(self, record: bool) -> Batch | None:
        batch = self._batches.get(record)
        if batch is not None and batch.served >= ENOUGH:
            self._drop(record)
        if record not in self._batches:
            self._batches[record] = Batch(self.bench, record)
        return self._batches[record]

    def _drop(self, record: bool, for_good: bool = False) -> None:
        batch = self._batches.pop(record, None)
        if batch is not None:
            batch.close()
        if for_good:
            self._batches[record] = None

    def _make_sure(self, digest: str, acked: int) -> None:
        """A tree that would be a violation after so many acks has been recovered in processes of its own as well."""
        facts = self.known[digest]
        if facts.get("_batched") is None:
            return
        fault = judge.state_fault(self.states, acked, facts["observed"])
        if fault is not None and fault.guarantee in self.bench.scenario.claimed():
            self._compare(facts, self.depth)

    def _compare(self, facts: dict[str, Any], level: int) -> None:
        """Recover in processes of its own what a batch recovered. Raises `Unbatchable` when they disagree."""
        disk, facts["_batched"] = facts["_batched"], None
        observed, again = self._observed, self._again
        self._observed, self._again = {}, {}
        self.bench.restore(disk)
        alone, _ = self._tried(disk, level, None)
        self._observed, self._again = observed, again
        for key in ("failure", "observed", "glance", "again"):
            if alone[key] != facts[key]:
                here, there = quoted(str(facts[key]), 200), quoted(str(alone[key]), 200)
                raise Unbatchable(f"{key}: {here} in a batch, {there} alone")

    def _tried(self, disk: Tree, level: int, batch: Batch | None) -> tuple[dict[str, Any], Trace | None]:
        """Recover, observe and recover again what is on disk. Raises `Unfit`."""
        glance = None
        if self.bench.scenario.do_glance is not None:
            seen = self.bench.glance(batch)
            glance = {"failure": seen.failure and f"glance {seen.failure}", "observed": seen.value}
        restarted = self.bench.restart(self._observed, disk if level < self.depth else None, batch)
        facts = self._facts(restarted, restarted.tree)
        facts["glance"] = glance
        if restarted.trace is not None and not restarted.timeout:
            facts["proof"] = restarted.proof
            facts["unmodelled"] = restarted.trace.unmodelled
            facts["outside"] = restarted.trace.outside
        if not restarted.failure and restarted.tree is not None:
            facts["again"] = self._recover_again(restarted, batch)
            facts["_tree"] = restarted.tree
        return facts, None if restarted.timeout else restarted.trace

    def kill_inner(self, crash: Crash, path: list[Crash]) -> dict[str, Any]:
        """A nested crash by real kills: the workload at `crash`, then each recovery at its place in `path`.

        Answers what `settle` does, of the last tree, with where in the program recovery died.
        """
        ran, _ = self.bench.run(self.first, self.ops or [], record=True, crash=crash)
        disk, where, proof = ran.disk, "", list(ran.proof)
        for inner in path:
            done, out = self.bench.recover_on(disk, inner, stacks=True)
            assert done.tree is not None
            disk = done.tree
            where = summary(out.before)[1]
            proof += done.proof
            if out.end != "killed":
                raise HarnessError(
                    f"recovery did not come to the place where it was to be killed (it ended: {out.end})"
                )
        self.forget(disk.digest(), len(ran.outcome.acks))
        with self.shallow():
            found = self.settle(disk, ran.outcome.acks, alone=True)
        return {**found, "where": where, "proof": proof}

    def _facts(self, restarted: Restarted, tree: Tree | None) -> dict[str, Any]:
        return {
            "failure": restarted.failure,
            "timeout": restarted.timeout,
            "observed": restarted.value,
            "names": tree.names() if tree is not None else [],
            "recovered": tree.digest() if tree is not None else "",
            "observe_changed": restarted.observe_changed,
            "notes": restarted.notes,
            "glance": None,
            "again": None,
            "skipped": False,
            "steps": [],
            "nested": [],
            "proof": [],
            "unmodelled": [],
            "outside": [],
        }

    def _recover_again(self, first: Restarted, batch: Batch | None) -> dict[str, Any]:
        """Recovery of the recovered tree, once for each."""
        assert first.tree is not None
        digest = first.tree.digest()
        known = self._again.get(digest)
        if known is None:
            if first.observe_changed:
                self.bench.restore(first.tree)
            second = self.bench.restart(self._observed, batch=self.batch(False) if batch is not None else None)
            known = self._again[digest] = {"failure": second.failure, "observed": second.value}
        return known

    def _extra(self, digest: str, tree: Tree, restarted: Restarted, acks: list[bytes]) -> dict[str, Any]:
        """What depends on the acks as well: the user's own check, and going on from here."""
        if restarted.failure:
            return {}
        extra: dict[str, Any] = {}
        scenario, acked = self.bench.scenario, len(acks)
        if scenario.do_check is not None:
            key = (digest, acked)
            if key not in self._checked:
                self.bench.restore(tree)
                self._checked[key] = self.bench.check([line[1:].decode() for line in acks])
            extra["check"] = self._checked[key]
        if "live" in scenario.guarantees and self.ops is not None:
            number = next_operation(self.states, acked, restarted.value)
            if number is not None and number < len(self.ops):
                extra["live"] = self._go_on(tree, number, number + 1)
                if not self._rest_done and len(self.ops) - number > 1:
                    self._rest_done = True
                    extra["rest"] = self._go_on(tree, number, len(self.ops))
        return extra

    def _go_on(self, tree: Tree, number: int, last: int) -> dict[str, Any]:
        """Operations `number`+1 to `last` on the recovered tree, then start again and look."""
        key = (tree.digest(), number if last == number + 1 else -number - 1)
        if key not in self._live:
            assert self.ops is not None
            ran, _ = self.bench.run(tree, self.ops[number:last])
            words = failure(ran.outcome, self.bench.timeout)
            done = {"from": number, "last": last, "failure": words and f"the workload {words}", "observed": "null"}
            if not words and len(ran.outcome.acks) != last - number:
                done["failure"] = f"{len(ran.outcome.acks)} of {last - number} operations were acked"
            if not done["failure"]:
                after = self.known.get(ran.disk.digest())  # a tree that has been recovered already
                if after is not None and not after["skipped"]:
                    done["failure"], done["observed"] = after["failure"], after["observed"]
                else:
                    seen = self.bench.restart(self._observed)
                    done["failure"], done["observed"] = seen.failure, seen.value
            self._live[key] = done
        return self._live[key]

    def rebuild(self, cut: int, torn: int, compare: bool, alone: bool) -> dict[str, Any]:
        """A crash state without a kill: the recorded events applied to the first state, then recovery.

        compare: to depth 1 and in processes of its own, and nothing that is remembered may stand for it. alone: as in
        `kill`.
        """
        self.bench.timed_out = False
        tree, acks = self.state(cut, torn)
        self.bench.restore(tree)
        if compare:
            self.forget(tree.digest(), len(acks))
        with self.certain(compare or alone), self.shallow() if compare else contextlib.nullcontext():
            found = self.settle(tree, acks, alone=compare)
        return self.timed({**found, "acks": len(acks)}, alone)

    def state(self, cut: int, torn: int) -> tuple[Tree, list[bytes]]:
        """The tree and the acks at a cut of the recorded run; cheap where cuts are asked for in order."""
        if cut < self._at:
            self._at, self._tree, self._acked = 0, self.first.copy(), []
        for event in self.events[self._at : cut]:
            if isinstance(event, Op):
                self._tree.apply(event)
            elif isinstance(event, Ack):
                self._acked.append(event.line)
        self._at = cut
        tree = self._tree.copy()
        if torn:
            op = self.events[cut]
            assert isinstance(op, Op)
            tree.apply(op._replace(data=op.data[:torn]))
        return tree, list(self._acked)


def cuts_of(disk: Tree, trace: Trace) -> list[tuple[int, int, Tree]]:
    """The crash states inside a recorded recovery: (cut, torn, tree), one for each tree that differs from the last.

    disk: the tree it started from. Its beginning is that tree itself, and its end is what `idempotent` is about.
    """
    tree = disk.copy()
    tree.inodes = {}
    last, at = disk.digest(), 0
    found: list[tuple[int, int, Tree]] = []
    for cut in crash_points(trace.events)[:-1]:
        for event in trace.events[at:cut]:
            if isinstance(event, Op):
                tree.apply(event)
        at = cut
        if tree.digest() != last:
            last = tree.digest()
            found.append((cut, 0, tree.copy()))
        event = trace.events[cut]
        if isinstance(event, Op):
            for torn in tears_tried(event)[0]:
                half = tree.copy()
                half.apply(event._replace(data=event.data[:torn]))
                found.append((cut, torn, half))
    return found
