"""A tree in which files may have no name, and its variables: the values that a power cut keeps or loses one by one.

Guarantees: an `Image` counts the names of each file, keeps what has none until it is dropped, and leaves trees that
share its nodes as they are. A variable (a sector, a size, a name, an attribute) is read and set here alone. Does not
know what is durable (`persist.history`).
"""

from __future__ import annotations

from typing import Any

from crashtest.persist.tree import ROOT, Node, Tree

#: a variable: (kind, file or directory, sector or name or attribute)
Key = tuple[str, int, Any]


class Image:
    """A tree in which files may lose all their names and get one again. tree: what has a name; its copies are safe."""

    def __init__(self, tree: Tree, tear: int) -> None:
        """tree: taken as it is, all of it with names. tear: the size of a sector in bytes."""
        self.tree = tree
        self.tear = tear
        self.unnamed: dict[int, Node] = {}
        self.links: dict[int, int] = {ROOT: 1}
        self._own: set[int] = set()
        for node in tree.nodes.values():
            for file in node.entries.values():
                self.links[file] = self.links.get(file, 0) + 1

    def add(self, file: int, node: Node) -> None:
        """A new file, without a name."""
        self.tree.reserve(file)
        self.unnamed[file] = node
        self.links[file] = 0
        self._own.add(file)

    def get(self, file: int) -> Node | None:
        return self.tree.nodes.get(file) or self.unnamed.get(file)

    def entries(self, directory: int) -> dict[str, int]:
        """The names in a directory. Raises `AttributeError` when there is no such file."""
        return self.get(directory).entries  # type: ignore[union-attr]

    def type(self, file: int) -> str:
        """The type of a file, "" when there is none."""
        node = self.get(file)
        return "" if node is None else node.type

    def data(self, file: int) -> bytearray:
        """The content of a file that is there."""
        node = self.get(file)
        assert node is not None
        return node.data

    def value(self, key: Key) -> Any:
        """The value of a variable of a file that is there."""
        kind, file, what = key
        node = self.get(file)
        assert node is not None
        return value_of(node, kind, what, self.tear)

    def share(self, file: int) -> Node:
        """The node, for another tree to hold: not to be changed there, nor here any more."""
        node = self.tree.nodes.get(file)
        if node is None:
            node = self.unnamed[file]
            self._own.discard(file)
        return node

    def change(self, file: int) -> Node:
        """The node, to be changed."""
        if file in self.tree.nodes:
            node = self.tree.mine(file)
        else:
            node = self.unnamed[file]
            if file not in self._own:
                node = self.unnamed[file] = node.copy()
                self._own.add(file)
        node.dirty()
        return node

    def bind(self, directory: int, name: str, file: int | None) -> int | None:
        """Set a name; the file that has lost its last name by it, or None."""
        entries = self.change(directory).entries
        old = entries.pop(name, None)
        if file is not None:
            entries[name] = file
            self.links[file] += 1
            if file in self.unnamed:
                node = self.unnamed.pop(file)
                self.tree.nodes[file] = node if file in self._own else node.copy()
                self._own.discard(file)
            self.tree.parents[file] = (directory, name)
        return None if old is None else self._unlink(old)

    def _unlink(self, file: int) -> int | None:
        self.links[file] -= 1
        if self.links[file]:
            return None
        self.unnamed[file] = self.tree.nodes.pop(file)  # other trees may share it
        self.tree.parents.pop(file, None)
        return file

    def drop(self, file: int) -> list[int]:
        """Forget a file without a name; the files that lose their last name by it."""
        node = self.unnamed.pop(file, None)
        self._own.discard(file)
        self.links.pop(file, None)
        if node is None:
            return []
        return [child for child in node.entries.values() if self._unlink(child) is not None]


def value_of(node: Node, kind: str, what: Any, tear: int) -> Any:
    """The value of a variable of the node; a sector has `tear` bytes."""
    if kind == "name":
        return node.entries.get(what)
    if kind == "data":
        return bytes(node.data[what * tear : (what + 1) * tear])
    if kind == "size":
        return len(node.data)
    if kind == "mode":
        return node.mode
    if kind == "owner":
        return node.uid, node.gid
    return node.xattrs.get(what)


def set_value(node: Node, kind: str, what: Any, value: Any, tear: int) -> None:
    """Set anything but a name; data only as far as the file's size goes."""
    if kind == "data":
        at = what * tear
        room = min(tear, len(node.data) - at)
        if room > 0:
            node.data[at : at + room] = value[:room].ljust(room, b"\0")
    elif kind == "size":
        if value < len(node.data):
            del node.data[value:]
        else:
            node.data.extend(bytes(value - len(node.data)))
    elif kind == "mode":
        node.mode = value
    elif kind == "owner":
        node.uid, node.gid = value
    elif value is None:
        node.xattrs.pop(what, None)
    else:
        node.xattrs[what] = value


def sectors(was: int, size: int, tear: int) -> range:
    """The sectors that a larger size shows anew."""
    return range(was // tear, (size - 1) // tear + 1) if size > was else range(0)


def reachable(first: Tree) -> Tree:
    """A copy with nothing in it that has no name."""
    tree = first.copy()
    tree.inodes = {}
    named = {ROOT, *(file for _, file in first.walk())}
    for file in [file for file in tree.nodes if file not in named]:
        del tree.nodes[file]
        tree.parents.pop(file, None)
    return tree
