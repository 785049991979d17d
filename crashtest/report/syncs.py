"""What `crashtest syncs` found, as lines of styled text and as syncs.json.

Guarantees: as `story`: every text is printable, no line depends on the width of a terminal. "Not needed" never stands
without the bound it was judged within. Source lines are read where the program stands now, and left out where it does
not.
"""

from __future__ import annotations

import linecache
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from crashtest.explore.needs import NEEDED, NOT_NEEDED, NOT_REACHED, UNKNOWN, Missing, SyncsResult, SyncVerdict
from crashtest.report.story import Line, field, replay_line
from crashtest.report.words import clock, count, safe

NAME = "syncs.json"

_STYLE = {NEEDED: "bold green", NOT_NEEDED: "bold yellow", NOT_REACHED: "bold yellow", UNKNOWN: "bold yellow"}


def lines(result: SyncsResult, report_dir: Path) -> Iterator[Line]:
    """The whole report."""
    yield ((f"{safe(result.scenario)}", "bold"), (f"  {_bound(result)}", "dim"))
    if result.reason:
        yield (("INCONCLUSIVE", "bold yellow"), (f"  {safe(result.reason)}", ""))
        return
    places = shown_places(result.syncs)
    for verdict in (NEEDED, NOT_NEEDED, UNKNOWN, NOT_REACHED):
        group = [sync for sync in result.syncs if sync.verdict == verdict]
        if group:
            yield ()
            yield ((verdict, _STYLE[verdict]), (f"  {count(len(group), 'place')}", "dim"))
            yield from _table(group, places, result)
    yield from _missing(result, report_dir)
    stories = [sync for sync in result.syncs if sync.violation is not None]
    if stories:
        yield ()
        yield (("why", "bold"), ("  what a power cut does without it", "dim"))
        for sync in stories:
            yield from _story(sync, places, report_dir)
    yield from _annotated(result, places)
    yield ()
    yield from _end(result)


def _bound(result: SyncsResult) -> str:
    """Within what the verdicts stand."""
    parts = [
        f"model {', '.join(map(safe, result.models))}",
        count(result.operations, "operation") + (f" in {result.sequences} sequences" if result.sequences > 1 else ""),
        f"depth {result.depth}" + (f" with {result.recoveries} recoveries" if result.recoveries else ""),
        f"up to {result.losses} losses for each question",
        f"seed {result.seed}",
    ]
    return " · ".join(parts)


def shown_places(syncs: list[SyncVerdict]) -> dict[str, str]:
    """For each place (by its key) as many code lines, innermost first, as tell it from the others."""
    found = {}
    for sync in syncs:
        frames = sync.where.split(" < ")
        others = [one.where for one in syncs if one.where != sync.where]
        length = 1
        while length < len(frames) and any(other.split(" < ")[:length] == frames[:length] for other in others):
            length += 1
        # what lies between the helper and the line that tells it apart says nothing
        found[_key(sync)] = frames[0] if length == 1 else f"{frames[length - 1]}, by {frames[0]}"
    return found


def _key(sync: SyncVerdict) -> str:
    return sync.key or f"{sync.call} {sync.where}"


def _on(sync: SyncVerdict) -> str:
    more = ", ..." if len(sync.paths) > 1 else ""
    return f"{safe(sync.paths[0], 60)}{more}" if sync.paths else ""


def _table(group: list[SyncVerdict], places: dict[str, str], result: SyncsResult) -> Iterator[Line]:
    """One line for each place: what it calls, how often, how long it takes, where it stands, and a remark."""
    rows = []
    for sync in group:
        times = f"{sync.milliseconds:.2f} ms" if sync.milliseconds is not None else ""
        often = f"{sync.count}x" if sync.count else ""
        where = f"{safe(places[_key(sync)])}{', in recovery' if sync.part == 'recovery' else ''}"
        rows.append([f"{sync.call}({_on(sync)})" if sync.count else sync.call, often, times, where])
    widths = [max(len(row[at]) for row in rows) for at in range(3)]
    for sync, row in zip(group, rows, strict=True):
        cells = "  ".join(
            f"{text:>{width}}" if at else f"{text:<{width}}"
            for at, (text, width) in enumerate(zip(row, widths, strict=False))
            if width
        )
        yield ((f"    {cells}", ""), (f"  {row[3]}", ""))
        remark = _remark(sync, result)
        if remark:
            yield ((f"        {remark}", "cyan" if sync.weaker else "dim"),)


def _remark(sync: SyncVerdict, result: SyncsResult) -> str:
    """What else is to be said of a place."""
    if sync.verdict == NEEDED:
        under = f"under {', '.join(map(safe, sync.models))}" if len(result.models) > 1 else ""
        return ", ".join(filter(None, [under, f"weaker would do: {sync.weaker}" if sync.weaker else ""]))
    if sync.verdict == NOT_NEEDED:
        tried = f"all {sync.tried} losses that it adds were tried" if sync.exhaustive else (
            f"{sync.tried} losses that it adds were tried, {_many(sync.left)} were not"
        )  # fmt: skip
        if not sync.tried:
            return f"made durable by {safe(sync.covered)} all the same" if sync.covered else "all is durable already"
        return f"{tried}{f'; made durable by {safe(sync.covered)} at the latest' if sync.covered else ''}"
    return safe(sync.reason)


def _many(number: int) -> str:
    return f"{number:,}" if number < 1_000_000 else f"about 10^{len(str(number)) - 1}"


def _story(sync: SyncVerdict, places: dict[str, str], report_dir: Path) -> Iterator[Line]:
    violation = sync.violation
    assert violation is not None
    recovery = ", in recovery" if sync.part == "recovery" else ""
    yield ((f"  {sync.call}({_on(sync)})", "bold"), (f"  {safe(places[_key(sync)])}{recovery}", ""))
    if len(violation.without) > 1:
        others = Counter(safe(one) for one in violation.without)
        yield field("without", "; ".join(f"{words}{f' ({n}x)' if n > 1 else ''}" for words, n in others.items()))
    yield from _lost(violation.lost, violation.kept)
    yield field("breaks", f"{violation.guarantee}: found {safe(violation.observed, 200)}", "bold")
    yield replay_line(violation.id, report_dir)


def _lost(lost: list[str], kept: list[str]) -> Iterator[Line]:
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    yield field("lost", f"{safe(lost[0])}{more}" if lost else "nothing")
    later = f"; {safe(kept[-1])}" if len(kept) > 1 else ""
    yield field("kept", f"{safe(kept[0])}{later}" if kept else "nothing that came later")


def _missing(result: SyncsResult, report_dir: Path) -> Iterator[Line]:
    if not result.missing:
        return
    yield ()
    yield (("missing", "bold red"), (f"  {count(len(result.missing), 'violation')} in the program as it is", "dim"))
    for one in result.missing:
        yield from _missing_one(one, report_dir, len(result.models) > 1)
    if result.mended:
        yield (("    with all of these added no power cut that was tried breaks a guarantee", "dim"),)


def _missing_one(one: Missing, report_dir: Path, several: bool) -> Iterator[Line]:
    violation = one.violation
    for barrier in one.barriers:
        yield ((f"    {safe(barrier)}", "bold"),)
    if not one.barriers:
        yield (("    no added sync removes this; order the changes in another way", "bold"),)
    expected = ", as the scenario expects" if violation.expected else ""
    yield from _lost(violation.lost, violation.kept)
    under = f" under {', '.join(map(safe, one.models))}" if several else ""
    yield field("breaks", f"{violation.guarantee}{under}{expected}: found {safe(violation.observed, 200)}")
    yield replay_line(violation.id, report_dir)


def _annotated(result: SyncsResult, places: dict[str, str]) -> Iterator[Line]:
    """The source lines that sync, each with its verdict."""
    notes: dict[tuple[str, int], list[str]] = {}
    for sync in result.syncs:
        file, number = code_line(places[_key(sync)])
        if not number:
            continue
        guarantee = f" ({sync.violation.guarantee})" if sync.violation is not None else ""
        short = "not needed within the bound" if sync.verdict == NOT_NEEDED else sync.verdict
        notes.setdefault((file, number), []).append(f"{sync.call}: {short}{guarantee}")
    last = ""
    for (file, number), said in sorted(notes.items()):
        text = linecache.getline(file, number).rstrip("\n")
        if not text:
            continue
        if file != last:
            yield ()
            yield ((safe(file), "bold"),)
        last = file
        told = "; ".join(dict.fromkeys(said))
        yield ((f"  {number:>5} ", "dim"), (f"{safe(text.expandtabs(), 90):<60}", ""), (f"  # {safe(told)}", "cyan"))


def code_line(place: str) -> tuple[str, int]:
    """The file and the line of a shown place; line 0 where it is none of Python."""
    file, _, rest = place.partition(", by ")[0].rpartition(":")
    number = rest.partition(" ")[0]
    return (file, int(number)) if file.endswith(".py") and number.isdigit() else ("", 0)


def _end(result: SyncsResult) -> Iterator[Line]:
    kinds = Counter(sync.verdict for sync in result.syncs)
    spared = [sync for sync in result.syncs if sync.verdict == NOT_NEEDED]
    if spared:
        yield (
            ("the verdicts hold together: ", "dim"),
            ("within this bound all syncs that are not needed can go at once, and no one more", ""),
        )
    for note in result.notes:
        yield (("note: ", "dim"), (safe(note), ""))
    if result.disk:
        yield ((f"times: one sync in the place of the program's, the median of 3 runs, in {safe(result.disk)}", "dim"),)
    yield ((f"claimed: {', '.join(map(safe, result.guarantees))}", "dim"),)
    counts = [f"{kinds[verdict]} {verdict.partition(' by ')[0]}" for verdict in _STYLE if kinds[verdict]]
    counts.append(f"{len(result.missing)} missing")
    meaning = {0: "every sync was judged", 1: "a sync is missing", 3: "not every sync could be judged"}
    if result.exit == 0 and result.missing:
        meaning[0] = "every sync was judged, and what is missing is expected"
    yield ((f"{', '.join(counts)} · {clock(result.seconds)}", "bold"),)
    style = "bold green" if result.exit == 0 else "bold red" if result.exit == 1 else "bold yellow"
    yield ((f"exit {result.exit}: {meaning[result.exit]}", style),)
