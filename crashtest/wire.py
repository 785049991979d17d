"""Messages between the main process and its zygotes: JSON with the byte strings carried beside it.

Guarantees: a message arrives whole or not at all; nothing in it is ever executed (no pickle, no marshal); a
message larger than `LIMIT` is refused by its reader. Does not guarantee anything about who is at the other end:
it is used on socket pairs made before a fork only.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

_HEAD = struct.Struct("<QI")
LIMIT = 1 << 31


class Closed(Exception):
    """The other end is gone (it ended, or was killed)."""


def pack(message: dict[str, Any]) -> bytes:
    """One message as bytes. `bytes` values may stand anywhere; every key is a `str`."""
    blobs: list[bytes] = []

    def carry(value: Any) -> dict[str, int]:
        if not isinstance(value, bytes | bytearray | memoryview):
            raise TypeError(f"{type(value).__name__} cannot be sent")
        blobs.append(bytes(value))
        return {"$b": len(blobs) - 1}

    text = json.dumps(message, default=carry, separators=(",", ":")).encode()
    sizes = struct.pack(f"<{len(blobs)}Q", *map(len, blobs))
    body = b"".join([struct.pack("<Q", len(text)), text, sizes, *blobs])
    return _HEAD.pack(len(body), len(blobs)) + body


def unpack(body: bytes, count: int) -> dict[str, Any]:
    """The message whose `body` carries `count` byte strings. Raises `ValueError` when it is malformed."""
    (size,) = struct.unpack_from("<Q", body)
    at = 8 + size + 8 * count
    sizes = struct.unpack_from(f"<{count}Q", body, 8 + size)
    blobs = []
    for length in sizes:
        blobs.append(body[at : at + length])
        at += length

    def restore(value: dict[str, Any]) -> Any:
        return blobs[value["$b"]] if "$b" in value else value

    message = json.loads(body[8 : 8 + size], object_hook=restore)
    if not isinstance(message, dict):
        raise ValueError("a message is an object")
    return message


def send(sock: socket.socket, message: dict[str, Any]) -> None:
    """Send one message; raises `Closed` when nobody is there to read it."""
    try:
        sock.sendall(pack(message))
    except OSError as error:
        raise Closed(str(error)) from None


def _exactly(sock: socket.socket, size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        try:
            part = sock.recv(min(size, 1 << 20))
        except OSError as error:
            raise Closed(str(error)) from None
        if not part:
            raise Closed("the other end closed the connection")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def receive(sock: socket.socket) -> dict[str, Any]:
    """Wait for one message; raises `Closed` at the end of the stream and `ValueError` on a malformed one."""
    size, count = _HEAD.unpack(_exactly(sock, _HEAD.size))
    if size > LIMIT:
        raise ValueError(f"a message of {size} bytes is larger than the limit of {LIMIT}")
    return unpack(_exactly(sock, size), count)
