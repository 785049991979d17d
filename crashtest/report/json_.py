"""`result.json`, `syncs.json`: what was found, for other programs.

Guarantees: the file is the whole result or not there at all, also after a crash of this machine (a
temporary file, fsync, rename, fsync of the directory); it is valid UTF-8 JSON whatever the names in it hold
(an undecodable byte is written as a backslash escape); field names are those of `crashtest.verdict`
and `crashtest.explore.needs`, which are a contract. Does not keep earlier results.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

NAME = "result.json"


def _valid(value: Any) -> Any:
    """The same builtins with every string encodable."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_valid(key): _valid(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_valid(item) for item in value]
    return value


def encode(result: msgspec.Struct) -> bytes:
    """The result as indented JSON with a final newline."""
    try:
        text = msgspec.json.encode(result)
    except UnicodeEncodeError:
        text = msgspec.json.encode(_valid(msgspec.to_builtins(result)))
    return msgspec.json.format(text, indent=2) + b"\n"


def discard(directory: Path) -> None:
    """Remove the result of an earlier run, so that it is never taken for this one's. Raises `OSError`."""
    with contextlib.suppress(FileNotFoundError):
        (directory / NAME).unlink()


def write(result: msgspec.Struct, directory: Path, name: str = NAME) -> Path:
    """Write the file below the directory, which is made, and give its path. Raises `OSError`."""
    content = encode(result)
    directory.mkdir(parents=True, exist_ok=True)
    target = directory / name
    temporary = directory / f".{name}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    return target
