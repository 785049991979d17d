"""The table of known software: what may stand in it, and that what is checked in has all of it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from textwrap import dedent

import msgspec
import pytest

from crashtest.errors import UsageError
from crashtest.selection import gather
from crashtest.verdict import ModelResult, RunResult, ScenarioResult, Violation
from scenarios.software import __main__ as generator
from scenarios.software import _page as page
from scenarios.software._rows import MODELS, Alice, Evidence, Known, Program, Row, read

ROOT = Path(__file__).resolve().parents[2]
KNOWN = read(ROOT / "scenarios/software/known.toml", Known)
ALICE = read(ROOT / "scenarios/software/alice.toml", Alice)
ROWS = {row.scenario: row for program in KNOWN.program for row in program.row}
TABLE = (ROOT / "docs/known-software.md").read_text(encoding="utf-8")
COMPARISON = (ROOT / "docs/alice.md").read_text(encoding="utf-8")

ROW = Row(title="A row", scenario="a.py::save", promise="p", why="w")


CLAIMED = ("recovers", "atomic", "durable")


def found(*violations: Violation, **changed: object) -> ScenarioResult:
    """A result of ROW that may stand on the page, or, changed, may not."""
    broken = {(one.guarantee, one.model) for one in violations}
    models = {
        name: ModelResult(
            guarantees={
                key: "violated" if (key, name) in broken else "held" for key in ("recovers", "atomic", "durable")
            }
        )
        for name in MODELS
    }
    made = ScenarioResult(
        name=ROW.scenario, verdict="held", as_expected=True, models=models, violations=list(violations), self_proofs=3
    )
    return msgspec.structs.replace(made, **changed)


def violation(guarantee: str, model: str, **more: object) -> Violation:
    made = Violation(
        id="x", guarantee=guarantee, model=model, expected=True, count=1, point="before write(a)", where="", acked=0,
        wanted="old", observed="new",
    )  # fmt: skip
    return msgspec.structs.replace(made, **more)


def made(result: ScenarioResult | None, missing: str = "") -> page.Made:
    return page.Made(
        when="2026-01-01", machine="m", seed=1, root=Path("/project"),
        results={} if result is None else {result.name: result},
        versions={} if missing else {"Prog": "1.0"}, missing={"Prog": missing} if missing else {},
    )  # fmt: skip


def prog(**more: object) -> Known:
    program = Program(name="Prog", language="C", version=["prog"], needs="Get it.", about="About.", row=[ROW])
    return Known(head="{made}", program=[msgspec.structs.replace(program, **more)])


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_a_rows_command_runs_its_scenario_and_no_other(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    crashtest, run, path, k, expression, model, models = shlex.split(row.command)
    assert (crashtest, run, k, model, models) == ("crashtest", "run", "-k", "--model", ",".join(MODELS))
    assert [one.name for one in gather([path], expression)[0]] == [row.scenario]


def test_the_page_that_is_checked_in_has_each_row_with_its_command_and_its_explanation() -> None:
    for row in ROWS.values():
        section = TABLE.partition(f"\n### {row.title}\n")[2].partition("\n### ")[0]
        assert f"\n{row.command}\n" in section, row.title
        assert row.why.strip() in section, row.title
    assert "not run" not in TABLE.lower()
    assert [line for line in TABLE.splitlines() if line.startswith("## ")] == [
        line for program in KNOWN.program for line in TABLE.splitlines() if line.startswith(f"## {program.name} ")
    ]


def test_at_least_ten_programs_four_not_in_python_and_a_server() -> None:
    assert len(KNOWN.program) >= 10
    assert sum("Python" not in program.language for program in KNOWN.program) >= 4
    assert any("server" in program.needs for program in KNOWN.program)


def test_the_comparison_has_each_finding_and_cites_rows_that_are_there() -> None:
    for one in ALICE.finding:
        assert one.published in COMPARISON and one.text.strip() in COMPARISON, one.published
        assert {shown.scenario for shown in one.shown} <= set(ROWS), one.published
    counts = {name: sum(one.count for one in ALICE.finding if one.program == name) for name in ("Git", "LMDB")}
    assert counts == {"Git": 9, "LMDB": 1}


@pytest.mark.parametrize("name", ["known-software.md", "alice.md"])
def test_links_within_and_between_the_pages_lead_somewhere(name: str) -> None:
    places = {
        file: {page.link(match.lower()) for match in re.findall(r"^#+ (.*)$", (ROOT / "docs" / file).read_text(), re.M)}
        for file in ("known-software.md", "alice.md", "models.md")
    }
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([\w-]+\.md)?(#[^)]+)?\)", text)
    assert links
    for file, place in links:
        assert not place or place in places[file or name], (file, place)


UNKNOWN = ModelResult(guarantees={"atomic": "inconclusive"})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"stopped": "--max-time"}, "stopped"),
        ({"observation": "steps"}, "observed by steps"),
        ({"scenarios": []}, "ran nothing"),
        ({"scenarios": [found(name="a.py::other")]}, "a.py::other"),
        ({"scenarios": [found(harness_error="the record is not what is on disk")]}, "the record is not"),
        ({"scenarios": [found(self_proofs=0)]}, "no killed run was compared"),
        ({"scenarios": [found(models={})]}, "not everything was judged under kill"),
        (
            {
                "scenarios": [
                    found(models={**found().models, "xfs": ModelResult(guarantees={"atomic": "inconclusive"})})
                ]
            },
            "not everything was judged under xfs: atomic",
        ),
    ],
)
def test_a_result_that_is_no_evidence_does_not_come_on_the_page(changed: dict[str, object], words: str) -> None:
    whole = RunResult(seed=1, exit=0, seconds=1.0, observation="seccomp", scenarios=[found()])
    assert list(generator.flaws(whole, ROW)) == []
    flaws = list(generator.flaws(msgspec.structs.replace(whole, **changed), ROW))
    assert flaws and words in flaws[0], flaws


def test_a_program_that_is_missing_is_named_as_not_run_and_shows_nothing_else() -> None:
    text = page.known(prog(), made(None, missing="prog is not here"))
    assert "| Prog | A row | not run | not run | not run |" in text
    assert "**Not run**: prog is not here. Get it." in text
    assert "held" not in text.lower() and "crashtest run" not in text
    assert generator.present(prog(version=["/no/such/program"]).program)[1].keys() == {"Prog"}
    assert "no version" in generator.present(prog(version=["true"]).program)[1]["Prog"]


def test_what_a_program_says_stays_in_its_place() -> None:
    odd = violation("atomic", "ext4", observed="```\n# a heading | `x`", lost=["the data of a|b"])
    text = page.known(prog(), made(found(odd)))
    (fence,) = re.findall(r"^(`{3,})text$", text, re.M)
    assert len(fence) == 4 and text.count(f"\n{fence}\n") == 1
    assert "\n# a heading" not in text
    assert page.cell("a|b\nc") == "a\\|b c"


def test_the_page_says_what_broke_it_from_the_mildest_crash_and_tells_the_shortest_story() -> None:
    long = violation("durable", "xfs", lost=["a", "b"], observed="long")
    short = violation("durable", "xfs", lost=["a"], observed="in /dev/shm/crashtest-0/run-1a/slot-1/state/x tmp123")
    result = found(long, short, violation("durable", "posix"), violation("atomic", "kill"))
    text = page.known(prog(varies="(?<=tmp)\\d+"), made(result))
    assert list(page.broken(result)) == [("kill",), ("xfs", "posix")]
    assert "| `durable` | xfs, posix | kill, ext4, btrfs |" in text
    assert "found   in {dir}/x tmp*" in text and "found   long" not in text
    assert "*Held* under every model, in every state that is possible: `recovers`." in text


def test_a_comparison_that_no_run_bears_out_fails() -> None:
    result = found(violation("atomic", "ext4", lost=["the data of index"]))
    told = Evidence(scenario=ROW.scenario, guarantee="atomic", model="ext4", story="data of index")
    assert generator.borne_out(told, result) is result.violations[0]
    assert generator.borne_out(Evidence(scenario=ROW.scenario, guarantee="durable"), result) is None
    for wrong in (
        msgspec.structs.replace(told, story="data of HEAD"),
        msgspec.structs.replace(told, model="posix"),
        Evidence(scenario=ROW.scenario, guarantee="atomic"),
    ):
        with pytest.raises(generator.Failed, match=r"alice\.toml") as failed:
            generator.borne_out(wrong, result)
        assert failed.value.code == 1


def test_a_source_with_a_part_that_is_unknown_or_a_row_twice_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "known.toml"
    text = """
        head = ""
        [[program]]
        name = "Prog"
        language = "C"
        version = ["prog"]
        needs = ""
        about = ""
        """
    row = '[[program.row]]\ntitle = "{}"\nscenario = "{}"\npromise = ""\nwhy = ""\n'
    source.write_text(dedent(text) + row.format("a", "b") + "verdict = 'held'\n")
    with pytest.raises(UsageError, match="verdict"):
        read(source, Known)
    source.write_text(dedent(text) + row.format("a", "b") + row.format("c", "b"))
    with pytest.raises(UsageError, match="b is there twice"):
        read(source, Known)
