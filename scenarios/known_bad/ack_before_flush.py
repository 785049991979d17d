"""Orders are confirmed while they are still in a buffer of the process: `durable` is violated.

`write` on a buffered file copies into memory. The confirmation goes out at once, the bytes go to the kernel
when the buffer is full or the file is closed, and a process that is killed in between takes confirmed
orders with it. Nothing is ever torn or out of order, and a run that ends normally has them all, so no
ordinary test can notice. The cure: flush and fsync before the confirmation.

A power cut does more: of the one write at the end, the file may keep its new length and lose what was written, so that
lines come back as zeros (`atomic`). The cure for that is a checksum for each order (see `textbook/append_log.py`).
"""

import os
from pathlib import Path

from crashtest import Run, scenario


@scenario(setup={"orders": ""}, expect={"kill": {"durable"}, "posix": {"atomic", "durable"}})
def ack_before_flush(run: Run) -> None:
    with open(run.dir / "orders", "a") as orders:
        for order in run.ops:
            orders.write(order + "\n")
            run.ack(order)
        orders.flush()
        os.fsync(orders.fileno())


@ack_before_flush.ops
def some_orders() -> list[str]:
    return ["3 apples", "1 pear", "7 plums"]


@ack_before_flush.observe
def orders_kept(directory: Path) -> list[str]:
    return (directory / "orders").read_text().splitlines()
