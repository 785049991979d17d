"""Recovery dies of SIGSEGV in a half state. Wanted: `recovers` violated (SIGSEGV is named), exit 1."""

import os
import signal
from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"})
def recovery_segfaults_after_crash(run: Run) -> None:
    (run.dir / "half").touch()
    (run.dir / "state").write_text("new")
    (run.dir / "half").unlink()
    run.ack()


@recovery_segfaults_after_crash.recover
def restart(directory: Path) -> None:
    if (directory / "half").exists():
        os.kill(os.getpid(), signal.SIGSEGV)


@recovery_segfaults_after_crash.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
