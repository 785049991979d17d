"""Known software as two Markdown pages: the table with its stories, and the comparison with ALICE.

Guarantees: what a program or a file name said cannot break out of the place it is shown in (`cell`, `block`); the same
results give the same text, whatever random names, places and times were in them (`Text`); a row that was not run is
named as such and shows nothing else. Runs nothing and writes nothing.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from crashtest.report.story import compact, plain
from crashtest.scenario import GUARANTEES
from crashtest.verdict import ScenarioResult, Violation

from ._rows import MODELS, Alice, Evidence, Known, Program, Row

#: how long a line of a story may be, in characters
WIDE = 240
#: where a run keeps its states, and where libraries are installed
PLACES = re.compile(r"(?P<state>/\S+/crashtest-\d+/run-\w+/[\w./-]*?/state\b)|/\S+/(?:site-packages|lib/python3\.\d+)/")


@dataclass(frozen=True, kw_only=True)
class Made:
    """When and where the rows were run. results: by scenario name; missing: programs that were not run, with the
    reason; versions: by program name."""

    when: str
    machine: str
    seed: int
    root: Path
    results: Mapping[str, ScenarioResult]
    versions: Mapping[str, str]
    missing: Mapping[str, str]


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def block(lines: Iterable[str], language: str = "text") -> str:
    """Lines as they are, in a fence that nothing in them can close."""
    text = "\n".join(lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def link(heading: str) -> str:
    """The place of a heading within its page, as GitHub and GitLab name it."""
    return "#" + re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def breaks(result: ScenarioResult, guarantee: str) -> list[str]:
    """The models under which the run broke the guarantee, from the strongest."""
    return [name for name in MODELS if result.models[name].guarantees.get(guarantee) == "violated"]


def broken(result: ScenarioResult) -> dict[tuple[str, ...], list[str]]:
    """Which guarantees are broken, by the models that break them; what the mildest crash breaks comes first."""
    found: dict[tuple[str, ...], list[str]] = {}
    for guarantee in GUARANTEES:
        models = tuple(breaks(result, guarantee))
        if models:
            found.setdefault(models, []).append(guarantee)
    return dict(sorted(found.items(), key=lambda one: [MODELS.index(name) for name in one[0]]))


def held(result: ScenarioResult) -> list[str]:
    """The guarantees that were held under every model."""
    judged = [result.models[name].guarantees for name in MODELS]
    return [name for name in GUARANTEES if all(one.get(name) == "held" for one in judged)]


def told(violation: Violation, varies: str, root: Path) -> list[str]:
    """The story of a violation as the run prints it, without what differs from run to run."""
    lines = []
    for line in list(compact(violation, root))[:-1]:  # the last names the record of this very run
        text = plain(line).replace(", as expected", "")
        text = re.sub(PLACES, lambda found: "{dir}" if found["state"] else "", text)
        text = text.replace(f"{root}/", "")
        text = re.sub(r"  \(the earliest of \d+\)$", "", text)
        text = re.sub(varies, "*", text) if varies else text
        lines.append(text if len(text) <= WIDE else f"{text[:WIDE]}...")
    return [lines[0].strip(), *lines[1:]]


def shortest(result: ScenarioResult, guarantee: str, model: str) -> Violation:
    """Of the violations of a guarantee under a model, the one with the least to tell."""
    found = [one for one in result.violations if (one.guarantee, one.model) == (guarantee, model)]
    return min(found, key=lambda one: sum(map(len, [one.point, *one.lost, *one.kept])))


def names(guarantees: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in guarantees)


def known(page: Known, made: Made) -> str:
    """`docs/known-software.md`."""
    parts = [page.head.replace("{made}", _made(made)), *_table(page.program, made)]
    for program in page.program:
        parts.append(f"\n## {_called(program, made)}\n")
        if program.name in made.missing:
            parts.append(_not_run(program, made))
            continue
        parts.append(f"Written in {program.language}. {program.needs}\n")
        parts.append(f"{program.about.strip()}\n")
        for row in program.row:
            parts.extend(_row(program, row, made))
    return "\n".join(parts)


def _made(made: Made) -> str:
    return f"Made on {made.when}, {made.machine}, with `--seed {made.seed}`."


def _called(program: Program, made: Made) -> str:
    return f"{program.name} {made.versions.get(program.name, '')}".strip()


def _not_run(program: Program, made: Made) -> str:
    return f"**Not run**: {made.missing[program.name]}. {program.needs}\n"


def _table(programs: list[Program], made: Made) -> Iterator[str]:
    yield "| software | what is run | guarantee | broken under | holds under |"
    yield "|---|---|---|---|---|"
    for program in programs:
        for row in program.row:
            if program.name in made.missing:
                yield f"| {cell(program.name)} | {cell(row.title)} | not run | not run | not run |"
                continue
            here = f"| {cell(_called(program, made))} | [{cell(row.title)}]({link(row.title)}) "
            result = made.results[row.scenario]
            for models, guarantees in broken(result).items():
                others = [name for name in MODELS if name not in models]
                yield f"{here}| {names(guarantees)} | {', '.join(models)} | {', '.join(others) or 'none'} |"
            if not broken(result):
                yield f"{here}| all: {names(held(result))} | none | {', '.join(MODELS)} |"


def _row(program: Program, row: Row, made: Made) -> Iterator[str]:
    result = made.results[row.scenario]
    yield f"### {row.title}\n"
    yield block([row.command], "sh") + "\n"
    yield f"*Promised:* {row.promise.strip()}\n"
    for models, guarantees in broken(result).items():
        yield f"*Found:* {names(guarantees)} broken under {', '.join(models)}.\n"
        stories = [told(shortest(result, name, models[0]), program.varies, made.root) for name in guarantees]
        yield block(line for story in stories for line in story) + "\n"
    kept = names(held(result))
    if kept:
        complete = all(one.exhaustive and one.nested_exhaustive for one in result.models.values())
        extent = "in every state that is possible" if complete else "in every state that was tried"
        yield f"*Held* under every model, {extent}: {kept}.\n"
    yield f"{row.why.strip()}\n"


def alice(page: Alice, programs: list[Program], made: Made, stories: Mapping[Evidence, Violation | None]) -> str:
    """`docs/alice.md`. stories: by what was to be shown, the violation that tells it; None: the guarantee held."""
    rows = {row.scenario: (program, row) for program in programs for row in program.row}
    parts = [page.head.replace("{made}", _made(made))]
    parts += ["| program | published | how many | here |", "|---|---|---|---|"]
    for one in page.finding:
        parts.append(f"| {cell(one.program)} | {cell(one.published)} | {one.count} | **{cell(one.verdict)}** |")
    for program in dict.fromkeys(one.program for one in page.finding):
        parts.append(f"\n### {program}")
        for one in (one for one in page.finding if one.program == program):
            parts.append(f"\n**{one.published}** ({one.count} of its numbers): *{one.verdict}.*\n\n{one.text.strip()}")
            for wanted in one.shown:
                owner, row = rows[wanted.scenario]
                target = f"[{row.title}](known-software.md{link(row.title)})"
                if owner.name in made.missing:
                    parts.append(f"\nNot run: {made.missing[owner.name]}.")
                elif (story := stories[wanted]) is None:
                    parts.append(f"\nIn the run of {target}, `{wanted.guarantee}` held under every model.")
                else:
                    parts.append(f"\nFrom the run of {target}:\n")
                    parts.append(block(told(story, owner.varies, made.root)))
    return "\n".join([*parts, "", page.foot])
