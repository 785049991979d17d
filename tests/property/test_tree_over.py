"""A tree that is put over another one lies there as if the directory had been empty."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crashtest.persist.over import Unfit, restore_over
from crashtest.persist.tree import ROOT, Node, Tree
from crashtest.trace import Op

Plan = list[tuple[str, str, int]]
PLANS = st.lists(
    st.tuples(
        st.sampled_from(["file", "file", "directory", "link", "fifo"]),
        st.sampled_from(["a", "b", "a/b", "a/c", "b/a", "b/a/c"]),
        st.integers(0, 3),
    ),
    max_size=8,
)


def tree_of(plan: Plan) -> Tree:
    """What a plan comes to; steps that do not fit are passed over."""
    tree = Tree()
    tree.nodes[ROOT] = Node("d", 0o755, os.getuid(), os.getgid())
    for kind, path, number in plan:
        above, _, name = path.rpartition("/")
        parent = tree.lookup(above)
        if parent is None or tree.nodes[parent].type != "d" or name in tree.nodes[parent].entries:
            continue
        file = tree.new_id()
        owner = {"uid": os.getuid(), "gid": os.getgid()}
        if kind == "file":
            tree.apply(Op("create", file, parent, name, mode=0o600 + number, **owner))  # type: ignore[arg-type]
            tree.apply(Op("write", file, data=b"%d" % number * (1 + 3000 * number)))
            if number == 2:
                tree.apply(Op("setxattr", file, text="user.x", data=b"2"))
        elif kind == "directory":
            tree.apply(Op("mkdir", file, parent, name, mode=0o400 + 0o100 * number, **owner))  # type: ignore[arg-type]
            if number == 3:
                tree.apply(Op("setxattr", file, text="user.y", data=b"3"))
        elif kind == "link":
            tree.apply(Op("symlink", file, parent, name, text="x" * (number + 1), mode=0o777, **owner))  # type: ignore[arg-type]
        else:
            tree.apply(Op("mknod", file, parent, name, text="p", mode=0o600, **owner))  # type: ignore[arg-type]
    return tree


@settings(deadline=None, max_examples=150)
@given(PLANS, PLANS)
def test_what_lies_there_makes_no_difference(before: Plan, after: Plan) -> None:
    with tempfile.TemporaryDirectory() as directory:
        tree_of(before).restore(directory)
        lying = Tree.capture(directory)
        tree = tree_of(after)
        inodes = restore_over(lying, tree, directory)
        found = Tree.capture(directory)
        assert found.digest() == tree.digest(), tree.differences(found)
        for path, file in tree.walk():
            assert inodes[os.lstat(f"{directory}/{path}").st_ino] == file
        assert inodes[os.stat(directory).st_ino] == ROOT
        Path(directory).chmod(0o700)
        for path, file in tree.walk():
            if tree.nodes[file].type == "d":
                os.chmod(f"{directory}/{path}", 0o700)


def test_a_file_that_stays_is_not_taken_for_the_one_it_was(tmp_path: Path) -> None:
    """git's index remembers files by their times: after a restore it must look into each of them."""
    tree = tree_of([("file", "a", 1), ("file", "b", 1)])
    tree.restore(str(tmp_path))
    for name in "ab":
        os.utime(tmp_path / name, ns=(1, 1))
    restore_over(Tree.capture(str(tmp_path)), tree, str(tmp_path))
    assert all((tmp_path / name).stat().st_mtime_ns > 1 for name in "ab")


def test_hard_links_are_refused(tmp_path: Path) -> None:
    tree = tree_of([("file", "a", 1)])
    linked = tree.copy()
    linked.apply(Op("link", 1, dir=0, name="a", dir2=0, name2="b"))
    tree.restore(str(tmp_path))
    with pytest.raises(Unfit):
        restore_over(Tree.capture(str(tmp_path)), linked, str(tmp_path))
