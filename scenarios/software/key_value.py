"""Small databases of Python programs: `dbm.dumb`, `shelve` on it, and LMDB.

- `dbm.dumb` writes a value into its data file, over the old one where it fits, and then its whole index anew: killed
  while there is no index, everything that was stored before is gone (`durable`); killed between value and index, a new
  value is shown with the old one's length (`atomic`). Its documentation promises nothing.
- `shelve` is a pickle in such a file: a value of the wrong length cannot be read at all (`recovers`).
- LMDB writes new pages beside the old ones, syncs, then writes one of two meta pages through `O_DSYNC`: a commit that
  has returned survives every power cut, and one that has not leaves nothing.
- Making a new LMDB environment is another matter: both meta pages are written at once, and where only the first has
  arrived, every later opening says that this is no LMDB file; the directory is not synced either.
"""

import dbm.dumb
import shelve
from pathlib import Path
from typing import Any

import lmdb

from crashtest import Run, scenario

from . import power


def pairs() -> list[tuple[str, str]]:
    return [("colour", "red"), ("size", "large"), ("colour", "green")]


@scenario(expect={"kill": ["atomic", "durable"], **power("recovers", "atomic", "durable")})
def dumb_dbm(run: Run) -> None:
    for key, value in run.ops:
        with dbm.dumb.open(str(run.dir / "data"), "c") as store:
            store[key] = value
        run.ack((key, value))


@dumb_dbm.observe
def dumb_content(directory: Path) -> dict[str | bytes, bytes]:
    with dbm.dumb.open(str(directory / "data"), "c") as store:
        return {key: store[key] for key in store.keys()}  # noqa: SIM118 (it is no dict)


def shelf_at(directory: Path) -> Any:
    return shelve.Shelf(dbm.dumb.open(str(directory / "data"), "c"))  # type: ignore[arg-type]


@scenario(expect={"kill": ["recovers", "durable"], **power("recovers", "durable")})
def shelf(run: Run) -> None:
    for key, value in run.ops:
        with shelf_at(run.dir) as store:
            store[key] = [value] * 3
        run.ack((key, value))


@shelf.observe
def shelf_content(directory: Path) -> dict[str, list[str]]:
    with shelf_at(directory) as store:
        return dict(store.items())


def opened(directory: Path) -> lmdb.Environment:
    return lmdb.open(str(directory), map_size=1 << 20, max_readers=4)


def put(run: Run) -> None:
    with opened(run.dir) as environment:
        for key, value in run.ops:
            with environment.begin(write=True) as transaction:
                transaction.put(key.encode(), value.encode())
            run.ack((key, value))


@scenario(setup=lambda directory: opened(directory).close())
def lmdb_commit(run: Run) -> None:
    put(run)


@scenario(
    expect={
        "kill": ["recovers"],
        **power("recovers"),
        "btrfs": ["recovers", "durable"],
        "posix": ["recovers", "durable"],
    }
)
def lmdb_creation(run: Run) -> None:
    put(run)


@lmdb_commit.observe
@lmdb_creation.observe
def lmdb_content(directory: Path) -> dict[bytes, bytes]:
    with opened(directory) as environment, environment.begin() as transaction:
        return dict(transaction.cursor())


for one in (dumb_dbm, shelf, lmdb_commit, lmdb_creation):
    one.ops(pairs)
