"""The observation is no plain value. Wanted: a usage error that names its type, exit 2."""

from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"})
def observe_not_plain(run: Run) -> None:
    (run.dir / "state.new").write_text("new")
    (run.dir / "state.new").replace(run.dir / "state")
    run.ack()


@observe_not_plain.observe
def state(directory: Path) -> object:
    return object()
