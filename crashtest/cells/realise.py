"""Making crash states real: one bench, where a scenario's parts are run, killed, restarted and looked at.

Guarantees: each run starts from a restored first state in an otherwise empty directory; recovery and observation run
in fresh processes; after each run no process of it is left. A killed run's own record is compared with the disk, byte
for byte, every time, but where children are still held. Not safe for two users at once: a bench belongs to one zygote.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crashtest.cells import worker
from crashtest.cells.judge import next_operation
from crashtest.cells.supervise import Crash, Outcome, Supervision
from crashtest.errors import HarnessError, UsageError, quoted
from crashtest.observe import bpf
from crashtest.observe.syscalls import Recorder
from crashtest.persist.tree import Tree, remove
from crashtest.scenario import Run, Scenario
from crashtest.trace import Event, Op, Step
from crashtest.values import parse

#: what every part of a scenario is run with, so that two runs differ in nothing the harness could have fixed
ENVIRONMENT = {
    "TZ": "UTC",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "crashtest",
    "GIT_AUTHOR_EMAIL": "crashtest@example.invalid",
    "GIT_AUTHOR_DATE": "2000-01-01T00:00:00+0000",
    "GIT_COMMITTER_NAME": "crashtest",
    "GIT_COMMITTER_EMAIL": "crashtest@example.invalid",
    "GIT_COMMITTER_DATE": "2000-01-01T00:00:00+0000",
}


@dataclass
class Restarted:
    """What came of starting again. failure: why it did not work ("" when it did); timeout: it took too long."""

    failure: str = ""
    timeout: bool = False
    value: str = "null"
    #: the tree after recovery, before observe
    tree: Tree | None = None
    observe_changed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Ran:
    """One run of the workload. shadow: the record applied to the first state. proof: how the disk differs, or []."""

    outcome: Outcome
    disk: Tree
    proof: list[str]
    #: the state at each ack (only when asked for)
    at_acks: list[Tree] = field(default_factory=list)


class Bench:
    """Where one zygote runs one scenario. `root`: a directory of its own; `control`: the main process's socket."""

    def __init__(self, scenario: Scenario, root: str, control: int, timeout: float, seccomp: bool) -> None:
        self.scenario = scenario
        self.root = root
        self.state = f"{root}/state"
        self.control = control
        self.timeout = scenario.timeout or timeout
        self.program = bpf.program() if seccomp else None
        #: how parts that may change files end (`worker.child`)
        self.end = "orderly"
        #: whether any run took too long since this was last set to False
        self.timed_out = False
        for name in ("state", "home", "tmp"):
            os.makedirs(f"{root}/{name}", mode=0o700, exist_ok=True)
        self.environment = {**ENVIRONMENT, "HOME": f"{root}/home", "TMPDIR": f"{root}/tmp"}
        os.environ.update(self.environment)  # once here, not in every child: there it would copy the pages

    def clear(self) -> None:
        for name in ("state", "home", "tmp"):
            remove(f"{self.root}/{name}")

    def restore(self, tree: Tree) -> dict[int, int]:
        self.clear()
        return tree.restore(self.state)

    def capture(self) -> Tree:
        return Tree.capture(self.state)

    def _supervise(self, body: Callable[[worker.Pipes], Any], **more: Any) -> Supervision:
        return Supervision(
            body,
            cwd=f"{self.root}/home",
            environment=self.environment,
            output=f"{self.root}/output",
            deadline=self.timeout,
            control=self.control,
            state=self.state,
            **more,
        )

    # -- the parts ---------------------------------------------------------------------------------------------

    def first_state(self) -> Tree:
        """Run the setup; the first state. Raises `UsageError` when the setup fails."""
        self.clear()
        os.chmod(self.state, 0o755)
        setup = self.scenario.setup
        if callable(setup):
            done = self._part("setup", setup)
            if done.failure:
                raise UsageError(f"{self.scenario.name}: setup {done.failure}")
        else:
            for name, content in setup.items():
                path = Path(self.state, name)
                if Path(self.state) not in path.resolve().parents:
                    raise UsageError(f"{self.scenario.name}: setup names {quoted(name)}, outside the state directory")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        return self.capture()

    def _part(self, name: str, function: Callable[..., Any], *more: Any, **options: Any) -> Restarted:
        looks = name in ("glance", "check") or (name == "observe" and self.scenario.do_recover is not None)
        end = "at once" if looks else self.end
        out = self._supervise(worker.part(function, self.state, name, *more), end=end, **options).run()
        return self._part_result(name, out)

    def _part_result(self, name: str, out: Outcome) -> Restarted:
        if "usage" in out.answer:
            raise UsageError(f"{self.scenario.name}: {out.answer['usage']}")
        made = Restarted()
        if out.strays:
            made.notes.append(f"{name} left processes running: {', '.join(map(quoted, out.strays))}")
        made.failure = failure(out, self.timeout)
        made.timeout = out.end == "timeout"
        self.timed_out = self.timed_out or made.timeout
        made.value = str(out.answer.get("value", "null"))
        return made

    def glance(self) -> Restarted:
        """What a reader sees before recovery; a glance that changes a file is a `UsageError`."""
        assert self.scenario.do_glance is not None
        before = self.capture()
        seen = self._part("glance", self.scenario.do_glance)
        changed = before.differences(self.capture())
        if changed:
            raise UsageError(f"{self.scenario.name}: glance changes files ({changed[0]}); it must only look")
        return seen

    def restart(self, known: dict[str, str] | None = None) -> Restarted:
        """Recover and observe what is on disk, each in a fresh process.

        known: digests of recovered trees that have been observed, with what was seen; a tree in it is not
        observed again, a new one is added.
        """
        assert self.scenario.do_observe is not None
        notes: list[str] = []
        before = None
        if self.scenario.do_recover is not None:
            recovered = self._part("recover", self.scenario.do_recover)
            if recovered.failure:
                recovered.failure = f"recovery {recovered.failure}"
                return recovered
            notes, before = recovered.notes, self.capture()
            if known is not None and before.digest() in known:
                return Restarted(value=known[before.digest()], tree=before, notes=notes)
        seen = self._part("observe", self.scenario.do_observe)
        seen.failure = seen.failure and f"observe {seen.failure}"
        seen.notes = notes + seen.notes
        after = self.capture()
        seen.tree = before or after
        if before is not None and before.digest() != after.digest():
            seen.observe_changed = before.differences(after, 3)
        if known is not None and not seen.failure:
            known[seen.tree.digest()] = seen.value
        return seen

    def restart_beside(self, held: frozenset[int], on_lock: Callable[[int], None]) -> Restarted:
        """Recover what is on disk while the processes `held` are stopped; on_lock lets them go."""
        scenario = self.scenario
        name, function = ("recover", scenario.do_recover) if scenario.do_recover else ("observe", scenario.do_observe)
        assert function is not None
        done = self._part(name, function, but=held, on_lock=on_lock, filter_program=self.program)
        done.failure = done.failure and f"recovery {done.failure}"
        return done

    def forget_scratch(self) -> None:
        """Empty HOME and TMPDIR: what a killed run left there is no part of its state."""
        for name in ("home", "tmp"):
            remove(f"{self.root}/{name}")

    def look(self) -> Restarted:
        """Observe what is on disk."""
        assert self.scenario.do_observe is not None
        seen = self._part("observe", self.scenario.do_observe)
        seen.failure = seen.failure and f"observe {seen.failure}"
        return seen

    def check(self, acked: list[str]) -> str:
        """The user's own assertions on what is on disk; "" or what failed."""
        if self.scenario.do_check is None:
            return ""
        return self._part("check", self.scenario.do_check, [parse(text) for text in acked]).failure

    # -- the workload ------------------------------------------------------------------------------------------

    def run(
        self,
        first: Tree,
        ops: list[str],
        *,
        record: bool = False,
        stacks: bool = False,
        crash: Crash | None = None,
        keep_acked: bool = False,
    ) -> tuple[Ran, Supervision]:
        """Run the workload on a fresh copy of `first`. With a "late" crash its children are still held."""
        inodes = self.restore(first)
        values = [parse(text) for text in ops]
        scenario, state = self.scenario, self.state
        body = worker.workload(scenario.workload, lambda tell: Run(Path(state), values, tell))
        kept: list[Tree] = []
        shadow = first.copy() if record and self.program else None
        options: dict[str, Any] = {}
        if record and shadow is not None:
            options = {
                "filter_program": self.program,
                "make_recorder": lambda channels: Recorder(state, shadow, inodes, channels),
                "stacks": stacks,
            }
        if record:
            options.update(steps=True, builtin_steps=self.program is None, crash=crash)
        if keep_acked:
            options["on_ack"] = lambda: kept.append(self.capture())
        supervision = self._supervise(body, end=self.end, **options)
        outcome = supervision.run()
        self.timed_out = self.timed_out or outcome.end == "timeout"
        disk = self.capture()
        proof = shadow.differences(disk) if shadow is not None and not supervision.held() else []
        return Ran(outcome, disk, proof, kept), supervision


def failure(out: Outcome, timeout: float) -> str:
    """Why a part did not end normally, in words that follow its name; "" when it did."""
    if out.end == "timeout":
        return f"did not end within {timeout:g} seconds"
    if out.end == "refused":
        raise HarnessError(f"the run could not be observed: {quoted(out.answer.get('error', ''), 500)}{_said(out)}")
    if "error" in out.answer:
        return f"raised {quoted(out.answer['error'], 500)}"
    if "exit" in out.answer:
        return f"ended with sys.exit({quoted(out.answer['exit'])})"
    if out.status < 0:
        return f"was killed by {signal_name(-out.status)}{_said(out)}"
    if "value" not in out.answer:
        return f"ended its process with status {out.status} before it returned{_said(out)}"
    if out.status:
        return f"ended with status {out.status} after it had returned{_said(out)}"
    return ""


def _said(out: Outcome) -> str:
    last = out.output.strip().splitlines()[-1:]
    return f"; it last said {quoted(last[0])}" if last else ""


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def summary(event: Event | None) -> tuple[str, str]:
    """(what was about to happen, where) for a report."""
    if event is None:
        return "", ""
    return event.describe(), event.where


# -- cells ------------------------------------------------------------------------------------------------------------


class Cells:
    """The crash states of one example: realises them, recovers each distinct tree once, judges nothing itself.

    states: S0..Sn as canonical text. Results are plain dicts for a message (docs: `matrix.py` reads them).
    """

    def __init__(self, bench: Bench, first: Tree, ops: list[str] | None, states: list[str]) -> None:
        self.bench = bench
        self.first = first
        self.ops = ops
        self.states = states
        self.known: dict[str, dict[str, Any]] = {}
        self._observed: dict[str, str] = {}
        self._again: dict[str, dict[str, Any]] = {}
        bench.end = "quick"
        self._live: dict[tuple[str, int], dict[str, Any]] = {}
        self._checked: dict[tuple[str, int], str] = {}
        self._rest_done = False
        self._timeouts = 0

    def kill(self, crash: Crash, alone: bool = False) -> dict[str, Any]:
        """One real kill, then recovery (`_kill`); alone: nothing else runs now, so a time-out is no chance.

        A cell in which anything timed out says so (`timed_out`), and nothing of it is remembered.
        """
        self.bench.timed_out = False
        cell = self._kill(crash)
        cell["timed_out"] = self.bench.timed_out
        new = cell.get("new")
        if alone and new is not None and new["timeout"]:
            new["failure"] += ", twice"
        if self.bench.timed_out and not alone:
            self._timeouts += 1
            for remembered in (self._observed, self._again, self._live, self._checked):
                remembered.clear()
            if new is not None:
                self.known.pop(cell["tree"], None)
        return cell

    def _kill(self, crash: Crash) -> dict[str, Any]:
        """One real kill, then recovery. `proof` in the answer says how the run's record and the disk differ."""
        ran, supervision = self.bench.run(self.first, self.ops or [], record=True, crash=crash)
        if crash.variant == "late" and supervision.held():
            return self._late(crash, ran, supervision)
        out = supervision.finish() if crash.variant == "late" else ran.outcome
        if crash.variant == "late":
            ran.disk = self.bench.capture()
        cell = self._cell(crash, ran, out)
        cell.update(self.settle(ran.disk, out.acks))
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
            "outside": out.trace.outside,
            "proved": self.bench.program is not None and not held,
            "acks": len(out.acks),
        }

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
        self.known[digest] = self._facts(restarted, tree)
        cell.update(
            {"tree": digest, "new": self.known[digest], "extra": self._extra(digest, tree, restarted, out.acks)}
        )
        return cell

    def settle(self, disk: Tree, acks: list[bytes]) -> dict[str, Any]:
        """Recover what is on disk (its tree is `disk`), unless that tree is known already."""
        digest = disk.digest()
        new = None
        if digest not in self.known:
            new = self.known[digest] = self._recover(disk)
        facts = self.known[digest]
        restarted = Restarted(facts["failure"], facts["timeout"], facts["observed"])
        tree = facts.get("_tree")
        extra = self._extra(digest, tree, restarted, acks) if tree is not None else {}
        sent = None if new is None else {key: value for key, value in new.items() if not key.startswith("_")}
        return {"tree": digest, "new": sent, "extra": extra}

    def _recover(self, disk: Tree) -> dict[str, Any]:
        glance = None
        if self.bench.scenario.do_glance is not None:
            seen = self.bench.glance()
            glance = {"failure": seen.failure and f"glance {seen.failure}", "observed": seen.value}
        if self._timeouts >= 3:
            return {
                **self._facts(Restarted("was not tried: three recoveries timed out already"), None),
                "skipped": True,
            }
        self.bench.forget_scratch()
        restarted = self.bench.restart(self._observed)
        facts = self._facts(restarted, restarted.tree)
        facts["glance"] = glance
        if not restarted.failure and restarted.tree is not None:
            facts["again"] = self._recover_again(restarted)
            facts["_tree"] = restarted.tree
        return facts

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
        }

    def _recover_again(self, first: Restarted) -> dict[str, Any]:
        """Recovery of the recovered tree, once for each."""
        assert first.tree is not None
        digest = first.tree.digest()
        known = self._again.get(digest)
        if known is None:
            if first.observe_changed:
                self.bench.restore(first.tree)
            second = self.bench.restart(self._observed)
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

    def rebuild(self, events: list[Event], acks: list[bytes], torn: int) -> dict[str, Any]:
        """The same crash state without a kill: the recorded events applied to the first state, then recovery."""
        tree = self.first.copy()
        for event in events:
            if isinstance(event, Op):
                tree.apply(event)
        self.bench.restore(tree)
        self.known.pop(tree.digest(), None)
        return self.settle(tree, acks)
