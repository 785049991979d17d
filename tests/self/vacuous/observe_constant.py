"""The observation is always the same. Wanted: inconclusive (observe sees no difference at all), exit 3."""

from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"})
def observe_constant(run: Run) -> None:
    (run.dir / "state").write_text("new")
    run.ack()
    (run.dir / "state").write_text("newer")
    run.ack()


@observe_constant.observe
def state(directory: Path) -> int:
    return 42
