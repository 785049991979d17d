"""The generator of the table of known software: a row as expected, one that is not, and one that is run again."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from scenarios.software import __main__ as generator
from scenarios.software import _page as page
from scenarios.software._rows import Alice, Known, Program, Row, read

#: interpreters after the oldest leave these out (tox.ini)
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]

SCENARIO = """
from crashtest import scenario

@scenario(setup={"file": "old"}, expect={"atomic"})
def save(run):
    (run.dir / "file").write_text("new")
    run.ack()

@save.recover
def restart(directory):
    pass

@save.observe
def content(directory):
    return (directory / "file").read_text()
"""


def test_a_row_whose_verdict_is_not_the_expected_one_fails_and_nothing_is_written(tmp_path: Path) -> None:
    row = Row(title="A row", scenario="a.py::save", promise="p", why="w")
    python = Program(name="Prog", language="C", version=["python", "--version"], needs="", about="", row=[row])
    known, nothing = Known(head="", program=[python]), Alice(head="", foot="", finding=[])
    every = '{"kill": {"atomic"}, **{name: {"atomic", "durable"} for name in ["ext4", "xfs", "btrfs", "posix"]}}'
    (tmp_path / "right").mkdir()
    (tmp_path / "right/a.py").write_text(SCENARIO.replace('{"atomic"}', every))
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong/a.py").write_text(SCENARIO)
    assert generator.generate(known, nothing, tmp_path / "right") == 0
    text = (tmp_path / "right/docs/known-software.md").read_text()
    assert "| `atomic` | kill, ext4, xfs, btrfs, posix | none |" in text
    with pytest.raises(generator.Failed, match="not what its expect= says") as failed:
        generator.generate(known, nothing, tmp_path / "wrong")
    assert failed.value.code == 1
    assert not (tmp_path / "wrong/docs").exists()


def test_a_row_that_is_run_again_gives_the_text_that_is_checked_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row that depends on nothing but this repository; when it fails, run `python -m scenarios.software`."""
    program = read(ROOT / "scenarios/software/known.toml", Known).program[0]
    (row,) = [row for row in program.row if row.scenario.endswith("::directory_not_synced")]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(generator, "REPORTS", str(tmp_path))
    made = page.Made(
        when="", machine="", seed=1, root=ROOT, results={row.scenario: generator.run(row)},
        versions={program.name: ""}, missing={},
    )  # fmt: skip
    text = page.known(Known(head="", program=[msgspec.structs.replace(program, row=[row])]), made)
    _, heading, section = text.partition(f"### {row.title}\n")
    assert section
    assert f"{heading}{section}".strip() in (ROOT / "docs/known-software.md").read_text(encoding="utf-8")
