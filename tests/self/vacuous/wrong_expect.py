"""A sound program that is expected to break `atomic`. Wanted: not as expected (held), exit 1."""

from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"}, expect={"atomic"})
def wrong_expect(run: Run) -> None:
    (run.dir / "state.new").write_text("new")
    (run.dir / "state.new").replace(run.dir / "state")
    run.ack()


@wrong_expect.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
