"""Power cuts: what was not synced may be lost, in recovery and after it too; a loss is told, stored and done again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from crashtest.cells.judge import Expected
from crashtest.cells.losses import Losses
from crashtest.config import Settings
from crashtest.report.story import power_figures
from crashtest.scale.replay import replay
from crashtest.scenario import Scenario
from crashtest.verdict import ScenarioResult, Violation

Write = Callable[[str], Path]
Crash = Callable[..., ScenarioResult]
BOTH = ("kill", "posix")

#: an append-only log, synced before each ack; recovery cuts a torn end off {trust}
LOG = """
def synced(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

@scenario(setup={{"log": b"0;"}})
def appends(run: Run) -> None:
    for number in run.ops:
        fd = os.open(run.dir / "log", os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"%d;" % number)
        os.fsync(fd)
        os.close(fd)
        run.ack()

@appends.ops
def ops() -> list[int]:
    return [1, 2]

@appends.recover
def recover(directory: Path) -> None:
    log = directory / "log"
    whole = log.read_bytes().rpartition(b";")[0]
    whole = b";".join(part for part in whole.split(b";") if part.isdigit()) + b";"
    if whole != log.read_bytes():
        (directory / "log.new").write_bytes(whole)
        synced(directory / "log.new")
        os.replace(directory / "log.new", log)
    {trust}
    synced(directory)

@appends.observe
def look(directory: Path) -> str:
    return (directory / "log").read_text()
"""


def only(made: ScenarioResult) -> Violation:
    assert made.harness_error == "" and len(made.violations) == 1, (made.harness_error, made.violations)
    return made.violations[0]


def test_recovery_that_trusts_an_unsynced_tail_is_caught(crash: Crash, write_scenario: Write) -> None:
    """The run is killed before its fsync, recovery shows the entry from the page cache, and then the power goes."""
    made = crash(write_scenario(LOG.format(trust="pass")), models=BOTH)
    violation = only(made)
    assert (violation.guarantee, violation.model) == ("durable", "posix")
    assert "then the power was cut after the end in recovery" in violation.point
    assert violation.barrier == "fsync of log" and violation.kept[-1] == "the end of recovery"
    assert "story.py:" in violation.lost[0] and "in appends" in violation.lost[0]
    assert made.models["kill"].guarantees["durable"] == "held"


def test_recovery_that_syncs_what_it_trusts_holds(crash: Crash, write_scenario: Write) -> None:
    made = crash(write_scenario(LOG.format(trust="synced(log)")), models=BOTH)
    assert (made.verdict, made.harness_error, made.violations) == ("held", "", [])
    assert made.models["posix"].exhaustive and made.models["posix"].nested > 10


def test_without_crashes_in_recovery_it_is_not_seen(crash: Crash, write_scenario: Write) -> None:
    made = crash(write_scenario(LOG.format(trust="pass")), models=BOTH, depth=1)
    assert (made.verdict, made.models["posix"].nested) == ("held", 0)


def test_a_recovery_that_is_cut_in_turn_is_judged(crash: Crash, write_scenario: Write) -> None:
    """Recovery rewrites in place: a cut inside it leaves nothing."""
    worse = LOG.format(trust="synced(log)").replace(
        '(directory / "log.new").write_bytes(whole)', "log.write_bytes(whole); return"
    )
    made = crash(write_scenario(worse), models=BOTH)
    assert made.harness_error == ""
    assert {"atomic", "durable"} & {violation.guarantee for violation in made.violations if ">" in violation.id}


def test_a_stored_loss_comes_again_and_a_mended_one_does_not(
    crash: Crash, write_scenario: Write, tmp_path: Path
) -> None:
    path = write_scenario(LOG.format(trust="pass"))
    violation = only(crash(path, models=BOTH))
    (stored,) = (tmp_path / "report" / "violations").iterdir()
    settings = Settings(jobs=2, report_dir=tmp_path / "again")
    again = replay(stored, settings, lambda event: None)
    assert again.exit == 1, again.notes
    assert [(one.id, one.lost, one.barrier) for one in again.scenarios[0].violations] == [
        (violation.id, violation.lost, violation.barrier)
    ]
    write_scenario(LOG.format(trust="synced(log)"))
    assert replay(stored, settings, lambda event: None).exit == 0


def test_two_walks_find_the_same(crash: Crash, write_scenario: Write) -> None:
    path = write_scenario(LOG.format(trust="pass").replace("        os.fsync(fd)\n", "", 1))
    made = [crash(path, models=("posix",), jobs=jobs, losses=60) for jobs in (1, 2)]
    assert made[0].violations and made[0].harness_error == ""
    told = [[(v.id, v.guarantee, v.point, v.lost, v.kept, v.barrier) for v in one.violations] for one in made]
    assert told[0] == told[1]


#: recovery waits for ever, the first times that it finds the new name: {flag} lies outside of the state
SLOW = """
import time

@scenario(setup={{"a": b"old"}}, timeout=3, allow_outside=["*/flag*"])
def replaces(run: Run) -> None:
    (run.dir / "b").write_text("new")
    os.replace(run.dir / "b", run.dir / "a")
    run.ack()

@replaces.recover
def recover(directory: Path) -> None:
    if (directory / "a").read_text() == "\\0\\0\\0" and not os.path.exists({flag!r}):
        open({flag!r}, "w").close()
        time.sleep(600)

@replaces.observe
def look(directory: Path) -> str:
    return (directory / "a").read_text()
"""


def test_a_recovery_after_a_power_cut_that_hangs_once_is_tried_again_alone(
    crash: Crash, write_scenario: Write, tmp_path: Path
) -> None:
    made = crash(write_scenario(SLOW.format(flag=str(tmp_path / "flag"))), models=("posix",), depth=1)
    assert made.harness_error == "" and (tmp_path / "flag").exists()
    assert {violation.guarantee for violation in made.violations} == {"atomic", "durable"}
    assert made.models["posix"].guarantees["recovers"] == "held"


def test_a_sample_of_recoveries_is_not_called_all(crash: Crash, write_scenario: Write) -> None:
    made = crash(write_scenario(LOG.format(trust="synced(log)")), models=BOTH, losses=40)
    model = made.models["posix"]
    assert model.exhaustive and model.nested and "all that are possible" in power_figures(model)
    told = power_figures(msgspec.structs.replace(model, nested_exhaustive=False))
    assert told.endswith("in recovery, a sample")


def test_a_fault_that_does_not_come_again_alone_is_an_error_of_the_harness() -> None:
    scenario = Scenario(workload=print)
    scenario.observe(lambda directory: "")
    facts = {"wrong": tree("S9"), "right": tree("S1")}
    losses = Losses(scenario, Expected(['"S0"', '"S1"']), "posix", facts)
    losses.take(
        {"number": 0, "cut": 1, "acks": 0, "lost": [[0, 0]], "tree": "wrong", "extra": {}, "marks": ["write"],
         "outer": False, "inner": [], "before": "", "where": ""}
    )  # fmt: skip
    losses.judge()
    fault = losses.next_to_reduce()
    assert fault is not None and fault[0].guarantee == "atomic"
    losses.take_reduced(*fault, {"new": {}, "tree": "right", "extra": {}, "marks": [], "shown": None, "lost": []})
    assert losses.causes == [] and "atomic" in losses.disagreement
    assert losses.next_to_reduce() is None


def tree(observed: str) -> dict[str, Any]:
    return {"failure": "", "observed": f'"{observed}"', "glance": None, "again": None, "skipped": False, "names": []}
