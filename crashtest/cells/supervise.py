"""Running one child to its end under supervision: fork, watch, record, and end it at the chosen crash point.

Guarantees: a kill is a real SIGKILL of real processes, sent while the thread that was about to make the next
change is stopped before it; afterwards every process of the run has been reaped, whatever session or group it moved
to. Never signals a process that is not a descendant of this zygote. Waits are bounded by a deadline; a run that
exceeds it is killed and says so.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from crashtest.cells.forker import Forker
from crashtest.cells.leftovers import others, reap_all, reap_dead
from crashtest.cells.outcome import GRACE, Acks, Crash, Outcome
from crashtest.cells.signalled import QUIET, Grace, number_of
from crashtest.errors import HarnessError
from crashtest.observe import bpf
from crashtest.observe.finding import Message, Pending, Sync
from crashtest.observe.listener import Stop
from crashtest.observe.process import Processes, alive, children
from crashtest.observe.stacks import RESTART, Stacks
from crashtest.observe.syncs import time_sync
from crashtest.observe.syscalls import Recorder
from crashtest.scenario import SIGNALS
from crashtest.trace import Ack, Event, Step, Trace

_EXECS = frozenset(number for number, name in bpf.call_names().items() if name.startswith("exec"))
#: how long a call of another thread may stay under way before it is taken as failed, in seconds
PATIENCE = 1.0


class Abandoned(BaseException):
    """The main process is gone: clean up and end."""


class Supervision:
    """One child and all it starts, from fork to the last reaped process.

    recorder: made by `make_recorder(channels)` when the run is observed by system calls, else None.
    """

    def __init__(
        self,
        forker: Forker,
        part: str,
        texts: list[str],
        *,
        end: str,
        deadline: float,
        control: int,
        make_recorder: Callable[[dict[int, str]], Recorder] | None = None,
        state: str = "",
        who: str = "the workload",
        crash: Crash | None = None,
        on_ack: Callable[[], None] | None = None,
        on_lock: Callable[[int], None] | None = None,
        but: frozenset[int] = frozenset(),
        in_turns: bool = False,
        ack_line: str | None = None,
        driven: bool = False,
        timed: bool = False,
    ) -> None:
        self.out = Outcome()
        #: seconds that each fsync and fdatasync took, by the number of its event; None: they are not made
        self.took: dict[int, float] | None = {} if timed else None
        self.crash = crash
        self._deadline = time.monotonic() + deadline
        self._control = control
        self._on_ack = on_ack
        self._on_lock = on_lock
        self._but = but
        self._state = state or os.devnull
        self._who = who
        self._held: list[Stop] = []
        self._holding = False
        self._variant = ""
        #: stops that wait until the thread asked for its stack has stopped again
        self._later: list[Stop] = []
        #: where the events of a thread come from when there is no stack
        self._places: dict[int, str] = {}
        self._answer = b""
        self._ack_bytes = b""
        self._killed = False
        self._worker_gone = False
        #: since the run was sent a signal that it may handle
        self._grace: Grace | None = None
        #: stops of threads that did not take it, while others may
        self._aside: list[Stop] = []
        #: nothing of the run is left, so that nothing can come any more
        self._alone = False
        self._events: list[Event] = []  # steps and acks, when nothing else is observed
        self._ack_line = ack_line
        #: acks as they are recorded
        self._told = Acks(ack_line)
        #: the program is a child of the worker, which does nothing but start it
        self._driven = driven
        #: whether each answer ends a turn of the loop (`batch.py`), and not only the end of the worker
        self._in_turns = in_turns
        self._forker = forker
        self._listener = forker.listener
        self._channels = forker.channels
        self._result, self._ack, self._go = forker.result, forker.ack, forker.go
        self._step = forker.step if forker.blocking else -1
        self._poller = select.epoll()
        watched = [forker.told, self._result, self._ack, self._step, control]
        for fd in watched if self._listener is None else [self._listener.fd, *watched]:
            if fd >= 0:
                self._poller.register(fd, select.EPOLLIN)
        self.recorder = make_recorder(self._channels) if make_recorder is not None else None
        self._processes = self.recorder.processes if self.recorder else Processes()
        self._stacks = Stacks(forker.stack, forker.stack_inode, self._processes) if forker.stacks else None
        self.worker = forker.fork(part, texts, end)

    # -- the loop ----------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Until the end (or the kill). Raises `Abandoned` when the main process is gone."""
        try:
            self._loop()
        except BaseException:
            with contextlib.suppress(HarnessError):
                self._kill_group()
            raise
        if not self._holding:
            self._finish()
        return self.out

    def _loop(self) -> None:
        listener, poll = self._listener, self._poller.poll
        listening = -1 if listener is None else listener.fd
        early, self._forker.early = self._forker.early, []
        for first in early:
            self._stopped(first)
            if self._killed:
                return
        while True:
            left = self._deadline - time.monotonic()
            if left < 0 and not self._worker_gone:
                self.out.end = "timeout"
                self._kill_group()
                return
            wait = 1.0 if left > 1 else left + 0.001
            if self._worker_gone or self._later:
                wait = 0.02
            elif self._on_lock is not None:
                wait = min(wait, 0.5)
            if self._grace is not None:
                wait = min(wait, 0.02 if self._grace.ahead else max(self._grace.until - time.monotonic(), 0) + 0.001)
            if self._aside:
                wait = QUIET
            ready = poll(wait, 8)
            if not ready:
                self._nothing_came()
            for fd, flags in ready:
                if fd == listening and flags & select.EPOLLIN:
                    assert listener is not None
                    stop = listener.receive()
                    if stop is not None:
                        self._stopped(stop)
                        if self._later:
                            self._go_on()
                else:
                    self._serve(fd, flags)
                if self._killed:
                    return
            if self._grace is not None and self._grace_is_over(self._grace):
                self._kill_group()
                return
            if self._worker_gone and self._others_done():
                return
            if self._in_turns and self._answer.endswith(b"\n"):
                return

    def _nothing_came(self) -> None:
        if self._grace is not None and time.monotonic() < self._grace.until:
            aside, self._aside = self._aside, []
            for stop in aside:
                self._stopped(stop)
        if self._on_lock is not None and not self._worker_gone:
            self._release_others()
        if self._later and self._stacks is not None and not alive(self._stacks.asked):
            self._stacks.told()
            self._go_on()

    def _serve(self, fd: int, flags: int) -> None:
        if fd == self._control:
            if flags & (select.EPOLLHUP | select.EPOLLERR):
                raise Abandoned
            self._poller.modify(fd, 0)  # a request waits there until this run is over; its end is told all the same
        elif fd == self._forker.told:
            self._poller.unregister(fd)
            self._hear_of_end()
        elif fd == self._step:
            self._portable_step(flags)
        elif fd not in (self._result, self._ack) or not self._drain(fd):
            self._poller.unregister(fd)  # the end of a pipe, or nobody is left under the filter

    def _drain(self, fd: int) -> bool:
        """Read a pipe of ours; False at its end."""
        while True:
            try:
                data = os.read(fd, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            if fd == self._result:
                self._answer += data
            else:
                self._ack_bytes += data
                if self.recorder is None:
                    self._plain_acks(data)

    def _plain_acks(self, data: bytes) -> None:
        """Acks of a run that is not observed by system calls; observed by steps, each waits for its answer."""
        for line in self._told.take(data):
            if self._on_ack is not None:
                self._on_ack()
            number = sum(type(e) is Ack for e in self._events) + 1
            self._events.append(Ack(number, line[:1] == b"1", line[1:].decode("utf-8", "replace")))
            if self._step >= 0 and not self._killed:
                if self.crash is not None and len(self._events) >= self.crash.cut:
                    self.out.end = "killed"
                    self._kill_group()
                else:
                    os.write(self._go, b"g")

    def _hear_of_end(self) -> None:
        code = self._forker.ended()
        self._worker_gone = True
        self._gone_at = time.monotonic()
        self.out.status = code
        if self.out.end == "normal" and code != 0:
            self.out.end = "died"
        if self._variant == "worker":
            self._let_held_go()

    def _others_done(self) -> bool:
        """Whether everything the worker left behind has ended, or has had its time."""
        left = others(self._but)
        if left:
            reap_dead(left)
            left = others(self._but)
        if not left:
            self._alone = True
            return True
        if self._holding:
            return all(self._at_rest(pid) for pid in left) or time.monotonic() > self._gone_at + GRACE
        if self._grace is None and time.monotonic() > self._gone_at + GRACE:
            self.out.strays = [f"{pid} ({Processes().program(pid)})" for pid in left]
            return True
        return False

    def _at_rest(self, pid: int) -> bool:
        return any(stop.thread == pid or self._processes.owner(stop.thread) == pid for stop in self._held) and all(
            self._at_rest(child) for child in children(pid)
        )

    # -- one stop ----------------------------------------------------------------------------------------------

    def _stopped(self, stop: Stop) -> None:
        if self._holding:
            self._held.append(stop)
            return
        if self._grace is not None and self._grace.comes_after(stop.thread, stop.number):
            return
        recorder, listener, stacks = self.recorder, self._listener, self._stacks
        assert listener is not None
        if recorder is None:
            self._unrecorded(stop)
            return
        thread, where = stop.thread, None
        if stacks is not None and stacks.asked:
            if thread != stacks.asked:
                self._later.append(stop)
                return
            if stacks.writes(stop):
                listener.let_go(stop)
                return
            where = stacks.told()
        if not recorder.ready(stop):
            self._settle(stop)
        place = self._places.get(thread) if where is None else where
        if place is None and stop.number not in _EXECS:
            place = self._places[thread] = self._place(thread)
        made = recorder.decode(stop, place or "")
        if made is None:
            if stop.number in _EXECS:
                self._places.clear()
            self._lock(stop)
            listener.let_go(stop)
        elif type(made) is Message and self._quiet(made):
            listener.let_go(stop)
        elif stacks is not None and where is None and stacks.ask(thread):
            listener.fail(stop, RESTART)
        else:
            self._event(stop, made, place or "")

    def _quiet(self, made: Message) -> bool:
        """Whether what is written there is no event: an answer, or a line that is no ack."""
        if made.channel == "ack" and not self._told.would(made.data):
            self._told.take(made.data)
            return True
        return made.channel == "quiet"

    def _settle(self, stop: Stop) -> None:
        """Wait until another thread's change is on disk, or has had its time."""
        assert self.recorder is not None
        until = time.monotonic() + PATIENCE
        while not self.recorder.ready(stop):
            if time.monotonic() > until:
                self.out.uncertain += 1
                self.recorder.ready(stop, give_up=True)
                return
            time.sleep(0.0001)

    def _go_on(self) -> None:
        """Take up the stops that waited, once no stack is outstanding."""
        assert self._stacks is not None
        while self._later and not self._stacks.asked and not self._killed:
            self._stopped(self._later.pop(0))

    def _event(self, stop: Stop, made: Pending | Message, where: str) -> None:
        """An event is about to happen: kill before it, or let it happen and record it."""
        recorder, listener = self.recorder, self._listener
        assert recorder is not None and listener is not None
        at, crash = len(recorder.events), self.crash
        if self._stacks is not None and self._has_company(stop.thread):
            self.out.company.append(at)
        if crash is not None and at >= crash.cut and self._due(at, made):
            self._strike(stop, made, where)
        elif isinstance(made, Sync):
            if self.took is not None and (seconds := time_sync(stop, made.op.kind)) is not None:
                self.took[at] = seconds
            if listener.pretend(stop, 0):
                recorder.synced(made)
        elif isinstance(made, Pending):
            if listener.let_go(stop):
                recorder.let_go(made)
        elif made.channel == "step":
            recorder.step(stop, made.data, where)
            listener.pretend(stop, len(made.data))
        else:
            if self._on_ack is not None:
                self._on_ack()
            if listener.let_go(stop):
                recorder.ack(stop, self._told.take(made.data), where)

    def _has_company(self, stopped: int) -> bool:
        """Whether another process of this run lives: the one that has stopped, a child of the worker, or one that
        lost its parent."""
        program = self._program()
        owner = self._processes.owner(stopped)
        if owner not in (self.worker, program) or self._processes.children(program):
            return True
        return any(pid != self.worker and alive(pid) for pid in others(self._but))

    def _program(self) -> int:
        """The process of the program under test: the worker, or what the worker has started last."""
        started = self._processes.children(self.worker) if self._driven else []
        return started[-1] if started else self.worker

    def _due(self, at: int, made: Pending | Message) -> bool:
        """Whether the crash strikes here, where its cut has been reached."""
        crash = self.crash
        assert crash is not None
        if at > crash.cut or not crash.kind:
            return True
        kind = made.op.kind if isinstance(made, Pending) else made.channel
        return kind == crash.kind

    def _strike(self, stop: Stop, made: Pending | Message, where: str) -> None:
        """Kill, while `stop` has not been answered."""
        recorder, crash = self.recorder, self.crash
        assert recorder is not None and crash is not None
        if isinstance(made, Pending):
            self.out.before = made.op
            if crash.torn:
                if made.fd < 0 or crash.torn >= len(made.op.data):
                    raise HarnessError(f"{made.op.describe()} cannot be torn after {crash.torn} bytes")
                fd = os.open(f"/proc/{stop.thread}/fd/{made.fd}", os.O_WRONLY | os.O_CLOEXEC)
                view = memoryview(made.op.data)[: crash.torn]
                if os.pwrite(fd, view, made.op.offset) != crash.torn:
                    raise HarnessError("a torn write could not be made: the prefix did not fit")
                os.close(fd)
                recorder.torn(made, crash.torn)
        elif made.channel == "step":
            self.out.before = Step(made.data.decode("utf-8", "replace").rstrip("\n"), where=where)
        else:
            self.out.before = Ack(recorder.acks + 1, where=where)
        self.out.end = "killed"
        if crash.variant == "group":
            self._kill_group()
            return
        if crash.variant in SIGNALS:
            self._signal(stop, made, where)
            return
        # whoever is left goes on only when the worker is really gone, and with it its ends of their pipes
        program = self._program()
        os.kill(self.worker, signal.SIGKILL)
        if program != self.worker:  # a child of this zygote by now, or of the worker that is not reaped yet
            os.kill(program, signal.SIGKILL)
        self.crash, self._variant = None, crash.variant
        self._holding = True
        self._held, self._later = self._held + self._later, []
        if self._processes.owner(stop.thread) not in (self.worker, program):
            self._held.append(stop)

    def _signal(self, stop: Stop, made: Pending | Message, where: str) -> None:
        """Send the run the signal before the call of `stop`; from here on it is recorded as it goes on."""
        recorder, listener, crash = self.recorder, self._listener, self.crash
        assert recorder is not None and listener is not None and crash is not None
        self.crash, self.out.signalled = None, len(recorder.events)
        number, left = number_of(crash.variant), functools.partial(others, self._but)
        self._grace = Grace(number, self.worker, self._driven, self._processes, left, crash.grace)
        stops = [stop, *listener.waiting()]
        becomes = [self._grace.what_of(one.thread) for one in stops]
        self._deadline = max(self._deadline, self._grace.until + 1)
        self._grace.send()
        for one, what in zip(stops, becomes, strict=True):
            if what == "anew":
                listener.fail(one, RESTART)
            elif what == "aside":
                self._aside.append(one)
            elif one is stop:
                self._event(stop, made, where)
            else:
                self._stopped(one)

    def _grace_is_over(self, grace: Grace) -> bool:
        """Whether nothing of a run that was sent a signal is to be waited for; what had not ended is noted."""
        late = time.monotonic() > grace.until
        if not late and not grace.ahead:
            return False
        outlasted = grace.outlasted()
        if late:
            self.out.outlasted = outlasted
        return late or not outlasted

    def _unrecorded(self, stop: Stop) -> None:
        """Recovery beside held processes: only its locks matter."""
        assert self._listener is not None
        self._lock(stop)
        self._listener.let_go(stop)

    def _lock(self, stop: Stop) -> None:
        """Another process may hold the lock this thread is about to ask for: let it finish first."""
        if self._on_lock is None:
            return
        name = bpf.call_names().get(stop.number, "")
        if (name == "flock" and not stop.args[1] & 8) or name == "fcntl":
            self._release_others()

    def _release_others(self) -> None:
        release, self._on_lock = self._on_lock, None
        if release is not None:
            release(self.worker)

    def _place(self, thread: int) -> str:
        """Where an event comes from when there is no stack: the part of the scenario, or the program."""
        if self._processes.owner(thread) == self.worker:
            return self._who
        return self._processes.program(thread).replace(self._state, "{dir}")

    # -- steps without system calls ----------------------------------------------------------------------------

    def _portable_step(self, flags: int) -> None:
        try:
            data = os.read(self._step, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            self._poller.unregister(self._step)
            return
        self._drain(self._ack)
        if self._killed:
            return
        for line in data.splitlines():
            at, step = len(self._events), Step(line.decode("utf-8", "replace"))
            if self.crash is not None and at >= self.crash.cut:
                self.out.before, self.out.end = step, "killed"
                self._kill_group()
                return
            self._events.append(step)
            os.write(self._go, b"g")

    # -- the end -----------------------------------------------------------------------------------------------

    def _kill_group(self) -> None:
        """SIGKILL the worker's group, then whatever else descends from it, and reap all."""
        self._killed = True
        try:
            if not self._worker_gone:
                try:
                    os.killpg(self.worker, signal.SIGKILL)
                except ProcessLookupError:
                    os.kill(self.worker, signal.SIGKILL)  # it has not become a leader yet
                self._worker_gone = True
                self._forker.ended()
        finally:
            reap_all(self._but)
            self._alone = True

    def drain(self, beside: int = 0) -> None:
        """After a held ("late") kill: let the held processes go on to their end, while `beside` waits."""
        if not self._holding:
            return
        self._but |= {beside}
        self._let_held_go()
        self._loop()

    def _let_held_go(self) -> None:
        self._holding = False
        self._gone_at = time.monotonic()
        held, self._held = self._held, []
        for stop in held:
            self._stopped(stop)

    def held(self) -> frozenset[int]:
        """The processes that are held, and what they started."""
        return frozenset(others(self._but)) if self._holding else frozenset()

    def finish(self) -> Outcome:
        """Let held processes end, reap everything, close everything; the outcome."""
        self.drain()
        self._finish()
        return self.out

    def _finish(self) -> None:
        if not self._alone:
            reap_all(self._but)
        for fd in (self._result, self._ack):
            self._drain(fd)
        if self.recorder is not None:
            self.out.trace = self.recorder.finish()
            self.recorder.close()
        else:
            self.out.trace = Trace(self._events, [], [])
        self.out.acks = Acks(self._ack_line).take(self._ack_bytes)
        self.out.output = _tail(self._forker.output)
        self.out.answer = parsed(self._answer)
        self._poller.close()
        self._forker.clear()


def parsed(data: bytes) -> dict[str, Any]:
    line, newline, _ = data.partition(b"\n")
    if not newline:
        return {}
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _tail(fd: int, limit: int = 2000) -> str:
    size = os.fstat(fd).st_size
    return os.pread(fd, limit, max(0, size - limit)).decode("utf-8", "replace")
