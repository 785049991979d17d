"""Recovery: killed at every named step, also while recovering, a transaction is there wholly or not at all."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import jin_core
from jin_core import disk, wal
from jin_core.gitlocks import Evidence, Identity, Lock, sweep
from jin_core.protocol import Kind

ZERO = "0" * 40
MAIN = "refs/heads/main"
PATIENCE = 0.03
State = tuple[set[str], dict[str, tuple[bytes, int]], str]


@dataclass
class Case:
    """A pristine repository, a place to work on copies of it, and the states before and after `change`."""

    pristine: Path
    work: Path
    ids: tuple[str, str]
    before: State
    after: State

    def restart(self) -> None:
        copy(self.pristine, self.work)


def git(path: Path, *args: str) -> str:
    command = ["git", "-C", str(path), "-c", "user.name=t", "-c", "user.email=t@t", *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def copy(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def look(path: Path) -> State:
    names: set[str] = set()
    files: dict[str, tuple[bytes, int]] = {}
    for top, dirs, leaves in os.walk(path):
        for name in dirs + leaves:
            full = Path(top, name)
            short = str(full.relative_to(path))
            if short.startswith(".git/objects"):
                continue
            names.add(short)
            if full.is_file() and not short.startswith(".git"):
                files[short] = full.read_bytes(), stat.S_IMODE(full.stat().st_mode)
    return names, files, git(path, "for-each-ref", "--format=%(refname) %(objectname)")


def change(jin: jin_core.Jin, ids: tuple[str, str]) -> None:
    """Everything at once: files made, replaced and removed; refs made, moved and deleted, loose and packed."""
    one, two = ids
    with jin.transaction() as tx:
        tx.write("file", b"new", mode=0o755)
        tx.write("deep/down/made", b"made" * 2000)
        tx.delete("sub/gone")
        tx.update_ref(MAIN, one, old=two)
        tx.update_ref("refs/heads/topic/new", two, old=ZERO)
        tx.delete_ref("refs/heads/del/packed", old=one)
        tx.delete_ref("refs/heads/del/loose")


def follow(jin: jin_core.Jin, ids: tuple[str, str]) -> None:
    """A transaction that succeeds after `change` as well as without it, if nothing stands in its way."""
    with jin.transaction() as tx:
        tx.write("deep/down/made", b"next")
        tx.update_ref(MAIN, ids[0])
        tx.update_ref("refs/heads/topic/new", ids[0])
        tx.update_ref("refs/heads/del/packed", ids[1])
        tx.delete_ref("refs/heads/other")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory where there is one: syncing to a disk is most of the time of these tests."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="jin-test-") as made:
        yield Path(made)


@pytest.fixture
def case(place: Path) -> Case:
    pristine, work = place / "pristine", place / "work"
    pristine.mkdir()
    git(pristine, "init", "-q", "-b", "main", "--template=")
    for message in ("one", "two"):
        git(pristine, "commit", "-q", "--allow-empty", "-m", message)
    two, one = git(pristine, "rev-parse", "HEAD"), git(pristine, "rev-parse", "HEAD~1")
    git(pristine, "update-ref", "refs/heads/del/packed", one)
    git(pristine, "update-ref", "refs/heads/other", one)
    git(pristine, "pack-refs", "--all")
    git(pristine, "update-ref", "refs/heads/del/loose", two)
    (pristine / "file").write_bytes(b"old")
    (pristine / "sub").mkdir()
    (pristine / "sub/gone").write_bytes(b"gone")
    jin_core.Jin.open(pristine).close()
    copy(pristine, work)
    before = look(work)
    with jin_core.Jin.open(work) as jin:
        change(jin, (one, two))
    after = look(work)
    assert before[1:] != after[1:]
    return Case(pristine, work, (one, two), before, after)


def child(body: Callable[[], None], strike: Callable[[str], bool], group: bool = True) -> int:
    """Run `body` in a fork that is killed, with or without its children, at the step where `strike` says so."""
    pid = os.fork()
    if pid == 0:
        os.setpgid(0, 0)

        def hook(event: str, args: tuple[object, ...]) -> None:
            if event.startswith("jin_core.") and strike(event):
                if group:
                    os.killpg(0, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            body()
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code


def nth(number: int) -> Callable[[str], bool]:
    """Strike at the step `number` from the first, 0."""
    left = iter(range(number, -1, -1))
    return lambda event: next(left, -1) == 0


def at(name: str, number: int = 0) -> Callable[[str], bool]:
    left = iter(range(number, -1, -1))
    return lambda event: event == name and next(left, -1) == 0


def transact(case: Case) -> None:
    with jin_core.Jin.open(case.work) as jin:
        change(jin, case.ids)


def recover(path: Path) -> None:
    jin_core.Jin.open(path, patience=PATIENCE).close()


def wait_for_children(path: Path) -> None:
    """Until no git child of a killed process holds the store's lock."""
    with open(path / ".git/jin/lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def judge(case: Case, path: Path, where: object) -> bool:
    """Whether the transaction is there; fails when it is half there, or when a name is left over."""
    now = look(path)
    assert now[1:] in (case.before[1:], case.after[1:]), where
    there = now[1:] == case.after[1:]
    wanted = case.after if there else case.before
    assert now[0] == wanted[0], (where, now[0] ^ wanted[0])
    return there


@pytest.mark.parametrize("group", [True, False], ids=["group", "alone"])
def test_killed_at_every_step_it_is_all_or_nothing_clean_idempotent_and_live(case: Case, group: bool) -> None:
    outcomes: list[bool] = []
    for number in range(200):
        case.restart()
        if child(lambda: transact(case), nth(number), group) == 0:
            break
        wait_for_children(case.work)
        recover(case.work)
        there = judge(case, case.work, number)
        outcomes.append(there)
        recover(case.work)
        assert judge(case, case.work, number) is there
        with jin_core.Jin.open(case.work) as jin:
            follow(jin, case.ids)
        assert (case.work / "deep/down/made").read_bytes() == b"next"
    assert len(outcomes) > 20
    assert outcomes == sorted(outcomes)
    assert True in outcomes and False in outcomes


def test_killed_at_every_step_of_recovery_it_ends_the_same(case: Case, place: Path) -> None:
    crashed, again = place / "crashed", place / "again"
    kills = 0
    for strike, expected in (
        (at("jin_core.refs.prepared"), False),
        (at("jin_core.wal.commit"), False),
        (at("jin_core.refs.commit"), True),
        (at("jin_core.files.rename", 1), True),
        (at("jin_core.wal.cleanup"), True),
    ):
        case.restart()
        assert child(lambda: transact(case), strike) != 0
        copy(case.work, crashed)
        for number in range(100):
            copy(crashed, again)
            if child(lambda: recover(again), nth(number)) == 0:
                break
            kills += 1
            recover(again)
            assert judge(case, again, number) is expected
        assert judge(case, again, "uninterrupted") is expected
    assert kills > 50


def test_every_step_of_the_table_is_reached(case: Case, tmp_path: Path) -> None:
    log = tmp_path / "steps"

    def listening(body: Callable[[], None], die: Callable[[str], bool] = lambda event: False) -> None:
        def strike(event: str) -> bool:
            with open(log, "a") as out:
                out.write(event + "\n")
            return die(event)

        child(body, strike)

    def torn(path: Path) -> None:
        with open(path / ".git/jin/wal", "ab") as out:
            out.write(b"JREC")

    def first() -> None:
        shutil.rmtree(case.work / ".git/jin")
        with jin_core.Jin.open(case.work, log_limit=100) as jin:
            change(jin, case.ids)

    def refused() -> None:
        # Only git can see that a blob is no value for a branch, so this one fails in prepare.
        with (
            jin_core.Jin.open(case.work) as jin,
            pytest.raises(jin_core.Conflict),
            jin.transaction() as tx,
        ):
            tx.write("a/b", b"x")
            tx.update_ref("refs/heads/x/y", blob)

    blob = git(case.pristine, "hash-object", "-w", "file")
    case.restart()
    listening(first)
    listening(refused)
    case.restart()
    listening(lambda: transact(case), at("jin_core.wal.commit"))
    torn(case.work)
    listening(lambda: recover(case.work))
    case.restart()
    listening(lambda: transact(case), at("jin_core.refs.commit"))
    listening(lambda: recover(case.work))
    reached = set(log.read_text().split())
    assert reached == set(jin_core.STEPS)


def crash(case: Case, name: str, number: int = 0) -> None:
    case.restart()
    assert child(lambda: transact(case), at(name, number)) != 0


def test_a_torn_commit_record_is_rolled_back(case: Case) -> None:
    crash(case, "jin_core.refs.commit")
    log = case.work / ".git/jin/wal"
    os.truncate(log, log.stat().st_size - 7)
    with jin_core.Jin.open(case.work, patience=PATIENCE) as jin:
        assert jin.recovered.rolled_back == (1,)
    assert judge(case, case.work, "torn") is False


def test_recovery_reports_what_it_did(case: Case) -> None:
    crash(case, "jin_core.wal.commit")
    with jin_core.Jin.open(case.work, patience=PATIENCE) as jin:
        report = jin.recovered
    assert report.rolled_back == (1,) and report.redone == () and bool(report)
    assert {"HEAD.lock", "packed-refs.lock", "packed-refs.new", "refs/heads/main.lock"} <= set(report.removed)
    assert {"deep/down/.jin-1-0", ".jin-1-1"} <= set(report.removed)
    crash(case, "jin_core.refs.commit")
    with jin_core.Jin.open(case.work) as jin:
        assert jin.recovered.redone == (1,)


def test_recovery_of_a_moved_repository_works(case: Case, place: Path) -> None:
    for name, there in (("jin_core.wal.commit", False), ("jin_core.refs.commit", True)):
        crash(case, name)
        moved = place / name
        case.work.rename(moved)
        recover(moved)
        assert judge(case, moved, name) is there


@pytest.mark.parametrize("subject", ["file", "ref"])
def test_later_work_of_others_is_never_overwritten(case: Case, subject: str) -> None:
    crash(case, "jin_core.refs.commit")
    third = git(case.work, "commit-tree", "-m", "third", f"{case.ids[0]}^{{tree}}")
    for name in ("refs/heads/main.lock", "HEAD.lock"):
        (case.work / ".git" / name).unlink()
    if subject == "file":
        (case.work / "file").write_bytes(b"theirs")
    else:
        git(case.work, "update-ref", MAIN, third)
    with pytest.raises(jin_core.RecoveryConflict) as caught:
        jin_core.Jin.open(case.work, patience=PATIENCE)
    assert caught.value.participant == ("files" if subject == "file" else "refs")
    if subject == "file":
        assert (case.work / "file").read_bytes() == b"theirs"
        (case.work / "file").write_bytes(b"old")
        (case.work / "file").chmod(case.before[1]["file"][1])
    else:
        assert git(case.work, "rev-parse", MAIN) == third
        git(case.work, "update-ref", "--no-deref", MAIN, case.ids[1])
    assert (case.work / "sub/gone").exists()
    recover(case.work)
    assert judge(case, case.work, "resolved") is True


def test_staged_content_that_is_gone_is_a_conflict_and_nothing_is_touched(case: Case) -> None:
    crash(case, "jin_core.refs.commit")
    (case.work / ".jin-1-1").unlink()
    now = look(case.work)[1:]
    with pytest.raises(jin_core.RecoveryConflict, match=r"\.jin-1-1"):
        jin_core.Jin.open(case.work)
    assert look(case.work)[1:] == now


def test_a_lock_that_is_proven_foreign_is_left_alone(case: Case) -> None:
    crash(case, "jin_core.refs.commit")
    lock = case.work / ".git/refs/heads/main.lock"
    content = lock.read_bytes()
    lock.unlink()
    (case.work / ".git/refs/heads/filler.lock").write_bytes(b"")  # takes the inode that has become free
    lock.write_bytes(content)
    (case.work / ".git/refs/heads/filler.lock").unlink()
    with pytest.raises(jin_core.RecoveryConflict, match=r"main\.lock is a lock of somebody else"):
        jin_core.Jin.open(case.work, patience=PATIENCE)
    assert lock.read_bytes() == content
    lock.unlink()
    recover(case.work)
    assert judge(case, case.work, "redone") is True


def test_a_lock_with_foreign_content_does_not_stop_a_roll_back(case: Case) -> None:
    crash(case, "jin_core.refs.prepare")
    lock = case.work / ".git/refs/heads/main.lock"
    lock.write_bytes(b"f" * 40 + b"\n")
    with jin_core.Jin.open(case.work, patience=PATIENCE) as jin:
        assert jin.recovered.rolled_back == (1,)
        assert jin.recovered.left == ("refs/heads/main.lock",)
    assert lock.exists()
    lock.unlink()
    assert judge(case, case.work, "foreign") is False


def test_an_unlisted_lock_is_never_touched(case: Case) -> None:
    crash(case, "jin_core.wal.commit")
    others = [case.work / ".git" / name for name in ("index.lock", "refs/heads/other.lock", "config.lock")]
    for lock in others:
        lock.write_bytes(b"")
    recover(case.work)
    assert all(lock.exists() for lock in others)


def identity(path: Path) -> Identity:
    return Identity.of(path.stat())


def swept(path: Path, content: str, evidence: Evidence) -> tuple[list[str], list[str]]:
    result = sweep(lambda name: str(path.parent / name), [Lock(path.name, content)], evidence)
    return result.removed, result.foreign


def test_lock_ownership_follows_the_rule(tmp_path: Path) -> None:
    lock = tmp_path / "x.lock"
    value = "a" * 40 + "\n"

    def given(content: str) -> Path:
        lock.unlink(missing_ok=True)
        lock.write_text(content)
        return lock

    proof = {"x.lock": identity(given("whatever"))}
    assert swept(lock, value, Evidence(proof, True, 0.02)) == (["x.lock"], [])
    given(value)
    os.utime(lock, ns=(1, 1))
    assert swept(lock, value, Evidence(proof, True, 0.02)) == ([], ["x.lock"])
    assert swept(lock, value, Evidence(proof, False, 0.02)) == (["x.lock"], [])
    for content in ("", "a" * 10, value, "\0" * 41):
        given(content)
        assert swept(lock, value, Evidence(None, True, 0.02)) == (["x.lock"], [])
    for content in ("b", "b" * 40 + "\n", value + "more"):
        given(content)
        assert swept(lock, value, Evidence(None, True, 0.02)) == ([], ["x.lock"])
        assert swept(lock, value, Evidence(None, False, 0.02)) == ([], ["x.lock"])


def test_a_live_holder_of_an_unproven_lock_is_noticed_while_it_is_watched(tmp_path: Path) -> None:
    lock = tmp_path / "packed-refs.lock"
    lock.write_bytes(b"")
    code = f"import time; time.sleep(0.2); open({str(lock)!r}, 'a').write('x')"
    with subprocess.Popen([sys.executable, "-c", code]) as holder:
        assert swept(lock, "", Evidence(None, True, 2.0)) == ([], ["packed-refs.lock"])
        holder.wait()
    assert lock.exists()


def test_packed_refs_new_goes_with_its_lock(tmp_path: Path) -> None:
    locks = [Lock("packed-refs.lock"), Lock("packed-refs.new")]
    for content, removed in ((b"", ["packed-refs.lock", "packed-refs.new"]), (b"theirs", [])):
        (tmp_path / "packed-refs.lock").write_bytes(content)
        (tmp_path / "packed-refs.new").write_bytes(b"# pack-refs")
        result = sweep(lambda name: str(tmp_path / name), locks, Evidence(None, True, 0.02))
        assert result.removed == removed


def test_an_empty_ref_left_by_a_power_cut_is_repaired_from_the_log(case: Case) -> None:
    crash(case, "jin_core.files.rename")
    for name in ("refs/heads/main", "refs/heads/topic/new"):
        (case.work / ".git" / name).write_bytes(b"")
    recover(case.work)
    assert judge(case, case.work, "repaired") is True


def test_a_deletion_half_kept_by_a_power_cut_is_finished(case: Case) -> None:
    """The loose file is gone and the packed line, older than the old value, is back."""
    one, two = case.ids
    git(case.pristine, "update-ref", "refs/heads/del/packed", two)
    case.restart()

    def body() -> None:
        with jin_core.Jin.open(case.work) as jin, jin.transaction() as tx:
            tx.delete_ref("refs/heads/del/packed", old=two)

    assert child(body, at("jin_core.refs.commit")) != 0
    (case.work / ".git/refs/heads/del/packed").unlink()
    assert git(case.work, "rev-parse", "refs/heads/del/packed") == one
    recover(case.work)
    assert "refs/heads/del/packed" not in look(case.work)[2]


def test_directories_that_a_killed_deletion_left_are_removed(case: Case) -> None:
    crash(case, "jin_core.files.rename")
    for name in ("refs/heads/del", "logs/refs/heads/del"):
        (case.work / ".git" / name).mkdir()
    recover(case.work)
    assert judge(case, case.work, "pruned") is True


def same_again(case: Case) -> None:
    """A transaction that sets a file and a ref to what they are: somebody may have written that without a sync."""
    with jin_core.Jin.open(case.work) as jin, jin.transaction() as tx:
        tx.write("file", b"old")
        tx.update_ref("refs/heads/del/loose", case.ids[1])
        tx.update_ref("refs/heads/other", case.ids[0])


def synced_in(body: Callable[[], None], monkeypatch: pytest.MonkeyPatch, files: list[str] | None = None) -> list[str]:
    """Names of the files that `disk.sync_file` is called for, put into `files` as they are."""
    files = [] if files is None else files
    real = disk.sync_file

    def sync_file(path: str) -> os.stat_result:
        files.append(Path(path).name)
        return real(path)

    monkeypatch.setattr(disk, "sync_file", sync_file)
    body()
    return files


def test_a_ref_that_has_its_new_value_already_is_synced_before_begin(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """git writes nothing then; `other` stands in packed-refs only."""
    case.restart()
    begun: list[int] = []
    real = wal.Wal.append

    def append(self: wal.Wal, kind: Kind, transaction: int, payload: dict[str, Any]) -> None:
        begun.append(len(files))
        real(self, kind, transaction, payload)

    monkeypatch.setattr(wal.Wal, "append", append)
    files: list[str] = []
    synced_in(lambda: same_again(case), monkeypatch, files)
    assert files[: begun[0]][-2:] == ["packed-refs", "loose"]


def test_recovery_syncs_what_it_finds_done_and_publishes_what_is_staged(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.restart()
    assert child(lambda: same_again(case), at("jin_core.files.rename")) == -signal.SIGKILL
    (staged,) = case.work.glob(".jin-*")
    inode = staged.stat().st_ino
    files = synced_in(lambda: recover(case.work), monkeypatch)
    assert files == ["packed-refs", "loose"]
    assert (case.work / "file").stat().st_ino == inode
    assert look(case.work)[1:] == case.before[1:]


def test_a_crash_after_a_crashed_redo_still_knows_its_own_locks(case: Case) -> None:
    """Redo takes new locks, so the identities that the first run recorded prove nothing any more."""
    crash(case, "jin_core.refs.commit")
    assert child(lambda: recover(case.work), at("jin_core.refs.prepared")) != 0
    assert (case.work / ".git/refs/heads/main.lock").exists()
    recover(case.work)
    assert judge(case, case.work, "twice") is True


def test_a_corrupt_log_is_refused_and_nothing_is_touched(case: Case) -> None:
    crash(case, "jin_core.refs.commit")
    log = case.work / ".git/jin/wal"
    data = bytearray(log.read_bytes())
    data[60] ^= 255
    log.write_bytes(data)
    now = look(case.work)
    with pytest.raises(jin_core.LogCorrupt):
        jin_core.Jin.open(case.work)
    assert look(case.work) == now
    assert log.read_bytes() == data


def test_records_that_make_no_sense_together_are_refused(case: Case) -> None:
    case.restart()
    with open(case.work / ".git/jin/wal", "ab") as out:
        out.write(wal.encode(Kind.CLEANUP, 1, 1, {}) + wal.encode(Kind.COMMIT, 2, 1, {}))
    with pytest.raises(jin_core.LogCorrupt, match="does not start with BEGIN"):
        jin_core.Jin.open(case.work)


def test_the_first_opening_killed_anywhere_is_finished_by_the_next(case: Case) -> None:
    for number in range(20):
        case.restart()
        shutil.rmtree(case.work / ".git/jin")
        if child(lambda: recover(case.work), nth(number)) == 0:
            assert number >= 3
            break
        recover(case.work)
        assert look(case.work) == case.before


def test_a_surviving_git_child_is_waited_for(case: Case) -> None:
    """The killed process's child still works (a slow hook holds it): opening waits instead of guessing."""
    case.restart()
    hook = case.work / ".git/hooks/reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {case.work}/../hooked\nsleep 0.4\n")
    hook.chmod(0o755)
    flag = case.work.parent / "hooked"

    pid = os.fork()
    if pid == 0:
        transact(case)
        os._exit(0)
    while not flag.exists():
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with pytest.raises(jin_core.Busy):
        jin_core.Jin.open(case.work, wait=False)
    with jin_core.Jin.open(case.work, patience=PATIENCE) as jin:
        assert jin.recovered.rolled_back == (1,)
    assert look(case.work)[1:] == case.before[1:]
