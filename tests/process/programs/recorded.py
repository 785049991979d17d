"""Ordinary programs, whose record must prove itself: applied to the first state it gives the last one."""

import os
import shutil
import sqlite3
import subprocess
import tempfile
import threading
from pathlib import Path

from crashtest import Run, scenario


def names_and_contents(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and not path.is_symlink() and ".git" not in path.parts
    }


def git(directory: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", directory, *words], check=True, capture_output=True, text=True).stdout


def repository(directory: Path) -> None:
    git(directory, "-c", "init.templateDir=", "init", "-q", "-b", "main")
    for number in range(4):
        (directory / f"file{number}").write_text(f"{number}\n" * 50)
        git(directory, "add", ".")
        git(directory, "commit", "-qm", f"commit {number}")


@scenario(setup=repository)
def git_commit(run: Run) -> None:
    (run.dir / "file0").write_text("changed\n")
    (run.dir / "new").write_text("new\n")
    git(run.dir, "add", ".")
    git(run.dir, "commit", "-qm", "another")
    run.ack()


@git_commit.observe
def head(directory: Path) -> str:
    return git(directory, "log", "--format=%s")


@scenario(setup=repository)
def git_gc(run: Run) -> None:
    git(run.dir, "gc", "-q", "--prune=now")
    (run.dir / "done").write_text("yes")
    run.ack()


git_gc.observe(names_and_contents)


def _sqlite(run: Run, mode: str) -> None:
    db = sqlite3.connect(run.dir / "db")
    db.execute(f"pragma journal_mode={mode}")
    db.execute("create table t (n, text)")
    for number in range(3):
        with db:
            db.executemany("insert into t values (?, ?)", [(number, "x" * 900)] * 8)
    with db:
        db.execute("update t set text = 'y' where n = 1")
    db.close()
    run.ack()


@scenario
def sqlite_delete(run: Run) -> None:
    _sqlite(run, "delete")


@scenario
def sqlite_wal(run: Run) -> None:
    _sqlite(run, "wal")


@sqlite_delete.observe
@sqlite_wal.observe
def rows(directory: Path) -> int:
    with sqlite3.connect(directory / "db") as db:
        found = db.execute("select count(*) from sqlite_master where name='t'").fetchone()[0]
        return db.execute("select count(*) from t where text='y'").fetchone()[0] if found else -1


@scenario(setup={"old": b"old" * 3000})
def python_files(run: Run) -> None:
    here = run.dir
    with open(here / "a", "w") as file:
        file.write("one\n" * 3000)
    with open(here / "a", "a") as one, open(here / "a", "a") as other:
        for number in range(5):
            one.write(f"{number}\n")
            one.flush()
            other.write(f"{number}!\n")
            other.flush()
    with open(here / "a", "r+b") as file:
        file.seek(9000)
        file.write(b"middle")
        file.truncate(10000)
    with tempfile.NamedTemporaryFile(dir=here, delete=False) as temporary:
        temporary.write(b"temporary" * 1000)
    os.replace(temporary.name, here / "b")
    with tempfile.TemporaryFile(dir=here) as unnamed:
        unnamed.write(b"never has a name")
    fd = os.open(here, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"gets a name")
    os.fchmod(fd, 0o640)
    os.link(f"/proc/self/fd/{fd}", here / "named", src_dir_fd=fd, follow_symlinks=True)
    os.close(fd)
    shutil.copy2(here / "b", here / "c")
    shutil.copytree(here, here / "tree", ignore=lambda *_: ["tree"])
    shutil.move(here / "tree" / "a", here / "moved")
    (here / "tree" / "old").unlink()
    os.symlink("b", here / "link")
    with open(here / "link", "a") as file:
        file.write("through a link")
    os.link(here / "c", here / "hard")
    os.chmod(here / "hard", 0o600)
    fd = os.open(here, os.O_RDONLY)
    os.mkdir("sub", dir_fd=fd)
    sub = os.open("sub", os.O_RDONLY, dir_fd=fd)
    gone = os.open("gone", os.O_CREAT | os.O_WRONLY, dir_fd=sub)
    os.unlink("gone", dir_fd=sub)
    os.write(gone, b"to a deleted file")
    os.writev(gone, [b"and", b"more"])
    kept = os.open("kept", os.O_CREAT | os.O_RDWR, dir_fd=sub)
    os.pwritev(kept, [b"pages" * 1000, b"end"], 100)
    os.posix_fallocate(kept, 0, 9000)
    os.sendfile(kept, os.open(here / "b", os.O_RDONLY), 0, 5000)
    os.copy_file_range(os.open(here / "a", os.O_RDONLY), kept, 700, 0, 4000)
    os.truncate(here / "a", 50)
    os.rename("kept", "renamed", src_dir_fd=sub, dst_dir_fd=fd)
    os.fsync(sub)
    os.utime(here / "a", (1, 1))
    os.setxattr(here / "a", "user.colour", b"red")
    os.mkfifo(here / "fifo")
    name = os.fsdecode(b"odd \xff \n name")
    (here / name).write_bytes(b"odd")
    os.rename(here / name, here / (name + "2"))
    shutil.rmtree(here / "tree")
    pid = os.fork()
    if pid == 0:
        with open(here / "child", "w") as file:
            file.write("written by a fork")
        os._exit(0)
    os.waitpid(pid, 0)
    for path in ("nothing", "sub/nothing"):
        try:
            os.unlink(here / path)
        except FileNotFoundError:
            (here / "refused").write_text(path)
    run.ack()


python_files.observe(names_and_contents)

TOOLS = """
set -e
seq 1 3000 | sort -r | tee numbers | sed -n 1,2000p > most
sort -o numbers numbers
sed -i s/1/one/ numbers
cp numbers copied
cp -a most most.2
mv most moved
mkdir -p deep/er/still && mv moved deep/er/
tar --mtime=@0 -cf all.tar deep numbers && tar -C deep/er/still -xf all.tar
dd if=copied of=dd.out bs=512 count=9 seek=3 2>/dev/null
dd if=/dev/zero of=dd.out bs=100 count=1 conv=notrunc 2>/dev/null
cat numbers >> copied & wait
ln -s copied link; ln copied hard; rm link; chmod 600 hard; touch -d @0 hard
(echo a; echo b >&2) > both 2>&1
gzip -nk numbers; rm -r deep/er/still/deep; truncate -s 100 copied; install -m 700 both tool
"""


@scenario
def shell_tools(run: Run) -> None:
    subprocess.run(["bash", "-c", TOOLS], cwd=run.dir, check=True)
    run.ack()


shell_tools.observe(names_and_contents)


@scenario
def eight_threads(run: Run) -> None:
    def work(number: int) -> None:
        for turn in range(12):
            path = run.dir / f"t{number}.{turn % 3}"
            with open(run.dir / f"t{number}.tmp", "wb") as file:
                file.write(b"%d" % turn * 2000)
                os.fsync(file.fileno())
            os.replace(run.dir / f"t{number}.tmp", path)
            with open(run.dir / "shared", "ab") as file:
                file.write(b"%d " % number)
            try:
                os.unlink(run.dir / f"t{(number + 1) % 8}.{turn % 3}")
            except FileNotFoundError:
                continue

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (run.dir / "shared").rename(run.dir / "last")
    run.ack()


@eight_threads.observe
def finished(directory: Path) -> int:
    path = directory / "last"
    return len(path.read_bytes().split()) if path.exists() else 0
