"""`git commit` writes objects, index and branch with hardly a sync: a power cut can take the repository with it.

A change is staged and then committed. Killed anywhere, git keeps the old commit or the new one, but it leaves
`index.lock` or `HEAD.lock` behind, and the next commit refuses to start until somebody removes it (`live`). When the
power is cut:

- with git's defaults (`core.fsync=committed,-loose-object`) the new branch may name a commit whose objects are empty
  (`recovers`), and a commit that was reported may be gone (`durable`);
- with `core.fsync=all` each file is synced, but no directory: where names are not kept in order, an object may have
  lost its name (`recovers`), and the branch may still be the old one (`durable`);
- with `core.fsyncMethod=batch` as well, objects are handed to the disk by `sync_file_range`, which promises nothing,
  and one other file is synced: objects may be zeros again (`recovers`).
"""

import subprocess
from pathlib import Path

from crashtest import DEFAULT, Run, scenario

from . import power


def git(directory: Path, *words: str) -> str:
    """The output of a git command. Raises `RuntimeError` with git's own words when it fails."""
    done = subprocess.run(["git", "-C", str(directory), *words], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"git {words[0]}: {done.stderr.strip().partition(chr(10))[0]}")
    return done.stdout.strip()


def repository(directory: Path, *settings: str) -> None:
    """One commit, and a change that is staged. settings: of git, as name=value."""
    git(directory, "-c", "init.templateDir=", "init", "-q", "-b", "main")
    for setting in settings:
        git(directory, "config", *setting.split("="))
    for text in ("first", "second"):
        (directory / "notes").write_text(f"{text}\n")
        git(directory, "add", "notes")
        if text == "first":
            git(directory, "commit", "-qm", text)


def commit(run: Run) -> None:
    for subject in run.ops:
        git(run.dir, "commit", "-qm", subject)
        run.ack(subject)


def subjects() -> list[str]:
    return ["second"]


def history(directory: Path) -> dict[str, str]:
    """What a user looks at: the history with its changes (reads every object of it), and what is staged."""
    return {
        "log": git(directory, "log", "--numstat", "--format=%s"),
        "staged": git(directory, "diff", "--cached", "--numstat"),
    }


@scenario(
    setup=repository,
    guarantees=DEFAULT | {"live"},
    expect={"kill": ["live"], **power("recovers", "durable", "live")},
)
def git_commit(run: Run) -> None:
    commit(run)


git_commit.ops(subjects)
git_commit.observe(history)


@scenario(
    setup=lambda directory: repository(directory, "core.fsync=all"),
    expect={**power("durable"), "btrfs": ["recovers", "durable"], "posix": ["recovers", "durable"]},
)
def git_commit_fsync_all(run: Run) -> None:
    commit(run)


git_commit_fsync_all.ops(subjects)
git_commit_fsync_all.observe(history)


@scenario(
    setup=lambda directory: repository(directory, "core.fsync=all", "core.fsyncMethod=batch"),
    expect=power("recovers", "durable"),
)
def git_commit_batched(run: Run) -> None:
    commit(run)


git_commit_batched.ops(subjects)
git_commit_batched.observe(history)
