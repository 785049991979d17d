"""Making crash states real: one bench, where a scenario's parts are run, killed, restarted and looked at.

Guarantees: each run starts from a restored first state in an otherwise empty directory; recovery and observation run
in fresh processes; after each run no process of it is left. A killed run's own record is compared with the disk, byte
for byte, every time, but where children are still held. Not safe for two users at once: a bench belongs to one zygote.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crashtest.cells import worker
from crashtest.cells.forker import Forker
from crashtest.cells.outcome import Crash, Outcome
from crashtest.cells.supervise import Supervision
from crashtest.errors import UsageError, quoted
from crashtest.looking import names_in, without_strangers
from crashtest.observe import bpf
from crashtest.observe.stacks import DESCRIPTOR
from crashtest.observe.syscalls import Recorder
from crashtest.persist.over import Unfit, restore_over
from crashtest.persist.tree import Tree, remove
from crashtest.scenario import Scenario
from crashtest.trace import Event, Trace, near
from crashtest.values import canonical, parse

if TYPE_CHECKING:
    from crashtest.cells.batch import Batch

#: the mode of the directories that programs are given
_PRIVATE = stat.S_IFDIR | 0o700
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


class Restarted:
    """What came of starting again. failure: why it did not work ("" when it did); timeout: it took too long."""

    def __init__(self, failure: str = "", timeout: bool = False, value: str = "null") -> None:
        self.failure = failure
        self.timeout = timeout
        self.value = value
        #: what recovery did (observe, where that is the recovery), when it was recorded
        self.trace: Trace | None = None
        #: how that record differs from the disk, or []
        self.proof: list[str] = []
        #: the tree after recovery, before observe
        self.tree: Tree | None = None
        self.observe_changed: list[str] = []
        self.notes: list[str] = []


class Ran(NamedTuple):
    """One run of the workload. proof: how the disk differs from the record applied to the first state, or []."""

    outcome: Outcome
    disk: Tree
    proof: list[str]
    #: the state at each ack (only when asked for)
    at_acks: list[Tree]


class Bench:
    """Where one zygote runs one scenario. `root`: a directory of its own; `control`: the main process's socket."""

    def __init__(self, scenario: Scenario, root: str, control: int, timeout: float, seccomp: bool) -> None:
        self.scenario = scenario
        self.root = root
        self.state = f"{root}/state"
        self.control = control
        self.timeout = scenario.timeout or timeout
        self.program = bpf.program() if seccomp else None
        #: how parts that may change files end (`worker.live`)
        self.end = "orderly"
        #: names of files that are observed, None for all (`expect`)
        self.known: frozenset[str] | None = None
        #: whether any run took too long since this was last set to False
        self.timed_out = False
        os.makedirs(root, mode=0o700, exist_ok=True)
        # once here, not in every child: there it would copy the pages
        os.environ.update({**ENVIRONMENT, "HOME": f"{root}/home", "TMPDIR": f"{root}/tmp"})
        self._output = os.open(f"{root}/output", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._path = Path(self.state)
        #: what lies in the state directory, where that is known
        self._lying: Tree | None = None
        self._owner = os.getpid()
        self._forkers: dict[tuple[bool, bool, bool], Forker] = {}

    def close(self) -> None:
        """End the processes that fork; the bench cannot be used any more. Does nothing in a process forked from it."""
        if os.getpid() != self._owner:
            return
        for forker in self._forkers.values():
            forker.close()
        self._forkers.clear()
        os.close(self._output)

    def clear(self) -> None:
        """Nothing is left of earlier runs, wherever below the bench it lay; the directories are new."""
        self.touched()
        remove(self.root, but=os.fstat(self._output).st_ino)
        for name in ("state", "home", "tmp"):
            os.mkdir(f"{self.root}/{name}", 0o700)

    def scratch(self) -> str:
        """The digest of what lies in HOME and TMPDIR, "" when that is nothing."""
        digests = [
            Tree.capture(f"{self.root}/{name}").digest()
            for name in ("home", "tmp")
            if os.listdir(f"{self.root}/{name}")
        ]
        return "+".join(digests)

    def restore(self, tree: Tree) -> dict[int, int]:
        """Put a tree on disk; its file ids by inode number (`tree.inodes` too)."""
        inodes: dict[int, int] = {}
        lying, self._lying = self._lying, None
        if lying is not None and self._clear_around():
            with contextlib.suppress(Unfit):
                inodes = restore_over(lying, tree, self.state)
        if not inodes:
            self.clear()
            inodes = tree.restore(self.state)
        tree.inodes = inodes
        self._lies(tree)
        return inodes

    def _clear_around(self) -> bool:
        """`clear`, but for the state; False when more has to be cleared than what programs are given."""
        if sorted(os.listdir(self.root)) != ["home", "output", "state", "tmp"]:
            return False
        for name in ("home", "tmp"):
            path = f"{self.root}/{name}"
            if os.lstat(path).st_mode != _PRIVATE or os.listdir(path):
                return False
        return True

    def _lies(self, tree: Tree) -> None:
        """Remember what lies on disk, until something is run there."""
        self._lying = tree.copy()
        self._lying.inodes = tree.inodes

    def touched(self) -> None:
        """Something runs that may change what lies on disk."""
        self._lying = None

    def capture(self) -> Tree:
        tree = Tree.capture(self.state)
        self._lies(tree)
        return tree

    def forker(self, observed: bool = False, steps: bool = False, stacks: bool = False) -> Forker:
        """A new process that forks workers for the parts of this scenario (`_body`)."""
        program = self.program if observed else None
        if stacks and program is not None:
            program = bpf.program(passing=DESCRIPTOR)
        return Forker(
            self._body,
            cwd=f"{self.root}/home",
            output=self._output,
            program=program,
            steps=steps,
            builtin=steps and self.program is None,
            stacks=stacks and program is not None,
        )

    def _forker(self, observed: bool, steps: bool, stacks: bool) -> Forker:
        """The one that is kept for such runs."""
        kept = self._forkers.get((observed, steps, stacks))
        if kept is not None and kept.in_use:  # by a run that an error ended
            kept.close()
            kept = None
        if kept is None:
            kept = self._forkers[observed, steps, stacks] = self.forker(observed, steps, stacks)
        return kept

    def _end_stacks(self) -> None:
        """Runs with stacks are few: what forks their workers is not kept."""
        forker = self._forkers.pop((True, True, True), None)
        if forker is not None:
            forker.close()

    def _body(self, part: str, texts: list[str]) -> worker.Body:
        """In a worker: what it does. part, texts: as `_supervise` was given them."""
        if part == "workload":
            return worker.workload(self.scenario.workload, self._path, texts)
        if part == "serve":
            scenario = self.scenario
            functions = {"recover": scenario.do_recover, "observe": scenario.do_observe, "glance": scenario.do_glance}
            parts = {name[0].encode(): worker.part(f, self._path, name) for name, f in functions.items() if f}
            return worker.serving(parts, f"{self.root}/home")
        function = self.scenario.setup if part == "setup" else getattr(self.scenario, f"do_{part}")
        assert callable(function)
        more = [[parse(text) for text in texts]] if part == "check" else []
        return worker.part(function, self._path, part, *more)

    def _supervise(
        self,
        part: str,
        texts: list[str] | None = None,
        *,
        end: str = "",
        observed: bool = False,
        steps: bool = False,
        stacks: bool = False,
        forker: Forker | None = None,
        **more: Any,
    ) -> Supervision:
        """Start a part of the scenario ("workload" for the workload). texts: operations, or acked values."""
        self.touched()
        return Supervision(
            forker or self._forker(observed, steps, stacks),
            part,
            texts or [],
            end=end or self.end,
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
            done = self._part("setup")
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

    def _part(self, name: str, texts: list[str] | None = None, **options: Any) -> Restarted:
        looks = name in ("glance", "check") or (name == "observe" and self.scenario.do_recover is not None)
        out = self._supervise(name, texts, end="at once" if looks else "", **options).run()
        return self.part_result(name, out)

    def recover_on(self, tree: Tree, crash: Crash | None = None, stacks: bool = False) -> tuple[Restarted, Outcome]:
        """Run recovery (observe, where there is no recover part) on disk, recorded. tree: what is on disk.

        crash: kill it there. The tree must have been captured from the disk, or restored to it (`Tree.inodes`).
        """
        name = self.recovery()
        shadow = tree.copy()
        out = self._supervise(
            name,
            observed=True,
            steps=True,
            make_recorder=lambda channels: Recorder(self.state, shadow, dict(tree.inodes), channels),
            stacks=stacks,
            crash=crash,
            who="recovery",
        ).run()
        self._end_stacks()
        made = self.part_result(name, out)
        made.tree, made.trace = self.capture(), out.trace
        made.proof = shadow.differences(made.tree)
        return made, out

    def recovery(self) -> str:
        """The part that recovery is."""
        return "recover" if self.scenario.do_recover else "observe"

    def part_result(self, name: str, out: Outcome) -> Restarted:
        if "usage" in out.answer:
            raise UsageError(f"{self.scenario.name}: {out.answer['usage']}")
        made = Restarted()
        if out.strays:
            made.notes.append(f"{name} left processes running: {', '.join(map(quoted, out.strays))}")
        made.failure = failure(out, self.timeout)
        made.timeout = out.end == "timeout"
        self.timed_out = self.timed_out or made.timeout
        made.value = str(out.answer.get("value", "null"))
        if self.known is not None and name == "observe" and not made.failure:
            made.value = canonical(without_strangers(parse(made.value), self.known))
        return made

    def expect(self, states: list[str]) -> None:
        """From here on files that are in none of the expected states are not observed, where observe just looks."""
        self.known = names_in(map(parse, states)) if self.scenario.looks else None

    def part(self, name: str) -> Restarted:
        """Run recover, observe or glance on what is on disk, in a process of its own."""
        return self._part(name)

    def _recovered(self, tree: Tree, stacks: bool) -> Restarted:
        return self.recover_on(tree, stacks=stacks)[0]

    def glance(self, batch: Batch | None = None) -> Restarted:
        """What a reader sees before recovery; a glance that changes a file is a `UsageError`."""
        before = self.capture()
        seen = self.part("glance") if batch is None else batch.part("glance")
        changed = before.differences(self.capture())
        if changed:
            raise UsageError(f"{self.scenario.name}: glance changes files ({changed[0]}); it must only look")
        return seen

    def restart(
        self,
        known: dict[str, str] | None = None,
        record: Tree | None = None,
        batch: Batch | None = None,
        stacks: bool = False,
    ) -> Restarted:
        """Recover and observe what is on disk, each in a fresh process, or both in that of `batch`.

        known: digests of recovered trees that have been observed, with what was seen; a tree in it is not
        observed again, a new one is added. record: the tree on disk, to have recovery recorded. Raises `Unfit` where
        the batch cannot stand for processes of their own.
        """
        assert self.scenario.do_observe is not None
        part: Callable[[str], Restarted] = self.part if batch is None else batch.part
        recover_on = partial(self._recovered, stacks=stacks) if batch is None else batch.recover_on
        recovered = Restarted()
        if self.scenario.do_recover is None and record is None:
            seen = part("observe")
            seen.tree = self.capture()
        elif self.scenario.do_recover is None and record is not None:
            seen = recover_on(record)
        else:
            if record is not None:
                recovered = recover_on(record)
            else:
                recovered = part("recover")
                recovered.tree = self.capture()
            if recovered.failure:
                recovered.failure = f"recovery {recovered.failure}"
                return recovered
            assert recovered.tree is not None
            if known is not None and recovered.tree.digest() in known:
                recovered.value = known[recovered.tree.digest()]
                return recovered
            seen = part("observe")
            after = self.capture()
            if recovered.tree.digest() != after.digest():
                seen.observe_changed = recovered.tree.differences(after, 3)
            seen.tree, seen.trace, seen.proof = recovered.tree, recovered.trace, recovered.proof
        seen.failure = seen.failure and f"observe {seen.failure}"
        seen.notes = recovered.notes + seen.notes
        if known is not None and not seen.failure and seen.tree is not None:
            known[seen.tree.digest()] = seen.value
        return seen

    def restart_beside(self, held: frozenset[int], on_lock: Callable[[int], None]) -> Restarted:
        """Recover what is on disk while the processes `held` are stopped; on_lock lets them go."""
        forker = self.forker(observed=self.program is not None)  # that of the killed run is still in use
        try:
            done = self._part(self.recovery(), but=held, on_lock=on_lock, forker=forker)
        finally:
            forker.close()
        done.failure = done.failure and f"recovery {done.failure}"
        return done

    def look(self) -> Restarted:
        """Observe what is on disk."""
        assert self.scenario.do_observe is not None
        seen = self.part("observe")
        seen.failure = seen.failure and f"observe {seen.failure}"
        return seen

    def check(self, acked: list[str]) -> str:
        """The user's own assertions on what is on disk; "" or what failed."""
        if self.scenario.do_check is None:
            return ""
        return self._part("check", acked).failure

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
        timed: bool = False,
    ) -> tuple[Ran, Supervision]:
        """Run the workload on a fresh copy of `first`. With a "late" crash its children are still held.

        timed: syncs are made and timed (`Supervision.took`), where the bench's directory is.
        """
        inodes = self.restore(first)
        kept: list[Tree] = []
        shadow = first.copy() if record and self.program else None
        options: dict[str, Any] = {}
        if shadow is not None:
            options["make_recorder"] = lambda channels: Recorder(self.state, shadow, dict(inodes), channels)
            options["stacks"] = stacks
        if record:
            options.update(observed=shadow is not None, steps=True, crash=crash, timed=timed)
        if keep_acked:
            options["on_ack"] = lambda: kept.append(Tree.capture(self.state))
        options.update(ack_line=self.scenario.ack_line, driven=self.scenario.driven)
        supervision = self._supervise("workload", ops, **options)
        outcome = supervision.run()
        self._end_stacks()
        if "usage" in outcome.answer:
            raise UsageError(f"{self.scenario.name}: {outcome.answer['usage']}")
        self.timed_out = self.timed_out or outcome.end == "timeout"
        disk, held = self.capture(), bool(supervision.held())
        if held:
            self.touched()  # they go on
        proof = shadow.differences(disk) if shadow is not None and not held else []
        return Ran(outcome, disk, proof, kept), supervision


def failure(out: Outcome, timeout: float) -> str:
    """Why a part did not end normally, in words that follow its name; "" when it did."""
    if out.end == "timeout":
        return f"did not end within {timeout:g} seconds"
    if "failed" in out.answer:
        return f"failed: {out.answer['failed']}{_said(out)}"
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
    return event.describe(), near(event.where)
