"""No ops, and the ack comes first. Wanted: `durable` violated (acked before it was written), exit 1.

Nothing else is judged: the captures at the acks are no expected states.
"""

from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"})
def acked_before_written(run: Run) -> None:
    run.ack()
    (run.dir / "state.new").write_text("new")
    (run.dir / "state.new").replace(run.dir / "state")


@acked_before_written.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
