"""SQLite with its rollback journal (`journal_mode=DELETE`): what each setting of `synchronous` survives.

Old pages are copied to `shop.db-journal`, the database file is changed, and deleting the journal is the commit. The
first to open the database after a crash finds a hot journal and rolls it back, so recovery is nothing but looking.
Killed, all four settings keep every transaction whole and lose none that was committed. When the power is cut:

- OFF syncs nothing: the database may be damaged, half a transaction may be there, commits may be gone.
- NORMAL writes the pages of the journal and the number of them, and syncs both at once. The number may be kept and a
  page lost; the checksum of a page looks at one byte in 200, so zeros may pass, and are rolled back into a database
  that was whole (`recovers`).
- FULL syncs the pages before it writes their number. What is left, for NORMAL too, is that nobody syncs the deletion:
  if it is lost, the journal is hot again and takes the last commit back (`durable`).
- EXTRA syncs the directory after the deletion: everything holds, if the program syncs it as well when it starts again.
  Otherwise a process that is killed between the deletion and that sync leaves a commit that everybody reads, and that a
  power cut then takes back: SQLite does not sync what it finds deleted.
"""

import os
from functools import partial
from pathlib import Path

from crashtest import DEFAULT, Run, scenario

from . import _sqlite, power
from ._sqlite import deliveries, inventory, one_delivery, trade

shop = partial(_sqlite.shop, "DELETE")


@scenario(setup=shop, expect=power("recovers", "atomic", "durable"))
def delete_off(run: Run) -> None:
    trade("OFF", run)


delete_off.ops(deliveries)
delete_off.observe(partial(inventory, "OFF"))


@scenario(setup=shop, expect=power("recovers", "durable"))
def delete_normal(run: Run) -> None:
    trade("NORMAL", run)


delete_normal.ops(one_delivery)
delete_normal.observe(partial(inventory, "NORMAL"))


@scenario(setup=shop, expect=power("durable"))
def delete_full(run: Run) -> None:
    trade("FULL", run)


delete_full.ops(deliveries)
delete_full.observe(partial(inventory, "FULL"))


@scenario(setup=shop, guarantees=DEFAULT | {"live"})
def delete_extra(run: Run) -> None:
    trade("EXTRA", run)


@delete_extra.recover
def restart(directory: Path) -> None:
    """Rolls a hot journal back, and makes durable that there is none."""
    inventory("EXTRA", directory)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.close(fd)


delete_extra.ops(deliveries)
delete_extra.observe(partial(inventory, "EXTRA"))


@scenario(setup=shop, expect=power("durable"))
def delete_extra_read_after_kill(run: Run) -> None:
    trade("EXTRA", run)


delete_extra_read_after_kill.ops(deliveries)
delete_extra_read_after_kill.observe(partial(inventory, "EXTRA"))
