"""Transactions that nobody thought of: drawn, killed everywhere, and their recovery killed everywhere as well.

Sequences of one to four transactions over a few files and refs whose names get in each other's way. They are drawn
with a model of the state, so most are valid; the others are refused on purpose, before anything is logged or by git
when everything is prepared. What fails is cut down to the fewest and simplest changes.

A run draws a few; `crashtest run scenarios/engine/generated.py --examples 200` is the deep one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from crashtest import Run, scenario
from jin_core import STEPS

from . import _model, _store
from ._model import State
from ._store import CLAIMED, Change

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

#: names that exclude each other as file and directory; one that is there; a symbolic link, and a way through it
PATHS = ("a", "a/b", "a/b/c", "d/e", "readme", "link", "link/f")
#: the same for refs; main is checked out, and both loose and packed
REFS = ("t", "t/u", "t/u/v", "main", "packed", "packed/w")
#: a path that leaves the work tree, one that enters git's directory, a name and a value that git does not take
REFUSED: tuple[Change, ...] = (
    ("write", "../out", b"", None),
    ("write", "d/.git/e", b"", None),
    ("ref", "t.lock", "1", None),
    ("ref", "t/u", "tree", None),
)
FIRST = State({"readme": (b"first\n", 0o644)}, frozenset({"link"}), frozenset(), {"main": "2", "packed": "1"})


class FileWish(NamedTuple):
    """A content (None: delete the file) and a mode; careless: also where that is going to be refused."""

    path: str
    content: bytes | None
    mode: int | None
    careless: bool

    def change(self, state: State) -> Change:
        """What it comes to: a file that is not there is made instead of being deleted."""
        there = self.path in state.files or self.path in state.links
        if self.content is None and (there or self.careless):
            return ("delete", self.path)
        return ("write", self.path, self.content or b"", self.mode)


class RefWish(NamedTuple):
    """A commit (None: delete the ref); blind: whatever it was before; careless: with a wrong idea of what that is."""

    name: str
    commit: str | None
    blind: bool
    careless: bool

    def change(self, state: State) -> Change:
        """What it comes to: a ref that is not there is made instead of being deleted."""
        now = state.refs.get(self.name, "0")
        old = None if self.blind else now
        if self.careless:
            old = "2" if now == "1" else "1"
        if self.commit is None and (now != "0" or self.careless):
            return ("unref", self.name, old)
        return ("ref", self.name, self.commit or "1", old)


Wish = FileWish | RefWish | Change


def fitted(wishes: list[list[Wish]]) -> list[list[Change]]:
    """The transactions that the wishes come to; what would be refused is left out, unless it is careless."""
    state, made = FIRST, []
    for wished in wishes:
        changes: list[Change] = []
        fine: list[Change] = []
        for wish in wished:
            change = wish.change(state) if isinstance(wish, FileWish | RefWish) else wish
            if _model.after(state, [*fine, change]) is not None:
                fine.append(change)
            elif isinstance(wish, FileWish | RefWish) and not wish.careless:
                continue
            changes.append(change)
        state = _model.after(state, changes) or state
        made.append(changes)
    return made


def changes_something(transactions: list[list[Change]]) -> bool:
    state = FIRST
    for changes in transactions:
        state = _model.after(state, changes) or state
        if state != FIRST:
            return True
    return False


def first_state(directory: Path) -> None:
    """What FIRST says, on disk."""
    _store.opened_before(directory)
    _store.git(directory, "update-ref", "refs/heads/packed", "main")
    _store.git(directory, "pack-refs", "--all")
    _store.git(directory, "update-ref", "refs/heads/main", _store.IDS["2"])
    (directory / "link").symlink_to("readme")


@scenario(setup=first_state, guarantees=CLAIMED, steps=STEPS)
def generated(run: Run) -> None:
    with _store.open_store(run.dir) as jin:
        for changes in run.ops:
            before = _model.look(run.dir)
            outcome = _store.commit(jin, changes)
            run.ack(outcome, same=_model.look(run.dir) == before)


@generated.ops
def transactions() -> SearchStrategy[list[list[Change]]]:
    """Few names for each sequence, so that its transactions meet.

    Drawn without the state, so that taking a wish away does not change what the next ones mean.
    """
    from hypothesis import strategies as st

    def mostly(usual: SearchStrategy, other: SearchStrategy) -> SearchStrategy:
        return st.integers(0, 15).flatmap(lambda number: other if number == 15 else usual)

    def over(paths: list[str], refs: list[str]) -> SearchStrategy[list[list[Wish]]]:
        file = st.builds(FileWish, st.sampled_from(paths), contents, modes, rarely)
        ref = st.builds(RefWish, st.sampled_from(refs), commits, st.booleans(), rarely)
        wishes = st.lists(mostly(file | ref, st.sampled_from(REFUSED)), min_size=1, max_size=4)
        return st.lists(mostly(wishes, st.just([])), min_size=1, max_size=4)

    rarely = mostly(st.just(False), st.just(True))
    contents = st.sampled_from([b"new\n", None, None, None, b"other\n", b"x" * 9000])
    modes = mostly(st.none(), st.sampled_from([0o644, 0o755, 0o400]))
    commits = st.sampled_from(["1", None, None, None, "2", "3"])
    some_paths = st.lists(st.sampled_from(PATHS), min_size=1, max_size=2, unique=True)
    some_refs = st.lists(st.sampled_from(REFS), min_size=1, max_size=2, unique=True)
    return st.builds(over, some_paths, some_refs).flatmap(lambda drawn: drawn).map(fitted).filter(changes_something)


generated.recover(_store.restart)
generated.observe(_store.everything)
