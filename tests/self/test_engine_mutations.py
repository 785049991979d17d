"""Breaking the engine turns the run red, with a story that points at the right place.

Each case is the engine with one of its safeguards taken out, run through the scenario of refs and files.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]


class Case(NamedTuple):
    """file, old, new: the mutation. code: the exit code; guarantee: what must be violated (or "" for inconclusive);
    points_at: words that the story must hold."""

    file: str
    old: str
    new: str
    code: int
    guarantee: str
    points_at: tuple[str, ...]


COMMIT = '                log.append(Kind.COMMIT, self._number, {"held": payload})\n'
CLEANUP = "            case Action.LOG_CLEANUP:\n                log.append(Kind.CLEANUP, self._number, {})\n"
CASES = {
    "recovery does not redo": Case(
        "recovery.py",
        "                self._redo(self._participants[command.participant])\n",
        "                pass\n",
        1,
        "atomic",
        ("rename(.git/refs/heads/", "git --git-dir {dir}/.git update-ref"),
    ),
    "recovery does not remove its git locks": Case(
        "gitlocks.py",
        "        if disk.unlink(full(one.lock.path)):\n",
        "        if False:\n",
        1,
        "recovers",
        ("refs/heads/main.lock", "is a lock of somebody else"),
    ),
    "the commit record is written after the refs": Case(
        "transaction.py",
        COMMIT,
        "                self._late = payload\n",
        1,
        "atomic",
        ("rename(.git/refs/heads/", "git --git-dir {dir}/.git update-ref"),
    ),
    "the commit record is not written": Case(
        "transaction.py", COMMIT, "                pass\n", 3, "", ("transaction 1 in the log makes no sense",)
    ),
    "the begin record is not written": Case(
        "transaction.py",
        "                log.append(Kind.BEGIN, self._number, self._begin)\n",
        "                pass\n",
        3,
        "",
        ("does not start with BEGIN",),
    ),
    "roll-back leaves its temp files": Case(
        "files.py",
        '            step("jin_core.files.discard", temp)\n',
        '            step("jin_core.files.discard", temp)\n            return False\n',
        1,
        "clean",
        (".jin-",),
    ),
}


CHECKED = "                for participant in self._participants:\n                    participant.check()\n"
#: the log says that all is done before redo does it; a recovery that nobody kills does it all the same
DONE_TOO_EARLY = Case(
    "recovery.py",
    CHECKED,
    CHECKED + "                self._engine.wal.append(Kind.CLEANUP, self._number, {})\n",
    1,
    "atomic",
    (),
)


def mutated(case: Case, directory: Path) -> None:
    shutil.copytree(ROOT / "jin_core", directory / "jin_core")
    shutil.copytree(ROOT / "scenarios/engine", directory / "scenarios/engine")
    path = directory / "jin_core" / case.file
    source = path.read_text()
    assert source.count(case.old) == 1, "the mutation does not fit the engine any more: adapt it"
    source = source.replace(case.old, case.new)
    if "Kind.CLEANUP" in case.new:
        last = "                self._engine.wal.append(Kind.CLEANUP, self._number, {})\n"
        source = source.replace(f"LOG_CLEANUP:\n{last}", "LOG_CLEANUP:\n                pass\n")
    if "_late" in case.new:
        late = '                log.append(Kind.COMMIT, self._number, {"held": self._late})\n'
        assert source.count(CLEANUP) == 1
        head, tail = CLEANUP.splitlines(keepends=True)
        source = source.replace(CLEANUP, head + late + tail)
    path.write_text(source)


def crash(case: Case, directory: Path, name: str, *options: str, code: int | None = None) -> dict[str, Any]:
    """Run a scenario of the engine with the mutation; its result. code: instead of the case's own."""
    if not (directory / "jin_core").exists():
        mutated(case, directory)
    environment = {**os.environ, "PYTHONPATH": f"{directory}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", "crashtest", "run", f"scenarios/engine/{name}.py", "--report", "json", *options],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == (case.code if code is None else code), done.stdout + done.stderr
    report: dict[str, Any] = json.loads((directory / ".crashtest/result.json").read_text())
    (scenario,) = report["scenarios"]
    assert scenario["harness_error"] == ""
    return scenario


@pytest.mark.parametrize("name", CASES)
def test_an_engine_without_a_safeguard_is_caught(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    scenario = crash(case, tmp_path, "refs_and_files")
    if case.guarantee:
        stories = [one for one in scenario["violations"] if one["guarantee"] == case.guarantee]
        assert stories, scenario["violations"]
        told = [json.dumps(one) for one in stories]
        for words in case.points_at:
            assert any(words in story for story in told), told
    else:
        assert scenario["verdict"] == "inconclusive"
        assert all(words in scenario["reason"] for words in case.points_at), scenario["reason"]


def test_a_recovery_that_only_its_own_death_shows_to_be_wrong_needs_depth_two(tmp_path: Path) -> None:
    shallow = crash(DONE_TOO_EARLY, tmp_path, "refs_and_files", "--depth", "1", code=0)
    assert (shallow["verdict"], shallow["nested"]["cells"]) == ("held", 0)
    deep = crash(DONE_TOO_EARLY, tmp_path, "refs_and_files", "--depth", "2")
    assert "atomic" in {one["guarantee"] for one in deep["violations"]}
    assert all(">" in one["id"] and "; then recovery died before" in one["point"] for one in deep["violations"])
