"""Recovery hangs when it finds a half state. Wanted: `recovers` violated (timed out, also alone), exit 1."""

import time
from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"}, timeout=1.0)
def recovery_hangs_after_crash(run: Run) -> None:
    (run.dir / "half").touch()
    (run.dir / "state").write_text("new")
    (run.dir / "half").unlink()
    run.ack()


@recovery_hangs_after_crash.recover
def restart(directory: Path) -> None:
    while (directory / "half").exists():
        time.sleep(1)


@recovery_hangs_after_crash.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
