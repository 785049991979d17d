"""Operation 2 changes a file nobody looks at. Wanted: inconclusive (blind to operation 2), exit 3."""

from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"first": "old", "second": "old"})
def blind_observe(run: Run) -> None:
    for name in run.ops:
        (run.dir / "temp").write_text("new")
        (run.dir / "temp").replace(run.dir / name)
        run.ack(name)


@blind_observe.ops
def names() -> list[str]:
    return ["first", "second"]


@blind_observe.observe
def first_only(directory: Path) -> str:
    return (directory / "first").read_text()
