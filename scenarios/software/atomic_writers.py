"""Two libraries whose promise is in their documentation: `atomicwrites`, and `dulwich`'s commit.

- `atomicwrites` syncs the temporary file, renames it, and syncs the directory: each write is whole, and has come to
  stay when it returns. Killed before that last sync, the new content is read by the next process and may be lost with
  the power (`durable`, a kill and then a power cut): it has nothing that runs at the start.
- `dulwich` (git in Python) writes objects, index and refs by a lock file and a rename. It syncs the index and the refs,
  objects only if `core.fsyncObjectFiles` says so, and no directory.
"""

from pathlib import Path
from typing import Any

from atomicwrites import atomic_write
from dulwich import porcelain
from dulwich.repo import Repo

from crashtest import Run, scenario

from . import power


@scenario(setup={"settings": "colour = blue\n"}, expect=power("durable"))
def atomicwrites_replace(run: Run) -> None:
    for text in run.ops:
        with atomic_write(run.dir / "settings", overwrite=True) as file:
            file.write(text)
        run.ack(text)


@atomicwrites_replace.ops
def texts() -> list[str]:
    return ["colour = red\n", "colour = green\n"]


@atomicwrites_replace.observe
def settings(directory: Path) -> str:
    return (directory / "settings").read_text()


def repository(directory: Path) -> None:
    porcelain.init(directory)
    add_and_commit(directory, "first")


def add_and_commit(directory: Path, text: str) -> None:
    (directory / "notes").write_text(text)
    porcelain.add(str(directory), [str(directory / "notes")])
    who = b"crashtest <crashtest@example.invalid>"
    when = 946684800.0
    with Repo(str(directory)) as repo:
        repo.get_worktree().commit(
            message=text.encode(), author=who, committer=who, commit_timestamp=when, author_timestamp=when,
            commit_timezone=0, author_timezone=0,
        )  # fmt: skip


@scenario(setup=repository, expect=power("recovers", "durable"))
def dulwich_commit(run: Run) -> None:
    for text in run.ops:
        add_and_commit(run.dir, text)
        run.ack(text)


@dulwich_commit.ops
def messages() -> list[str]:
    return ["second"]


@dulwich_commit.observe
def history(directory: Path) -> list[tuple[bytes, bytes]]:
    """Each commit of the history with the content of the file in it."""
    found = []
    repo: Any
    with Repo(str(directory)) as repo:
        for entry in repo.get_walker():
            _, blob = repo[entry.commit.tree][b"notes"]
            found.append((entry.commit.message, repo[blob].data))
    return found
