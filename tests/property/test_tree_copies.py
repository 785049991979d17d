"""A copy of a tree and the tree itself are changed apart, and a digest is never stale."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crashtest.persist.tree import Node, Tree
from crashtest.trace import Op

NAMES = st.sampled_from("abc")


def changes(tree: Tree, kind: str, name: str, other: str, number: int) -> None:
    """One change of the root directory, where it fits."""
    entries = tree.nodes[0].entries
    if kind == "create" and name not in entries:
        tree.apply(Op("create", tree.new_id(), dir=0, name=name, mode=0o644))
    elif name in entries:
        file = entries[name]
        if kind == "write":
            tree.apply(Op("write", file, offset=number, data=b"%d" % number))
        elif kind == "truncate":
            tree.apply(Op("truncate", file, size=number))
        elif kind == "chmod":
            tree.apply(Op("chmod", file, mode=0o600 + number))
        elif kind == "setxattr":
            tree.apply(Op("setxattr", file, text=f"user.{number}", data=b"x"))
        elif kind == "unlink":
            tree.apply(Op("unlink", file, dir=0, name=name))
        elif kind == "rename":
            tree.apply(Op("rename", file, dir=0, name=name, dir2=0, name2=other))
        elif kind == "link" and other not in entries:
            tree.apply(Op("link", file, dir=0, name=name, dir2=0, name2=other))


KINDS = st.sampled_from(["create", "create", "write", "truncate", "chmod", "setxattr", "unlink", "rename", "link"])
STEPS = st.lists(st.tuples(KINDS, NAMES, NAMES, st.integers(0, 7)), max_size=12)


def first() -> Tree:
    tree = Tree()
    tree.nodes[0] = Node("d", 0o755, 0, 0)
    return tree


def alone(*lists: list[tuple[str, str, str, int]]) -> str:
    """The digest when the same changes are made to a tree that was never copied."""
    tree = first()
    for steps in lists:
        for step in steps:
            changes(tree, *step)
    return Tree.from_plain(tree.to_plain()).digest()


@given(STEPS, STEPS, STEPS)
def test_a_copy_and_its_original_are_changed_apart(
    before: list[tuple[str, str, str, int]],
    here: list[tuple[str, str, str, int]],
    there: list[tuple[str, str, str, int]],
) -> None:
    tree = first()
    for step in before:
        changes(tree, *step)
        tree.digest()
    copy = tree.copy()
    for step in here:
        changes(tree, *step)
        tree.digest()
    for step in there:
        changes(copy, *step)
        copy.digest()
    assert tree.digest() == alone(before, here)
    assert copy.digest() == alone(before, there)
