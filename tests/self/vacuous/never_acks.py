"""The workload never acks, and claims `durable`. Wanted: inconclusive (nothing was acked), exit 3."""

from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"})
def never_acks(run: Run) -> None:
    (run.dir / "state.new").write_text("new")
    (run.dir / "state.new").replace(run.dir / "state")


@never_acks.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
