"""One stop: pwrite(2) of 64 bytes raw, before a bare listener, recorded by crashtest, and under python-ptrace.

The call is made in a loop by a child on the same core; the child takes the time. A bare listener only lets the call
go. python-ptrace stops twice for each call. The contender of the target learns what a recorder has to learn, by
python-ptrace's own functions and with nothing around them: at the entry the number of the call, its six arguments and
the bytes to be written, at the exit the result. Beside it, as figures: a tracer that reads the number alone (no record
can be made of that), one that reads number and arguments but not the bytes, and python-ptrace's own decoding.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
from collections.abc import Callable
from contextlib import closing
from typing import Any

from benchmarks import handwritten, subjects
from benchmarks.lean import Lean
from benchmarks.measure import Result, figure, ratio, rounds, summed
from crashtest.cells.outcome import Crash
from crashtest.cells.realise import Bench
from crashtest.cells.zygote import Zygote
from crashtest.observe import bpf
from crashtest.values import parse

_NEVER = Crash(1 << 40)
#: how python-ptrace is used, in words
_TRACED = {
    "learning": "what a recorder needs",
    "arguments": "number and arguments",
    "number": "call number alone",
    "decoding": "decoding",
}
#: by machine: the registers of the call's number, its arguments, and its result
_REGISTERS = {
    "x86_64": ("orig_rax", ("rdi", "rsi", "rdx", "r10", "r8", "r9"), "rax"),
    "aarch64": ("r8", ("r0", "r1", "r2", "r3", "r4", "r5"), "r0"),
}


def run(lean: Lean, quick: bool) -> Result:
    calls = 500 if quick else 2000

    def measured(kind: str) -> float:
        return float(lean.call(f"benchmarks.stop:{kind}", calls=calls)) / calls / 1000

    kinds = ["raw", "bare", "recorded"]
    result = Result()
    if importlib.util.find_spec("ptrace") is not None:
        kinds += [f"traced_{how}" for how in _TRACED]
    else:
        result.notes.append("stop: python-ptrace was skipped, it is not installed (pip install python-ptrace)")
    found = rounds(5 if quick else 15, {kind: lambda kind=kind: measured(kind) for kind in kinds})  # type: ignore[misc]
    result.ratios = [
        summed(
            f"stop, time: {words}, above the raw call",
            [a - b for a, b in zip(found[kind], found["raw"], strict=True)],
            target,
            "us",
        )
        for kind, words, target in (("recorded", "recorded", ("at most", 20.0)), ("bare", "bare listener", None))
    ]
    names = {"raw": "raw call", "bare": "bare listener", "recorded": "recorded"}
    for how, words in _TRACED.items():
        if (kind := f"traced_{how}") in found:
            names[kind] = f"python-ptrace, {words}"
            target = ("at most", 0.5) if how == "learning" else None
            result.ratios.append(ratio(f"stop, time: recorded / {names[kind]}", found["recorded"], found[kind], target))
    result.figures = [figure(f"stop: pwrite, {names[kind]}", found[kind], "us") for kind in kinds]
    return result


# -- in the lean process ------------------------------------------------------------------------------------------


def _through_bench(zygote: Zygote, calls: int, **options: Any) -> int:
    scenario = zygote.scenarios[subjects.PWRITES.function]
    with closing(Bench(scenario, zygote.root, zygote.sock.fileno(), 60.0, True)) as bench:
        bench.end = "quick"
        ran, _ = bench.run(bench.first_state(), [str(calls)], **options)
    if ran.outcome.end != "normal" or ran.proof:
        raise RuntimeError(f"{ran.outcome.end}: {ran.proof}")
    if options and len(ran.outcome.trace.events) != calls + 1:
        raise RuntimeError(f"{len(ran.outcome.trace.events)} events")
    return int(parse(ran.outcome.acks[0][1:].decode()))


def raw(zygote: Zygote, calls: int) -> int:
    return _through_bench(zygote, calls)


def recorded(zygote: Zygote, calls: int) -> int:
    """Recorded the way a run is that will be killed."""
    return _through_bench(zygote, calls, record=True, crash=_NEVER)


def _file(zygote: Zygote) -> str:
    path = f"{zygote.root}/data"
    with open(path, "wb") as file:
        file.write(bytes(64))
    return path


def bare(zygote: Zygote, calls: int) -> int:
    path = _file(zygote)
    _, answer = handwritten.watched(
        bpf.program(), lambda pipe: os.write(pipe, b"%d" % subjects.pwrites_timed(path, calls)), -1
    )
    return int(answer)


def _traced(zygote: Zygote, calls: int, seen: Callable[[Any], Callable[[], object]]) -> int:
    """seen: given the traced process, what to do at each of its stops."""
    path = _file(zygote)
    ours, theirs = os.pipe()

    def tracer() -> None:
        from ptrace.binding import ptrace_traceme  # type: ignore[import-not-found,import-untyped,unused-ignore]

        pid = os.fork()
        if pid == 0:
            try:
                ptrace_traceme()
                os.kill(os.getpid(), signal.SIGSTOP)
                os.write(theirs, b"%d" % subjects.pwrites_timed(path, calls))
            finally:
                os._exit(0)
        _trace(pid, seen)

    handwritten.forked(tracer)
    os.close(theirs)
    answer = os.read(ours, 100)
    os.close(ours)
    return int(answer)


def traced_number(zygote: Zygote, calls: int) -> int:
    number, _, _ = _REGISTERS[os.uname().machine]
    return _traced(zygote, calls, lambda process: lambda: process.getreg(number))


def traced_arguments(zygote: Zygote, calls: int) -> int:
    return _traced(zygote, calls, lambda process: _Reader(process, with_bytes=False))


def traced_learning(zygote: Zygote, calls: int) -> int:
    return _traced(zygote, calls, lambda process: _Reader(process, with_bytes=True))


def traced_decoding(zygote: Zygote, calls: int) -> int:
    from ptrace.func_call import FunctionCallOptions  # type: ignore[import-not-found,import-untyped,unused-ignore]

    options = FunctionCallOptions()
    return _traced(zygote, calls, lambda process: lambda: process.syscall_state.event(options))


class _Reader:
    """Reads number and arguments at the entry of a call, and its result at the exit."""

    def __init__(self, process: Any, with_bytes: bool) -> None:
        self._process = process
        self._number, self._arguments, self._result = _REGISTERS[os.uname().machine]
        self._pwrite = bpf.STOPS["pwrite64"][0 if os.uname().machine == "x86_64" else 1] if with_bytes else -1
        self._inside = False
        #: what was read of the last call
        self.call: tuple[object, ...] = ()

    def __call__(self) -> None:
        registers = self._process.getregs()
        self._inside = not self._inside
        if not self._inside:
            self.call = (*self.call, getattr(registers, self._result))
            return
        number = getattr(registers, self._number)
        arguments = [getattr(registers, name) for name in self._arguments]
        data = self._process.readBytes(arguments[1], arguments[2]) if number == self._pwrite else b""
        self.call = (number, arguments, data)


def _trace(pid: int, seen: Callable[[Any], Callable[[], object]]) -> None:
    """Let a stopped child run to its end, seeing each call as it begins and as it ends."""
    from ptrace.debugger import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        NewProcessEvent,
        ProcessExit,
        PtraceDebugger,
    )

    debugger = PtraceDebugger()
    process = debugger.addProcess(pid, True)
    see = seen(process)
    with contextlib.suppress(ProcessExit, NewProcessEvent):
        while True:
            process.syscall()
            debugger.waitSyscall()
            see()
    debugger.quit()
