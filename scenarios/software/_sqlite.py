"""What the SQLite scenarios share: a shop with two tables, and the transactions that change both.

Every connection sets `synchronous` itself, also the one that looks afterwards: the first to open a database after a
crash rolls a journal back or moves frames of the log, and syncs as it is told. Looking checks the whole database and
raises `RuntimeError` when it is damaged.
"""

import sqlite3
from pathlib import Path

from crashtest import Run


def connect(synchronous: str, directory: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(directory / "shop.db", isolation_level=None)
    connection.execute(f"PRAGMA synchronous={synchronous}")
    return connection


def shop(journal: str, directory: Path) -> None:
    connection = connect("EXTRA", directory)
    connection.execute(f"PRAGMA journal_mode={journal}")
    connection.execute("CREATE TABLE stock (name TEXT PRIMARY KEY, pieces INTEGER, note TEXT) WITHOUT ROWID")
    connection.execute("CREATE TABLE total (pieces INTEGER)")
    connection.execute("INSERT INTO stock VALUES ('apple', 3, '')")
    connection.execute("INSERT INTO total VALUES (3)")
    connection.close()


def deliveries() -> list[tuple[str, int]]:
    return [("pear", 1), ("plum", 7)]


def one_delivery() -> list[tuple[str, int]]:
    """Enough to see what is lost; recovery with a log takes many steps, and each of them is crashed."""
    return deliveries()[:1]


def trade(synchronous: str, run: Run) -> None:
    """Each delivery changes a row in either table, on pages of their own; long notes, so that it takes many sectors."""
    connection = connect(synchronous, run.dir)
    for name, pieces in run.ops:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO stock VALUES (?, ?, ?)", (name, pieces, name * 300))
        connection.execute("UPDATE total SET pieces = pieces + ?", (pieces,))
        connection.execute("COMMIT")
        run.ack()
    connection.close()


def inventory(synchronous: str, directory: Path) -> tuple[list[tuple[str, int, int]], int]:
    """The rows, each with the length of its note, and the total."""
    connection = connect(synchronous, directory)
    found = connection.execute("PRAGMA integrity_check").fetchall()
    if found != [("ok",)]:
        raise RuntimeError(f"the database is damaged: {found}")
    rows = connection.execute("SELECT name, pieces, length(note) FROM stock ORDER BY name").fetchall()
    (total,) = connection.execute("SELECT pieces FROM total").fetchone()
    connection.close()
    return rows, total
