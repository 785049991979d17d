"""What the scenarios of the engine share: a small repository, changes as plain values, and how to look at it.

A transaction is a list of changes, each a tuple:
    ("write", path, data, mode or None)   ("delete", path)
    ("ref", name, commit, old or None)    ("unref", name, old or None)
Commits are called "1", "2" and "3"; "0" as the old one means that the ref must not exist. "tree" is no commit, so that
git refuses to have a branch name it, when everything is prepared.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

from crashtest import DEFAULT, Run
from jin_core import Conflict, Jin, PathRefused, RefRefused, Transaction

CLAIMED = DEFAULT | {"live", "clean"}
NO_REF = "0" * 40
Change = tuple[Any, ...]

_WHO = "A <a@example.org> 1700000000 +0000"
_TREE = hashlib.sha1(b"tree 0\0").hexdigest()
_BODIES = {n: f"tree {_TREE}\nauthor {_WHO}\ncommitter {_WHO}\n\n{n}\n".encode() for n in "123"}
IDS = {n: hashlib.sha1(b"commit %d\0" % len(body) + body).hexdigest() for n, body in _BODIES.items()} | {"tree": _TREE}


def git(directory: Path, *words: str, data: bytes = b"") -> bytes:
    command = ["git", "-C", str(directory), *words]
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def repository(directory: Path) -> None:
    """A work tree with one file; main names commit 1; commits 2 and 3 are there to be named."""
    git(directory, "-c", "init.templateDir=", "init", "-q", "-b", "main")
    git(directory, "mktree")
    for body in _BODIES.values():
        git(directory, "hash-object", "-t", "commit", "-w", "--stdin", data=body)
    git(directory, "update-ref", "refs/heads/main", IDS["1"])
    (directory / "readme").write_bytes(b"first\n")


def opened_before(directory: Path) -> None:
    """The same, with the engine's own directory already made."""
    repository(directory)
    open_store(directory).close()


def open_store(directory: Path, **options: Any) -> Jin:
    """Nobody else is at work here, so a lock that looks stale need not be watched for long."""
    return Jin.open(directory, patience=0.005, **options)


def commit_each(run: Run, **options: Any) -> None:
    """The workload: one transaction for each operation; a refused one changes nothing."""
    with open_store(run.dir, **options) as jin:
        for changes in run.ops:
            outcome = commit(jin, changes)
            run.ack(outcome, same=outcome != "committed")


def commit(jin: Jin, changes: list[Change]) -> str:
    """One transaction: "committed", "nothing to do", or the name of what it was refused with."""
    try:
        with jin.transaction() as tx:
            for change in changes:
                add(tx, change)
    except (Conflict, PathRefused, RefRefused) as refusal:
        return type(refusal).__name__
    return "committed" if changes else "nothing to do"


def add(tx: Transaction, change: Change) -> None:
    match change:
        case ("write", path, data, mode):
            tx.write(path, data, mode=mode)
        case ("delete", path):
            tx.delete(path)
        case ("ref", name, new, old):
            tx.update_ref(f"refs/heads/{name}", IDS[new], old=_old(old))
        case ("unref", name, old):
            tx.delete_ref(f"refs/heads/{name}", old=_old(old))
        case _:
            raise ValueError(f"no such change: {change!r}")


def _old(name: str | None) -> str | None:
    return None if name is None else NO_REF if name == "0" else IDS[name]


def restart(directory: Path) -> None:
    """Starting again: opening recovers; asked to recover, the engine empties its log as well."""
    with open_store(directory) as jin:
        jin.recover()


def everything(directory: Path) -> tuple[dict[str, str], dict[str, tuple[str, bytes]], list[str]]:
    """Refs as git reads them, files of the work tree with their modes, symbolic links, and its directories."""
    lines = git(directory, "for-each-ref", "--format=%(refname:short) %(subject)").decode().splitlines()
    below = [p for p in sorted(directory.rglob("*")) if p.relative_to(directory).parts[0] != ".git"]
    return (
        dict(line.split(" ", 1) for line in lines),
        {str(p.relative_to(directory)): _content(p) for p in below if p.is_symlink() or p.is_file()},
        [str(p.relative_to(directory)) for p in below if p.is_dir() and not p.is_symlink()],
    )


def _content(path: Path) -> tuple[str, bytes]:
    if path.is_symlink():
        return "link", os.fsencode(path.readlink())
    return oct(path.stat().st_mode), path.read_bytes()
