"""A crash splits the three refs that one `git update-ref --stdin` moves: `atomic` is violated.

git takes all three locks first, so a *conflict* is all-or-nothing. The commit is then one rename per ref,
and nothing on disk remembers that they belong together: killed between two renames, one or two refs are
new, the rest are old, and no later git command finishes the job or takes it back. The cure is a durable
decision (a log record that says "commit") before the first rename, and a recovery that reads it; or one
rename for all of them.

When the power is cut, even a finished update may be gone (`durable`): git does not sync the directory that the refs are
renamed in, and any of the renames may be lost, in any combination.
"""

import subprocess
from pathlib import Path

from crashtest import Run, scenario

AFTER_A_POWER_CUT = {model: {"atomic", "durable"} for model in ["ext4", "xfs", "btrfs", "posix"]}


def git(directory: Path, *words: str, text: str = "") -> str:
    command = ["git", "-C", str(directory), *words]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout.strip()


def repository(directory: Path) -> None:
    git(directory, "-c", "init.templateDir=", "init", "-q", "--bare", "-b", "main")
    tree = git(directory, "mktree")
    for subject in "12":
        commit = git(directory, "commit-tree", "-m", subject, tree)
        git(directory, "update-ref", f"refs/tags/v{subject}", commit)
    for name in "abc":
        git(directory, "update-ref", f"refs/heads/{name}", "v1")


@scenario(setup=repository, expect={"kill": {"atomic"}, **AFTER_A_POWER_CUT})
def update_ref_three_refs(run: Run) -> None:
    updates = "".join(f"update refs/heads/{name} v2 v1\n" for name in "abc")
    git(run.dir, "update-ref", "--stdin", text=f"start\n{updates}prepare\ncommit\n")
    run.ack("v2")


@update_ref_three_refs.observe
def commits_named(directory: Path) -> str:
    """The commits that a, b and c name, as git reads them: 111 is old, 222 is new."""
    return "".join(git(directory, "for-each-ref", "--format=%(subject)", "refs/heads").split())
