"""One stop: pwrite(2) of 64 bytes raw, before a bare listener, recorded by crashtest, and under python-ptrace.

The call is made in a loop by a child on the same core; the child takes the time. A bare listener only lets the call
go. python-ptrace stops twice for each call and is measured without decoding (it reads the number of the call) and
with its own decoding.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
from contextlib import closing
from typing import Any

from benchmarks import handwritten, subjects
from benchmarks.lean import Lean
from benchmarks.measure import Result, figure, ratio, rounds, summed
from crashtest.cells.realise import Bench
from crashtest.cells.supervise import Crash
from crashtest.cells.zygote import Zygote
from crashtest.observe import bpf
from crashtest.values import parse

_NEVER = Crash(1 << 40)


def run(lean: Lean, quick: bool) -> Result:
    calls = 500 if quick else 2000

    def measured(kind: str) -> float:
        return float(lean.call(f"benchmarks.stop:{kind}", calls=calls)) / calls / 1000

    kinds = ["raw", "bare", "recorded"]
    result = Result()
    if importlib.util.find_spec("ptrace") is not None:
        kinds += ["traced", "traced_decoding"]
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
    if "traced" in found:
        names.update(traced="python-ptrace, call number alone", traced_decoding="python-ptrace, decoding")
        result.ratios += [
            ratio(f"stop, time: recorded / {names['traced']}", found["recorded"], found["traced"], ("at most", 0.5)),
            ratio(f"stop, time: recorded / {names['traced_decoding']}", found["recorded"], found["traced_decoding"]),
        ]
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


def traced(zygote: Zygote, calls: int, decoding: bool = False) -> int:
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
        _trace(pid, decoding)

    handwritten.forked(tracer)
    os.close(theirs)
    answer = os.read(ours, 100)
    os.close(ours)
    return int(answer)


def traced_decoding(zygote: Zygote, calls: int) -> int:
    return traced(zygote, calls, decoding=True)


def _trace(pid: int, decoding: bool) -> None:
    """Let a stopped child run to its end, seeing each call as it begins and as it ends."""
    from ptrace.debugger import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        NewProcessEvent,
        ProcessExit,
        PtraceDebugger,
    )
    from ptrace.func_call import FunctionCallOptions  # type: ignore[import-not-found,import-untyped,unused-ignore]

    register = {"x86_64": "orig_rax", "aarch64": "r8"}[os.uname().machine]
    options = FunctionCallOptions()
    debugger = PtraceDebugger()
    process = debugger.addProcess(pid, True)
    with contextlib.suppress(ProcessExit, NewProcessEvent):
        while True:
            process.syscall()
            process = debugger.waitSyscall().process
            if decoding:
                process.syscall_state.event(options)
            else:
                process.getreg(register)
    debugger.quit()
