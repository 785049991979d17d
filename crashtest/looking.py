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
    if (directory / "HEAD").is_file() and all((directory / name).is_dir() for name in ("objects", "refs")):
        return repository(directory, ignore, environment, directory)
    return tree(directory, ignore)


def ignored(name: str, globs: Iterable[str]) -> bool:
    """Whether a name, or that of a directory it is in, matches one of the globs."""
    above = [name[:at] for at, letter in enumerate(name) if letter == "/"]
    return any(fnmatch.fnmatchcase(one, glob) for glob in globs for one in [*above, name])


def names_in(states: Iterable[Any]) -> frozenset[str]:
    """The names of files in what `look_at` gave."""
    found: set[str] = set()
    for state in states:
        found |= set(_files(state))
    return frozenset(found)


def without_strangers(state: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    """What `look_at` gave, without files that no run without a crash leaves: those are for `clean` to judge."""
    files = {name: held for name, held in _files(state).items() if name in known}
    if not _of_git(state):
        return files
    return {**state, "work tree": files} if "work tree" in state else state  # a bare repository has no files


def _files(state: dict[str, Any]) -> dict[str, Any]:
    files: dict[str, Any] = state.get("work tree", {}) if _of_git(state) else state
    return files


def _of_git(state: dict[str, Any]) -> bool:
    """Whether that is a repository: what a file holds is never a list."""
    return isinstance(state.get("refs"), list)


def _told(name: str) -> str:
    """A name of any bytes as printable text, two names never as one."""
    return name.replace("\\", "\\\\").encode("utf-8", "backslashreplace").decode()


def tree(directory: Path, ignore: Sequence[str], without: str = "") -> dict[str, Any]:
    """Names below the directory, with what they hold: a text or bytes, `("link", target)`, `("type", letter)`."""
    found: dict[str, Any] = {}
    for at, folders, files in os.walk(os.fspath(directory)):
        for name in sorted([*folders, *files]):
            full = os.path.join(at, name)
            path = os.path.relpath(full, directory)
            if path == without or ignored(path, ignore):
                if name in folders:
                    folders.remove(name)
                continue
            found[_told(path)] = _held(full)
    return found


def _held(path: str) -> Any:
    if os.path.islink(path):
        return ("link", _told(os.readlink(path)))
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

    bare = git_directory == directory
    place = [] if bare else ["--work-tree", str(directory)]  # said, so that git looks for none further up

    def git(*words: str) -> str:
        line = ["git", "--no-optional-locks", "-C", str(directory), "--git-dir", str(git_directory), *place, *words]
        done = subprocess.run(line, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, check=False)
        text = done.stdout if done.returncode == 0 else done.stdout + done.stderr
        return text.decode("utf-8", "backslashreplace").replace(str(directory), "{dir}").strip()

    branch = git("symbolic-ref", "--quiet", "HEAD") or "no branch"
    found: dict[str, Any] = {
        "HEAD": f"{branch.removeprefix('refs/heads/')}: {git('log', '-1', '--format=%h %s')}",
        "refs": sorted(git("for-each-ref", "--format=%(refname) %(objectname:short)").splitlines()),
        "fsck": git("fsck", "--strict", "--no-dangling", "--no-progress") or "no error",
    }
    if not bare:
        found["index"] = git("ls-files", "--stage").splitlines()
        found["work tree"] = tree(directory, ignore, ".git")
    return found
