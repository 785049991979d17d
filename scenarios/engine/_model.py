"""What a transaction should do, as a few rules over plain values: no git, no disk, no crash.

Operations are drawn with it, and a test compares it with the engine where nothing crashes. It knows whether a
transaction is refused, not in which words.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ._store import IDS, Change


class State(NamedTuple):
    """files: path to (content, mode); links: symbolic links of the work tree; refs: branch to name of a commit."""

    files: dict[str, tuple[bytes, int]]
    links: frozenset[str]
    directories: frozenset[str]
    refs: dict[str, str]


def above(name: str) -> list[str]:
    """Every directory on the way to `name`, outermost first."""
    parts = name.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts))]


def after(state: State, changes: Sequence[Change]) -> State | None:
    """The state that the transaction leaves, or None when it is refused and leaves everything as it was."""
    paths = {change[1]: change for change in changes if change[0] in ("write", "delete")}
    names = {change[1]: change for change in changes if change[0] in ("ref", "unref")}
    if not all(_path_fits(change[1]) and _name_fits(change[1]) for change in changes):
        return None
    if any(_file_refused(state, paths, change) for change in paths.values()):
        return None
    if any(_ref_refused(state, names, change) for change in names.values()):
        return None
    files, refs, directories = dict(state.files), dict(state.refs), set(state.directories)
    for path, change in paths.items():
        old = files.pop(path, (b"", 0o644))
        if change[0] == "write":
            files[path] = (change[2], old[1] if change[3] is None else change[3])
            directories.update(above(path))
    for name, change in names.items():
        refs.pop(name, None)
        if change[0] == "ref":
            refs[name] = change[2]
    return State(files, state.links - paths.keys(), frozenset(directories), refs)


def _path_fits(path: str) -> bool:
    """Inside the work tree and outside of git's own directory."""
    return not path.startswith("/") and not {"..", ".git"} & set(path.split("/"))


def _name_fits(name: str) -> bool:
    return not name.endswith(".lock")


def _file_refused(state: State, paths: Iterable[str], change: Change) -> bool:
    path, there = change[1], state.files.keys() | state.links
    if path in state.directories or any(one in there or one in paths for one in above(path)):
        return True
    return change[0] == "delete" and path not in there


def _ref_refused(state: State, names: Iterable[str], change: Change) -> bool:
    """A ref and the refs below its name exclude each other, also when one of them goes in the same transaction."""
    kind, name, old, now = change[0], change[1], change[-1], state.refs.get(change[1])
    if old not in (None, now or "0") or (kind == "unref" and now is None):
        return True
    beside = [one for one in above(name) if one in names or one in state.refs]
    beside += [one for one in state.refs if name in above(one)]
    return kind == "ref" and (change[2] == "tree" or (now is None and bool(beside)))


def look(directory: Path) -> State:
    """The state on disk, read without git."""
    commits = {value: name for name, value in IDS.items()}
    heads = directory / ".git/refs/heads"
    packed = [line.split(" ") for line in _text(directory / ".git/packed-refs").splitlines() if line[0] not in "#^"]
    refs = {name.removeprefix("refs/heads/"): value for value, name in packed}
    refs |= {str(p.relative_to(heads)): p.read_text().strip() for p in heads.rglob("*") if p.is_file()}
    below = [p for p in directory.rglob("*") if p.relative_to(directory).parts[0] != ".git"]
    names = {p: str(p.relative_to(directory)) for p in below}
    plain = [p for p in below if p.is_file() and not p.is_symlink()]
    return State(
        {names[p]: (p.read_bytes(), stat.S_IMODE(p.stat().st_mode)) for p in plain},
        frozenset(names[p] for p in below if p.is_symlink()),
        frozenset(names[p] for p in below if p.is_dir() and not p.is_symlink()),
        {name: commits[value] for name, value in refs.items()},
    )


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
