"""Commands declared in data: what is refused, and what a declaration is read back as."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from crashtest import UsageError, given
from crashtest.cells import mixture
from crashtest.cells.judge import Expected
from crashtest.cells.outcome import LONGEST, Acks
from crashtest.commandline import declaration, split
from crashtest.commands import Command, declare, from_plain, name_of, read
from crashtest.looking import LONG, ignored, look_at, names_in, without_strangers
from crashtest.values import canonical

NOTHING: dict[str, Any] = {
    "state": None, "setup": None, "recover": None, "observe": None, "check": None, "commands": None, "server": None,
    "ready": None, "ack_line": None, "same": False, "whole": False, "ignore": (), "env": (), "guarantees": None,
    "allow_outside": (),
}  # fmt: skip


def test_what_stands_behind_two_dashes_is_never_read_as_an_option() -> None:
    assert split(["run", "--state", "d", "--", "git", "commit", "--", "-m"]) == (
        ["run", "--state", "d"],
        ["git", "commit", "--", "-m"],
    )
    assert split(["run", "a.py"]) == (["run", "a.py"], None)
    assert split(["list", "--", "-odd.py"]) == (["list", "--", "-odd.py"], None)


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ([], "is not a table"),
        ({"run": "x", "sate": "d"}, "there is no sate; known: run"),
        ({"run": ["x", 1]}, "run is ['x', 1], and must be a text for the shell, or a list of words"),
        ({"run": "x", "timeout": True}, "and must be a number of seconds"),
        ({"run": "x", "same": "yes"}, "and must be true or false"),
        ({"run": "x", "env": {"A": 1}}, "and must be a table of texts"),
        ({"run": "x", "ignore": "*.log"}, "and must be a list of texts"),
        ({"run": "x", "expect": {"kill": "atomic"}}, "or a table of such lists by model"),
        ({}, "has neither of run"),
        ({"run": "x", "commands": ["y"]}, "has both of run"),
        ({"commands": []}, "must not be empty"),
        ({"commands": ["y"], "ack-line": "z"}, "without an ack_line"),
        ({"run": "x", "server": "s"}, "server and ready go together"),
        ({"run": "x", "ack_line": "("}, "is no regular expression"),
        ({"run": "x", "guarantees": ["atomc"]}, "unknown guarantees ['atomc']"),
        ({"run": "x", "signals": ["KILL"]}, "unknown signals ['KILL']; known: TERM, INT, HUP"),
        ({"run": "x", "guarantees": ["live"]}, "claims live"),
        ({"run": [""]}, "or a list of words"),
        ({"run": "a\0b"}, "no part can hold a NUL"),
        ({"run": "x", "env": {"A=B": "c"}}, "'A=B' is no name of an environment variable"),
        ({"run": "x", "timeout": float("inf")}, "must be a number of seconds"),
        ({"run": "x", "ack-line": "a", "ack_line": "b"}, "given twice"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused_with_its_part(plain: object, words: str) -> None:
    with pytest.raises(UsageError) as refused:
        declare(from_plain("save", plain), "save", "here.json")
    assert words in str(refused.value)


def test_a_declaration_comes_back_from_its_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    given = {**NOTHING, "state": tmp_path / "state", "recover": "r {dir}", "env": [("A", "b=c")], "ignore": ["*.log"]}
    path = declaration(["git", "commit"], given, tmp_path / "report")
    assert path is not None
    made = from_plain("git", json.loads(Path(path).read_text())["commands"]["git"])
    assert made == Command(
        run=["git", "commit"], state="../../state", recover="r {dir}", env={"A": "b=c"}, ignore=["*.log"]
    )
    (scenario,) = read(Path(path), "shown.json")
    assert (scenario.name, scenario.ignore) == ("shown.json::git", ("*.log",))
    assert scenario.do_recover is not None and scenario.do_check is None
    assert path == declaration(["git", "commit"], given, tmp_path / "report"), "the same command has the same name"


def test_commands_are_declared_in_a_pyproject_too(tmp_path: Path) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text('[tool.crashtest.commands.save]\nrun = "save x"\nack-line = "^saved"\nexpect = ["atomic"]\n')
    (scenario,) = read(path, "pyproject.toml")
    assert (scenario.name, scenario.ack_line) == ("pyproject.toml::save", "^saved")
    assert scenario.expected("posix") == {"atomic"}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", "{", "cannot be read as a declaration"),
        ("a.json", "[" * 200_000, "cannot be read as a declaration"),
        ("a.json", "[]", "declares no commands"),
        ("a.toml", "[tool.other]", "declares no commands"),
        ("a.json", '{"commands": {"two words": {"run": "x"}}}', "cannot be a scenario's name"),
        ("a.json", '{"commands": {"x": 3}}', "is not a table"),
    ],
)
def test_a_file_that_declares_nothing_is_a_usage_error(tmp_path: Path, name: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UsageError, match=words):
        read(path, name)


def test_options_of_a_command_are_refused_without_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--recover belongs to a command; give it behind --"):
        declaration(None, {**NOTHING, "recover": "r"}, tmp_path)
    with pytest.raises(UsageError, match="no command behind --"):
        declaration([], NOTHING, tmp_path)
    with pytest.raises(UsageError, match="not there"):
        declaration(["x"], {**NOTHING, "state": tmp_path / "none"}, tmp_path)
    assert declaration(None, NOTHING, tmp_path) is None
    assert not list(tmp_path.iterdir()), "nothing is stored of what is refused"


@pytest.mark.parametrize(
    ("words", "name"), [(["git", "x"], "git"), (["/bin/my-prog"], "my_prog"), (["2to3"], "run_2to3"), ([""], "run")]
)
def test_a_scenario_is_named_after_its_program(words: list[str], name: str) -> None:
    assert name_of(words) == name


def test_an_ack_is_a_whole_line_that_has_the_pattern_however_it_is_written() -> None:
    acks = Acks("^saved")
    assert acks.take(b"sav") == []
    assert acks.would(b"ed 1\n") == [b'0"saved 1"']
    assert acks.take(b"ed 1\nother\nsaved 2\nsaved") == [b'0"saved 1"', b'0"saved 2"']
    assert acks.take(b"\xff\n") == [b'0"saved\\\\xff"']
    assert [acks.take(bytes(1 << 15)) for _ in range(9)] == [[]] * 9
    assert len(acks._begun) == LONGEST
    assert acks.take(b"\nsaved 3\n") == [b'0"saved 3"']
    assert Acks(None).take(b"0null\n1null\n") == [b"0null", b"1null"]


def test_two_trees_that_differ_look_different(tmp_path: Path) -> None:
    def look() -> dict[str, Any]:
        return look_at(tmp_path, ["ignored*"], {})

    seen = [canonical(look())]
    (tmp_path / "a\nb").write_bytes(b"\xff")
    seen.append(canonical(look()))
    (tmp_path / "a\nb").write_bytes(b"x" * (LONG + 1))
    seen.append(canonical(look()))
    (tmp_path / "a\nb").write_bytes(b"x" * LONG + b"y")
    seen.append(canonical(look()))
    (tmp_path / "link").symlink_to("nowhere")
    seen.append(canonical(look()))
    (tmp_path / "folder").mkdir()
    seen.append(canonical(look()))
    assert len(set(seen)) == len(seen)
    (tmp_path / "ignored").mkdir()
    (tmp_path / "ignored/below").touch()
    assert canonical(look()) == seen[-1]


def test_names_that_no_normal_run_leaves_are_not_part_of_the_state() -> None:
    plain = {"a": "1", "a.tmp": "2"}
    assert without_strangers(plain, names_in([{"a": "0"}])) == {"a": "1"}
    git = {"HEAD": "x", "fsck": "no error", "refs": [], "work tree": plain}
    assert without_strangers(git, names_in([{**git, "work tree": {"a": "0"}}])) == {**git, "work tree": {"a": "1"}}


def test_a_mixture_is_told_part_by_part() -> None:
    states = [canonical({"HEAD": n, "index": n, "same": 0}) for n in range(3)]
    assert mixture.parts(states, 0, canonical({"HEAD": 1, "index": 0, "same": 0})) == [
        "HEAD: as after operation 1, new",
        "index: as after operation 0, old",
    ]
    assert mixture.parts(states, 1, canonical({"HEAD": 0, "index": 9, "same": 0})) == [
        "HEAD: as after operation 0",
        "index: as in no state",
    ]
    assert mixture.parts(states, 1, canonical({"HEAD": 1, "other": 0})) == []
    assert mixture.parts([canonical("x")], 0, canonical("y")) == []
    expected = Expected(states, [["a"], ["a", "b"], ["a"]], [])
    assert mixture.left(["a", "b", "c", "d.log"], expected, 0, ("*.log",)) == ["c"]
    assert mixture.left(["a", "b"], expected, 1, ()) == []
    assert mixture.left([f"t{n}" for n in range(7)], expected, 0, ())[-1] == "2 more"


def test_a_state_is_not_taken_for_a_repository_by_the_names_in_it(tmp_path: Path) -> None:
    for name in ("fsck", "HEAD", "refs", "work tree"):
        (tmp_path / name).write_text(name)
    (tmp_path / "objects").mkdir()
    found = look_at(tmp_path, [], {})
    assert found == {
        "HEAD": "HEAD",
        "fsck": "fsck",
        "objects": ("directory",),
        "refs": "refs",
        "work tree": "work tree",
    }
    assert without_strangers(found, frozenset(found)) == found


def test_the_branch_that_head_names_is_part_of_the_state(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.invalid"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True)

    git("init", "-q", "-b", "one")
    git("commit", "-q", "--allow-empty", "-m", "first")
    git("branch", "other")
    before = look_at(tmp_path, [], os.environ)
    git("symbolic-ref", "HEAD", "refs/heads/other")
    after = look_at(tmp_path, [], os.environ)
    assert (before["HEAD"].partition(":")[0], after["HEAD"].partition(":")[0]) == ("one", "other")
    assert {**before, "HEAD": ""} == {**after, "HEAD": ""}


def test_names_of_other_bytes_are_other_names(tmp_path: Path) -> None:
    (tmp_path / "\udcff").touch()
    (tmp_path / "\\udcff").touch()
    assert len(look_at(tmp_path, [], {})) == 2


def test_what_is_in_an_ignored_directory_is_ignored() -> None:
    assert ignored("cache/a/b", ["cache"]) and ignored("x/y.log", ["*.log"]) and ignored("a/b/c", ["a/b"])
    assert not ignored("cached", ["cache"]) and not ignored("x/cache", ["cache"])


def test_what_cannot_be_copied_with_what_is_behind_it_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    os.mkfifo(tmp_path / "deep/pipe\n")
    with pytest.raises(UsageError, match=r"deep/pipe\\n in the state is a named pipe"):
        given.examine(tmp_path, [])
    (tmp_path / "deep/pipe\n").unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "sock"))
    with pytest.raises(UsageError, match="sock in the state is a socket"):
        given.examine(tmp_path, [])


def test_a_large_state_is_told_with_its_size(tmp_path: Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(given.LARGE_BYTES)
    assert given.examine(tmp_path, []) == ""
    (tmp_path / "one").write_text("1")
    assert "is large: 64.0 MiB in 2 files and directories" in given.examine(tmp_path, [])
    for number in range(given.LARGE_NUMBER):
        (tmp_path / str(number)).mkdir()
    (tmp_path / "large").unlink()
    assert "is large: 0.0 MiB in 1,001 files and directories" in given.examine(tmp_path, [])
    (tmp_path / "one").unlink()
    assert given.examine(tmp_path, []) == ""


@pytest.mark.parametrize("way", ["link", "relative link", "work tree"])
def test_a_state_that_leads_out_of_itself_is_refused_before_anything_runs(tmp_path: Path, way: str) -> None:
    state, outside, copy = tmp_path / "state", tmp_path / "outside", tmp_path / "copy"
    for directory in (state, outside, copy):
        directory.mkdir()
    (state / "fine").symlink_to("nowhere")
    if way == "work tree":
        (state / ".git").write_text("gitdir: ../outside\n")
    else:
        (state / "data").symlink_to(outside if way == "link" else "../outside")
    scenario = declare(Command(run="true", state="state"), "one", str(tmp_path / "here.json"))
    assert callable(scenario.setup)
    with pytest.raises(UsageError, match="a link out of it" if "link" in way else "give a clone"):
        scenario.setup(copy)
    assert not list(copy.iterdir())
    if "link" in way:
        allowed = Command(run="true", state="state", allow_outside=[str(outside)])
        made = declare(allowed, "one", str(tmp_path / "here.json")).setup
        assert callable(made)
        made(copy)
        assert sorted(one.name for one in copy.iterdir()) == ["data", "fine"]
