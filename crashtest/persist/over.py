"""Putting a tree on disk where another one lies: only what differs is made anew.

Guarantees: afterwards a capture gives the digest of the tree, as after `Tree.restore` into an empty directory, and
every file has a new time of modification, also one that was kept: a program that remembers files by their times and
inode numbers (the index of git) takes none of them for one it knows. Does not look at the disk: the caller says what
lies there, and nothing else may have changed it. Trees with hard links, or very deep ones, are refused (`Unfit`): they
are for `Tree.restore`.
"""

from __future__ import annotations

import os

from crashtest.persist.tree import ROOT, Node, Tree, remove, write_node

#: directories within each other
_DEEP = 64


class Unfit(Exception):
    """This pair of trees is not for `restore_over`; the directory may have been changed in part."""


def restore_over(lying: Tree, tree: Tree, directory: str) -> dict[int, int]:
    """Turn `lying`, which is what `directory` holds, into `tree`; the file ids of `tree` by inode number.

    lying.inodes says which files lie there. Raises `Unfit`, and OSError where something else changed the directory.
    """
    return _Over(lying, tree).turn(directory)


class _Over:
    def __init__(self, lying: Tree, tree: Tree) -> None:
        self.lying = lying
        self.tree = tree
        self.inodes: dict[int, int] = {}
        self._number = {file: inode for inode, file in lying.inodes.items()}
        self._met: set[int] = set()
        self._made: set[int] = set()

    def turn(self, directory: str) -> dict[int, int]:
        self._directory(directory, ROOT, ROOT, 0)
        return self.inodes

    def _directory(self, at: str, old: int, new: int, depth: int) -> None:
        if depth > _DEEP:
            raise Unfit
        was, now = self.lying.nodes[old], self.tree.nodes[new]
        self.inodes[self._number[old]] = new
        if was.mode & 0o700 != 0o700:
            os.chmod(at, 0o700)
        kept: list[tuple[str, int, int]] = []
        for name, file in was.entries.items():
            _once(self._met, file)
            other = now.entries.get(name)
            if other is not None and _alike(self.lying.nodes[file], self.tree.nodes[other]):
                kept.append((name, file, other))
            else:
                self._remove(f"{at}/{name}", file)
        known = {name for name, _, _ in kept}
        for name, file, other in kept:
            _once(self._made, other)
            full = f"{at}/{name}"
            if self.tree.nodes[other].type == "d":
                self._directory(full, file, other, depth + 1)
            else:
                self.inodes[self._number[file]] = other
                os.utime(full, follow_symlinks=False)
        for name, other in now.entries.items():
            if name not in known:
                self._make(f"{at}/{name}", other, depth)
        _dress(at, was, now)

    def _remove(self, full: str, file: int) -> None:
        """Delete a file or a directory with all it has."""
        if self.lying.nodes[file].type != "d":
            os.unlink(full)
            return
        remove(full)
        os.rmdir(full)

    def _make(self, full: str, file: int, depth: int) -> None:
        """Make a file or a directory with all it has."""
        if depth > _DEEP:
            raise Unfit
        _once(self._made, file)
        node = self.tree.nodes[file]
        self.inodes[write_node(node, full)] = file
        if node.type == "d":
            for name, below in node.entries.items():
                self._make(f"{full}/{name}", below, depth + 1)
            os.chmod(full, node.mode)


def _once(met: set[int], file: int) -> None:
    """Refuse a file with two names."""
    if file in met:
        raise Unfit
    met.add(file)


def _alike(one: Node, other: Node) -> bool:
    """Whether what lies there can stay; a directory's own attributes are changed in place (`_dress`)."""
    return one is other or (one.type == other.type and (one.type == "d" or one.digest() == other.digest()))


def _dress(at: str, was: Node, now: Node) -> None:
    """Give a directory that stays its owner, extended attributes and mode."""
    if (was.uid, was.gid) != (now.uid, now.gid):
        os.chown(at, now.uid, now.gid)
    if was.xattrs != now.xattrs:
        for key in was.xattrs.keys() - now.xattrs.keys():
            os.removexattr(at, key)
        for key, value in now.xattrs.items():
            os.setxattr(at, key, value)
    if was.mode != now.mode or now.mode & 0o700 != 0o700 or (was.uid, was.gid) != (now.uid, now.gid):
        os.chmod(at, now.mode)
