"""Whatever happens to the bytes of a log, it never yields a record that was not written."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from jin_core.errors import LogCorrupt
from jin_core.protocol import Kind
from jin_core.wal import Record, encode, header, scan

PAYLOADS = st.dictionaries(st.text(max_size=8), st.one_of(st.text(max_size=40), st.integers(), st.none()), max_size=4)
ENTRIES = st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 2**40), PAYLOADS), max_size=6)


def build(entries: list[tuple[Kind, int, dict[str, Any]]], first: int = 1) -> bytes:
    rows = [encode(kind, first + n, number, load) for n, (kind, number, load) in enumerate(entries)]
    return header() + b"".join(rows)


def values(records: tuple[Record, ...]) -> list[tuple[Kind, int, dict[str, Any]]]:
    return [(record.kind, record.transaction, record.payload()) for record in records]


@given(ENTRIES, st.integers(1, 2**40))
def test_a_whole_log_is_read_back(entries: list[tuple[Kind, int, dict[str, Any]]], first: int) -> None:
    found = scan(build(entries, first))
    assert values(found.records) == entries
    assert found.torn == 0


@given(ENTRIES, st.data())
def test_any_truncation_yields_a_prefix(entries: list[tuple[Kind, int, dict[str, Any]]], data: st.DataObject) -> None:
    whole = build(entries)
    cut = data.draw(st.integers(0, len(whole)))
    found = scan(whole[:cut])
    kept = values(found.records)
    assert kept == entries[: len(kept)]
    assert len(kept) == sum(record.offset + record.size <= cut for record in scan(whole).records)


@given(ENTRIES, st.data())
def test_any_changed_byte_yields_a_prefix_or_is_refused(
    entries: list[tuple[Kind, int, dict[str, Any]]], data: st.DataObject
) -> None:
    whole = bytearray(build(entries))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    records = scan(build(entries)).records
    struck = next((n for n, r in enumerate(records) if r.offset <= place < r.offset + r.size), None)
    try:
        kept = values(scan(bytes(whole)).records)
    except LogCorrupt:
        assert struck is None or struck < len(records) - 1
        return
    assert kept == entries[: len(kept)]
    if records:
        assert struck == len(kept) == len(records) - 1


@given(ENTRIES, st.data())
def test_any_zeroed_or_lost_range_yields_a_prefix_or_is_refused(
    entries: list[tuple[Kind, int, dict[str, Any]]], data: st.DataObject
) -> None:
    whole = build(entries)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    filler = data.draw(st.sampled_from([b"\0" * (end - start), b""]))
    try:
        kept = values(scan(whole[:start] + filler + whole[end:]).records)
    except LogCorrupt:
        return
    # Whole records cut out of the front leave a log that begins later; it is still a run of what was written.
    runs = [entries[n : n + len(kept)] for n in range(len(entries) + 1)]
    assert kept in runs


@given(ENTRIES, ENTRIES, st.data())
def test_a_stale_end_of_an_older_log_never_passes(
    entries: list[tuple[Kind, int, dict[str, Any]]],
    older: list[tuple[Kind, int, dict[str, Any]]],
    data: st.DataObject,
) -> None:
    new, old = build(entries), build(older)
    if len(old) <= len(new):
        old, new, entries = new, old, older
    joint = new + old[len(new) :]
    try:
        kept = values(scan(joint).records)
    except LogCorrupt:
        return
    continued = entries + values(scan(old).records)[len(entries) :]
    assert kept in (entries, continued)
