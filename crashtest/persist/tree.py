"""A directory tree as bytes in memory: capture it, restore it, change it by a trace's events, compare it.

Guarantees: a tree is names, types, contents, symlink targets, permission bits, owners, `user.*` extended
attributes and which names are links to one file; two trees have the same digest exactly when all of these agree.
`restore` then `capture` gives the same digest. Times and inode numbers are not part of a tree: no restored copy can
have them. Device nodes are refused. Never follows a symbolic link out of the tree.
"""

from __future__ import annotations

import os
import stat

# hashlib would load OpenSSL, whose clean-up at exit copies more pages than the rest of a worker's end
from _blake2 import blake2b
from collections.abc import Callable, Iterator
from typing import Any

from crashtest.errors import HarnessError, quoted
from crashtest.trace import CHANGES, SIGNS, SYNCS, Op

_TYPES = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l", stat.S_IFIFO: "p", stat.S_IFSOCK: "s"}
ROOT = 0
#: half of PATH_MAX (linux/limits.h), which leaves room for any name
_LONG = 2048


class Node:
    """One file or directory. `type`: d, f, l (symlink), p (fifo) or s (socket)."""

    __slots__ = ("_digest", "data", "entries", "gid", "mode", "text", "type", "uid", "xattrs")

    def __init__(self, type: str, mode: int, uid: int, gid: int, text: str = "") -> None:
        self.type = type
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.text = text
        self.data = bytearray()
        self.xattrs: dict[str, bytes] = {}
        self.entries: dict[str, int] = {}
        self._digest = b""

    def copy(self) -> Node:
        new = Node(self.type, self.mode, self.uid, self.gid, self.text)
        new.data = bytearray(self.data)
        new.xattrs = dict(self.xattrs)
        new.entries = dict(self.entries)
        new._digest = self._digest
        return new

    def dirty(self) -> None:
        self._digest = b""

    def digest(self) -> bytes:
        """Of everything but a directory's entries."""
        if not self._digest:
            head = repr((self.type, self.mode, self.uid, self.gid, self.text, sorted(self.xattrs.items())))
            made = blake2b(head.encode("utf-8", "surrogateescape"), digest_size=16)
            made.update(b"\0")
            made.update(self.data)
            self._digest = made.digest()
        return self._digest


class Tree:
    """A tree of `Node`s by file id; id 0 is the directory itself. Changed in place by `apply`.

    A copy shares its nodes with the tree it was made from: whichever is changed first takes a node of its own. So a
    node is changed through `mine` only.
    """

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}
        #: file id -> one name it has or last had: (directory id, name)
        self.parents: dict[int, tuple[int, str]] = {}
        #: the ids of the nodes that no other tree shares
        self._own: set[int] = set()
        #: inode number -> file id, where this tree was last captured from or restored to; not part of the tree
        self.inodes: dict[int, int] = {}
        self._next = 1
        self._digest = ""

    # -- reading ---------------------------------------------------------------------------------------------

    def new_id(self) -> int:
        self._next += 1
        return self._next - 1

    def reserve(self, file: int) -> None:
        """An id that is taken: no new file gets it."""
        self._next = max(self._next, file + 1)

    def copy(self) -> Tree:
        new = Tree()
        new.nodes, new.parents = dict(self.nodes), dict(self.parents)
        new._next, new._digest = self._next, self._digest
        self._own = set()
        return new

    def mine(self, file: int) -> Node:
        """The node of a file, to be changed."""
        node = self.nodes[file]
        if file not in self._own:
            node = self.nodes[file] = node.copy()
            self._own.add(file)
        self._digest = ""
        return node

    def size(self, file: int) -> int:
        return len(self.nodes[file].data)

    def content(self, file: int) -> bytearray:
        return self.nodes[file].data

    def path(self, file: int) -> str:
        """One path of the file relative to the tree ("." for the tree itself), for people."""
        names: list[str] = []
        while file != ROOT and file in self.nodes and len(names) < 4096:
            file, name = self.parents.get(file, (-1, ""))
            names.append(name)
        return "/".join(reversed(names)) or "."

    def lookup(self, path: str) -> int | None:
        """The file id at `path` (no symlinks followed), or None."""
        at = ROOT
        for part in path.split("/"):
            if part not in ("", "."):
                node = self.nodes[at]
                if part not in node.entries:
                    return None
                at = node.entries[part]
        return at

    def walk(self) -> Iterator[tuple[str, int]]:
        """(path, id) of everything reachable, directories before what they hold, names sorted; not the root."""
        stack: list[tuple[str, int]] = [("", ROOT)]
        while stack:
            prefix, at = stack.pop()
            entries = self.nodes[at].entries
            for name in sorted(entries):
                yield prefix + name, entries[name]
            for name in sorted(entries, reverse=True):
                if self.nodes[entries[name]].type == "d":
                    stack.append((f"{prefix}{name}/", entries[name]))

    def names(self) -> list[str]:
        """Every path in the tree, sorted."""
        return sorted(path for path, _ in self.walk())

    def digest(self) -> str:
        """32 hexadecimal digits; equal exactly for equal trees."""
        if self._digest:
            return self._digest
        made = blake2b(self.nodes[ROOT].digest(), digest_size=16)
        first: dict[int, int] = {}
        for order, (path, file) in enumerate(self.walk()):
            made.update(path.encode("utf-8", "surrogateescape"))
            made.update(b"\0%d\0" % first.setdefault(file, order))
            made.update(self.nodes[file].digest())
        self._digest = made.hexdigest()
        return self._digest

    def differences(self, other: Tree, limit: int = 5) -> list[str]:
        """How `other` differs from this tree, one line a path, at most `limit` lines."""
        if self.digest() == other.digest():
            return []
        mine, theirs = dict(self.walk()), dict(other.walk())
        lines: list[str] = []
        for path in sorted(mine.keys() | theirs.keys()):
            shown = quoted(path)
            if path not in theirs:
                lines.append(f"{shown}: only in the first")
            elif path not in mine:
                lines.append(f"{shown}: only in the second")
            else:
                lines.extend(
                    f"{shown}: {words}" for words in _unlike(self.nodes[mine[path]], other.nodes[theirs[path]])
                )
            if len(lines) >= limit:
                break
        if not lines:
            root = list(_unlike(self.nodes[ROOT], other.nodes[ROOT]))
            lines = [f".: {words}" for words in root] or ["the same names are linked to different files"]
        return lines[:limit]

    # -- changing --------------------------------------------------------------------------------------------

    def apply(self, op: Op) -> None:
        """Apply one event. Raises `HarnessError` when it does not fit the tree."""
        kind = op.kind
        if kind in SYNCS or kind in SIGNS or kind == "utimes":
            return
        try:
            _APPLY[kind](self, op)
        except (KeyError, AttributeError) as error:
            raise HarnessError(f"the trace does not fit its first state: {quoted(op.describe())}: {error!r}") from None

    def _bind(self, directory: int, name: str, file: int) -> None:
        self.mine(directory).entries[name] = file
        self.parents[file] = (directory, name)

    def _make(self, op: Op, type: str, bound: bool = True) -> Node:
        node = Node(type, op.mode, op.uid, op.gid, op.text if type == "l" else "")
        self.nodes[op.file] = node
        self._own.add(op.file)
        self._digest = ""
        self.reserve(op.file)
        if bound:
            self._bind(op.dir, op.name, op.file)
        return node

    def _create(self, op: Op) -> None:
        self._make(op, "f")

    def _tmpfile(self, op: Op) -> None:
        self._make(op, "f", bound=False)

    def _mkdir(self, op: Op) -> None:
        self._make(op, "d")

    def _mknod(self, op: Op) -> None:
        self._make(op, op.text)

    def _symlink(self, op: Op) -> None:
        self._make(op, "l")

    def _arrive(self, op: Op) -> None:
        self._make(op, "f").data[:] = op.data

    def _link(self, op: Op) -> None:
        self._bind(op.dir2, op.name2, op.file)

    def _unlink(self, op: Op) -> None:
        del self.mine(op.dir).entries[op.name]

    _rmdir = _unlink
    _depart = _unlink

    def _rename(self, op: Op) -> None:
        del self.mine(op.dir).entries[op.name]
        self._bind(op.dir2, op.name2, op.file)

    def _exchange(self, op: Op) -> None:
        other = self.nodes[op.dir2].entries[op.name2]
        self._bind(op.dir, op.name, other)
        self._bind(op.dir2, op.name2, op.file)

    def _write(self, op: Op) -> None:
        node = self.mine(op.file)
        if op.offset > len(node.data):
            node.data.extend(bytes(op.offset - len(node.data)))
        node.data[op.offset : op.offset + len(op.data)] = op.data
        node.dirty()

    def _truncate(self, op: Op) -> None:
        node = self.mine(op.file)
        if op.size < len(node.data):
            del node.data[op.size :]
        else:
            node.data.extend(bytes(op.size - len(node.data)))
        node.dirty()

    def _allocate(self, op: Op) -> None:
        if op.size > self.size(op.file):
            self._truncate(op)

    def _chmod(self, op: Op) -> None:
        node = self.mine(op.file)
        node.mode = op.mode
        node.dirty()

    def _chown(self, op: Op) -> None:
        node = self.mine(op.file)
        node.uid, node.gid, node.mode = op.uid, op.gid, op.mode
        node.dirty()

    def _setxattr(self, op: Op) -> None:
        node = self.mine(op.file)
        node.xattrs[op.text] = op.data
        node.dirty()

    def _removexattr(self, op: Op) -> None:
        node = self.mine(op.file)
        del node.xattrs[op.text]
        node.dirty()

    # -- the disk --------------------------------------------------------------------------------------------

    def restore(self, directory: str) -> dict[int, int]:
        """Write this tree into the empty directory `directory`; the inode number of each file id, inverted."""
        inodes: dict[int, int] = {}
        made: dict[int, str] = {}
        modes: list[tuple[str, int]] = []
        for path, file in self.walk():
            node, full = self.nodes[file], f"{directory}/{path}"
            if file in made:
                os.link(made[file], full, follow_symlinks=False)
                continue
            made[file] = full
            inodes[write_node(node, full)] = file
            if node.type == "d":
                modes.append((full, node.mode))
        root = self.nodes[ROOT]
        for full, mode in reversed(modes):
            os.chmod(full, mode)
        os.chown(directory, root.uid, root.gid)
        os.chmod(directory, root.mode)
        for key, value in root.xattrs.items():
            os.setxattr(directory, key, value)
        inodes[os.stat(directory).st_ino] = ROOT
        return inodes

    @classmethod
    def capture(cls, directory: str) -> Tree:
        """Read the tree at `directory`. Raises `HarnessError` on a device node, OSError when it cannot be read."""
        tree = cls()
        info = os.stat(directory)
        root = Node("d", stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
        _read_xattrs(root, directory)
        tree.nodes[ROOT] = root
        tree._own.add(ROOT)
        tree.inodes[info.st_ino] = ROOT
        links: dict[int, int] = {}
        stack = [(directory, ROOT)]
        while stack:
            at, parent = stack.pop()
            with _readable(at, tree.nodes[parent]), os.scandir(at) as entries:
                found = sorted((entry.name, entry) for entry in entries)
                for name, entry in found:
                    info = entry.stat(follow_symlinks=False)
                    if info.st_nlink > 1 and info.st_ino in links:
                        tree.nodes[parent].entries[name] = links[info.st_ino]
                        continue
                    file = tree.new_id()
                    node = tree.nodes[file] = _read_node(entry.path, info)
                    tree._own.add(file)
                    tree._bind(parent, name, file)
                    tree.inodes[info.st_ino] = file
                    if node.type == "d":
                        stack.append((entry.path, file))
                    elif info.st_nlink > 1:
                        links[info.st_ino] = file
        return tree

    # -- messages --------------------------------------------------------------------------------------------

    def to_plain(self) -> dict[str, Any]:
        """For a message or a file; `from_plain` gives the tree back with the same file ids."""
        nodes = [
            [
                key,
                n.type,
                n.mode,
                n.uid,
                n.gid,
                n.text,
                bytes(n.data),
                [*n.xattrs.items()],
                [*n.entries.items()],
                [*self.parents.get(key, (-1, ""))],
            ]
            for key, n in self.nodes.items()
        ]
        return {"next": self._next, "nodes": nodes}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Tree:
        tree = cls()
        tree._next = plain["next"]
        for key, type_, mode, uid, gid, text, data, xattrs, entries, parent in plain["nodes"]:
            node = tree.nodes[key] = Node(type_, mode, uid, gid, text)
            node.data[:] = data
            node.xattrs, node.entries = dict(xattrs), dict(entries)
            tree.parents[key] = (parent[0], parent[1])
        tree._own = set(tree.nodes)
        return tree


_APPLY: dict[str, Callable[[Tree, Op], object]] = {
    kind: getattr(Tree, f"_{kind}") for kind in CHANGES if kind != "utimes"
}


def _unlike(mine: Node, theirs: Node) -> Iterator[str]:
    if mine.type != theirs.type:
        yield f"type {mine.type} and {theirs.type}"
        return
    if mine.mode != theirs.mode:
        yield f"mode {mine.mode:o} and {theirs.mode:o}"
    if (mine.uid, mine.gid) != (theirs.uid, theirs.gid):
        yield f"owner {mine.uid}:{mine.gid} and {theirs.uid}:{theirs.gid}"
    if mine.text != theirs.text:
        yield f"target {quoted(mine.text)} and {quoted(theirs.text)}"
    if mine.xattrs != theirs.xattrs:
        yield f"extended attributes {sorted(mine.xattrs)} and {sorted(theirs.xattrs)} (or their values)"
    if mine.data != theirs.data:
        short = min(len(mine.data), len(theirs.data))
        at = next((i for i in range(short) if mine.data[i] != theirs.data[i]), short)
        yield f"content differs at byte {at} (sizes {len(mine.data)} and {len(theirs.data)})"


def write_node(node: Node, full: str) -> int:
    """Make the file; its inode number."""
    if node.type == "d":
        os.mkdir(full, 0o700)
    elif node.type == "f":
        fd = os.open(full, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        view = memoryview(node.data)
        while view:
            view = view[os.write(fd, view) :]
        os.fchmod(fd, node.mode)
        os.close(fd)
    elif node.type == "l":
        os.symlink(node.text, full)
    else:
        os.mknod(full, (stat.S_IFIFO if node.type == "p" else stat.S_IFSOCK) | 0o600)
        os.chmod(full, node.mode)
    info = os.lstat(full)
    if (info.st_uid, info.st_gid) != (node.uid, node.gid):
        os.chown(full, node.uid, node.gid, follow_symlinks=False)
        if node.type == "f":
            os.chmod(full, node.mode)
    for key, value in node.xattrs.items():
        os.setxattr(full, key, value, follow_symlinks=False)
    return info.st_ino


def _read_node(full: str, info: os.stat_result) -> Node:
    type_ = _TYPES.get(stat.S_IFMT(info.st_mode))
    if type_ is None:
        raise HarnessError(f"{quoted(full)} is a device node, which cannot be part of a state; leave it out")
    node = Node(type_, stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
    if type_ == "l":
        node.text = os.readlink(full)
    elif type_ == "f" and info.st_size:
        node.data[:] = _read_file(full, node.mode)
    if type_ in "df":
        _read_xattrs(node, full)
    return node


def _read_file(full: str, mode: int) -> bytes:
    try:
        fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW)
    except PermissionError:
        os.chmod(full, mode | 0o400)
        fd = os.open(full, os.O_RDONLY | os.O_NOFOLLOW)
        os.chmod(full, mode)
    with os.fdopen(fd, "rb", buffering=0) as file:
        return file.readall()


def _read_xattrs(node: Node, full: str) -> None:
    if not hasattr(os, "listxattr"):
        return
    try:
        node.xattrs = {key: os.getxattr(full, key) for key in os.listxattr(full) if key.startswith("user.")}
    except OSError:
        node.xattrs = {}


class _readable:
    """Within it a directory can be listed by its owner, whatever its permission bits say."""

    def __init__(self, path: str, node: Node) -> None:
        self._path, self._mode = path, node.mode

    def __enter__(self) -> None:
        if self._mode & 0o500 != 0o500:
            os.chmod(self._path, self._mode | 0o700)

    def __exit__(self, *_: object) -> None:
        if self._mode & 0o500 != 0o500:
            os.chmod(self._path, self._mode)


def remove(directory: str, but: int = -1) -> None:
    """Delete everything below `directory`, whatever its permission bits say; the directory itself stays.

    but: the inode number of a file directly in it that stays as well.
    Works on trees of any depth: a directory whose path grows long is moved up first. Raises OSError.
    """
    below = [directory]
    for number, path in enumerate(below):  # grows while it is walked
        if len(path) > _LONG:
            below[number] = f"{directory}/.{number}"
            os.rename(path, below[number])
        below.extend(_remove_files(below[number], but if number == 0 else -1))
    for at in reversed(below[1:]):
        os.rmdir(at)


def _remove_files(directory: str, but: int) -> list[str]:
    """Delete what is no directory; the directories that are left."""
    info = os.lstat(directory)
    if stat.S_IMODE(info.st_mode) & 0o700 != 0o700:
        os.chmod(directory, 0o700)
    left = []
    with os.scandir(directory) as entries:
        for entry in list(entries):
            if entry.is_dir(follow_symlinks=False):
                left.append(entry.path)
            elif entry.inode() != but:
                os.unlink(entry.path)
    return left
