"""Which file paths and which ref names a transaction may touch.

Guarantees: a path that passes `check_path` is relative, has no `..`, and no component that is `.git` in any
case; a ref name that passes `check_ref` is one git itself takes, lies under `refs/`, and is shared by all
work trees.
Does not guarantee: what is on the disk (symbolic links, directories, symbolic refs): that is looked at
later.
"""

from __future__ import annotations

import os
import re

from jin_core.errors import Misuse, PathRefused, RefRefused, escape

_ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_BAD_IN_REF = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]")
_PER_WORKTREE = ("refs/bisect/", "refs/worktree/", "refs/rewritten/")


def check_path(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> str:
    """The path as text with `/` between components; bytes that are not UTF-8 become surrogates.

    Raises `PathRefused`.
    """
    text = os.fsdecode(path)
    if not text or "\0" in text:
        raise PathRefused(f"{escape(text) or 'an empty path'} is no file path", "name a file in the work tree")
    if text.startswith("/"):
        raise PathRefused(f"{escape(text)} is absolute", "give the path relative to the top of the work tree")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise PathRefused(f"{escape(text)} has a '..' in it", "give the path without going upwards")
    if any(part.lower() == ".git" for part in parts):
        raise PathRefused(f"{escape(text)} lies inside .git", "change refs with update_ref and delete_ref")
    if not parts or text.endswith(("/", "/.")):
        raise PathRefused(f"{escape(text)} names a directory", "name a file in the work tree")
    return "/".join(parts)


def check_ref(name: str) -> str:
    """`name` itself if git would take it and the engine may change it. Raises `RefRefused`."""
    if not isinstance(name, str):
        raise Misuse(f"a ref name is text, not {type(name).__name__}")
    reason = _bad_ref(name)
    if reason:
        raise RefRefused(f"{escape(name) or 'an empty name'} is no ref name: {reason}", "see git check-ref-format")
    if not name.startswith("refs/"):
        raise RefRefused(f"{escape(name)} is not under refs/", "give the full name, such as refs/heads/main")
    if name.startswith(_PER_WORKTREE):
        raise RefRefused(
            f"{escape(name)} belongs to one work tree alone",
            "change it with git itself; it cannot be part of this",
        )
    return name


def _bad_ref(name: str) -> str:
    parts = name.split("/")
    if not all(parts):
        return "a component is empty"
    if _BAD_IN_REF.search(name):
        return "it has a character that refs cannot have"
    if ".." in name or "@{" in name or name.endswith("."):
        return "it has '..' or '@{' in it, or ends with a dot"
    if any(part.startswith(".") or part.endswith(".lock") for part in parts):
        return "a component begins with a dot or ends with .lock"
    if len(parts) < 2:
        return "it has only one component"
    return ""


def check_id(value: object) -> str:
    """An object id in lower case: 40 hexadecimal digits, or 64. Raises `Misuse`."""
    text = value.lower() if isinstance(value, str) else ""
    if not _ID.fullmatch(text):
        raise Misuse(f"{escape(str(value))} is not a full object id", "give all 40 or 64 hexadecimal digits")
    return text


def is_zero(value: str) -> bool:
    """Whether an id is the one that stands for "no object"."""
    return not value.strip("0")
