"""The observation differs each time. Wanted: inconclusive (two runs without a crash disagree), exit 3."""

import os
from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"})
def observe_random(run: Run) -> None:
    for text in run.ops:
        (run.dir / "state.new").write_text(text)
        (run.dir / "state.new").replace(run.dir / "state")
        run.ack()


@observe_random.ops
def texts() -> list[str]:
    return ["new"]


@observe_random.observe
def state(directory: Path) -> bytes:
    return os.urandom(8)
