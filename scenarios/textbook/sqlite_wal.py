"""SQLite with a write-ahead log (`journal_mode=WAL`) keeps each transaction whole, many rows or one.

New pages are appended to `shop.db-wal`, each frame with a checksum; the commit is the frame that says so,
and it is synced before the acknowledgement. Opening after a crash rebuilds the index from the frames up to
the last commit; closing the last connection moves them into the database and removes both extra files, so
`clean` holds too. The observation then reads the one file that is left, without opening (and thereby
changing) anything beside it.
"""

import sqlite3
from pathlib import Path

from crashtest import DEFAULT, Run, scenario

Row = tuple[str, int]


def connect(directory: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(directory / "shop.db", isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    return connection


def shop(directory: Path) -> None:
    connection = connect(directory)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE stock (name TEXT PRIMARY KEY, pieces INTEGER, note TEXT) WITHOUT ROWID")
    connection.execute("INSERT INTO stock VALUES ('apple', 3, '')")
    connection.close()


@scenario(setup=shop, guarantees=DEFAULT | {"live", "clean"})
def sqlite_wal(run: Run) -> None:
    connection = connect(run.dir)
    for rows in run.ops:
        connection.execute("BEGIN IMMEDIATE")
        # Long notes, so that the rows need several pages.
        notes = [(name, pieces, name * 300) for name, pieces in rows]
        connection.executemany("INSERT OR REPLACE INTO stock VALUES (?, ?, ?)", notes)
        connection.execute("COMMIT")
        run.ack()
    connection.close()


@sqlite_wal.ops
def deliveries() -> list[list[Row]]:
    return [
        [("pear", 1)],
        [("plum", 7), ("apple", 30), ("quince", 2), ("medlar", 5), ("cherry", 400)],
        [("pear", 0), ("plum", 6)],
    ]


@sqlite_wal.recover
def restart(directory: Path) -> None:
    connection = connect(directory)
    found = connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()
    if found != [("ok",)]:
        raise RuntimeError(f"the database is damaged: {found}")


@sqlite_wal.observe
def stock(directory: Path) -> list[tuple[str, int, int]]:
    if (directory / "shop.db-wal").exists():
        raise RuntimeError("shop.db-wal is still there, so shop.db alone is not the whole state")
    connection = sqlite3.connect(f"file:{directory}/shop.db?mode=ro&immutable=1", uri=True)
    rows = connection.execute("SELECT name, pieces, length(note) FROM stock ORDER BY name").fetchall()
    connection.close()
    return rows
