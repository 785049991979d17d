"""What the process tests share: scenario files, a prepared zygote, and a whole run without the command line."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from crashtest.config import Settings
from crashtest.explore.generate import sequences
from crashtest.observe import bpf
from crashtest.scale import local
from crashtest.scale.rundir import RunDirectory
from crashtest.scale.slot import Slot
from crashtest.scenario import Scenario, load
from crashtest.verdict import RunResult, ScenarioResult

HERE = Path(__file__).parent
# the ready scenarios are tested as they lie here; at the end, so that the installed crashtest comes before this one
sys.path.append(str(HERE.parent))


@pytest.fixture(scope="session", autouse=True)
def seccomp() -> None:
    """The process tests need what CI has; where it is missing they fail with the reason instead of passing."""
    reason = bpf.probe()
    assert reason is None, reason


@pytest.fixture
def slot() -> Iterator[Slot]:
    """A slot on a run directory of its own."""
    directory = RunDirectory()
    one = Slot(0, directory, True)
    yield one
    one.close()
    directory.close()


@pytest.fixture
def prepare(slot: Slot) -> Callable[[Path, str], dict[str, Any]]:
    """prepare(file, function): the runs without a crash, as the zygote reports them."""

    def run(file: Path, function: str) -> dict[str, Any]:
        scenario = {one.function: one for one in load(file)}[function]
        slot.open(scenario, file)
        ops = sequences(scenario, 0, 1)[0]
        return slot.prepare(scenario, ops, 10.0)

    return run


@pytest.fixture
def write_scenario(tmp_path: Path) -> Callable[[str], Path]:
    """write_scenario(source): a scenario file; `from crashtest import ...` stands in it already."""

    def write(source: str) -> Path:
        path = tmp_path / "story.py"
        path.write_text(
            "import os\nfrom pathlib import Path\nfrom crashtest import DEFAULT, Run, scenario\n\n" + dedent(source)
        )
        return path

    return write


@pytest.fixture
def compiled(tmp_path: Path) -> Callable[..., str]:
    """compiled(source, *flags): the path of a program in C; skips where there is no compiler."""

    def make(source: str, *flags: str) -> str:
        if shutil.which("cc") is None:
            pytest.skip("there is no C compiler here")
        (tmp_path / "program.c").write_text(source)
        made = tmp_path / "-".join(["program", *(re.sub(r"\W", "", flag) for flag in flags)])
        subprocess.run(["cc", *flags, "-pthread", "-o", made, tmp_path / "program.c"], check=True)
        return str(made)

    return make


@pytest.fixture
def crash(tmp_path: Path) -> Callable[..., ScenarioResult]:
    """crash(file, **settings): run the one scenario of a file through the whole matrix; its result."""

    def run(file: Path, only: str = "", **settings: Any) -> ScenarioResult:
        results = crash_all(file, tmp_path / "report", only, **settings).scenarios
        assert len(results) == 1
        return results[0]

    return run


def crash_all(file: Path, report: Path, only: str = "", **settings: Any) -> RunResult:
    scenarios: list[Scenario] = [one for one in load(file) if only in one.function]
    merged = {"seed": 1, "jobs": 2, "timeout": 10.0, "models": ("kill",), "report_dir": report, **settings}
    return local.run(scenarios, {str(file): file}, Settings(**merged), lambda event: None)
