"""SQLite with its rollback journal (`journal_mode=DELETE`) keeps each transaction whole, many rows or one.

Old pages are copied to `shop.db-journal` and synced before the database file is touched; deleting the
journal is the commit. After a crash the next reader finds a hot journal and rolls it back, so recovery is
nothing but opening and reading. `clean` is not claimed, because it is not promised: a journal whose header
was not yet valid at the crash is not hot, is passed over, and stays where it is until the next transaction
uses it.
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
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("CREATE TABLE stock (name TEXT PRIMARY KEY, pieces INTEGER, note TEXT) WITHOUT ROWID")
    connection.execute("INSERT INTO stock VALUES ('apple', 3, '')")
    connection.close()


@scenario(setup=shop, guarantees=DEFAULT | {"live"})
def sqlite_rollback(run: Run) -> None:
    connection = connect(run.dir)
    for rows in run.ops:
        connection.execute("BEGIN IMMEDIATE")
        # Long notes, so that the rows need several pages.
        notes = [(name, pieces, name * 300) for name, pieces in rows]
        connection.executemany("INSERT OR REPLACE INTO stock VALUES (?, ?, ?)", notes)
        connection.execute("COMMIT")
        run.ack()
    connection.close()


@sqlite_rollback.ops
def deliveries() -> list[list[Row]]:
    return [
        [("pear", 1)],
        [("plum", 7), ("apple", 30), ("quince", 2), ("medlar", 5), ("cherry", 400)],
        [("pear", 0), ("plum", 6)],
    ]


@sqlite_rollback.recover
def restart(directory: Path) -> None:
    connection = connect(directory)
    found = connection.execute("PRAGMA integrity_check").fetchall()
    connection.close()
    if found != [("ok",)]:
        raise RuntimeError(f"the database is damaged: {found}")


@sqlite_rollback.observe
def stock(directory: Path) -> list[tuple[str, int, int]]:
    connection = connect(directory)
    rows = connection.execute("SELECT name, pieces, length(note) FROM stock ORDER BY name").fetchall()
    connection.close()
    return rows
