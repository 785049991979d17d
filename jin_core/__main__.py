"""The command line: `python -m jin_core status|recover|log|verify [--repo PATH]`.

Guarantees: `status`, `log` and `verify` change nothing and do not wait for a lock, so they tell of a
moment.
Exit codes: 0 all is well, 1 something is unfinished or wrong (said in words), 2 usage.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

from jin_core import disk, wal
from jin_core.errors import JinError, escape
from jin_core.protocol import Kind
from jin_core.repository import Repository, locate
from jin_core.store import Jin, survey


def _status(repository: Repository) -> int:
    found = survey(repository)
    print(f"work tree         {escape(found.worktree)}")
    print(f"engine directory  {escape(found.engine_dir)}")
    print(f"log               {found.records} records, {found.log_bytes} bytes, {found.torn_bytes} torn")
    print(f"last transaction  {found.last_transaction if found.last_transaction is not None else 'none'}")
    if found.unfinished is None:
        print("unfinished        none")
        return 0
    print(f"unfinished        {found.unfinished}: recovery will {found.decision} it, unless it is still at work")
    return 1


def _recover(repository: Repository) -> int:
    with Jin.open(repository.worktree) as jin:
        report = jin.recovered
    for number in report.rolled_back:
        print(f"rolled back transaction {number}")
    for number in report.redone:
        print(f"finished transaction {number}")
    for name in report.removed:
        print(f"removed {escape(name)}")
    for name in report.left:
        print(f"left {escape(name)}, which is somebody else's")
    if not report:
        print("nothing to recover")
    return 0


def _log(repository: Repository) -> int:
    for record in wal.read(_wal(repository)).records:
        words = json.dumps(record.payload(), sort_keys=True)
        print(f"{record.sequence} {record.transaction} {record.kind.name} {words}")
    return 0


def _verify(repository: Repository) -> int:
    """The log is sound, nothing is unfinished, and no name that a transaction listed is left over."""
    found = survey(repository)
    faults = []
    if found.unfinished is not None:
        faults.append(f"transaction {found.unfinished} is unfinished: run recover")
    else:
        faults += [f"{escape(name)} is left over" for name in _left_over(repository)]
    if found.torn_bytes:
        faults.append(f"{found.torn_bytes} bytes of a torn record: run recover")
    for fault in faults:
        print(fault)
    if not faults:
        print(f"sound: {found.records} records")
    return 1 if faults else 0


def _left_over(repository: Repository) -> list[str]:
    found = []
    for record in wal.read(_wal(repository)).records:
        if record.kind is not Kind.BEGIN:
            continue
        begin = record.payload()
        top = os.path.normpath(repository.path(begin["worktree"]))
        temps = [row[1] for row in (begin["files"] or {"changes": []})["changes"] if row[1]]
        locks = [row[0] for row in (begin["refs"] or {"locks": []})["locks"]]
        found += [name for name in temps if disk.look(os.path.join(top, name))]
        found += [name for name in locks if disk.look(repository.path(name))]
    return sorted(set(found))


def _wal(repository: Repository) -> str:
    return os.path.join(repository.engine_dir, "wal")


_COMMANDS = {"status": _status, "recover": _recover, "log": _log, "verify": _verify}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m jin_core", description="Look at, or recover, a store.")
    parser.add_argument("command", choices=sorted(_COMMANDS))
    parser.add_argument("--repo", default=".", metavar="PATH", help="top of the work tree (default: here)")
    chosen = parser.parse_args(arguments)
    try:
        return _COMMANDS[chosen.command](locate(chosen.repo))
    except JinError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {escape(str(error))}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
