"""The program of the spawn-per-cell harness: `work DIRECTORY N` (dies before its step N) or `recover DIRECTORY`."""

import os
import sys

kind, directory = sys.argv[1:3]
steps = 0


def step() -> None:
    global steps
    if steps == int(sys.argv[3]):
        os.kill(os.getpid(), 9)
    steps += 1


if kind == "work":
    for name in "abc":
        step()
        fd = os.open(f"{directory}/{name}.tmp", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        step()
        os.write(fd, b"new %s\n" % name.encode())
        step()
        os.fsync(fd)
        os.close(fd)
        step()
        os.rename(f"{directory}/{name}.tmp", f"{directory}/{name}")
        step()
        os.write(1, b"ack\n")
else:
    for name in os.listdir(directory):
        if name.endswith(".tmp"):
            os.unlink(f"{directory}/{name}")
