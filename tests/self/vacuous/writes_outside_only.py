"""The workload writes only outside its directory. Wanted: inconclusive, the file outside is named, exit 3.

The file is in the directory that VACUOUS_OUTSIDE names, or in the system's temporary directory; a run that
ends normally removes it again.
"""

import os
import tempfile
from pathlib import Path

from crashtest import Run, scenario

OUTSIDE = Path(os.environ.get("VACUOUS_OUTSIDE") or tempfile.gettempdir()) / "crashtest-vacuous-outside"


@scenario(setup={"state": "old"})
def writes_outside_only(run: Run) -> None:
    OUTSIDE.write_text("new")
    run.ack()
    OUTSIDE.unlink()


@writes_outside_only.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
