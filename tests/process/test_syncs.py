"""Which sync is needed: the textbook replacement, with one sync more, with one less, and what real software does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from crashtest.cli import main
from crashtest.config import Settings
from crashtest.explore.needs import NEEDED, NOT_NEEDED, NOT_REACHED, SyncsResult, SyncVerdict
from crashtest.explore.syncs import analyse
from crashtest.report.story import plain
from crashtest.report.syncs import lines
from crashtest.scale.replay import replay
from crashtest.scenario import load

Write = Callable[[str], Path]

ROOT = Path(__file__).parents[2]
REPLACE = """
def sync(directory):
    fd = os.open(directory, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

@scenario(setup={"settings": "blue"})
def save(run):
    for text in run.ops:
        with open(run.dir / "settings.new", "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # the file
        os.replace(run.dir / "settings.new", run.dir / "settings")
        sync(run.dir)  # the directory
        run.ack(text)

save.ops(lambda: ["red", "green"])

@save.recover
def restart(directory):
    sync(directory)  # recovery

@save.observe
def look(directory):
    return (directory / "settings").read_text()
"""


def judged(path: Path, report: Path, only: str = "", place: str = "", **settings: object) -> SyncsResult:
    (one,) = [one for one in load(path) if one.function == only or not only]
    merged = {"models": ("posix",), "jobs": 2, "seed": 1, "report_dir": report, **settings}
    return analyse(one, path, Settings(**merged), place, lambda words: None)  # type: ignore[arg-type]


def at(made: SyncsResult, path: Path, text: str) -> SyncVerdict:
    """The verdict of the sync that the line with this text issues."""
    number = next(n for n, line in enumerate(path.read_text().splitlines(), 1) if text in line)
    (found,) = [sync for sync in made.syncs if f"story.py:{number} " in sync.where]
    return found


def text_of(made: SyncsResult, report: Path) -> str:
    return "\n".join(plain(line) for line in lines(made, report))


def test_each_sync_of_the_textbook_replacement_is_needed_for_a_reason_of_its_own(
    write_scenario: Write, tmp_path: Path
) -> None:
    path = write_scenario(REPLACE)
    made = judged(path, tmp_path / "report", place=str(tmp_path))
    assert (made.exit, made.reason, made.missing, made.mended) == (0, "", [], True)
    assert [sync.verdict for sync in made.syncs] == [NEEDED] * 3
    file, directory, recovery = (at(made, path, text) for text in ("# the file", "# the directory", "# recovery"))
    assert file.violation is not None and directory.violation is not None and recovery.violation is not None
    assert file.violation.guarantee == "atomic" and directory.violation.guarantee == "durable"
    assert file.violation.lost[0].startswith("the data of settings.new (3 bytes at 0), in ")
    assert file.violation.kept[0].startswith("rename(settings.new -> settings), in ")
    assert directory.violation.lost[0].startswith("the name settings.new -> settings (rename), in ")
    assert directory.violation.kept[0].startswith("ack 1, in ")
    assert (recovery.part, recovery.violation.kept) == ("recovery", ["the end of recovery"])
    assert (file.needed, file.weaker, directory.weaker) == ([1, 2], "fdatasync", "")
    # timed on the disk that was named, in the run alone
    assert file.milliseconds and directory.milliseconds and recovery.milliseconds is None
    assert made.disk.startswith(f"{tmp_path} (")
    # the proofs are told, stored, and come again
    told = text_of(made, tmp_path / "report")
    for sync in made.syncs:
        assert sync.violation is not None and f"replay: crashtest replay '{sync.violation.id}'" in told
    stored = list((tmp_path / "report" / "violations").iterdir())
    assert len(stored) == 3
    for one in stored:
        again = replay(one, Settings(jobs=1, report_dir=tmp_path / "again"), lambda event: None)
        assert again.exit == 1, again.notes
        assert again.scenarios[0].violations[0].without != []


def test_a_sync_too_much_is_not_needed_and_the_verdicts_hold_together(write_scenario: Write, tmp_path: Path) -> None:
    """Either of the two stands in for the other; one of them stays."""
    twice = REPLACE.replace(
        "            os.fsync(file.fileno())  # the file\n",
        "            os.fsync(file.fileno())  # the file\n            os.fsync(file.fileno())  # once more\n",
    )
    path = write_scenario(twice)
    made = judged(path, tmp_path / "report", depth=1)
    assert at(made, path, "# once more").verdict == NOT_NEEDED
    file = at(made, path, "# the file")
    assert file.verdict == NEEDED and file.violation is not None and len(file.violation.without) == 2
    assert at(made, path, "# the directory").verdict == NEEDED
    told = text_of(made, tmp_path / "report")
    assert "the verdicts hold together" in told and "up to 150 losses for each question" in told
    assert "redundant" not in told


@pytest.mark.parametrize(
    ("gone", "barrier", "after", "before"),
    [
        ("            os.fsync(file.fileno())  # the file\n", "fsync of settings.new, ", "file.flush()", "os.replace"),
        ("        sync(run.dir)  # the directory\n", "fsync of the directory ., ", "os.replace", "run.ack"),
    ],
    ids=["file", "directory"],
)
def test_a_sync_that_was_taken_away_is_what_is_missing(
    write_scenario: Write, tmp_path: Path, gone: str, barrier: str, after: str, before: str
) -> None:
    path = write_scenario(REPLACE.replace(gone, ""))
    made = judged(path, tmp_path / "report", depth=1)
    numbers = [next(n for n, one in enumerate(path.read_text().splitlines(), 1) if t in one) for t in (after, before)]
    (missing,) = made.missing
    (words,) = missing.barriers
    assert words.startswith(barrier)
    first, _, second = words.partition(" and before ")
    assert f"story.py:{numbers[0]} " in first and f"story.py:{numbers[1]} " in second
    assert (made.exit, made.mended, missing.violation.without) == (1, True, [])


def test_what_breaks_anyway_is_no_proof_and_no_sync_is_proposed_for_it(write_scenario: Write, tmp_path: Path) -> None:
    """Written in place: half of it is left whatever is synced, and a name that nothing changes needs no sync."""
    path = write_scenario(
        REPLACE.replace('"settings.new", "w"', '"settings", "w"').replace(
            '        os.replace(run.dir / "settings.new", run.dir / "settings")\n', ""
        )
    )
    made = judged(path, tmp_path / "report", depth=1)
    assert at(made, path, "# the directory").verdict == NOT_NEEDED
    assert at(made, path, "# the file").verdict == NEEDED
    assert [(one.violation.guarantee, one.barriers) for one in made.missing] == [("atomic", [])]
    assert (made.exit, made.mended) == (1, False)
    assert "no added sync removes this" in text_of(made, tmp_path / "report")


def test_what_another_missing_sync_breaks_is_no_proof(write_scenario: Write, tmp_path: Path) -> None:
    """Whatever is lost of the log, the value that nobody syncs is what breaks the promise."""
    path = write_scenario(
        """
        @scenario(setup={"value": "1", "log": ""})
        def counts(run):
            for number in run.ops:
                with open(run.dir / "log", "a") as log:
                    log.write("x" * 600)
                    log.flush()
                    os.fsync(log.fileno())  # the log
                fd = os.open(run.dir / "value", os.O_WRONLY)
                os.pwrite(fd, str(number).encode(), 0)
                os.close(fd)
                run.ack()

        counts.ops(lambda: [2, 3])

        @counts.observe
        def look(directory):
            return (directory / "value").read_text()
        """
    )
    made = judged(path, tmp_path / "report", depth=1)
    assert [sync.verdict for sync in made.syncs] == [NOT_NEEDED]
    assert [one.barriers[0].partition(", ")[0] for one in made.missing] == ["fsync of value"]


def test_an_fdatasync_will_not_do_where_the_mode_matters(write_scenario: Write, tmp_path: Path) -> None:
    path = write_scenario(
        """
        @scenario(setup={"key": "x"})
        def lock_up(run):
            fd = os.open(run.dir / "key", os.O_RDWR)
            os.fchmod(fd, 0o600)
            os.fsync(fd)  # the mode
            run.ack()

        @lock_up.observe
        def look(directory):
            return (directory / "key").stat().st_mode & 0o777

        def unused(fd):
            os.fdatasync(fd)
        """
    )
    made = judged(path, tmp_path / "report", depth=1)
    sync = at(made, path, "# the mode")
    assert (sync.verdict, sync.weaker) == (NEEDED, "")
    (other,) = [one for one in made.syncs if one is not sync]
    assert (other.verdict, other.call) == (NOT_REACHED, "fdatasync") and other.where.endswith(" in unused")


def test_the_syncs_of_a_command_are_judged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "a").write_text("old")
    words = ["--state", str(tmp_path / "state"), "--report-dir", str(tmp_path / "report"), "--seed", "1"]
    shell = "echo new > b && sync b && mv b a"
    assert main(["syncs", *words, "--depth", "1", "--report", "json", "--", "sh", "-c", shell]) == 1
    told = capfd.readouterr().out
    assert "fsync of the directory ., after mv b a" in told and "exit 1: a sync is missing" in told
    written = json.loads((tmp_path / "report" / "syncs.json").read_bytes())
    assert [(sync["where"], sync["verdict"]) for sync in written["syncs"]] == [("sync b", NEEDED)]
    assert written["missing"][0]["barriers"] == ["fsync of the directory ., after mv b a"]


@pytest.mark.slow
def test_sqlite_is_told_to_sync_the_directory_when_it_has_removed_its_journal(tmp_path: Path) -> None:
    """What synchronous=EXTRA does. All other syncs of FULL are needed."""
    path = ROOT / "scenarios/software/sqlite_delete.py"
    made = judged(path, tmp_path / "report", "delete_full", depth=1)
    run = {(sync.call, sync.paths[0]): sync.verdict for sync in made.syncs if sync.part == "run"}
    assert run == {
        ("fdatasync", "shop.db-journal"): NEEDED,
        ("fdatasync", "shop.db"): NEEDED,
        ("fdatasync", "."): NEEDED,  # when the journal is made
    }
    (missing,) = made.missing
    assert missing.violation.lost[0].startswith("the removal of the name shop.db-journal, in ")
    assert missing.barriers[0].startswith("fsync of the directory ., after ")
    assert (made.exit, made.mended, missing.violation.expected) == (0, True, True)
