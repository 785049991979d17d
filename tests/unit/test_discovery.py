"""Which files are scenario files, what they are called, and that a strange name reaches nobody raw."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from pyfakefs.fake_filesystem import FakeFilesystem

from crashtest import UsageError, cli
from crashtest.scenario import discover
from crashtest.selection import collect

FILE = """
from crashtest import scenario

@scenario
def save(run):
    run.ack()

@save.observe
def content(dir):
    return 1
"""


@pytest.fixture
def project(fs: FakeFilesystem) -> FakeFilesystem:
    fs.create_dir("/home/user/project")
    os.chdir("/home/user/project")
    return fs


def labels(*paths: str) -> list[str]:
    return [label for _, label in discover(paths)]


def test_a_directory_is_searched_and_sorted(project: FakeFilesystem) -> None:
    for name in ("b.py", "a/z.py", "a/y.py", "a.py", "c.txt"):
        project.create_file(f"s/{name}")
    assert labels("s") == ["s/a/y.py", "s/a/z.py", "s/a.py", "s/b.py"]


@pytest.mark.parametrize(
    "name",
    ["_helper.py", "__init__.py", "test_it.py", "conftest.py", ".hidden/x.py", "__pycache__/x.py", "x.pyc"],
)
def test_what_is_no_scenario_file_is_passed_over_in_a_directory(project: FakeFilesystem, name: str) -> None:
    project.create_file(f"s/{name}")
    project.create_file("s/real.py")
    assert labels("s") == ["s/real.py"]


def test_a_file_that_is_named_is_taken_as_it_is(project: FakeFilesystem) -> None:
    project.create_file("s/test_it.py")
    assert labels("s/test_it.py") == ["s/test_it.py"]


def test_a_file_is_found_once_however_it_is_named(project: FakeFilesystem) -> None:
    project.create_file("s/a.py")
    project.create_symlink("link.py", "/home/user/project/s/a.py")
    assert labels("s", "s/a.py", "./s/../s/a.py", "/home/user/project/s", "link.py") == ["s/a.py"]


def test_a_file_outside_the_current_directory_has_its_whole_path(project: FakeFilesystem) -> None:
    project.create_file("/elsewhere/a.py")
    assert labels("/elsewhere") == ["/elsewhere/a.py"]


def test_a_path_that_does_not_exist_is_a_usage_error(project: FakeFilesystem) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist"):
        discover(["nowhere"])


def test_an_empty_path_is_not_the_current_directory() -> None:
    with pytest.raises(UsageError, match="a path is empty"):
        collect([""])


def test_a_directory_that_cannot_be_searched_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> bool:
        raise PermissionError(13, "Permission denied", "secret\x1b")

    monkeypatch.setattr(Path, "is_dir", refuse)
    with pytest.raises(UsageError, match=r"secret\\x1b cannot be searched: Permission denied"):
        collect(["secret"])


@pytest.mark.parametrize("stem", [b"new\nline", b"esc\x1b[31m", b"[red]bold[@red]", b"byte\xff", b"sp ace"])
def test_a_strange_file_name_is_printable_everywhere_and_still_finds_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stem: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / os.fsdecode(stem + b".py")
    path.write_text(FILE)
    scenarios, files = collect([path.name])
    assert [one.name.isprintable() for one in scenarios] == [True]
    assert files == {scenarios[0].file: path}
    assert cli.main(["list", path.name]) == 0
    shown = capsys.readouterr()
    assert scenarios[0].name in shown.out
    assert all(c.isprintable() or c == "\n" for c in shown.out + shown.err)
    path.write_text("def (:")
    broken = path.rename(tmp_path / os.fsdecode(b"x" + stem + b".py"))
    assert cli.main(["list", broken.name]) == 2
    shown = capsys.readouterr()
    assert "has a syntax error" in shown.err
    assert all(c.isprintable() or c == "\n" for c in shown.out + shown.err)


def test_two_files_that_would_be_shown_alike_are_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "a\nb.py").write_text(FILE)
    (tmp_path / "a\\nb.py").write_text(FILE)
    with pytest.raises(UsageError, match="two files would both be called"):
        collect(["."])
