"""A program in Go: linked statically, many threads, its own runtime; judged like any other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from crashtest.verdict import ScenarioResult

#: interpreters after the oldest leave these out (tox.ini)
pytestmark = pytest.mark.slow

Crash = Callable[..., ScenarioResult]

SAVE = """
package main

import (
	"os"
	"sync"
)

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func inPlace(name string) {
	must(os.WriteFile(name, []byte("new\\n"), 0o644))
}

func whole(name string) {
	file, err := os.Create(name + ".new")
	must(err)
	_, err = file.WriteString("new\\n")
	must(err)
	if os.Args[1] != "unsynced" {
		must(file.Sync())
	}
	must(file.Close())
	must(os.Rename(name+".new", name))
}

func main() {
	save := whole
	if os.Args[1] == "in place" {
		save = inPlace
	}
	var all sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		all.Add(1)
		go func(name string) {
			defer all.Done()
			save(name)
		}(name)
	}
	all.Wait()
	directory, err := os.Open(".")
	must(err)
	must(directory.Sync())
}
"""
#: each file is old or new, whatever the other one is: two goroutines have no order
EACH_WHOLE = 'for f in a b; do case "$(cat $f)" in old|new) ;; *) echo "$f is broken"; exit 1;; esac; done'


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    if shutil.which("go") is None:
        pytest.skip("there is no Go here (go is not in PATH)")
    place = tmp_path_factory.mktemp("go")
    (place / "save.go").write_text(SAVE)
    alone = {
        "CGO_ENABLED": "0",
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "GOTOOLCHAIN": "local",
        "GOCACHE": f"{place}/cache",
    }
    done = subprocess.run(
        ["go", "build", "-o", "save", "save.go"], cwd=place, env={**os.environ, **alone}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return str(place / "save")


@pytest.mark.parametrize(
    ("how", "broken"),
    [("whole", set()), ("in place", {("check", "kill"), ("check", "posix")}), ("unsynced", {("check", "posix")})],
)
def test_files_that_goroutines_save_are_whole_or_the_planted_bug_is_caught(
    crash: Crash, program: str, tmp_path: Path, how: str, broken: set[tuple[str, str]]
) -> None:
    parts = {"run": [program, how], "setup": "echo old | tee a > b", "check": EACH_WHOLE, "guarantees": ["recovers"]}
    (tmp_path / "declared.json").write_text(json.dumps({"commands": {"save": parts}}))
    made = crash(tmp_path / "declared.json", models=("kill", "posix"), depth=1)
    assert (made.harness_error, made.reason) == ("", "")
    assert {(v.guarantee, v.model) for v in made.violations} == broken
    assert made.verdict == ("violated" if broken else "held")
    assert all(f"save {how}" in " ".join([v.where, *v.lost]) for v in made.violations)
