"""Trees as bytes: capture, restore, compare, apply, remove."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crashtest.errors import HarnessError
from crashtest.persist.models import POSIX
from crashtest.persist.states import Walk
from crashtest.persist.tree import ROOT, Node, Tree, remove
from crashtest.trace import Op


def everything(directory: Path) -> None:
    """One of each: odd names, modes, links, a fifo, a socket, attributes, an empty directory."""
    (directory / "sub/empty").mkdir(parents=True)
    (directory / "file").write_bytes(b"content")
    os.link(directory / "file", directory / "sub/hard")
    os.symlink("../file", directory / "sub/link")
    (directory / os.fsdecode(b"odd \xff\n'name")).write_bytes(b"")
    os.mkfifo(directory / "fifo")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(directory / "socket"))
    os.setxattr(directory / "file", "user.colour", b"red")
    (directory / "file").chmod(0o640)
    (directory / "sub").chmod(0o750)


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Path]:
    directory = Path("/dev/shm" if os.path.isdir("/dev/shm") else tmp_path) / f"tree-{os.getpid()}-{tmp_path.name}"
    directory.mkdir()
    everything(directory)
    yield directory
    remove(str(directory))
    directory.rmdir()


def test_restoring_gives_the_same_tree(made: Path, tmp_path: Path) -> None:
    tree = Tree.capture(str(made))
    copy = made / "../" / f"{made.name}-copy"
    copy.mkdir()
    try:
        inodes = tree.restore(str(copy))
        again = Tree.capture(str(copy))
        assert again.digest() == tree.digest()
        assert tree.differences(again) == []
        assert (copy / "file").stat().st_ino == (copy / "sub/hard").stat().st_ino
        assert inodes[(copy / "file").stat().st_ino] == tree.lookup("file") == tree.lookup("sub/hard")
        assert inodes[copy.stat().st_ino] == ROOT
    finally:
        remove(str(copy))
        copy.rmdir()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "file").write_bytes(b"contenT"), "file: content differs at byte 6"),
        (lambda d: (d / "file").chmod(0o600), "file: mode 640 and 600"),
        (lambda d: (d / "new").touch(), "new: only in the second"),
        (lambda d: (d / "fifo").unlink(), "fifo: only in the first"),
        (lambda d: os.setxattr(d / "file", "user.colour", b"blue"), "file: extended attributes"),
        (lambda d: (d / "sub/link").unlink() or (d / "sub/link").symlink_to("x"), "sub/link: target"),
        (lambda d: (d / "sub/hard").unlink() or (d / "sub/hard").write_bytes(b"content"), "sub/hard: mode"),
        (lambda d: (d / "sub").chmod(0o700), "sub: mode 750 and 700"),
        (lambda d: d.chmod(0o701), ".: mode"),
    ],
)
def test_every_difference_is_seen_and_named(made: Path, change: Callable[[Path], object], words: str) -> None:
    before = Tree.capture(str(made))
    change(made)
    after = Tree.capture(str(made))
    assert before.digest() != after.digest()
    assert any(line.startswith(words) for line in before.differences(after)), before.differences(after)


def test_two_links_and_two_files_are_different_trees(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("x")
    os.link(tmp_path / "one/a", tmp_path / "one/b")
    (tmp_path / "two/b").write_text("x")
    one, two = Tree.capture(str(tmp_path / "one")), Tree.capture(str(tmp_path / "two"))
    assert one.digest() != two.digest()
    assert one.differences(two) == ["the same names are linked to different files"]


def test_a_tree_survives_a_message(made: Path) -> None:
    tree = Tree.capture(str(made))
    assert Tree.from_plain(tree.to_plain()).digest() == tree.digest()


def test_an_event_that_does_not_fit_is_refused() -> None:
    tree = Tree()
    with pytest.raises(HarnessError, match="does not fit"):
        tree.apply(Op("unlink", 3, dir=0, name="a", call="unlink", path="a"))


def test_a_tree_deeper_than_python_recurses_is_removed(tmp_path: Path) -> None:
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        deeper = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = deeper
    os.close(at)
    (tmp_path / "d").chmod(0o500)
    remove(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_listed_is_removed_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "closed/below").mkdir(parents=True)
    (tmp_path / "closed/below/file").touch()
    (tmp_path / "closed").chmod(0o000)
    remove(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_new_file_never_gets_the_id_of_one_that_a_model_knows() -> None:
    events = [Op("create", 7, dir=0, name="a", mode=0o644, call="openat", path="a")]
    first = Tree()
    first.nodes[0] = Node("d", 0o755, 0, 0)
    (state,) = [one for one in Walk(first, events, POSIX) if one.tree.lookup("a") is not None]
    assert state.tree.copy().new_id() == 8
