"""Many recoveries in one process show what processes of their own would show, or are not used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from crashtest.verdict import ScenarioResult

Write = Callable[[str], Path]
Crash = Callable[..., ScenarioResult]

#: three files by a plan, which recovery finishes; {remember} is run first by recovery, {early} at import
PLAN = """
{early}

@scenario(setup={{"a": b"old", "b": b"old", "c": b"old"}})
def planned(run: Run) -> None:
    (run.dir / "plan.new").write_text("new")
    os.replace(run.dir / "plan.new", run.dir / "plan")
    finish(run.dir)
    run.ack()

def finish(directory: Path) -> None:
    for name in "abc":
        (directory / (name + ".new")).write_text("new")
        os.replace(directory / (name + ".new"), directory / name)
    (directory / "plan").unlink()

@planned.recover
def recover(directory: Path) -> None:
    {remember}
    if (directory / "plan").exists():
        finish(directory)
    for left in directory.glob("*.new"):
        left.unlink()

@planned.observe
def look(directory: Path) -> list[str]:
    log = directory / "log"
    return [(directory / name).read_text() for name in "abc"] + [log.read_text() if log.exists() else ""]
"""


def test_recovery_that_remembers_is_judged_in_processes_of_its_own(crash: Crash, write_scenario: Write) -> None:
    remember = "if SEEN.setdefault('any', (directory / 'a').read_text()) != (directory / 'a').read_text(): return"
    made = crash(write_scenario(PLAN.format(early="SEEN: dict[str, str] = {}", remember=remember)))
    assert (made.verdict, made.harness_error, made.violations) == ("held", "", [])
    assert any("because it remembers" in note for note in made.notes), made.notes


@pytest.mark.parametrize(
    "remember",
    [
        "KEPT.append(open(directory / 'log', 'w')); KEPT[-1].write('recovered')",
        "import atexit; atexit.register((directory / 'log').write_text, 'recovered')",
        # two seconds of patience for each recovery
        pytest.param("import subprocess; KEPT.append(subprocess.Popen(['sleep', '600']))", marks=pytest.mark.slow),
    ],
    ids=["an open buffer", "an exit handler", "a child"],
)
def test_recovery_that_leaves_something_to_be_done_is_not_batched(
    crash: Crash, write_scenario: Write, remember: str
) -> None:
    source = PLAN.format(early="KEPT: list[object] = []", remember=remember)
    made = crash(write_scenario(source), timeout=30.0)
    assert (made.verdict, made.harness_error, made.violations) == ("held", "", [])
    assert made.nested.cells > 20
    assert not any("because it remembers" in note for note in made.notes), "it was used, and the comparison found it"


def test_a_violation_in_a_batch_is_seen_in_a_process_of_its_own_too(crash: Crash, write_scenario: Write) -> None:
    wrong = "(directory / 'plan').rename(directory / 'plan.new') if (directory / 'plan').exists() else None"
    made = crash(write_scenario(PLAN.format(early="", remember=wrong)))
    assert (made.verdict, made.harness_error) == ("violated", "")
    assert any(">" in violation.id for violation in made.violations)
