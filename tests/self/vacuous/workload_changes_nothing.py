"""The workload acks and changes no file. Wanted: inconclusive (nothing was changed), exit 3."""

from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"})
def workload_changes_nothing(run: Run) -> None:
    (run.dir / "state").read_text()
    run.ack()


@workload_changes_nothing.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
