"""For test files: one stored crash, done again.

Guarantees: `crash_again` returns only when the guarantee held: at the crash that was stored, and, when that one shows
nothing any more, at every crash of the same operations. What cannot be judged is an error, never a pass. Imports the
engine when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crashtest.errors import HarnessError, UsageError, quoted


def crash_again(
    file: str | os.PathLike[str],
    *,
    scenario: str,
    guarantee: str,
    model: str = "kill",
    ops: list[Any] | None,
    cut: int | None,
    kind: str = "",
    torn: int = 0,
    variant: str = "group",
    nested: Iterable[tuple[int, str, int]] = (),
    lost: Iterable[tuple[int, int]] = (),
    lost_first: Iterable[tuple[int, int]] | None = None,
    depth: int = 2,
    timeout: float = 10.0,
) -> None:
    """Crash one scenario at one place, and fail with the story when that breaks the guarantee.

    file, scenario: the scenario's file and function. ops: its operations, None without an `ops` part. cut, kind, torn,
    variant, nested, lost, lost_first: the place and the loss, as `crashtest export` writes them; cut None: shown by the
    run without a crash. depth: how deep crashes are nested when every crash of these operations is tried. timeout:
    seconds for one run of a part.

    Raises `AssertionError` with the story, `UsageError` when the scenario cannot be judged as it is written, and
    `HarnessError` when it could not be judged.
    """
    __tracebackhide__ = True
    from crashtest.cells.plan import Cell, cell_id, example_id
    from crashtest.config import Settings
    from crashtest.options import usable_cores
    from crashtest.report import story
    from crashtest.scale.replay import again
    from crashtest.scale.stored import Record
    from crashtest.values import canonical

    path = Path(file).resolve()
    if not path.is_file():
        raise UsageError(
            f"the scenario file {quoted(path)} is not there; it belongs beside this test as it was exported"
        )
    texts = None if ops is None else [canonical(op, f"operation {number + 1}") for number, op in enumerate(ops)]
    places = tuple((c, k, t) for c, k, t in nested)
    first = None if lost_first is None else tuple(lost_first)
    cell = Cell(cut or 0, kind, torn, variant, places, model, tuple(lost), first)
    label = quoted(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path, 4096)
    name = f"{label}::{scenario}"
    record = Record(
        schema=2, id=cell_id(name, example_id(texts), cell, model), guarantee=guarantee, model=model, scenario=name,
        function=scenario, file=str(path), seed=0, ops=texts, depth=max(depth, 1 + len(cell.inner)), point="",
        wanted="", observed="", cell=None if cut is None else (*cell[:4], list(cell.inner)),
        lost=list(cell.lost), lost_first=None if first is None else list(first),
    )  # fmt: skip
    settings = Settings(timeout=timeout, jobs=usable_cores())
    made = again(record, path, label, settings, lambda event: None)
    if made.exit == 0:
        return
    told = "\n".join(story.plain(line) for line in story.replayed(made, None))
    if made.exit == 1:
        raise AssertionError(told)
    if made.exit == 130:
        raise KeyboardInterrupt
    raise (UsageError if made.exit == 2 else HarnessError)(told)
