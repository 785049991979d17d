"""A ref never outlives the object that it names, also when plain git wrote the object a moment before.

git syncs no loose object by itself, so the engine makes those that its refs will name durable before it logs anything.
Under `kill` nothing that was written is lost: what this proves without a power cut is only that a crash between the
object and the ref leaves both alone.
"""

import subprocess
from pathlib import Path

from crashtest import Run, scenario
from jin_core import STEPS

from . import _store
from ._store import CLAIMED


@scenario(setup=_store.opened_before, guarantees=CLAIMED, steps=STEPS, ignore=[".git/objects/*"])
def new_objects(run: Run) -> None:
    with _store.open_store(run.dir) as jin:
        for name in run.ops:
            commit = _store.git(run.dir, "commit-tree", "-m", name, _store.IDS["tree"]).decode().strip()
            with jin.transaction() as tx:
                tx.update_ref(f"refs/heads/{name}", commit)
                tx.write("newest", f"{name}\n".encode())
            run.ack(name)


@new_objects.ops
def branches() -> list[str]:
    return ["one", "two"]


@new_objects.observe
def everything_and_its_objects(directory: Path) -> tuple[object, ...]:
    """git tells a ref whose object is missing or empty by an error."""
    subprocess.run(["git", "-C", directory, "fsck", "--connectivity-only", "--no-dangling"], check=True)
    return _store.everything(directory)


new_objects.recover(_store.restart)
