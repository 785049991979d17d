"""Real kills: what a SIGKILL leaves is what the record says, and everything of the run is gone afterwards."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from crashtest.cells.example import Example
from crashtest.cells.plan import Cell
from crashtest.errors import HarnessError
from crashtest.scale.slot import Slot
from crashtest.scenario import load
from crashtest.values import canonical
from crashtest.verdict import ScenarioResult

ROOT = Path(__file__).parents[2]
Write = Callable[[str], Path]
Crash = Callable[..., ScenarioResult]


def realise(slot: Slot, file: Path, function: str, cells: list[Cell] | None = None) -> tuple[Example, list[Any]]:
    """Prepare a scenario and realise its cells (all that are planned, if none are given)."""
    scenario = {one.function: one for one in load(file)}[function]
    slot.open(scenario, file)
    prepared = slot.prepare(scenario, None, 10.0)
    example = Example(scenario, None, prepared, True)
    assert example.reason == ""
    slot.serve(example, 10.0, 1)
    wanted = example.plan.cells if cells is None else cells
    return example, slot.ask({"do": "kill", "crashes": [list(cell[:4]) for cell in wanted]})["cells"]


def test_git_update_ref_dies_between_its_renames(slot: Slot) -> None:
    file = ROOT / "scenarios/known_bad/git_update_ref.py"
    example, found = realise(slot, file, "update_ref_three_refs")
    trees = {one["tree"]: one["new"][one["tree"]]["observed"] for one in found if one["new"]}
    seen = {c.cut: trees[f["tree"]] for c, f in zip(example.plan.cells, found, strict=True) if c.variant == "group"}
    calls = [event.describe() for event in example.events]
    renames = [cut for cut, call in enumerate(calls) if call.startswith("rename(")]
    assert [calls[cut] for cut in renames] == [f"rename(refs/heads/{r}.lock -> refs/heads/{r})" for r in "abc"]
    assert sum(call.startswith("openat(refs/heads/") for call in calls) == 3  # the locks
    assert sum(call.startswith("write(refs/heads/") for call in calls) >= 3
    assert {seen[cut] for cut in seen if cut <= renames[0]} == {'"111"'}
    assert seen[renames[1]] == '"211"'
    assert seen[renames[2]] == '"221"'
    assert {seen[cut] for cut in seen if cut > renames[2]} == {'"222"'}
    assert all(one["proof"] == [] for one in found)


def test_a_torn_write_ends_at_a_page_of_the_file(slot: Slot, write_scenario: Write) -> None:
    file = write_scenario(
        """
        @scenario(setup={"log": b"x" * 100})
        def appends(run: Run) -> None:
            with open(run.dir / "log", "ab", buffering=0) as log:
                log.write(b"y" * 9000)
            run.ack()

        @appends.observe
        def size(directory: Path) -> int:
            return (directory / "log").stat().st_size
        """
    )
    example, found = realise(slot, file, "appends")
    sizes = {
        c.torn: f["new"][f["tree"]]["observed"] for c, f in zip(example.plan.cells, found, strict=True) if f["new"]
    }
    assert {0: sizes[0], 3996: "4096", 8092: "8192"} == {k: v for k, v in sizes.items() if k in (0, 3996, 8092)}
    assert {cell.torn for cell in example.plan.cells} == {0, 3996, 8092}
    assert all(one["proof"] == [] for one in found)


STUBBORN = """
    import subprocess, sys, fcntl

    CHILD = '''
    import fcntl, os, signal, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.read()
    with open("late", "w") as file:
        file.write("written by the child")
    '''

    @scenario
    def outlived(run: Run) -> None:
        lock = os.open(run.dir / "lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, cwd=run.dir,
                                 pass_fds=[lock], start_new_session=True)
        (run.dir / "begun").write_text("by the worker")
        child.stdin.close()
        child.wait()
        (run.dir / "ended").write_text("by the worker")
        run.ack()

    @outlived.recover
    def wait_for_the_lock(directory: Path) -> None:
        with open(directory / "lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
        with open(directory / "recovered", "w") as file:
            file.write(str((directory / "late").exists()))

    @outlived.observe
    def names(directory: Path) -> list[str]:
        recovered = directory / "recovered"
        return [*sorted(os.listdir(directory)), recovered.read_text() if recovered.exists() else "-"]
"""


def test_a_child_that_outlives_its_parent_ends_before_or_during_recovery(slot: Slot, write_scenario: Write) -> None:
    file = write_scenario(STUBBORN)
    example, _ = realise(slot, file, "outlived", [])
    cut = next(i for i, event in enumerate(example.events) if event.describe().startswith("write(begun"))
    cells = [Cell(cut, "write", 0, variant) for variant in ("group", "worker", "late")]
    group, worker, late = slot.ask({"do": "kill", "crashes": [list(cell[:4]) for cell in cells]})["cells"]
    # the whole group: the child is gone though it moved to a session of its own
    assert group["new"][group["tree"]]["observed"] == '["l","begun","lock","recovered","False"]'
    # the worker alone: its child runs on to its end, before recovery starts
    assert worker["new"][worker["tree"]]["observed"] == '["l","begun","late","lock","recovered","True"]'
    # held: recovery starts first, waits for the lock that the child holds, and only then the child goes on
    assert late["new"][late["tree"]]["observed"] == '["l","begun","late","lock","recovered","True"]'
    assert all(one["proof"] == [] and not one["strays"] for one in (group, worker, late))


def test_no_process_of_a_killed_run_survives(slot: Slot, write_scenario: Write) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    realise(slot, write_scenario(STUBBORN), "outlived")
    (zygote,) = (process for process in psutil.Process().children() if process.pid not in before)
    forkers = zygote.children()
    assert len(forkers) == 2  # one for observed runs and one for the others, and no more
    assert zygote.children(recursive=True) == forkers
    slot.close()
    assert {process.pid for process in psutil.Process().children(recursive=True)} == before


def test_a_forker_that_is_killed_is_a_harness_error_and_the_next_run_has_a_new_one(
    slot: Slot, write_scenario: Write
) -> None:
    file = write_scenario(
        """
        import signal

        @scenario(setup={"a": b"old"})
        def kills_its_forker(run: Run) -> None:
            if not Path(os.environ["TMPDIR"], "../../spared").exists():
                os.kill(os.getppid(), signal.SIGKILL)
                signal.pause()
            (run.dir / "a").write_text("new")
            run.ack()

        @kills_its_forker.observe
        def look(directory: Path) -> str:
            return (directory / "a").read_text()
        """
    )
    scenario = load(file)[0]
    slot.open(scenario, file)
    request = slot.request("prepare", scenario, None, 10.0)
    with pytest.raises(HarnessError, match="the process that forks the workers"):
        slot.ask(request)
    (zygote,) = psutil.Process().children()
    spared = Path(zygote.cmdline()[-3]).parent / "spared"
    spared.touch()
    assert Example(scenario, None, slot.ask(request), True).reason == ""
    assert [child.children() for child in zygote.children()] == [[], []]


def test_what_a_program_does_at_each_fork_is_let_go_in_the_forker(crash: Crash, write_scenario: Write) -> None:
    made = crash(
        write_scenario(
            """
            NOTE = Path(__file__).with_name("forks")
            os.register_at_fork(after_in_parent=lambda: NOTE.write_text("forked"))

            @scenario(setup={"a": b"old"})
            def forks(run: Run) -> None:
                (run.dir / "a.new").write_text("new")
                (run.dir / "a.new").replace(run.dir / "a")
                run.ack()

            @forks.observe
            def look(directory: Path) -> str:
                return (directory / "a").read_text()
            """
        )
    )
    assert (made.verdict, made.harness_error) == ("held", ""), made.reason


def test_every_cell_proves_itself_and_a_sample_is_rebuilt(crash: Crash) -> None:
    made = crash(ROOT / "scenarios/textbook/atomic_replace.py")
    assert (made.verdict, made.as_expected, made.harness_error) == ("held", True, "")
    assert made.self_proofs == made.models["kill"].cells > 10
    assert made.rebuilt >= 3


def test_a_real_kill_and_a_rebuilt_state_that_disagree_are_a_harness_error(crash: Crash, write_scenario: Write) -> None:
    """A recovery that reads what is in no file (the inode number) cannot be the same on a rebuilt state."""
    file = write_scenario(
        """
        @scenario(setup={"a": b"old"})
        def lied_to(run: Run) -> None:
            (run.dir / "inode").write_text(str(os.stat(run.dir / "a").st_ino))
            (run.dir / "a").unlink()
            (run.dir / "a").write_text("new")
            run.ack()

        @lied_to.observe
        def same_inode(directory: Path) -> str:
            inode, a = directory / "inode", directory / "a"
            if a.exists() and a.read_text() == "new":
                return "new"
            killed = inode.exists() and a.exists() and inode.read_text() == str(os.stat(a).st_ino)
            return "really killed" if killed else "old"
        """
    )
    made = crash(file)
    assert "a real kill and the state rebuilt from the record disagree" in made.harness_error
    assert not made.as_expected


#: what setuptools writes for an editable install whose packages lie in no one directory, less what is not needed here
FINDER = """
import sys
from importlib.machinery import PathFinder

class _EditableFinder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return PathFinder.find_spec(name, [{place!r}]) if name == "far_away" else None

def install():
    sys.meta_path.append(_EditableFinder)
"""


def test_an_editable_install_by_import_hook_is_found_in_the_zygote(
    crash: Crash, write_scenario: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "elsewhere"
    source.mkdir()
    (source / "far_away.py").write_text("WORD = 'new'\n")
    (tmp_path / "__editable___far_away_finder.py").write_text(FINDER.format(place=str(source)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    importlib.import_module("__editable___far_away_finder").install()  # as its .pth file does
    made = crash(
        write_scenario(
            """
            import far_away

            @scenario(setup={"a": "old"})
            def replaced(run: Run) -> None:
                (run.dir / "a.new").write_text(far_away.WORD)
                (run.dir / "a.new").replace(run.dir / "a")
                run.ack()

            @replaced.observe
            def look(directory: Path) -> str:
                return (directory / "a").read_text()
            """
        )
    )
    assert (made.verdict, made.harness_error) == ("held", "")


def test_a_zygote_that_prepared_another_scenario_meanwhile_is_told_again(slot: Slot, write_scenario: Write) -> None:
    """Two scenarios of one file share a zygote, which knows one of them at a time."""
    file = write_scenario(
        """
        def write(run: Run) -> None:
            (run.dir / "a").write_text("new")
            run.ack()

        @scenario
        def one(run: Run) -> None:
            write(run)

        @scenario
        def other(run: Run) -> None:
            write(run)

        @one.observe
        @other.observe
        def names(directory: Path) -> list[str]:
            return sorted(os.listdir(directory))
        """
    )
    one, other = load(file)
    slot.open(one, file)
    example = Example(one, None, slot.prepare(one, None, 10.0), True)
    slot.serve(example, 10.0, 1)
    slot.prepare(other, None, 10.0)
    slot.serve(example, 10.0, 1)
    (cell,) = slot.ask({"do": "kill", "crashes": [[1, "", 0, "group"]], "alone": False})["cells"]
    assert (cell["end"], cell["proof"]) == ("killed", [])


def test_a_recorded_worker_that_left_nothing_to_write_ends_quickly(
    slot: Slot, write_scenario: Write, tmp_path: Path
) -> None:
    """An orderly end would run the exit handler that was there before the worker (docs/adr/0003)."""
    file = write_scenario(
        f"""
        import atexit

        @atexit.register
        def tell() -> None:
            Path({str(tmp_path / "ended")!r}).touch()

        @scenario(setup={{"a": "0"}}, allow_outside=("*",))
        def writes(run: Run) -> None:
            fd = os.open(run.dir / "a", os.O_WRONLY)
            os.write(fd, b"1")
            os.close(fd)
            run.ack()

        @writes.observe
        def content(dir: Path) -> bytes:
            return (dir / "a").read_bytes()
        """
    )
    example, found = realise(slot, file, "writes")
    (ran_to_its_end,) = (f for c, f in zip(example.plan.cells, found, strict=True) if c.cut == len(example.events))
    assert any(words.endswith("/ended") for words in example.prepared["outside"])
    assert ran_to_its_end["end"] == "normal"
    assert ran_to_its_end["outside"] == []


def test_how_a_zygote_looks_up_names_and_keeps_bytecode_is_not_handed_on(slot: Slot, write_scenario: Write) -> None:
    file = write_scenario(
        """
        import sys

        @scenario(setup={"a": "0"})
        def writes(run: Run) -> None:
            (run.dir / "a").write_text("1")
            run.ack()

        @writes.observe
        def content(dir: Path) -> list[object]:
            names = ("LD_BIND_NOW", "PYTHONDONTWRITEBYTECODE")
            return [(dir / "a").read_text(), sys.dont_write_bytecode, *map(os.environ.get, names)]
        """
    )
    example, _ = realise(slot, file, "writes", [])
    assert example.states[-1] == canonical(["1", True, None, "1"])
