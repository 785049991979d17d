"""A crash splits the three refs that one pygit2 transaction (libgit2) moves: `atomic` is violated.

The context manager (`Repository.transaction()`) promises all updates or none. libgit2 locks every ref, then
writes and renames them one after the other, with no record of the whole. A crash in between leaves some
refs moved for good. The cure is outside libgit2: log the whole change durably before the first ref moves,
and redo it at start.

When the power is cut, a finished transaction may be gone as well (`durable`), and a ref that was renamed may have lost
its content: libgit2 syncs neither the new ref nor its directory.
"""

import subprocess
from pathlib import Path

import pygit2

from crashtest import Run, scenario

AFTER_A_POWER_CUT = {model: {"atomic", "durable"} for model in ["ext4", "xfs", "btrfs", "posix"]}

NAMES = ("refs/heads/a", "refs/heads/b", "refs/heads/c")


def repository(directory: Path) -> None:
    repo = pygit2.init_repository(str(directory), bare=True)
    tree = repo.TreeBuilder().write()
    who = pygit2.Signature("A", "a@example.org", 1_700_000_000, 0)
    old, new = (repo.create_commit(None, who, who, subject, tree, []) for subject in "12")
    repo.create_reference("refs/tags/v2", new)
    for name in NAMES:
        repo.create_reference(name, old)


@scenario(setup=repository, expect={"kill": {"atomic"}, **AFTER_A_POWER_CUT})
def pygit2_transaction(run: Run) -> None:
    repo = pygit2.Repository(str(run.dir))
    new = repo.references["refs/tags/v2"].target
    with repo.transaction() as transaction:
        for name in NAMES:
            transaction.lock_ref(name)
        for name in NAMES:
            transaction.set_target(name, new)
    run.ack("v2")


@pygit2_transaction.observe
def commits_named(directory: Path) -> str:
    """The commits that a, b and c name, as real git reads them: 111 is old, 222 is new."""
    command = ["git", "-C", str(directory), "for-each-ref", "--format=%(subject)", "refs/heads"]
    return "".join(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
