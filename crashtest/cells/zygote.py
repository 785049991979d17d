"""The zygote: a lean process that loads one scenario file and realises its cells, by workers that its forkers fork.

Guarantees: it imports the standard library, crashtest's lean modules and the user's file, nothing else; it answers
one request at a time; when the main process goes away, by whatever death, it kills and reaps everything it started,
removes its directory and ends. Started by `scale.local`; speaks `crashtest.wire` on the socket it is given.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crashtest import wire
from crashtest.cells.barriers import Mending
from crashtest.cells.drops import Drops, syncs_of
from crashtest.cells.forker import BecomeForker, become, end_all
from crashtest.cells.judge import Expected
from crashtest.cells.leftovers import reap_all
from crashtest.cells.outcome import Crash
from crashtest.cells.power import Bounds, Power
from crashtest.cells.prepare import prepare
from crashtest.cells.realise import Bench
from crashtest.cells.recoveries import Cells, Unbatchable
from crashtest.cells.supervise import Abandoned
from crashtest.errors import HarnessError, UsageError
from crashtest.observe import bpf
from crashtest.persist.filesystems import MODELS
from crashtest.persist.models import POSIX
from crashtest.persist.tree import Tree, remove
from crashtest.scenario import Scenario, load
from crashtest.trace import from_plain

#: seconds to wait for the end of a main process whose socket has closed without a word
MOURNING = 2.0
#: the value of LD_BIND_NOW that is for the zygote alone; any text that is not empty asks for the same
BIND_NOW = "zygote"


class Zygote:
    """Serves requests over `sock` until it closes. `root`: its own directory, which it removes at the end."""

    def __init__(self, sock: socket.socket, root: str) -> None:
        self.sock = sock
        self.root = root
        self.parent = os.pidfd_open(os.getppid()) if hasattr(os, "pidfd_open") else -1
        self.scenarios: dict[str, Scenario] = {}
        self.bench: Bench | None = None
        self.cells: Cells | None = None
        self.power: Power | None = None
        #: by model
        self.drops: dict[str, Drops] = {}

    def serve(self) -> None:
        while True:
            request = wire.receive(self.sock)
            if request["do"] == "end":
                return
            try:
                answer = getattr(self, f"do_{request['do']}")(request)
            except Unbatchable as error:
                answer = {"unbatchable": str(error)}
            except UsageError as error:
                answer = {"usage": str(error)}
            except HarnessError as error:
                answer = {"harness": str(error)}
            except Exception:
                answer = {"harness": traceback.format_exc(limit=-4)}
            wire.send(self.sock, answer)

    def do_load(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load the scenario file; from here on this process only forks."""
        self.scenarios = {one.function: one for one in load(Path(request["file"]), request["label"])}
        core = request.get("core")
        if core is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})
        gc.collect()
        gc.freeze()
        gc.disable()
        return {"loaded": sorted(self.scenarios)}

    def _open(self, request: dict[str, Any]) -> Bench:
        scenario = self.scenarios.get(request["scenario"])
        if scenario is None:
            raise UsageError(f"there is no scenario {request['scenario']} in this file any more")
        if self.cells is not None:
            self.cells.close()
            self.cells = self.power = None
            self.drops.clear()
        if self.bench is None or self.bench.scenario is not scenario:
            if self.bench is not None:
                self.bench.close()
            self.bench = Bench(scenario, self.root, self.sock.fileno(), request["timeout"], request["seccomp"])
        self.bench.known = None
        self.bench.end, self.bench.timeout = "orderly", scenario.timeout or request["timeout"]
        return self.bench

    def do_prepare(self, request: dict[str, Any]) -> dict[str, Any]:
        return prepare(self._open(request), request["ops"], bool(request.get("once")))

    def do_expect(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take over what another zygote (or this one) prepared: first state, operations, expected states."""
        first = Tree.from_plain(request["first"])
        bench = self._open(request)
        events = [from_plain(event) for event in request["events"]]
        bench.expect(request["states"])
        self.cells = Cells(
            bench, first, request["ops"], request["states"], request["depth"], request["batches"], events
        )
        return {}

    def do_kill(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.cells is not None
        alone = bool(request.get("alone"))
        return {"cells": [self.cells.kill(Crash(*crash), alone) for crash in request["crashes"]]}

    def do_kill_inner(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.cells is not None
        path = [Crash(cut, kind, torn) for cut, kind, torn in request["path"]]
        return self.cells.kill_inner(Crash(*request["crash"]), path)

    def do_rebuild(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.cells is not None
        alone = bool(request.get("alone"))
        return {"cells": [self.cells.rebuild(cut, torn, request["compare"], alone) for cut, torn in request["cells"]]}

    def do_power(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin the walk of one shard of the states that a power cut may leave."""
        index, of = request["shard"]
        self.power = self._power(request, (index, of))
        return {}

    def do_power_more(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.power is not None
        return self.power.more()

    def do_power_again(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._power(request, (0, 1)).again(request["cell"])

    def do_real(self, request: dict[str, Any]) -> dict[str, Any]:
        """States that real power cuts have left: each is a cut and a tree. first: the number of the first of them."""
        assert self.cells is not None
        power = Power(self.cells, POSIX, Bounds(0, 0, 0, 0), 0, (0, 1))
        states = [(cut, Tree.from_plain(tree)) for cut, tree in request["states"]]
        cells = [
            power.left(request["first"] + number, cut, tree, request["alone"])
            for number, (cut, tree) in enumerate(states)
        ]
        return {"cells": cells}

    def do_reduce(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.cells is not None
        expected = Expected(self.cells.states, request["names"], request["glances"])
        return self._power(request, (0, 1)).reduce(request["cell"], request["guarantee"], expected)

    def do_syncs(self, request: dict[str, Any]) -> dict[str, Any]:
        """Get ready to drop syncs from the record, and to add some; which places issue them."""
        assert self.cells is not None
        expected = Expected(self.cells.states, request["names"], request["glances"])
        model = MODELS[request["model"]]
        drops = self.drops[model.name] = Drops(self.cells, model, request["losses"], request["seed"], expected)
        return {"sites": drops.sites(), "recoveries": len(drops.roots) - 1}

    def do_syncs_drop(self, request: dict[str, Any]) -> dict[str, Any]:
        dropped, weakened, asked = (
            {(key, ordinal) for key, ordinal in request[name]} for name in ("dropped", "weakened", "asked")
        )
        return self.drops[request["model"]].drop(dropped, weakened, asked, request["weaker"])

    def do_syncs_missing(self, request: dict[str, Any]) -> dict[str, Any]:
        return Mending(self.drops[request["model"]]).missing()

    def do_measure(self, request: dict[str, Any]) -> dict[str, Any]:
        """How long each sync of the workload takes, run by run: (its place, its ordinal there, seconds)."""
        bench = self._open(request)
        first = bench.first_state()
        runs = []
        for _ in range(request["runs"]):
            ran, supervision = bench.run(first, request["ops"] or [], record=True, stacks=True, timed=True)
            events = ran.outcome.trace.events
            took = supervision.took or {}
            runs.append([[*sync, took[at]] for at, sync in syncs_of(events, len(events)).items() if at in took])
        return {"runs": runs}

    def _power(self, request: dict[str, Any], shard: tuple[int, int]) -> Power:
        assert self.cells is not None
        return Power(self.cells, MODELS[request["model"]], Bounds(*request["bounds"]), request["seed"], shard)

    def end(self, orderly: bool = False) -> None:
        """Leave nothing behind; orderly: the main process asked for the end, and does the rest."""
        import shutil  # here, because its libraries would have to be finalised at the end of each worker

        end_all()
        reap_all()
        try:
            remove(self.root)
            os.rmdir(self.root)
        except OSError:
            shutil.rmtree(self.root, ignore_errors=True)
        if not orderly and not self._told_to_end() and self._main_died():
            self._end_for_main()

    def _told_to_end(self) -> bool:
        """Whether the main process said goodbye, though this one was too busy to read it."""
        try:
            return b'"do":"end"' in self.sock.recv(1 << 20, socket.MSG_DONTWAIT)
        except OSError:
            return False

    def _main_died(self) -> bool:
        """Wait a little for it: its sockets close, and its threads end, before the process as a whole does."""
        return self.parent >= 0 and bool(select.select([self.parent], [], [], MOURNING)[0])

    def _end_for_main(self) -> None:
        """The main process was killed: the last zygote of its run removes the run's directory."""
        run = os.path.dirname(self.root)
        with contextlib.suppress(FileNotFoundError):
            if not any(name.startswith("slot-") for name in os.listdir(run)):
                import shutil

                shutil.rmtree(run, ignore_errors=True)


def _abandon(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the end must not be interrupted
    raise Abandoned


def main(fd: int, root: str, finders: Sequence[str] = (), kind: type[Zygote] = Zygote) -> None:
    """The life of a zygote; in a process that it forked, that process's life as a forker, and as a worker.

    finders: modules whose `install` makes editable installs importable, which `site` would have called. kind: what
    serves; the benchmarks have one that does more.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _abandon)
    bpf.die_with_parent(signal.SIGTERM)  # also while the user's file is loading, when nobody looks at the socket
    bpf.become_subreaper()
    sys.dont_write_bytecode = True  # from here on it is the user's
    if os.environ.get("LD_BIND_NOW") == BIND_NOW:
        del os.environ["LD_BIND_NOW"]
    for name in finders:
        importlib.import_module(name).install()
    zygote = kind(socket.socket(fileno=fd), root)
    try:
        zygote.serve()
        zygote.end(orderly=True)
        return
    except BecomeForker as child:
        serve = child.serve
    except (wire.Closed, Abandoned):
        try:
            zygote.end()
        except Abandoned:  # the signal came after the socket had closed
            zygote.end()
        return
    zygote.sock.close()  # before a worker has files under the same number
    become(serve)
