"""Transactions that nobody thought of: drawn, killed everywhere, and their recovery killed everywhere as well.

Sequences of one to four transactions over a few files and refs whose names get in each other's way. They are drawn
with a model of the state, so most are valid; the others are refused on purpose, before anything is logged or by git
when everything is prepared. What fails is cut down to the fewest and simplest changes.

A run draws a few; `crashtest run scenarios/engine/generated.py --examples 200` is the deep one.
"""

from __future__ import annotations

from itertools import combinations
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
SCRIPT = (b"new\n", 0o755)
#: longer than two pages, so that a kill can cut the write
LARGE = (b"x" * 9000, 0o400)
COMMITS = ("1", None, "2", None, "3")
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


def one_or_two(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [(name,) for name in names] + list(combinations(names, 2))


def all_wishes(paths: tuple[str, ...], refs: tuple[str, ...]) -> list[Wish | None]:
    """What can be wished of these names, the simplest first; what stands here more often is drawn more often."""
    files = [FileWish(path, content, None, False) for content in (b"new\n", None, b"other\n", None) for path in paths]
    changes = [RefWish(name, commit, blind, False) for blind in (False, True) for commit in COMMITS for name in refs]
    modes = [FileWish(path, content, mode, False) for path in paths for content, mode in (SCRIPT, LARGE)]
    careless = [FileWish(path, content, None, True) for content in (b"new\n", None) for path in paths]
    wrong = [RefWish(name, commit, False, True) for commit in ("1", None) for name in refs]
    return [*files, *changes, *modes, *files, *changes, *modes, *careless, *wrong, *REFUSED, None, None]


def grouped(wishes: list[tuple[Wish | None, bool]]) -> list[list[Wish]]:
    """At most four transactions of at most four: a wish that joins goes into the same one as the wish before it, and no
    wish is an empty transaction."""
    made: list[list[Wish]] = []
    for wish, joins in wishes:
        if wish is None:
            made.append([])
        elif joins and made and 0 < len(made[-1]) < 4:
            made[-1].append(wish)
        else:
            made.append([wish])
    return made[:4]


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

    The wishes are one list, drawn without the state, and each is one choice: any of them can be taken away without a
    change in what the others mean.
    """
    from hypothesis import strategies as st

    def over(names: tuple[tuple[str, ...], tuple[str, ...]]) -> SearchStrategy[list[tuple[Wish | None, bool]]]:
        return st.lists(st.tuples(st.sampled_from(all_wishes(*names)), st.booleans()), min_size=1, max_size=16)

    few = [(paths, refs) for refs in one_or_two(REFS) for paths in one_or_two(PATHS)]
    return st.sampled_from(few).flatmap(over).map(grouped).map(fitted).filter(changes_something)


generated.recover(_store.restart)
generated.observe(_store.everything)
