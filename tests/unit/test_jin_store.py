"""Transactions on a real git repository: all or nothing, and nothing left behind when refused."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import jin_core
from jin_core import disk
from jin_core.__main__ import main
from jin_core.errors import escape
from jin_core.steps import step
from jin_core.wal import HEADER_SIZE

ZERO = "0" * 40
MAIN = "refs/heads/main"


@dataclass(frozen=True)
class Repo:
    path: Path
    ids: tuple[str, str]

    def git(self, *args: str) -> str:
        command = ["git", "-C", str(self.path), "-c", "user.name=t", "-c", "user.email=t@t", *args]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def refs(self) -> dict[str, str]:
        rows = self.git("for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        return dict(row.split(" ", 1) for row in rows)

    def names(self) -> set[str]:
        found = {
            os.path.relpath(os.path.join(top, name), self.path)
            for top, dirs, files in os.walk(self.path)
            for name in dirs + files
        }
        return {name for name in found if not name.startswith(".git/objects/")}

    def files(self) -> dict[str, tuple[bytes, int]]:
        return {
            name: ((self.path / name).read_bytes(), stat.S_IMODE((self.path / name).stat().st_mode))
            for name in self.names()
            if not name.startswith(".git") and (self.path / name).is_file() and not (self.path / name).is_symlink()
        }

    def state(self) -> tuple[object, ...]:
        return self.names(), self.files(), self.refs()


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    path = tmp_path / "work"
    path.mkdir()
    made = Repo(path, ("", ""))
    made.git("init", "-q", "-b", "main")
    ids = []
    for message in ("one", "two"):
        made.git("commit", "-q", "--allow-empty", "-m", message)
        ids.append(made.git("rev-parse", "HEAD"))
    (path / "file").write_bytes(b"old")
    (path / "file").chmod(0o640)
    jin_core.Jin.open(path).close()
    return Repo(path, (ids[0], ids[1]))


Change = Callable[[jin_core.Transaction], None]


def commit(repo: Repo, change: Change) -> jin_core.Transaction:
    with jin_core.Jin.open(repo.path) as jin, jin.transaction() as tx:
        change(tx)
    return tx


def refused(repo: Repo, error: type[jin_core.JinError], change: Change) -> jin_core.JinError:
    """The transaction is refused with `error`, changes nothing, leaves nothing, and the next one succeeds."""
    before = repo.state()
    with jin_core.Jin.open(repo.path, patience=0.05) as jin:
        with pytest.raises(error) as caught, jin.transaction() as tx:
            tx.write("made/for/nothing", b"x")
            change(tx)
        assert repo.state() == before
        with jin.transaction() as tx:
            tx.write("file", b"next")
    assert (repo.path / "file").read_bytes() == b"next"
    return caught.value


def test_refs_and_files_change_together(repo: Repo) -> None:
    one, two = repo.ids
    repo.git("update-ref", "refs/heads/gone/away", one)
    (repo.path / "old").write_bytes(b"")

    def change(tx: jin_core.Transaction) -> None:
        tx.write("file", b"new")
        tx.write("deep/down/new", b"made", mode=0o755)
        tx.delete("old")
        tx.update_ref(MAIN, one, old=two)
        tx.update_ref("refs/heads/topic/x", two, old=ZERO)
        tx.delete_ref("refs/heads/gone/away", old=one)

    before = repo.names()
    assert commit(repo, change).id == 1
    assert repo.files() == {"file": (b"new", 0o640), "deep/down/new": (b"made", 0o755)}
    assert repo.refs() == {MAIN: one, "refs/heads/topic/x": two}
    assert {n for n in repo.names() - before if "logs" not in n} == {
        "deep",
        "deep/down",
        "deep/down/new",
        ".git/refs/heads/topic",
        ".git/refs/heads/topic/x",
    }
    assert {n for n in before - repo.names() if "logs" not in n} == {
        "old",
        ".git/refs/heads/gone",
        ".git/refs/heads/gone/away",
    }
    assert repo.git("fsck", "--strict") == ""


def test_an_exception_inside_the_block_discards_everything(repo: Repo) -> None:
    before = repo.state()
    with jin_core.Jin.open(repo.path) as jin:
        with pytest.raises(ZeroDivisionError), jin.transaction() as tx:
            tx.write("file", b"new")
            tx.update_ref(MAIN, repo.ids[0])
            raise ZeroDivisionError
        with pytest.raises(jin_core.Misuse, match="has ended"):
            tx.commit()
    assert repo.state() == before


def test_an_empty_transaction_succeeds_and_writes_nothing(repo: Repo) -> None:
    log = repo.path / ".git/jin/wal"
    before = repo.state(), log.read_bytes()
    assert commit(repo, lambda tx: None).id is None
    assert (repo.state(), log.read_bytes()) == before


def test_opening_again_writes_nothing(repo: Repo) -> None:
    commit(repo, lambda tx: tx.write("file", b"new"))
    log = repo.path / ".git/jin/wal"
    before = repo.state(), log.read_bytes(), log.stat().st_mtime_ns
    with jin_core.Jin.open(repo.path) as jin:
        assert not jin.recovered
    assert (repo.state(), log.read_bytes(), log.stat().st_mtime_ns) == before


def test_recovery_leaves_an_empty_log_and_the_second_time_writes_nothing(repo: Repo) -> None:
    commit(repo, lambda tx: tx.write("file", b"new"))
    log = repo.path / ".git/jin/wal"
    assert log.stat().st_size > HEADER_SIZE
    with jin_core.Jin.open(repo.path) as jin:
        assert not jin.recover()
        once = log.read_bytes(), log.stat().st_mtime_ns
        assert log.stat().st_size == HEADER_SIZE
        assert not jin.recover()
    assert (log.read_bytes(), log.stat().st_mtime_ns) == once


def test_the_last_change_of_a_name_counts(repo: Repo) -> None:
    def change(tx: jin_core.Transaction) -> None:
        tx.delete("file")
        tx.write("file", b"1")
        tx.write("./file", b"2")
        tx.update_ref(MAIN, repo.ids[1])
        tx.update_ref(MAIN, repo.ids[0])

    commit(repo, change)
    assert repo.files()["file"][0] == b"2"
    assert repo.refs() == {MAIN: repo.ids[0]}


def test_packed_refs_are_updated_and_deleted_like_loose_ones(repo: Repo) -> None:
    one, two = repo.ids
    for name in ("a", "b", "c"):
        repo.git("update-ref", f"refs/heads/p/{name}", one)
    repo.git("pack-refs", "--all")
    assert not (repo.path / ".git/refs/heads/p").exists()

    def change(tx: jin_core.Transaction) -> None:
        tx.update_ref("refs/heads/p/a", two, old=one)
        tx.delete_ref("refs/heads/p/b", old=one)

    commit(repo, change)
    assert repo.refs() == {MAIN: two, "refs/heads/p/a": two, "refs/heads/p/c": one}


@pytest.mark.parametrize("name", ["line\nbreak", 'quo"te', "back\\slash", "-dash", " space ", "é", "a" * 200])
def test_odd_file_names_work(repo: Repo, name: str) -> None:
    commit(repo, lambda tx: tx.write(f"{name}/{name}", b"x"))
    assert (repo.path / name / name).read_bytes() == b"x"
    commit(repo, lambda tx: tx.delete(f"{name}/{name}"))
    assert not (repo.path / name / name).exists()


def test_a_name_that_is_not_utf8_works(repo: Repo) -> None:
    commit(repo, lambda tx: tx.write(b"\xff\xfe", b"x"))
    assert (repo.path / os.fsdecode(b"\xff\xfe")).read_bytes() == b"x"


def test_a_hard_link_is_replaced_and_its_other_name_kept(repo: Repo) -> None:
    os.link(repo.path / "file", repo.path / "other")
    commit(repo, lambda tx: tx.write("file", b"new"))
    assert (repo.path / "other").read_bytes() == b"old"
    assert (repo.path / "file").read_bytes() == b"new"


def test_a_symbolic_link_is_replaced_and_not_followed(repo: Repo) -> None:
    (repo.path / "link").symlink_to("file")
    commit(repo, lambda tx: tx.write("link", b"new"))
    assert not (repo.path / "link").is_symlink()
    assert (repo.path / "file").read_bytes() == b"old"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_new_file_gets_the_usual_mode_and_an_old_one_keeps_its_own(repo: Repo, mask: int) -> None:
    def change(tx: jin_core.Transaction) -> None:
        tx.write("file", b"1")
        tx.write("new", b"2")

    before = os.umask(mask)
    try:
        commit(repo, change)
    finally:
        os.umask(before)
    assert repo.files() == {"file": (b"1", 0o640), "new": (b"2", 0o666 & ~mask)}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/etc/passwd", "absolute"),
        ("../out", "'..'"),
        ("a/../../out", "'..'"),
        (".git/config", "inside .git"),
        ("sub/.GIT/config", "inside .git"),
        ("", "no file path"),
        ("a\0b", "no file path"),
        ("dir/", "directory"),
        (".", "directory"),
    ],
)
def test_a_path_that_leaves_the_work_tree_is_refused(repo: Repo, path: str, words: str) -> None:
    error = refused(repo, jin_core.PathRefused, lambda tx: tx.write(path, b"x"))
    assert words in str(error)


def test_a_path_through_a_symbolic_link_is_refused(repo: Repo, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (repo.path / "link").symlink_to(tmp_path / "outside")
    refused(repo, jin_core.PathRefused, lambda tx: tx.write("link/x", b"x"))
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_path_through_a_file_is_refused(repo: Repo) -> None:
    refused(repo, jin_core.PathRefused, lambda tx: tx.write("file/x", b"x"))


def test_a_file_that_is_also_a_directory_of_another_is_refused(repo: Repo) -> None:
    refused(repo, jin_core.PathRefused, lambda tx: tx.write("made", b"x"))


def test_a_directory_at_the_target_is_a_conflict(repo: Repo) -> None:
    (repo.path / "dir").mkdir()
    refused(repo, jin_core.NotAFile, lambda tx: tx.write("dir", b"x"))
    refused(repo, jin_core.NotAFile, lambda tx: tx.delete("dir"))


def test_deleting_what_is_not_there_is_a_conflict(repo: Repo) -> None:
    refused(repo, jin_core.FileChanged, lambda tx: tx.delete("nothing"))
    refused(repo, jin_core.RefMoved, lambda tx: tx.delete_ref("refs/heads/nothing"))


def test_another_old_value_is_a_conflict(repo: Repo) -> None:
    one, two = repo.ids
    error = refused(repo, jin_core.RefMoved, lambda tx: tx.update_ref(MAIN, one, old=one))
    assert isinstance(error, jin_core.Conflict)
    assert error.participant == "refs"
    assert two in error.reason
    refused(repo, jin_core.RefMoved, lambda tx: tx.update_ref(MAIN, one, old=ZERO))
    refused(repo, jin_core.RefMoved, lambda tx: tx.update_ref("refs/heads/new/x", one, old=two))
    refused(repo, jin_core.RefMoved, lambda tx: tx.delete_ref(MAIN, old=one))


@pytest.mark.parametrize("lock", ["refs/heads/main.lock", "HEAD.lock"])
def test_a_foreign_lock_is_a_conflict_and_is_left_alone(repo: Repo, lock: str) -> None:
    (repo.path / ".git" / lock).write_bytes(b"")
    error = refused(repo, jin_core.RefLocked, lambda tx: tx.update_ref(MAIN, repo.ids[0]))
    assert lock in str(error)
    assert (repo.path / ".git" / lock).exists()


def test_a_foreign_lock_of_packed_refs_is_a_conflict_only_for_deletions(repo: Repo) -> None:
    repo.git("update-ref", "refs/heads/del", repo.ids[0])
    (repo.path / ".git/packed-refs.lock").write_bytes(b"")
    refused(repo, jin_core.RefLocked, lambda tx: tx.delete_ref("refs/heads/del"))
    commit(repo, lambda tx: tx.update_ref(MAIN, repo.ids[0]))
    assert (repo.path / ".git/packed-refs.lock").exists()


def test_a_foreign_lock_that_goes_away_is_waited_for(repo: Repo) -> None:
    lock = repo.path / ".git/refs/heads/main.lock"
    lock.write_bytes(b"")
    timer = threading.Timer(0.03, lock.unlink)
    timer.start()
    commit(repo, lambda tx: tx.update_ref(MAIN, repo.ids[0]))
    timer.join()
    assert repo.refs()[MAIN] == repo.ids[0]


def test_a_and_a_slash_b_exclude_each_other(repo: Repo) -> None:
    one = repo.ids[0]
    repo.git("update-ref", "refs/heads/a/b", one)
    for packed in (False, True):
        if packed:
            repo.git("pack-refs", "--all")
        for name in ("refs/heads/a", "refs/heads/a/b/c", "refs/heads/main/x"):
            refused(repo, jin_core.RefNameTaken, lambda tx, name=name: tx.update_ref(name, one))  # type: ignore[misc]

    def both(tx: jin_core.Transaction) -> None:
        tx.update_ref("refs/heads/n", one)
        tx.update_ref("refs/heads/n/m", one)

    refused(repo, jin_core.RefNameTaken, both)


@pytest.mark.parametrize(
    "name",
    [
        "refs/heads/a..b",
        "refs/heads/.a",
        "refs/heads/a.lock",
        "refs/heads/a b",
        "refs//a",
        "refs/heads/",
        "main",
        "refs/heads/a~1",
        "refs/heads/a\n",
        "refs/heads/@{",
        "HEAD",
        "refs/bisect/bad",
        "refs/worktree/x",
        "x/y",
        "refs/heads/a.",
        "refs/heads/a\\b",
        "refs/heads/../../config",
        "/refs/heads/a",
        "",
    ],
)
def test_a_ref_name_that_git_or_the_engine_does_not_take_is_refused(repo: Repo, name: str) -> None:
    refused(repo, jin_core.RefRefused, lambda tx: tx.update_ref(name, repo.ids[0]))


def test_a_symbolic_ref_is_refused(repo: Repo) -> None:
    repo.git("symbolic-ref", "refs/heads/alias", MAIN)
    refused(repo, jin_core.RefRefused, lambda tx: tx.update_ref("refs/heads/alias", repo.ids[0]))


def test_a_ref_never_names_a_missing_object(repo: Repo) -> None:
    refused(repo, jin_core.ObjectMissing, lambda tx: tx.update_ref(MAIN, "1" * 40))
    repo.git("gc", "-q")
    assert list((repo.path / ".git/objects/pack").glob("*.pack"))
    refused(repo, jin_core.ObjectMissing, lambda tx: tx.update_ref(MAIN, "1" * 40))
    commit(repo, lambda tx: tx.update_ref(MAIN, repo.ids[0]))
    assert repo.refs()[MAIN] == repo.ids[0]


def test_an_empty_object_file_is_not_believed(repo: Repo) -> None:
    loose = repo.path / ".git/objects/11" / ("1" * 38)
    loose.parent.mkdir(exist_ok=True)
    loose.write_bytes(b"")
    refused(repo, jin_core.ObjectMissing, lambda tx: tx.update_ref(MAIN, "1" * 40))


@pytest.mark.parametrize("value", ["abc", "HEAD", "g" * 40, "1" * 41, ZERO])
def test_only_full_object_ids_are_taken(repo: Repo, value: str) -> None:
    refused(repo, jin_core.Misuse, lambda tx: tx.update_ref(MAIN, value))


def test_what_git_says_is_in_the_error_and_escaped(repo: Repo) -> None:
    hook = repo.path / ".git/hooks/reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nprintf 'no\\033[31m!' >&2\ntest $1 != prepared\n")
    hook.chmod(0o755)
    error = refused(repo, jin_core.GitFailed, lambda tx: tx.update_ref(MAIN, repo.ids[0]))
    assert "no\\x1b[31m!" in str(error)


def test_a_missing_git_is_said(repo: Repo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = repo.state()
    with jin_core.Jin.open(repo.path) as jin:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(jin_core.GitFailed, match="could not be started"), jin.transaction() as tx:
            tx.write("file", b"new")
            tx.update_ref(MAIN, repo.ids[0])
    monkeypatch.undo()
    assert repo.state() == before


def test_variables_of_the_caller_do_not_lead_git_astray(
    repo: Repo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
        patch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "elsewhere"))
        commit(repo, lambda tx: tx.update_ref(MAIN, repo.ids[0]))
    assert repo.refs()[MAIN] == repo.ids[0]


def test_a_file_changed_by_another_program_meanwhile_is_a_conflict(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    real = disk.create_new

    def meddle(path: str, dir_fd: int | None = None) -> int:
        (repo.path / "file").write_bytes(b"theirs")
        return real(path, dir_fd)

    names = repo.names()
    with jin_core.Jin.open(repo.path) as jin:
        monkeypatch.setattr(disk, "create_new", meddle)
        with pytest.raises(jin_core.FileChanged), jin.transaction() as tx:
            tx.write("file", b"ours")
            tx.update_ref(MAIN, repo.ids[0])
    assert (repo.path / "file").read_bytes() == b"theirs"
    assert repo.refs() == {MAIN: repo.ids[1]}
    assert repo.names() == names


@pytest.mark.parametrize("call", ["make_dir", "create_new", "write_all", "set_mode", "sync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_call_before_the_commit_point_changes_nothing(
    repo: Repo, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    before = repo.state()
    with jin_core.Jin.open(repo.path) as jin:
        with monkeypatch.context() as patch:
            calls = iter([True])
            real = getattr(disk, call)

            def once(*args: object, **more: object) -> object:
                if next(calls, False):
                    raise OSError(number, os.strerror(number))
                return real(*args, **more)

            patch.setattr(disk, call, once)
            with pytest.raises(jin_core.IoFailed, match=os.strerror(number)), jin.transaction() as tx:
                tx.write("a/b", b"x")
                tx.update_ref(MAIN, repo.ids[0])
        assert repo.state() == before
        with jin.transaction() as tx:
            tx.write("a/b", b"x")
    assert (repo.path / "a/b").read_bytes() == b"x"


def test_a_failed_sync_of_the_commit_record_leaves_the_outcome_to_recovery(
    repo: Repo, monkeypatch: pytest.MonkeyPatch
) -> None:
    jin = jin_core.Jin.open(repo.path)
    syncs = iter([False, True])
    real = disk.sync_data

    def fail_second(fd: int) -> None:
        if next(syncs, False):
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync_data", fail_second)
        with pytest.raises(jin_core.OutcomeUnknown), jin.transaction() as tx:
            tx.write("file", b"new")
            tx.update_ref(MAIN, repo.ids[0])
    with pytest.raises(jin_core.NeedsRecovery):
        jin.transaction()
    assert jin.status().unfinished == 1
    assert jin.recover().redone == (1,)
    assert repo.files()["file"][0] == b"new"
    assert repo.refs() == {MAIN: repo.ids[0]}
    with jin.transaction() as tx:
        tx.write("file", b"newer")
    jin.close()
    assert not [n for n in repo.names() if n.endswith(".lock") or ".jin-" in n]


def test_a_failure_after_the_commit_point_is_finished_by_recovery(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    jin = jin_core.Jin.open(repo.path)

    def fail(old: str, new: str, dir_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "rename", fail)
        with pytest.raises(jin_core.NotFinished, match="Input/output error"), jin.transaction() as tx:
            tx.write("file", b"new")
            tx.update_ref(MAIN, repo.ids[0])
    jin.close()
    with jin_core.Jin.open(repo.path) as again:
        assert again.recovered.redone == (1,)
    assert repo.files() == {"file": (b"new", 0o640)}
    assert repo.refs() == {MAIN: repo.ids[0]}


def test_one_holder_at_a_time(repo: Repo) -> None:
    with jin_core.Jin.open(repo.path):
        with pytest.raises(jin_core.Busy, match="this process"):
            jin_core.Jin.open(repo.path)
        code = "import jin_core,sys\ntry: jin_core.Jin.open(sys.argv[1], wait=False)\nexcept jin_core.Busy: sys.exit(7)"
        top = str(Path(jin_core.__file__).parents[1])
        ran = subprocess.run([sys.executable, "-c", code, str(repo.path)], env={**os.environ, "PYTHONPATH": top})
        assert ran.returncode == 7
    jin_core.Jin.open(repo.path, wait=False).close()


def test_a_store_belongs_to_the_process_that_opened_it(repo: Repo) -> None:
    with jin_core.Jin.open(repo.path) as jin:
        pid = os.fork()
        if pid == 0:
            try:
                jin.transaction()
            except jin_core.Misuse:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    with pytest.raises(jin_core.Misuse, match="closed"):
        jin.transaction()


def test_a_forgotten_store_does_not_block_the_next_one(repo: Repo) -> None:
    jin_core.Jin.open(repo.path)
    jin_core.Jin.open(repo.path, wait=False).close()


def test_threads_may_share_a_store(repo: Repo) -> None:
    with jin_core.Jin.open(repo.path) as jin:

        def work(number: int) -> None:
            for turn in range(5):
                with jin.transaction() as tx:
                    tx.write(f"t{number}", b"%d" % turn)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert jin.status().last_transaction == 20
    assert {n: c[0] for n, c in repo.files().items() if n != "file"} == {f"t{n}": b"4" for n in range(4)}


def test_a_linked_work_tree_shares_refs_and_has_its_own_files(repo: Repo, tmp_path: Path) -> None:
    repo.git("worktree", "add", "-q", "-b", "side", str(tmp_path / "side"))
    with jin_core.Jin.open(tmp_path / "side") as jin:
        with jin.transaction() as tx:
            tx.write("here", b"x")
            tx.update_ref("refs/heads/side", repo.ids[0], old=repo.ids[1])
        assert jin.status().engine_dir == str(repo.path / ".git/jin")
    assert (tmp_path / "side/here").read_bytes() == b"x"
    assert repo.refs()["refs/heads/side"] == repo.ids[0]
    assert repo.git("rev-parse", "side") == repo.ids[0]


def test_a_sha256_repository_works(tmp_path: Path) -> None:
    repo = Repo(tmp_path / "w", ("", ""))
    repo.path.mkdir()
    repo.git("init", "-q", "-b", "main", "--object-format=sha256")
    repo.git("commit", "-q", "--allow-empty", "-m", "x")
    tip = repo.git("rev-parse", "HEAD")
    assert len(tip) == 64
    commit(repo, lambda tx: tx.update_ref("refs/heads/new", tip, old="0" * 64))
    commit(repo, lambda tx: tx.delete_ref("refs/heads/new", old=tip))
    assert repo.refs() == {MAIN: tip}


def test_what_is_not_a_work_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(jin_core.NotARepository):
        jin_core.Jin.open(tmp_path)
    (tmp_path / ".git").mkdir()
    with pytest.raises(jin_core.NotARepository):
        jin_core.Jin.open(tmp_path)


def test_many_transactions_leave_no_more_names_and_a_bounded_log(repo: Repo) -> None:
    with jin_core.Jin.open(repo.path, log_limit=2000) as jin:
        sizes = []
        for turn in range(20):
            with jin.transaction() as tx:
                tx.write("file", b"%d" % turn)
            sizes.append(jin.status().log_bytes)
    assert max(sizes) <= 2000
    assert min(sizes) < sizes[0]
    assert {n for n in repo.names() if "jin" in n} == {".git/jin", ".git/jin/lock", ".git/jin/wal"}


def test_more_directories_than_are_kept_open_work(repo: Repo) -> None:
    def change(tx: jin_core.Transaction) -> None:
        for number in range(150):
            tx.write(f"d{number}/e/f", b"x")

    commit(repo, change)
    assert sum(name.endswith("/e/f") for name in repo.names()) == 150


def test_a_step_that_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="not in"):
        step("jin_core.files.invented")
    assert len(set(jin_core.STEPS)) == len(jin_core.STEPS)
    assert all(name.startswith("jin_core.") and name.count(".") == 2 for name in jin_core.STEPS)


def test_the_command_line_tells_the_state(repo: Repo, capsys: pytest.CaptureFixture[str]) -> None:
    commit(repo, lambda tx: tx.write("new\nline", b"x"))
    for command, words in (
        ("status", "unfinished        none"),
        ("recover", "nothing to recover"),
        ("log", "3 1 CLEANUP {}"),
        ("verify", "sound: 3 records"),
    ):
        assert main([command, "--repo", str(repo.path)]) == 0
        assert words in capsys.readouterr().out
    assert main(["status", "--repo", str(repo.path / "nowhere")]) == 1
    assert "not the top of a git work tree" in capsys.readouterr().err


def test_names_from_outside_are_escaped() -> None:
    assert escape("a\x1b[31m\n\\\udcff") == "a\\x1b[31m\\n\\\\\\udcff"
    assert escape(b"\xff ok") == "\\udcff ok"
    assert len(escape("x" * 999)) == 400


def test_a_file_of_somebody_else_under_the_name_of_a_temp_is_left_alone(repo: Repo) -> None:
    """It appears after the transaction was planned and before its content is staged."""

    def appear(event: str, _: tuple[object, ...]) -> None:
        if event == "jin_core.files.stage" and armed:
            armed.clear()
            (repo.path / ".jin-1-0").write_bytes(b"somebody else's")

    armed = [True]
    sys.addaudithook(appear)
    with pytest.raises(jin_core.JinError):
        commit(repo, lambda tx: tx.write("file", b"new"))
    assert not armed
    assert (repo.path / ".jin-1-0").read_bytes() == b"somebody else's"
    (repo.path / ".jin-1-0").unlink()
    commit(repo, lambda tx: tx.write("file", b"new"))
    assert (repo.path / "file").read_bytes() == b"new"
