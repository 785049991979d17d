"""Recovery never ends, crash or not. Wanted: inconclusive (timed out in a normal run), exit 3."""

import time
from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"}, timeout=1.0)
def recovery_hangs(run: Run) -> None:
    (run.dir / "state.new").write_text("new")
    (run.dir / "state.new").replace(run.dir / "state")
    run.ack()


@recovery_hangs.recover
def restart(directory: Path) -> None:
    while True:
        time.sleep(1)


@recovery_hangs.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
