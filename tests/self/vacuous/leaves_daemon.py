"""The workload leaves a process in a session of its own. Wanted: inconclusive (it is named), exit 3.

And the process must be gone when crashtest ends.
"""

import subprocess
from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"})
def leaves_daemon(run: Run) -> None:
    subprocess.Popen(["sleep", "604"], start_new_session=True)
    (run.dir / "state.new").write_text("new")
    (run.dir / "state.new").replace(run.dir / "state")
    run.ack()


@leaves_daemon.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
