"""The generator of the table of known software: a row as expected, one that is not, and one that is run again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from crashtest.persist.models import POSIX
from crashtest.persist.states import Limits, Walk
from crashtest.persist.tree import Tree
from crashtest.trace import from_plain
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


#: what LMDB says of itself in each directory: what is stored, and how many entries it counts
LOOK = """
import lmdb, sys
for directory in sys.argv[1:]:
    with lmdb.open(directory, map_size=1 << 20, max_readers=4) as environment, environment.begin() as transaction:
        print(len(list(transaction.cursor())), transaction.stat()["entries"])
"""


def torn(facts: dict[str, Any], tear: int, room: Path) -> list[str]:
    """What LMDB says after each power cut of a recorded run, where writes tear at multiples of so many bytes."""
    events = [from_plain(event) for event in facts["events"]]
    model = POSIX._replace(name=f"torn at {tear}", tear=tear)
    places: list[Path] = []
    for state in Walk(Tree.from_plain(facts["first"]), events, model, limits=Limits(per_cut=64, total=400)):
        places.append(room / f"{tear}-{len(places)}")
        places[-1].mkdir()
        state.tree.restore(str(places[-1]))
    assert len(places) > 100
    said = subprocess.run([sys.executable, "-c", LOOK, *map(str, places)], capture_output=True, text=True, check=True)
    return said.stdout.splitlines()


def test_lmdb_needs_its_last_write_of_a_commit_whole_as_alice_found(
    prepare: Callable[[Path, str], dict[str, Any]], tmp_path: Path
) -> None:
    """`docs/alice.md`: in sectors of 512 bytes it is whole; in smaller pieces the tree is new, its description old."""
    facts = prepare(ROOT / "scenarios/software/key_value.py", "lmdb_commit")
    assert {len(set(said.split())) for said in torn(facts, 512, tmp_path)} == {1}
    assert "1 0" in torn(facts, 64, tmp_path)
