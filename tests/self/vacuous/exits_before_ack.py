"""The workload calls `os._exit(0)` before its ack. Wanted: inconclusive (nothing was acked), exit 3."""

import os
from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"})
def exits_before_ack(run: Run) -> None:
    (run.dir / "state.new").write_text("new")
    (run.dir / "state.new").replace(run.dir / "state")
    if run.dir.exists():
        os._exit(0)
    run.ack()


@exits_before_ack.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
