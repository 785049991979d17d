"""A failure is carried away: stored as data, replayed from another clone, exported as a test, and run first again."""

from __future__ import annotations

import ast
import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from crashtest.errors import UsageError
from crashtest.report import exported
from crashtest.scale import stored
from crashtest.testing import crash_again
from crashtest.values import canonical, parse

#: interpreters after the oldest leave these out (tox.ini)
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
#: texts that try to leave the place where they stand
HOSTILE = ['"""\nimport os; os._exit(7)\n"""', "\\", "\x1b[31m\u202e", "'''{0}{{", "\udc80é"]
STORY = """
from crashtest import scenario

@scenario(setup={"a": "old"})
def save(run):
    for text in run.ops:
        (run.dir / "a").write_text(text, errors="surrogateescape")
        run.ack(text)

@save.ops
def texts():
    return OPS

@save.observe
def look(directory):
    return (directory / "a").read_text(errors="surrogateescape")

@scenario(setup={"a": "old"})
def fine(run):
    (run.dir / "b").write_text("new")
    (run.dir / "b").rename(run.dir / "a")
    run.ack()

@fine.observe
def look_again(directory):
    return (directory / "a").read_text()
"""
IN_PLACE = '(run.dir / "a").write_text(text, errors="surrogateescape")'
MENDED = '(run.dir / "n").write_text(text, errors="surrogateescape"); (run.dir / "n").rename(run.dir / "a")'


def command(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A command as a user calls it, with Python and nothing of this test run's settings."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GIT_CONFIG_GLOBAL": os.devnull}
    line = [sys.executable, "-m", *map(str, words)]
    return subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=170)


def git(*words: str | Path, cwd: Path) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    return subprocess.run(["git", *who, *words], cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


class Project:
    """A project under git with one violation in its report directory, and a clone of it elsewhere."""

    def __init__(self, root: Path) -> None:
        self.home, self.clone = root / "home", root / "clone"
        (self.home / "crashes").mkdir(parents=True)
        (self.home / "crashes/story.py").write_text(STORY.replace("OPS", ascii(HOSTILE)))
        (self.home / ".gitignore").write_text(".crashtest/\n")
        git("init", "-q", cwd=self.home)
        git("add", ".", cwd=self.home)
        git("commit", "-qm", "story", cwd=self.home)
        self.commit = git("rev-parse", "HEAD", cwd=self.home)
        self.ran = command("crashtest", "run", "--model", "kill", "crashes", cwd=self.home)
        git("clone", "-q", self.home, self.clone, cwd=root)
        (self.path,) = sorted((self.home / ".crashtest/violations").iterdir())
        self.record: dict[str, Any] = json.loads(self.path.read_bytes())

    def mend(self, place: Path) -> None:
        file = place / "crashes/story.py"
        file.write_text(file.read_text().replace(IN_PLACE, MENDED))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return Project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def clone(project: Project, tmp_path: Path) -> Path:
    """A clone that a test may change."""
    git("clone", "-q", project.home, tmp_path / "another", cwd=tmp_path)
    return tmp_path / "another"


def test_the_record_is_data_that_says_what_happened_and_where(project: Project) -> None:
    assert project.ran.returncode == 1, project.ran.stdout + project.ran.stderr
    record = project.record
    assert record["project_file"] == "crashes/story.py"
    assert (record["commit"], record["changed"]) == (project.commit, False)
    assert [parse(op) for op in record["ops"]] == HOSTILE
    assert record["cell"] == [1, "write", 0, "group", []]
    writes = [event for event in record["trace"] if event[1] == "write"]
    assert base64.b64decode(writes[0][9]["base64"]) == HOSTILE[0].encode()
    assert len(record["trace"]) == len(record["events"]) > 10
    assert [parse(state) for state in record["states"]] == ["old", *HOSTILE]
    assert parse(record["value"]) == "" and record["left_out"] == []
    assert {"crashtest", "python", "system"} <= set(record["versions"])


def test_a_record_replays_from_a_clean_clone_by_its_file(project: Project) -> None:
    done = command("crashtest", "replay", project.path, cwd=project.clone)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "the violation came again in crashes/story.py::save" in done.stdout
    assert project.record["observed"] in done.stdout and "died    before write(a, " in done.stdout
    assert "note" not in done.stdout


def test_the_clone_replays_its_own_file_and_says_that_it_is_another(project: Project, clone: Path) -> None:
    project.mend(clone)
    done = command("crashtest", "replay", project.path, cwd=clone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the scenario file crashes/story.py is not the one that was stored" in done.stdout
    assert "the recorded run is not the stored one: event 1 is openat(n), and was openat(a, to 0 bytes)" in done.stdout
    assert "cells of these operations were tried: atomic is held" in done.stdout


def test_a_bug_that_has_moved_is_not_taken_for_mended(project: Project, clone: Path) -> None:
    """Its place in the recorded run is two events later now: the stored cell alone would show nothing."""
    file = clone / "crashes/story.py"
    file.write_text(
        file.read_text().replace("    for text", '    (run.dir / "c").touch(); (run.dir / "c").unlink()\n    for text')
    )
    done = command("crashtest", "replay", project.path, cwd=clone)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "did not come again at its place" in done.stdout and "it comes elsewhere" in done.stdout


def test_a_record_outside_of_its_project_says_what_it_needs(project: Project, tmp_path: Path) -> None:
    elsewhere = tmp_path / "record.json"
    elsewhere.write_text(json.dumps({**project.record, "file": "/nowhere/story.py"}))
    done = command("crashtest", "replay", elsewhere, cwd=tmp_path)
    assert done.returncode == 2
    assert f"run replay in a clone of its project at commit {project.commit[:12]}" in done.stderr


def test_an_exported_test_fails_alone_in_a_clone_and_passes_when_the_bug_is_mended(
    project: Project, clone: Path
) -> None:
    (clone / "tests").mkdir()
    written = command("crashtest", "export", project.path, "-o", "tests/test_saved.py", cwd=clone)
    assert written.returncode == 0, written.stderr
    once_more = command("crashtest", "export", project.path, "-o", "tests/test_saved.py", cwd=clone)
    assert once_more.returncode == 2 and "is there already" in once_more.stderr
    failing = command("pytest", "-q", "-p", "no:cacheprovider", "tests/test_saved.py", cwd=clone)
    assert failing.returncode == 1, failing.stdout
    assert "atomic is violated under kill" in failing.stdout and "1 failed" in failing.stdout
    project.mend(clone)
    passing = command("pytest", "-q", "-p", "no:cacheprovider", "tests/test_saved.py", cwd=clone)
    assert passing.returncode == 0, passing.stdout


def test_an_exported_file_holds_strange_values_as_literals_and_runs_nothing_else(project: Project) -> None:
    record = stored.read(project.path)
    text = exported.source(record, project.home / "crashes/story.py", "crashes/story.py", project.home / "test_x.py")
    tree = ast.parse(text)
    assert all(c.isprintable() or c == "\n" for c in text)
    assert [type(one) for one in tree.body] == [ast.Expr, ast.ImportFrom, ast.ImportFrom, ast.Assign, ast.FunctionDef]
    (call,) = [one.value for one in tree.body[-1].body if isinstance(one, ast.Expr)]  # type: ignore[attr-defined]
    given = {word.arg: ast.literal_eval(word.value) for word in call.keywords}  # type: ignore[attr-defined]
    assert (given["ops"], given["cut"], given["kind"], given["nested"]) == (HOSTILE, 1, "write", [])
    assert "atomic is violated under kill: save in crashes/story.py" in (ast.get_docstring(tree) or "")


@pytest.mark.parametrize(
    "value", [float("inf"), -0.5, (1,), (), {"k": [b"\xff", None]}, {1, "a"}, set(), {(1, 2): True}, "\ud800"]
)
def test_a_literal_gives_its_value_back(value: object) -> None:
    names = {"float": float, "set": set, "frozenset": frozenset}
    assert canonical(eval(exported.literal(value), {"__builtins__": {}}, names)) == canonical(value)


def test_only_what_failed_is_run_again_its_failed_cells_first(project: Project) -> None:
    stored_ids = json.loads((project.home / ".crashtest/last-failed.json").read_bytes())["scenarios"]
    assert stored_ids == {"crashes/story.py::save": [project.record["id"].rsplit("/", 2)[0]]}
    again = command("crashtest", "run", "--model", "kill", "--lf", "crashes", cwd=project.home)
    assert again.returncode == 1
    assert "--lf: 1 of 2 scenarios failed last; the others are not run" in again.stdout
    assert "::fine" not in again.stdout


def test_everything_is_run_when_nothing_failed_last(clone: Path, project: Project) -> None:
    project.mend(clone)
    held = command("crashtest", "run", "--model", "kill", "crashes", cwd=clone)
    assert held.returncode == 0, held.stdout
    assert not (clone / ".crashtest/last-failed.json").exists()
    again = command("crashtest", "run", "--model", "kill", "--lf", "crashes", cwd=clone)
    assert again.returncode == 0 and "so all are run" in again.stdout and "2 scenarios: 2 held" in again.stdout


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ops": ["nonsense"]}, "is not a stored violation"),
        ({"cell": [-1, "write", 0, "group", []]}, "its cell is no place of a crash"),
        ({"cell": [1, "write", 0, "somehow", []]}, "its cell is no place of a crash"),
        ({"guarantee": "atomic\x1b[31m"}, r"there is no guarantee atomic\\x1b"),
        ({"schema": 3}, "of a later version"),
        ({"function": "os.system('x')"}, "is not named path::function"),
        ({"seed": "1"}, "is not a stored violation"),
        ({"id": None}, "is not a stored violation"),
    ],
)
def test_a_record_that_is_none_is_refused_in_words(
    project: Project, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**project.record, **change}))
    with pytest.raises(UsageError, match=words):
        stored.read(path)


def test_a_record_may_not_point_out_of_the_project(project: Project, tmp_path: Path) -> None:
    record = stored.read(project.path)
    record.project_file, record.file, record.scenario = "../outside.py", "/nowhere.py", "nowhere.py::save"
    (tmp_path / "outside.py").touch()
    with pytest.raises(UsageError, match="is not here"):
        stored.locate(record, project.path)


def test_what_is_too_large_is_left_out_in_words() -> None:
    room = stored._Room(10)
    kept, large = room.plain("data", [b"12345", {"k": b"6789ab"}])
    assert kept == {"base64": base64.b64encode(b"12345").decode()}
    assert large["k"]["left_out"] == 6 and len(large["k"]["blake2b"]) == 32
    assert room.text("states", "123456")["left_out"] == 6 and room.text("states", "12345") == "12345"
    assert room.words() == ["data: 1 of 6 bytes in all", "states: 1 of 6 bytes in all"]


def test_a_test_of_a_missing_scenario_is_an_error_and_no_pass(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not there"):
        crash_again(tmp_path / "gone.py", scenario="save", guarantee="atomic", ops=None, cut=1)
