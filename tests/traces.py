"""Traces written by hand: a disk in memory whose methods are the calls of a program, by path."""

from __future__ import annotations

from crashtest.persist.models import POSIX
from crashtest.persist.states import Limits, Walk, state_of
from crashtest.persist.tree import ROOT, Node, Tree
from crashtest.trace import Ack, Event, Op

EVERYTHING = Limits(per_cut=1 << 16, total=1 << 20)


class Disk:
    """`start` ends what is there before the trace begins; until then changes make the first state."""

    def __init__(self) -> None:
        self.tree = Tree()
        self.tree.nodes[ROOT] = Node("d", 0o755, 0, 0)
        self.events: list[Event] = []
        self.first = self.tree.copy()
        self._acks = 0

    def start(self) -> Disk:
        self.first = self.tree.copy()
        self.events.clear()
        return self

    def _place(self, path: str) -> tuple[int, str]:
        above, _, name = path.rpartition("/")
        directory = self.tree.lookup(above)
        assert directory is not None, f"no directory {above}"
        return directory, name

    def file(self, path: str) -> int:
        found = self.tree.lookup(path)
        assert found is not None, f"no file {path}"
        return found

    def _do(self, op: Op) -> int:
        self.tree.apply(op)
        self.events.append(op._replace(began=len(self.events)))
        return len(self.events) - 1

    def _make(self, kind: str, path: str, mode: int, text: str = "") -> None:
        directory, name = self._place(path)
        file = self.tree.new_id()
        self._do(Op(kind, file, directory, name, mode=mode, text=text, path=path, uid=0, gid=0, call=kind))

    def create(self, path: str, data: bytes = b"") -> None:
        self._make("create", path, 0o644)
        if data:
            self.write(path, 0, data)

    def mkdir(self, path: str) -> None:
        self._make("mkdir", path, 0o755)

    def symlink(self, target: str, path: str) -> None:
        self._make("symlink", path, 0o777, target)

    def tmpfile(self) -> int:
        file = self.tree.new_id()
        self._do(Op("tmpfile", file, mode=0o600, uid=0, gid=0, call="openat", path="(unnamed)"))
        return file

    def write(self, path: str | int, offset: int, data: bytes) -> None:
        file = path if isinstance(path, int) else self.file(path)
        self._do(Op("write", file, offset=offset, data=data, call="pwrite64", path=str(path)))

    def append(self, path: str, data: bytes) -> None:
        self.write(path, self.tree.size(self.file(path)), data)

    def truncate(self, path: str, size: int) -> None:
        self._do(Op("truncate", self.file(path), size=size, call="ftruncate", path=path))

    def allocate(self, path: str, size: int) -> None:
        self._do(Op("allocate", self.file(path), size=size, call="fallocate", path=path))

    def rename(self, old: str, new: str, kind: str = "rename") -> None:
        (dir, name), (dir2, name2) = self._place(old), self._place(new)
        self._do(Op(kind, self.file(old), dir, name, dir2, name2, call="rename", path=old, path2=new))

    def exchange(self, old: str, new: str) -> None:
        self.rename(old, new, "exchange")

    def link(self, old: str | int, new: str) -> None:
        dir2, name2 = self._place(new)
        file = old if isinstance(old, int) else self.file(old)
        self._do(Op("link", file, dir2=dir2, name2=name2, call="link", path=str(old), path2=new))

    def unlink(self, path: str, kind: str = "unlink") -> None:
        directory, name = self._place(path)
        self._do(Op(kind, self.file(path), directory, name, call=kind, path=path))

    def rmdir(self, path: str) -> None:
        self.unlink(path, "rmdir")

    def depart(self, path: str) -> None:
        self.unlink(path, "depart")

    def arrive(self, path: str, data: bytes) -> None:
        directory, name = self._place(path)
        file = self.tree.new_id()
        self._do(Op("arrive", file, directory, name, data=data, mode=0o644, uid=0, gid=0, call="rename", path2=path))

    def chmod(self, path: str, mode: int) -> None:
        self._do(Op("chmod", self.file(path), mode=mode, uid=0, gid=0, call="chmod", path=path))

    def chown(self, path: str, uid: int, mode: int) -> None:
        self._do(Op("chown", self.file(path), mode=mode, uid=uid, gid=0, call="chown", path=path))

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        self._do(Op("setxattr", self.file(path), text=name, data=value, call="setxattr", path=path))

    def removexattr(self, path: str, name: str) -> None:
        self._do(Op("removexattr", self.file(path), text=name, call="removexattr", path=path))

    def sync(self, kind: str, path: str = "", offset: int = 0, size: int = 0, began: int | None = None) -> None:
        """began: an earlier event index, for a sync that was under way while others happened."""
        file = -1 if kind in ("sync", "syncfs") else self.file(path)
        at = len(self.events) if began is None else began
        self.events.append(Op(kind, file, offset=offset, size=size, call=kind, path=path, began=at))

    def fsync(self, path: str = "") -> None:
        self.sync("fsync", path)

    def fdatasync(self, path: str = "") -> None:
        self.sync("fdatasync", path)

    def ack(self) -> None:
        self._acks += 1
        self.events.append(Ack(self._acks))

    # -- what may be left ----------------------------------------------------------------------------------------

    def walk(self, model, limits: Limits = EVERYTHING, seed: int = 0) -> Walk:
        return Walk(self.first, self.events, model, limits=limits, seed=seed)

    def tree_at(self, cut: int) -> Tree:
        """Everything that had happened."""
        tree = self.first.copy()
        for event in self.events[:cut]:
            if isinstance(event, Op):
                tree.apply(event)
        return tree

    def state(self, lost, model=POSIX) -> Tree:
        """The state at the end without these units."""
        return state_of(self.first, self.events, len(self.events), lost, model)

    def at_end(self, model) -> list[Tree]:
        """Every state that a crash at the end may leave."""
        walk = Walk(self.first, [*self.events, Ack(self._acks + 1)], model, limits=EVERYTHING)
        found = [state.tree for state in walk if state.cut == len(self.events) + 1]
        assert walk.coverage.exhaustive
        return found


def shown(tree: Tree) -> dict[str, bytes | str]:
    """Contents by path; directories end in /."""
    return {
        path + "/" * (tree.nodes[file].type == "d"): bytes(tree.nodes[file].data) or tree.nodes[file].text or b""
        for path, file in tree.walk()
    }
