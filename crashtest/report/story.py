"""The report as lines of styled text: one line for each scenario, a story for each violation, and the
summary.

Guarantees: every text in a line is printable (it went through `safe` or `argument`), whatever the result
held; no line depends on the width of a terminal; a violation that was not expected is always told in full.
Knows nothing of terminals: `terminal` paints these lines, and a golden file holds them plain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from crashtest.report import words
from crashtest.report.words import argument, safe
from crashtest.scenario import REAL
from crashtest.verdict import MOST, ModelResult, RunResult, RunStarted, ScenarioResult, Violation

#: a line is pieces of text, each with a style ("" or a colour and weight as rich names them)
Line = tuple[tuple[str, str], ...]

STYLE: dict[words.Mark, str] = {
    "held": "green",
    "caught": "green",
    "VIOLATED": "bold red",
    "NOT CAUGHT": "bold red",
    "INCONCLUSIVE": "bold yellow",
    "not reached": "bold yellow",
}
_MARK_WIDTH = 13
_NAME_WIDTH = 80


def plain(line: Line) -> str:
    """The text of a line without its styles."""
    return "".join(text for text, _ in line).rstrip()


def field(label: str, text: str, style: str = "") -> Line:
    """A line of a story: a label in its column, and what it says."""
    return ((f"    {label:<8}", "dim"), (text, style))


def opening(event: RunStarted, version: str) -> Line:
    """What is about to be run, with the seed."""
    return (
        (f"crashtest {safe(version)}", "bold"),
        (
            f" · {words.count(len(event.names), 'scenario')} · model {', '.join(map(safe, event.models))}"
            f" · observation {safe(event.observation)} · {words.count(event.jobs, 'job')}"
            f" · state in {safe(event.state_root)} · seed {event.seed}",
            "",
        ),
    )


def replay_line(identity: str, report_dir: Path) -> Line:
    """The line to paste: it names the report directory where that is not the default one."""
    place = "" if report_dir == Path(".crashtest") else f" --from {argument(str(report_dir))}"
    return (("    replay: ", "dim"), (f"crashtest replay {argument(identity)}{place}", "bold"))


def operations(violation: Violation) -> Iterator[Line]:
    """The drawn operations that showed a violation, and how they were shrunk."""
    if violation.operations:
        yield field("ops", ", ".join(map(safe, violation.operations)), "bold")
    if violation.shrunk:
        yield field("shrunk", safe(violation.shrunk.removeprefix("shrunk ")))


def full(violation: Violation, report_dir: Path | None) -> Iterator[Line]:
    """The whole story of one violation: promised, where it died, wanted, found, how to see it again.

    report_dir: where it is stored; None: it is not.
    """
    guarantee = safe(violation.guarantee)
    meaning = words.MEANING.get(violation.guarantee, "")
    note = ", as expected" if violation.expected else ""
    yield (
        (f"  {guarantee}", "bold green" if violation.expected else "bold red"),
        (f" is violated under {safe(violation.model)}{note}", ""),
    )
    if meaning:
        yield field("promise", meaning)
    yield from operations(violation)
    cut = violation.model != "kill"
    yield field("cut" if cut else "got" if violation.ended else "died", safe(violation.point), "bold")
    if violation.where and not cut:
        yield field("in", safe(violation.where))
    yield from since_signal(violation)
    yield from losses(violation)
    yield field("acked", words.count(violation.acked, "operation"))
    yield field("wanted", safe(violation.wanted))
    yield field("found", safe(violation.observed))
    for part in violation.mixed:
        yield field("mixed", safe(part), "bold")
    if violation.left:
        yield field("left", f"{', '.join(map(safe, violation.left))}, which no run without a crash leaves")
    if violation.count > 1:
        yield field("seen", f"{violation.count} times; this is the earliest")
    if violation.hint and not violation.barrier:
        yield field("hint", safe(violation.hint), "cyan")
    if report_dir is not None:
        yield replay_line(violation.id, report_dir)


def since_signal(violation: Violation) -> Iterator[Line]:
    """What the program did after a signal that it may handle, and how it ended."""
    if violation.after:
        yield field("then", safe(", ".join(violation.after)))
    if violation.ended:
        yield field("ended", safe(violation.ended))


def losses(violation: Violation) -> Iterator[Line]:
    """What a power cut took away, what it left that came later, and the sync that is missing between the two."""
    for sync in violation.without:
        yield field("without", safe(sync))
    for lost in violation.lost:
        yield field("lost", safe(lost), "bold")
    for kept in violation.kept:
        yield field("kept", safe(kept))
    if violation.seen:
        yield field("real", f"seen on a real file system: {_and(violation.seen)}", "bold")
    if violation.not_seen:
        yield field("real", f"allowed by the model, not seen: {_and(violation.not_seen)}")
    if violation.barrier:
        place = f", {safe(violation.where)}" if violation.where else ""
        yield field("missing", f"{safe(violation.barrier)}{place}", "cyan")


def compact(violation: Violation, report_dir: Path) -> Iterator[Line]:
    """An expected violation in four lines."""
    cut = violation.model != "kill"
    place = f", in {safe(violation.where)}" if violation.where and not cut else ""
    how = "power cut" if cut else "got" if violation.ended else "died"
    yield (
        (f"  {safe(violation.guarantee)}", "green"),
        (f" is violated under {safe(violation.model)}, as expected: {how} {safe(violation.point)}{place}", ""),
    )
    yield from operations(violation)
    yield from since_signal(violation)
    yield from losses(violation)
    yield field("wanted", safe(violation.wanted))
    again = f"  (the earliest of {violation.count})" if violation.count > 1 else ""
    yield field("found", safe(violation.observed) + again)
    for part in violation.mixed:
        yield field("mixed", safe(part))
    yield replay_line(violation.id, report_dir)


def name_width(names: Iterable[str]) -> int:
    """The column that scenario names need, at most a fixed width."""
    return min(max((len(safe(name)) for name in names), default=0), _NAME_WIDTH)


def scenario_line(result: ScenarioResult, width: int = 0) -> Line:
    """Mark, name, points, cells, states, seconds."""
    word = words.mark(result)
    walked = [words.count(result.sequences, "sequence")] if result.sequences > 1 else []
    for name, model in result.models.items():
        if name in REAL:
            missing = f", {model.skipped} places not cut" if model.skipped else ""
            walked.append(f"{safe(name)}: {words.count(model.cells, 'state')} after real power cuts{missing}")
            continue
        if name != "kill":
            walked.append(f"{safe(name)}: {power_figures(model)}")
            continue
        figures = (
            f"{words.count(model.crash_points, 'point')}, {words.count(model.cells, 'cell')}, "
            f"{words.count(model.unique_states, 'state')}"
        )
        for signal, number in model.signals.items():
            figures += f", {number} by SIG{safe(signal)}"
        if model.skipped:
            figures += f", {model.skipped} skipped"
        if not model.exhaustive:
            figures += ", not exhaustive"
        walked.append(f"{safe(name)}: {figures}" if len(result.models) > 1 else figures)
    if result.nested.cells:
        closed = f", closed at depth {result.nested.closed}" if result.nested.closed is not None else ""
        more = words.count(result.nested.unique_states, "more state")
        walked.append(
            f"nested to depth {result.nested.depth}: {words.count(result.nested.cells, 'cell')}, {more}{closed}"
        )
    walked.append(words.clock(result.seconds))
    return (
        (f"{word:<{_MARK_WIDTH}}", STYLE[word]),
        (f"{safe(result.name):<{width}}", "bold" if word not in ("held", "caught") else ""),
        ("  " + ", ".join(walked), "dim"),
    )


def power_figures(model: ModelResult) -> str:
    """How many states of a power cut were judged, and of how many."""
    figures = words.count(model.cells, "state")
    recovery = f" + {model.nested} in recovery" if model.nested else ""
    if model.exhaustive and (model.nested_exhaustive or not model.nested):
        return f"{figures}{recovery}, all that are possible"
    if model.exhaustive:
        return f"{figures}, all that are possible{recovery}, a sample"
    figures += recovery
    power = len(str(model.skipped)) - 1
    about = f"{'more than' if model.skipped >= MOST else 'about'} 10^{power}"
    missing = f"{model.skipped:,}" if model.skipped < 1_000_000 else about
    return f"{figures}, {missing} more losses not tried"


def _alone(result: ScenarioResult) -> str:
    path, _, function = result.name.rpartition("::")
    return f"crashtest run {argument(path)} -k {argument(function)}" if path else "crashtest run"


def _advice(result: ScenarioResult) -> Iterator[Line]:
    word = words.mark(result)
    if result.harness_error:
        yield field("why", f"crashtest itself failed here: {safe(result.harness_error)}")
        yield field(
            "do",
            "this says nothing about the program; see what `crashtest doctor` finds, and report it",
            "cyan",
        )
    elif word == "NOT CAUGHT":
        reason = "no crash state violated what this scenario expects to be violated"
        yield field("why", safe(result.reason) if result.reason else reason)
        yield field(
            "do",
            "if the program was repaired, take the guarantee out of expect=; else crashtest is blind to it",
            "cyan",
        )
    elif result.usage_error:
        yield field("why", f"it cannot be judged as it is written: {safe(result.reason)}")
        yield field("do", f"mend the scenario and run it alone: {_alone(result)}", "cyan")
    elif word in ("INCONCLUSIVE", "not reached"):
        reason = "no crash point was reached" if word == "not reached" else "no reason was recorded"
        yield field("why", safe(result.reason) if result.reason else reason)
        yield field("do", f"nothing is proven here; remove the cause and run it alone: {_alone(result)}", "cyan")
    elif result.reason and word == "VIOLATED":
        yield field("why", safe(result.reason))


def _alike(violations: list[Violation]) -> Iterator[tuple[Violation, list[str]]]:
    """Violations that lose the same at the same place under several models: the first, and the names of the others."""
    told: dict[tuple[object, ...], tuple[Violation, list[str]]] = {}
    for one in violations:
        # what a kill shows is never like a power cut; what loses nothing has nothing to be known by
        key: tuple[object, ...] = (one.guarantee, one.point, one.where, *one.lost, *one.kept) if one.lost else (one.id,)
        key = (one.guarantee, one.point, one.observed) if one.model in REAL else key
        if key in told and told[key][0].expected == one.expected:
            told[key][1].append(one.model)
        else:
            told[key] = (one, [])
    yield from told.values()


def boundaries(result: ScenarioResult) -> Iterator[Line]:
    """For each guarantee that some model breaks and another does not: which, from the strongest to the weakest."""
    for guarantee, one in result.boundaries.items():
        power = [name for name in (*one.held, *one.violated) if name != "kill"]
        if one.held and one.violated and len(power) > 1:
            yield field(
                "models",
                f"{safe(guarantee)} holds under {_and(one.held)}, and breaks under {_and(one.violated)}",
                "bold",
            )


def _and(names: list[str]) -> str:
    *most, last = map(safe, names)
    return f"{', '.join(most)} and {last}" if most else last


def scenario_story(result: ScenarioResult, report_dir: Path, width: int = 0) -> Iterator[Line]:
    """Everything the terminal says about one scenario."""
    yield scenario_line(result, width)
    yield from _advice(result)
    yield from boundaries(result)
    for violation, others in _alike(result.violations):
        yield from compact(violation, report_dir) if violation.expected else full(violation, report_dir)
        if others:
            yield field("same", f"under {_and(others)}")
    for note in result.notes:
        yield field("note", safe(note))


def replayed(result: RunResult, report_dir: Path | None) -> Iterator[Line]:
    """What a replay showed: the stored violation again, in full, or that it did not come."""
    for scenario in result.scenarios:
        yield from _advice(scenario)
        for violation in scenario.violations:
            yield (("the violation came again in ", ""), (safe(scenario.name), "bold"))
            yield from full(violation, report_dir)
        for note in scenario.notes:
            yield field("note", safe(note))
        if not scenario.violations and scenario.verdict != "inconclusive" and not scenario.harness_error:
            yield (("the violation did not come again in ", "bold"), (safe(scenario.name), "bold"))
    for note in result.notes:
        yield (("note: ", "dim"), (safe(note), ""))


def _cell_style(text: str) -> str:
    if "violated" in text:
        return "red"
    return "yellow" if "inconclusive" in text or "not reached" in text else ""


def _counts_under(violation: Violation, result: ScenarioResult) -> list[tuple[str, str]]:
    """(guarantee, model) for each model that it breaks: what a kill leaves, a power cut may leave too."""
    models = list(result.models) if violation.model == "kill" else [violation.model]
    return [(violation.guarantee, model) for model in models]


def _table(results: list[ScenarioResult]) -> Iterator[Line]:
    """Guarantees down, models across, how many scenarios have which verdict in the cells."""
    models: list[str] = []
    tally: dict[str, dict[str, Counter[str]]] = {}
    for result in results:
        expected = {at for one in result.violations if one.expected for at in _counts_under(one, result)}
        surprising = {at for one in result.violations if not one.expected for at in _counts_under(one, result)}
        for model, walked in result.models.items():
            if model not in models:
                models.append(model)
            for guarantee, verdict in walked.guarantees.items():
                key = (guarantee, model)
                caught = verdict == "violated" and key in expected and key not in surprising
                cell = tally.setdefault(guarantee, {}).setdefault(model, Counter())
                cell["caught" if caught else verdict] += 1
    if not tally:
        return
    order = ("held", "caught", "violated", "inconclusive", "not reached")
    known = list(words.MEANING)
    rows = sorted(tally, key=lambda name: (known.index(name) if name in known else len(known), name))
    cells = {
        (row, model): ", ".join(f"{n} {word}" for word in order if (n := tally[row].get(model, Counter())[word]))
        or "not claimed"
        for row in rows
        for model in models
    }
    first = max(len("guarantee"), *(len(safe(row)) for row in rows))
    widths = {model: max(len(safe(model)), *(len(cells[row, model]) for row in rows)) for model in models}
    head = f"{'guarantee':<{first}}" + "".join(f"  {safe(model):<{widths[model]}}" for model in models)
    yield ((head, "bold"),)
    for row in rows:
        pieces = [(f"{safe(row):<{first}}", "")]
        for model in models:
            text = cells[row, model]
            style = "red" if "violated" in text else "yellow" if "inconclusive" in text or "reached" in text else ""
            pieces.append((f"  {text:<{widths[model]}}", style))
        yield tuple(pieces)


def summary(result: RunResult, names: list[str], written: list[Path], told: Iterable[str] = ()) -> Iterator[Line]:
    """The end of the report: table, steps, notes, where the reports are, counts, seed, what the exit means.

    `names` are the scenarios that were to be run, `written` the report files, `told` the notes shown already.
    """
    marks = Counter(words.mark(one) for one in result.scenarios)
    judged = {one.name for one in result.scenarios}
    waiting = [name for name in names if name not in judged]
    counts = [f"{marks[word]} {word}" for word in words.MARKS if marks[word]]
    if waiting:
        counts.append(f"{len(waiting)} not run")
    total = words.count(len(result.scenarios) + len(waiting), "scenario")
    judgement = f"{total}: {', '.join(counts) or 'none judged'}"
    yield ()
    if set(marks) - {"held", "caught"}:
        table = list(_table(result.scenarios))
        if table:
            yield from table
            yield ()
    if result.stopped:
        yield (("stopped: ", "bold yellow"), (safe(result.stopped), ""))
    if result.steps_not_reached:
        yield (("steps never reached: ", "yellow"), (", ".join(map(safe, result.steps_not_reached)), ""))
    for note in result.notes:
        if note not in told:
            yield (("note: ", "dim"), (safe(note), ""))
    for path in written:
        yield (("report: ", "dim"), (safe(path), ""))
    yield ((f"{judgement} · {words.clock(result.seconds)} · seed {result.seed}", "bold"),)
    style = "bold green" if result.exit == 0 else "bold yellow" if result.exit in (3, 5, 130) else "bold red"
    yield ((f"exit {result.exit}: {words.exit_meaning(result)}", style),)
