"""Long sequences: states are computed, real kills are a sample, and what is found is made by a real kill as well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from crashtest.cells import plan, prepare
from crashtest.verdict import ScenarioResult

#: interpreters after the oldest leave these out (tox.ini)
pytestmark = pytest.mark.slow

Write = Callable[[str], Path]
Crash = Callable[..., ScenarioResult]

#: {number} operations, each replacing one of three files; {save} does it
MANY = """
BUFFER: list[object] = []

def save(path: Path, text: str) -> None:
    path.with_suffix(".new").write_text(text)
    os.replace(path.with_suffix(".new"), path)

@scenario(setup={{"a": b"0", "b": b"0", "c": b"0"}})
def many(run: Run) -> None:
    for number in run.ops:
        path = run.dir / "abc"[number % 3]
        {save}
        run.ack()

@many.ops
def ops() -> list[int]:
    return list(range(1, {number} + 1))

@many.recover
def recover(directory: Path) -> None:
    for left in directory.glob("*.new"):
        left.unlink()

@many.observe
def look(directory: Path) -> list[str]:
    return [(directory / name).read_text() for name in "abc"]
"""
GOOD = "save(path, str(number))"


@pytest.fixture
def few_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "REPEATED", 400)
    monkeypatch.setattr(plan, "KILLS", 6)


@pytest.mark.usefixtures("few_kills")
def test_a_long_run_is_killed_at_a_sample_and_judged_everywhere(crash: Crash, write_scenario: Write) -> None:
    made = crash(write_scenario(MANY.format(number=30, save=GOOD)))
    model = made.models["kill"]
    assert (made.verdict, made.harness_error) == ("held", "")
    assert model.cells == model.crash_points == 1 + 30 * 4
    assert 6 <= model.kills < 20 and model.exhaustive
    assert made.self_proofs == model.kills


@pytest.mark.usefixtures("few_kills")
def test_a_violation_of_a_computed_state_is_made_by_a_real_kill(crash: Crash, write_scenario: Write) -> None:
    wrong = "save(path, str(number)) if number != 17 else path.write_text(str(number))"
    made = crash(write_scenario(MANY.format(number=30, save=wrong)))
    assert (made.verdict, made.harness_error) == ("violated", "")
    (violation,) = made.violations
    assert violation.guarantee == "atomic" and "before write(c" in violation.point
    assert made.self_proofs > made.models["kill"].kills, "the violation's own kill proves itself too"


def test_states_at_acks_stand_only_where_runs_that_end_there_agree(crash: Crash, write_scenario: Write) -> None:
    buffered = "BUFFER.append((path, str(number))); len(BUFFER) > 1 and save(*BUFFER.pop(0))"
    source = MANY.format(number=prepare.FEW + 4, save=buffered)
    flushed = source.replace("        run.ack()\n", "        run.ack()\n    for left in BUFFER:\n        save(*left)\n")
    made = crash(write_scenario(flushed))
    assert {violation.guarantee for violation in made.violations} == {"durable"}, made.reason
