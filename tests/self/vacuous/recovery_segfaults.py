"""Recovery always dies of SIGSEGV. Wanted: inconclusive (failed in a normal run), exit 3."""

import os
import signal
from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"})
def recovery_segfaults(run: Run) -> None:
    (run.dir / "state.new").write_text("new")
    (run.dir / "state.new").replace(run.dir / "state")
    run.ack()


@recovery_segfaults.recover
def restart(directory: Path) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


@recovery_segfaults.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
