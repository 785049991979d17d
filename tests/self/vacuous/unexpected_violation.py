"""A file is rewritten in place and nothing bad is expected. Wanted: `atomic` violated, exit 1."""

from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"state": "old"})
def unexpected_violation(run: Run) -> None:
    (run.dir / "state").write_text("new")
    run.ack()


@unexpected_violation.observe
def state(directory: Path) -> str:
    return (directory / "state").read_text()
