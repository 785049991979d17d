"""The write-ahead log: checksummed records appended to one file.

Layout: a header (magic, version, generation, CRC-32), then records. A record is a head (marker, kind,
generation, length of the payload, sequence number, transaction number), a JSON payload, and a tail (CRC-32 over
head, payload and end marker; end marker). Sequence numbers rise by one from record to record. To drop all
records the header changes its generation: those of the other one count for nothing from then on, whichever
bytes of them a power cut brings back.

Guarantees: what `scan` returns are records exactly as they were written, in order, none left out from the
front or the middle; a damaged end is a torn tail and is cut off; damage with a good record behind it is
`LogCorrupt` and nothing is changed. After `append` returns, the record is durable, and what `load` has read is
durable when it returns. A sync that failed poisons the log: no further append is taken until it is opened again.
Does not guarantee: that damage to the very last record is told from a torn write of it; both look alike,
and both end the log before it. Relies on a disk that writes a sector of 512 bytes whole or not at all.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jin_core import disk
from jin_core.errors import LogCorrupt, LogFailed, escape
from jin_core.protocol import Kind
from jin_core.steps import step

MAGIC = b"JIN-WAL\n"
VERSION = 2
MARKER = b"JREC"
END = b"CERJ"
MAX_PAYLOAD = 1 << 28

_HEADER = struct.Struct("<8sIII")
_HEAD = struct.Struct("<4sBB2xIQQ")
_TAIL = struct.Struct("<I4s")
HEADER_SIZE = _HEADER.size

_STEP = {
    Kind.BEGIN: "jin_core.wal.begin",
    Kind.COMMIT: "jin_core.wal.commit",
    Kind.CLEANUP: "jin_core.wal.cleanup",
    Kind.ABORT: "jin_core.wal.abort",
    Kind.REDO: "jin_core.wal.redo",
}

_CORRUPT_REMEDY = (
    "copy the log aside and restore it from a backup if there is one; otherwise check refs and files "
    "by hand and then remove the log file to start an empty one"
)


@dataclass(frozen=True, slots=True)
class Record:
    """One record; `offset` and `size` in bytes, `raw` its payload as it stands in the file."""

    kind: Kind
    sequence: int
    transaction: int
    raw: bytes
    offset: int
    size: int

    def payload(self) -> dict[str, Any]:
        """The payload. Raises `LogCorrupt` when it is sound but not what this version writes."""
        try:
            value = json.loads(self.raw)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise LogCorrupt(f"record {self.sequence} of the log has a payload of unknown form", _CORRUPT_REMEDY)
        return value


@dataclass(frozen=True, slots=True)
class Scan:
    """What a log holds: its records and the byte where they end; behind `end` there is only a torn tail, or what is
    left of dropped records. `generation`: 0 or 1."""

    records: tuple[Record, ...]
    end: int
    torn: int
    generation: int = 0


def header(generation: int = 0) -> bytes:
    """The bytes a log begins with."""
    start = struct.pack("<8sII", MAGIC, VERSION, generation)
    return start + struct.pack("<I", zlib.crc32(start))


def encode(kind: Kind, sequence: int, transaction: int, payload: dict[str, Any], generation: int = 0) -> bytes:
    """One record as bytes. Raises `LogFailed` when the payload is larger than `MAX_PAYLOAD` bytes."""
    raw = json.dumps(payload, separators=(",", ":"), ensure_ascii=True).encode("ascii")
    if len(raw) > MAX_PAYLOAD:
        raise LogFailed("the transaction is too large for one log record", "split it into several transactions")
    body = _HEAD.pack(MARKER, kind, generation, len(raw), sequence, transaction) + raw
    return body + _TAIL.pack(zlib.crc32(body + END), END)


def parse_at(data: bytes, offset: int, generation: int = 0) -> Record | None:
    """The record at `offset`, or None when there is no whole and sound one of that generation."""
    if offset + _HEAD.size + _TAIL.size > len(data):
        return None
    marker, kind, its_generation, length, sequence, transaction = _HEAD.unpack_from(data, offset)
    tail = offset + _HEAD.size + length
    if marker != MARKER or length > MAX_PAYLOAD or tail + _TAIL.size > len(data):
        return None
    crc, end = _TAIL.unpack_from(data, tail)
    if end != END or crc != zlib.crc32(data[offset:tail] + END) or its_generation != generation:
        return None
    try:
        known = Kind(kind)
    except ValueError:
        return None
    raw = data[offset + _HEAD.size : tail]
    return Record(known, sequence, transaction, raw, offset, tail + _TAIL.size - offset)


def scan(data: bytes) -> Scan:
    """Read a whole log. Raises `LogCorrupt`."""
    generation = 1 if data[:HEADER_SIZE] == header(1) else 0
    if data[:HEADER_SIZE] != header(generation):
        return _scan_headless(data)
    records: list[Record] = []
    offset = HEADER_SIZE
    while (record := parse_at(data, offset, generation)) is not None:
        if records and record.sequence != records[-1].sequence + 1:
            raise _corrupt(f"record {record.sequence} follows record {records[-1].sequence}", offset)
        records.append(record)
        offset += record.size
    if any(True for _ in _behind(data, offset + 1, generation)):
        raise _corrupt("a damaged record has sound records behind it", offset)
    return Scan(tuple(records), offset, len(data) - offset, generation)


def _scan_headless(data: bytes) -> Scan:
    """A log whose creation was cut short has no record; anything longer has lost its header."""
    if len(data) > HEADER_SIZE:
        found = data[: len(MAGIC)]
        if found == MAGIC and struct.unpack_from("<I", data, len(MAGIC))[0] != VERSION:
            raise LogCorrupt("the log was written by another version", "use the version that wrote it")
        raise _corrupt(f"the header is damaged (it begins with {escape(found)})", 0)
    return Scan((), 0, len(data))


def _behind(data: bytes, offset: int, generation: int) -> Iterator[Record]:
    while (offset := data.find(MARKER, offset)) >= 0:
        if (record := parse_at(data, offset, generation)) is not None:
            yield record
        offset += 1


def _corrupt(reason: str, offset: int) -> LogCorrupt:
    return LogCorrupt(f"the log is corrupt at byte {offset}: {reason}", _CORRUPT_REMEDY)


class Wal:
    """The log of one store, open for appending. The caller holds the store's lock.

    `records` are those in the file; `size` is where the next one goes, in bytes.
    """

    def __init__(self, path: str, limit: int) -> None:
        """Open or create the log at `path`; `limit` in bytes: above it, finished transactions are dropped.

        Raises `LogCorrupt`, `OSError`.
        """
        self.path = path
        self.limit = limit
        self.records: list[Record] = []
        self.size = 0
        self._generation = 0
        self.poisoned = ""
        found = disk.look(path)
        if found is None or found.st_size < HEADER_SIZE:
            step("jin_core.wal.create", path)
        self._fd = disk.open_keep(path)
        try:
            self.load()
        except BaseException:
            self.close()
            raise

    def load(self) -> None:
        """Read the file again, cut a torn tail off, and make sure that what was read is durable.

        What a killed process wrote may be in memory only; that it made the log empty, too.
        """
        found = scan(disk.read_fd(self._fd))
        self.records, self.size, self._generation = list(found.records), found.end, found.generation
        if self.size < HEADER_SIZE:
            self._create()
        else:
            if found.torn:
                step("jin_core.wal.truncate", found.end, found.torn)
                disk.truncate(self._fd, found.end)
            disk.sync_data(self._fd)
        self.poisoned = ""

    def _create(self) -> None:
        disk.truncate(self._fd, 0)
        disk.write_at(self._fd, header(), 0)
        disk.sync(self._fd)
        self.size = HEADER_SIZE

    def next_transaction(self) -> int:
        """A transaction number that no record in the file has."""
        return self.records[-1].transaction + 1 if self.records else 1

    def last(self) -> list[Record]:
        """The records of the last transaction."""
        if not self.records:
            return []
        number = self.records[-1].transaction
        return [record for record in self.records if record.transaction == number]

    def rewrite(self, records: list[Record]) -> None:
        """Write `records` again where they stand, and sync.

        After a sync that failed, the kernel may hold pages as clean that never reached the disk; only
        writing them again brings them there.
        """
        step("jin_core.recovery.keep", records[0].transaction)
        for record in records:
            data = encode(record.kind, record.sequence, record.transaction, record.payload(), self._generation)
            disk.write_at(self._fd, data, record.offset)
        disk.sync(self._fd)

    def append(self, kind: Kind, transaction: int, payload: dict[str, Any]) -> None:
        """Append one record and make it durable.

        Raises `LogFailed`. If `poisoned` is set afterwards the record may or may not be durable; otherwise
        it surely is not in the log.
        """
        if self.poisoned:
            raise LogFailed(self.poisoned, "run recovery, or open the store again")
        sequence = self.records[-1].sequence + 1 if self.records else 1
        data = encode(kind, sequence, transaction, payload, self._generation)
        step(_STEP[kind], transaction)
        # Whatever interrupts the lines below, a signal's exception included, leaves the log poisoned.
        self.poisoned = "an earlier record of the log was not brought to its end"
        try:
            disk.write_at(self._fd, data, self.size)
        except OSError as error:
            self._take_back(error)
        step("jin_core.wal.sync", transaction)
        try:
            disk.sync_data(self._fd)
        except OSError as error:
            self.poisoned = f"the log could not be synced ({error.strerror})"
            raise LogFailed(self.poisoned, "look at the disk, then open the store again") from error
        self.poisoned = ""
        record = parse_at(data, 0, self._generation)
        assert record is not None
        self.records.append(Record(kind, sequence, transaction, record.raw, self.size, len(data)))
        self.size += len(data)

    def _take_back(self, error: OSError) -> None:
        reason = f"the log could not be written ({error.strerror})"
        try:
            disk.truncate(self._fd, self.size)
            disk.sync_data(self._fd)
            self.poisoned = ""
        except OSError:
            self.poisoned = reason
        raise LogFailed(reason, "make room on the disk and try again") from error

    def reset_if_large(self) -> None:
        """Drop all records if they are larger than the limit. All of them must be of finished transactions."""
        if self.size > self.limit:
            self.reset()

    def reset(self) -> None:
        """Drop all records, which must be of finished transactions; an empty log is left alone.

        The other generation drops them all at once, because it stands in one sector. The shorter length does not: a
        power cut may bring the old one back when some of the sectors behind the new one are gone already, and that
        looks like corruption. Once the generation is durable they may come and go as they like; the sync of the
        next append makes the length durable before the same generation can be used again.
        """
        if not self.records:
            return
        step("jin_core.wal.reset", self.size)
        generation = 1 - self._generation
        try:
            disk.write_at(self._fd, header(generation), 0)
            disk.sync_data(self._fd)
            disk.truncate(self._fd, HEADER_SIZE)
        except OSError as error:
            self.poisoned = f"the log could not be emptied ({error.strerror})"
            return
        self.records, self.size, self._generation = [], HEADER_SIZE, generation

    def close(self) -> None:
        if self._fd >= 0:
            disk.close(self._fd)
            self._fd = -1


def read(path: str) -> Scan:
    """The log at `path` as it stands, without a lock and without changing it. Raises `LogCorrupt`."""
    return scan(disk.read(path) or b"")
