"""The workload raises after its first ack. Wanted: inconclusive (the run without a crash failed), exit 3.

The message must show the error and its line.
"""

from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"})
def raises(run: Run) -> None:
    (run.dir / "state.new").write_text("new")
    (run.dir / "state.new").replace(run.dir / "state")
    run.ack()
    raise RuntimeError("the workload broke on purpose")


@raises.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
