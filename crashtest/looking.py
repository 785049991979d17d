"""Looking at a state without being told how: a git repository as git sees it, anything else as names and contents.

Guarantees: looks only, and changes no file; two states that differ in what is looked at give different values. Of a
repository that is HEAD, the refs, the index, the files of the work tree and what `git fsck` says; reflogs, hooks and
unreachable objects are not looked at. Of any other tree: names, types, links and contents, not modes or times. Standard
library only.
"""

from __future__ import annotations

import fnmatch
import os

# hashlib would load OpenSSL, and every zygote loads this module
from _blake2 import blake2b
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

#: contents longer than this are shown by their size and hash
LONG = 1024


def look_at(directory: Path, ignore: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What is there, as a plain value. ignore: globs of names below the directory that are passed over."""
    if (directory / ".git").is_dir():
        return repository(directory, ignore, environment, directory / ".git")
    if all((directory / name).exists() for name in ("HEAD", "objects", "refs")):
        return repository(directory, ignore, environment, directory)
    return tree(directory, ignore)


def names_in(states: Iterable[Any]) -> frozenset[str]:
    """The names of files in what `look_at` gave."""
    found: set[str] = set()
    for state in states:
        found |= set(_files(state))
    return frozenset(found)


def without_strangers(state: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """What `look_at` gave, without files that no run without a crash leaves: those are for `clean` to judge."""
    files = {name: held for name, held in _files(state).items() if name in known}
    return {**state, "work tree": files} if "fsck" in state else files


def _files(state: dict[str, Any]) -> dict[str, Any]:
    files: dict[str, Any] = state.get("work tree", {}) if "fsck" in state else state
    return files


def tree(directory: Path, ignore: Sequence[str], without: str = "") -> dict[str, Any]:
    """Names below the directory, with what they hold: a text or bytes, `("link", target)`, `("type", letter)`."""
    found: dict[str, Any] = {}
    for at, folders, files in os.walk(os.fspath(directory)):
        for name in sorted([*folders, *files]):
            full = os.path.join(at, name)
            path = os.path.relpath(full, directory)
            if path == without or any(fnmatch.fnmatchcase(path, glob) for glob in ignore):
                if name in folders:
                    folders.remove(name)
                continue
            found[path.encode("utf-8", "backslashreplace").decode()] = _held(full)
    return found


def _held(path: str) -> Any:
    if os.path.islink(path):
        return ("link", os.readlink(path).encode("utf-8", "backslashreplace").decode())
    if os.path.isdir(path):
        return ("directory",)
    if not os.path.isfile(path):
        return ("special file",)
    with open(path, "rb") as file:
        data = file.read()
    if len(data) > LONG:
        return (f"{len(data)} bytes", blake2b(data, digest_size=8).hexdigest())
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def repository(
    directory: Path, ignore: Sequence[str], environment: Mapping[str, str], git_directory: Path
) -> dict[str, Any]:
    """A git repository, each part by its name. What git itself cannot read is told in git's words."""

    import subprocess  # here, because of threading, whose handler for forks costs each worker of a zygote dearly

    def git(*words: str) -> str:
        line = ["git", "--no-optional-locks", "-C", str(directory), *words]
        done = subprocess.run(line, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, check=False)
        text = done.stdout if done.returncode == 0 else done.stdout + done.stderr
        return text.decode("utf-8", "backslashreplace").replace(str(directory), "{dir}").strip()

    bare = git_directory == directory
    found: dict[str, Any] = {
        "HEAD": git("log", "-1", "--format=%h %s"),
        "refs": sorted(git("for-each-ref", "--format=%(refname) %(objectname:short)").splitlines()),
        "fsck": git("fsck", "--strict", "--no-dangling", "--no-progress") or "no error",
    }
    if not bare:
        found["index"] = git("ls-files", "--stage").splitlines()
        found["work tree"] = tree(directory, ignore, ".git")
    return found
