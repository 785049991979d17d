"""Scenarios under the models of file systems: the report says under which a guarantee holds, and under which not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
