"""The log: what is read back is what was written, or the log says that it is corrupt."""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from jin_core import disk, wal
from jin_core.errors import LogCorrupt, LogFailed
from jin_core.protocol import Kind
from jin_core.wal import HEADER_SIZE, Wal, encode, header, scan

LIMIT = 1 << 20


def three(path: Path) -> list[tuple[Kind, int, dict[str, object]]]:
    """A log of one finished transaction."""
    log = Wal(str(path), LIMIT)
    log.append(Kind.BEGIN, 1, {"a": "\udcff\n"})
    log.append(Kind.COMMIT, 1, {"held": {}})
    log.append(Kind.CLEANUP, 1, {})
    content = [(r.kind, r.transaction, r.payload()) for r in log.records]
    log.close()
    return content


def contents(path: Path) -> list[tuple[Kind, int, dict[str, object]]]:
    return [(r.kind, r.transaction, r.payload()) for r in wal.read(str(path)).records]


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    written = three(path)
    assert [row[0] for row in written] == [Kind.BEGIN, Kind.COMMIT, Kind.CLEANUP]
    assert written[0][2] == {"a": "\udcff\n"}
    assert contents(path) == written
    assert [r.sequence for r in wal.read(str(path)).records] == [1, 2, 3]


def test_a_torn_tail_costs_only_the_tail(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    written = three(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    log = Wal(str(path), LIMIT)
    log.append(Kind.ABORT, 1, {"n": 2})
    log.close()
    assert contents(path) == [*written[:2], (Kind.ABORT, 1, {"n": 2})]
    assert path.read_bytes().startswith(whole[: log.records[1].offset + log.records[1].size])


@pytest.mark.parametrize("tail", [b"\0" * 600, b"JREC", bytes(range(3, 67)), b"JREC" + b"\xff" * 60])
def test_rubbish_behind_the_last_record_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "wal"
    written = three(path)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    Wal(str(path), LIMIT).close()
    assert path.read_bytes() == whole
    assert contents(path) == written


@pytest.mark.parametrize("record", [0, 1])
def test_a_bad_record_with_good_ones_behind_it_is_refused_and_left_alone(tmp_path: Path, record: int) -> None:
    path = tmp_path / "wal"
    three(path)
    place = wal.read(str(path)).records[record].offset + 30
    damaged = bytearray(path.read_bytes())
    damaged[place] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(LogCorrupt, match="sound records behind") as caught:
        Wal(str(path), LIMIT)
    assert "backup" in caught.value.remedy
    assert path.read_bytes() == damaged


def test_a_missing_record_in_the_middle_is_corruption(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    three(path)
    data = path.read_bytes()
    middle = wal.read(str(path)).records[1]
    with pytest.raises(LogCorrupt, match="record 3 follows record 1"):
        scan(data[: middle.offset] + data[middle.offset + middle.size :])


@pytest.mark.parametrize("size", range(HEADER_SIZE + 1))
def test_a_creation_that_was_cut_short_is_begun_again(tmp_path: Path, size: int) -> None:
    path = tmp_path / "wal"
    for content in (header()[:size], b"\0" * size):
        path.write_bytes(content)
        Wal(str(path), LIMIT).close()
        assert path.read_bytes() == header()


def test_a_damaged_header_with_something_behind_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    three(path)
    with pytest.raises(LogCorrupt, match="header is damaged"):
        scan(b"X" + path.read_bytes()[1:])
    with pytest.raises(LogCorrupt, match="another version"):
        scan(wal.MAGIC + struct.pack("<I", wal.VERSION + 1) + path.read_bytes()[12:])


def test_a_log_above_its_limit_starts_again_and_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    three(path)
    log = Wal(str(path), 64)
    assert log.next_transaction() == 2
    log.reset_if_large()
    assert path.read_bytes() == header(1)
    log.append(Kind.BEGIN, log.next_transaction(), {})
    log.close()
    assert contents(path) == [(Kind.BEGIN, 1, {})]


def test_no_dropped_record_comes_back_whichever_sectors_a_power_cut_brings_back(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    log = Wal(str(path), 64)
    for number in range(1, 9):
        log.append(Kind.BEGIN, number, {"fill": "x" * 300})
    old = path.read_bytes()
    log.reset_if_large()
    log.append(Kind.BEGIN, 1, {"new": "y" * 600})
    new = path.read_bytes().ljust(len(old), b"\0")
    log.close()
    sectors = range(0, len(old), 512)
    for kept in itertools.product((False, True), repeat=3):
        for rest in (old, bytes(len(old))):
            # the header is durable; of the append, and of what lay there before, any sector may be there
            some = b"".join((new if keep else rest)[at : at + 512] for at, keep in zip(sectors, kept, strict=False))
            path.write_bytes(header(1) + (some + rest[len(some) :])[HEADER_SIZE:])
            found = Wal(str(path), 64)
            # sector 0 holds the beginning of the record and sector 1 its end
            assert [r.transaction for r in found.records] == ([1] if kept[0] and kept[1] else [])
            found.close()


def test_the_log_is_emptied_by_its_header_before_it_is_shortened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    three(tmp_path / "wal")
    log = Wal(str(tmp_path / "wal"), 64)
    calls: list[str] = []

    def watched(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*given: object) -> None:
            calls.append(name)
            real(*given)

        return call

    for name in ("write_at", "sync_data", "truncate"):
        monkeypatch.setattr(disk, name, watched(name, getattr(disk, name)))
    log.reset()
    assert calls == ["write_at", "sync_data", "truncate"]


def test_an_empty_log_is_made_durable_too_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that emptied it may have been killed before its sync."""
    Wal(str(tmp_path / "wal"), LIMIT).close()
    synced: list[int] = []
    monkeypatch.setattr(disk, "sync_data", synced.append)
    Wal(str(tmp_path / "wal"), LIMIT).close()
    assert len(synced) == 1


def test_a_log_below_its_limit_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    written = three(path)
    log = Wal(str(path), LIMIT)
    log.reset_if_large()
    log.close()
    assert contents(path) == written


def test_a_failed_write_is_taken_back_and_the_log_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "wal"
    log = Wal(str(path), LIMIT)

    def short(fd: int, data: bytes, offset: int) -> None:
        os.pwrite(fd, data[:5], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_at", short)
        with pytest.raises(LogFailed, match="could not be written"):
            log.append(Kind.BEGIN, 1, {})
    assert path.read_bytes() == header()
    assert not log.poisoned
    log.append(Kind.BEGIN, 1, {})
    log.close()
    assert contents(path) == [(Kind.BEGIN, 1, {})]


def test_a_failed_sync_poisons_the_log_until_it_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Wal(str(tmp_path / "wal"), LIMIT)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync_data", fail)
        with pytest.raises(LogFailed, match="could not be synced"):
            log.append(Kind.BEGIN, 1, {})
    with pytest.raises(LogFailed):
        log.append(Kind.ABORT, 1, {})
    log.load()
    assert [r.kind for r in log.records] == [Kind.BEGIN]
    log.append(Kind.ABORT, 1, {})
    log.close()


def test_writing_records_again_changes_no_byte(tmp_path: Path) -> None:
    path = tmp_path / "wal"
    three(path)
    whole = path.read_bytes()
    log = Wal(str(path), LIMIT)
    log.rewrite(log.records)
    log.close()
    assert path.read_bytes() == whole


def test_a_record_inside_a_payload_is_never_taken_for_one() -> None:
    inner = encode(Kind.COMMIT, 7, 7, {})
    outer = encode(Kind.BEGIN, 1, 1, {"name": inner.decode("latin-1")})
    found = scan(header() + outer[:-1])
    assert found.records == ()
    assert found.torn == len(outer) - 1
