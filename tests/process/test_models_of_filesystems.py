"""Scenarios under the models of file systems: the report says under which a guarantee holds, and under which not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from crashtest.persist.realfs import missing
from crashtest.scenario import MODELS

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.seccomp


def test_the_textbook_replacement_without_its_first_fsync_breaks_from_ext4_on(tmp_path: Path) -> None:
    """One sentence says where it holds and where not, one story is told for all models that break it the same way."""
    command = [
        sys.executable, "-m", "crashtest", "run", "scenarios/known_bad/replace_unsynced.py", "-k", "file_not_synced",
        "--model", ",".join(MODELS), "--report", "json", "--report-dir", str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    sentence = "atomic holds under kill and ext4-lock, and breaks under ext4, ext4-noda, xfs, btrfs and posix"
    assert sentence in done.stdout
    assert done.stdout.count("  atomic is violated under ") == 1
    assert "    same    under ext4-noda, xfs, btrfs and posix\n" in done.stdout
    told = json.loads((tmp_path / "result.json").read_text())["scenarios"][0]["boundaries"]["atomic"]
    assert told == {"held": ["kill", "ext4-lock"], "violated": ["ext4", "ext4-noda", "xfs", "btrfs", "posix"]}


@pytest.mark.privileged
@pytest.mark.slow
def test_a_violation_of_a_model_is_tried_on_real_file_systems(tmp_path: Path) -> None:
    """The rename that no directory sync keeps is lost on xfs; the file without its fsync is empty there, and on ext4
    mounted with dioread_lock nobody sees it. Where nothing is to be found, nothing is."""
    for name in ("xfs", "ext4-lock"):
        reason = missing(name)
        if reason:
            pytest.skip(reason)
    report = tmp_path / "report"
    command = [
        sys.executable, "-m", "crashtest", "run", "scenarios/known_bad/replace_unsynced.py",
        "scenarios/textbook/atomic_replace.py", "-k", "not too_late", "--model", "posix", "--real", "xfs,ext4-lock",
        "--report", "json", "--report-dir", str(report),
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = {
        one["name"].rpartition("::")[2]: one for one in json.loads((report / "result.json").read_text())["scenarios"]
    }
    seen = {name: [(v["model"], v["seen"], v["not_seen"]) for v in one["violations"]] for name, one in told.items()}
    assert seen == {
        "atomic_replace": [],
        "directory_not_synced": [
            ("posix", ["real-ext4-lock", "real-xfs"], []), ("real-xfs", [], []), ("real-ext4-lock", [], []),
        ],
        "file_not_synced": [("posix", ["real-xfs"], ["real-ext4-lock"]), ("real-xfs", [], [])],
    }  # fmt: skip
    assert "    real    seen on a real file system: real-xfs\n" in done.stdout
    assert "    real    allowed by the model, not seen: real-ext4-lock\n" in done.stdout
    assert told["atomic_replace"]["models"]["real-xfs"]["guarantees"]["atomic"] == "held"
    [violation] = [one for one in told["file_not_synced"]["violations"] if one["model"] == "real-xfs"]
    again = [sys.executable, "-m", "crashtest", "replay", violation["id"], "--from", str(report)]
    replayed = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert "the violation came again" in replayed.stdout, replayed.stdout + replayed.stderr
