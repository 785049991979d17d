"""SQLite with a write-ahead log (`journal_mode=WAL`): what each setting of `synchronous` survives.

New pages are appended to `shop.db-wal`, each frame with a checksum that includes those before it; a commit is a frame
that says so. The first to open the database after a crash takes the frames up to the last whole commit; the last to
close it moves them into the database. Killed, all four settings keep every transaction. When the power is cut:

- OFF syncs nothing, also not before frames are moved: damage, half transactions, lost commits.
- NORMAL syncs the log before its frames are moved and the database before the log is used again, not at a commit:
  the database is always whole, and the last commits may be gone (`durable`).
- FULL syncs the log at each commit: everything holds. EXTRA is the same, since no commit deletes a file here.
"""

from functools import partial

from crashtest import DEFAULT, Run, scenario

from . import _sqlite, power
from ._sqlite import deliveries, inventory, one_delivery, trade

shop = partial(_sqlite.shop, "WAL")


@scenario(setup=shop, expect=power("recovers", "atomic", "durable"))
def wal_off(run: Run) -> None:
    trade("OFF", run)


wal_off.ops(one_delivery)
wal_off.observe(partial(inventory, "OFF"))


@scenario(setup=shop, expect=power("durable"))
def wal_normal(run: Run) -> None:
    trade("NORMAL", run)


wal_normal.ops(one_delivery)
wal_normal.observe(partial(inventory, "NORMAL"))


@scenario(setup=shop, guarantees=DEFAULT | {"live"})
def wal_full(run: Run) -> None:
    trade("FULL", run)


wal_full.ops(deliveries)
wal_full.observe(partial(inventory, "FULL"))


@scenario(setup=shop)
def wal_extra(run: Run) -> None:
    trade("EXTRA", run)


wal_extra.ops(one_delivery)
wal_extra.observe(partial(inventory, "EXTRA"))
