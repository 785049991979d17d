"""An append-only log with a checksum for each record keeps every acknowledged record and drops a torn one.

A record is a header (length, CRC-32 of length and data) and the data. Records here are longer than two
pages, so the kill may leave a header with a third or two thirds of its data: starting again cuts the log
after the last whole record, and appending goes on from there (`live`). What was acknowledged had been
synced first.
"""

import os
import struct
import zlib
from pathlib import Path

from crashtest import DEFAULT, Run, scenario

HEADER = struct.Struct("<II")


def encoded(data: bytes) -> bytes:
    length = len(data).to_bytes(4, "little")
    return HEADER.pack(len(data), zlib.crc32(length + data)) + data


def scan(log: bytes) -> tuple[list[bytes], int]:
    """The whole records at the beginning of `log`, and where they end."""
    records: list[bytes] = []
    end = 0
    while end + HEADER.size <= len(log):
        length, _ = HEADER.unpack_from(log, end)
        data = log[end + HEADER.size : end + HEADER.size + length]
        if log[end : end + HEADER.size + length] != encoded(data):
            break
        records.append(data)
        end += HEADER.size + length
    return records, end


@scenario(setup={"log": b""}, guarantees=DEFAULT | {"live", "clean"})
def append_log(run: Run) -> None:
    fd = os.open(run.dir / "log", os.O_WRONLY | os.O_APPEND)
    for text in run.ops:
        left = memoryview(encoded(text.encode()))
        while left:
            left = left[os.write(fd, left) :]
        os.fsync(fd)
        run.ack()
    os.close(fd)


@append_log.ops
def texts() -> list[str]:
    return ["first " * 1500, "second " * 1400, "short", "fourth " * 1300]


@append_log.recover
def restart(directory: Path) -> None:
    with open(directory / "log", "r+b") as file:
        log = file.read()
        end = scan(log)[1]
        if end < len(log):
            file.truncate(end)
        os.fsync(file.fileno())  # even when nothing was torn: the last whole record may be in the cache only


@append_log.observe
def records_kept(directory: Path) -> list[str]:
    return [data.decode() for data in scan((directory / "log").read_bytes())[0]]
