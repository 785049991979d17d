"""Import walls: what may import what, read from the source, and proved once by a real import.

The tables come first; to move a wall, edit them and say why in docs/adr/.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("crashtest", "jin_core")

# A name in these tables covers the module and all that is below it; the longest name that fits decides.

# Higher layers import lower ones (and their own), never the other way round.
LAYERS: dict[str, int] = {
    "crashtest.errors": 0,
    "crashtest.trace": 0,
    "crashtest.values": 0,
    "crashtest": 1,  # __init__ and modules that are not named here: scenario, verdict, wire
    "crashtest.persist": 2,
    "crashtest.observe": 2,
    "crashtest.cells": 3,
    "crashtest.config": 4,
    "crashtest.doctor": 4,
    "crashtest.explore": 4,
    "crashtest.report": 4,
    "crashtest.scale": 4,
    "crashtest.cli": 5,
    "crashtest.commandline": 5,
    "crashtest.cli_syncs": 5,
    "crashtest.cli_violations": 5,
    "crashtest.cli_session": 5,
    "crashtest.options": 5,
    "crashtest.selection": 5,
    "crashtest.testing": 5,
    "crashtest.plugin": 5,
    "crashtest.__main__": 6,
    "jin_core": 0,
}

# Modules that may import from the project only what is listed; observe sees persist.tree through a Protocol.
WORDS = {"crashtest.errors", "crashtest.trace", "crashtest.values"}
ONLY: dict[str, set[str]] = {
    "crashtest.errors": {"crashtest.errors"},
    "crashtest.trace": WORDS,
    "crashtest.values": WORDS,
    "crashtest.observe": WORDS | {"crashtest.observe"},
    "crashtest.persist": WORDS | {"crashtest.persist"},
    "jin_core": {"jin_core"},
}

# Loaded by the zygote: the standard library and each other. Each of them has to exist.
LEAN: set[str] = {
    "crashtest",
    "crashtest.commands",
    "crashtest.errors",
    "crashtest.given",
    "crashtest.looking",
    "crashtest.scenario",
    "crashtest.trace",
    "crashtest.values",
    "crashtest.wire",
    "crashtest.observe",
    "crashtest.persist.filesystems",
    "crashtest.persist.history",
    "crashtest.persist.image",
    "crashtest.persist.journal",
    "crashtest.persist.models",
    "crashtest.persist.moves",
    "crashtest.persist.over",
    "crashtest.persist.mounts",
    "crashtest.persist.player",
    "crashtest.persist.realfs",
    "crashtest.persist.splitting",
    "crashtest.persist.states",
    "crashtest.persist.tree",
    "crashtest.cells.zygote",
    "crashtest.cells.ending",
    "crashtest.cells.forker",
    "crashtest.cells.judge",
    "crashtest.cells.leftovers",
    "crashtest.cells.signalled",
    "crashtest.cells.outcome",
    "crashtest.cells.plan",
    "crashtest.cells.prepare",
    "crashtest.cells.worker",
    "crashtest.cells.supervise",
    "crashtest.cells.realise",
    "crashtest.cells.barriers",
    "crashtest.cells.batch",
    "crashtest.cells.drops",
    "crashtest.cells.power",
    "crashtest.cells.recoveries",
}
# Packages above lean modules: their __init__ alone is lean.
LEAN_INIT: set[str] = {"crashtest", "crashtest.persist", "crashtest.cells"}

# Distributions outside the standard library; a module that is not covered may import none.
ANY = "any"
THIRD_PARTY: dict[str, set[str]] = {
    "crashtest.cells.matrix": {"msgspec"},
    "crashtest.cli": {ANY},
    "crashtest.commandline": {ANY},
    "crashtest.cli_syncs": {ANY},
    "crashtest.cli_violations": {ANY},
    "crashtest.config": {ANY},
    "crashtest.doctor": {ANY},
    "crashtest.explore": {ANY},
    "crashtest.options": {ANY},
    "crashtest.plugin": {ANY},
    "crashtest.report": {ANY},
    "crashtest.scale": {ANY},
    "crashtest.verdict": {"msgspec"},
}
# Imported in one place only.
CONFINED: dict[str, set[str]] = {"hypothesis": {"crashtest.explore"}}
# Folders of the repository that no package imports.
NOT_INSTALLED = {"benchmarks", "docs", "scenarios", "tests"}
# Names that another distribution with the import name crashtest uses.
TAKEN = {"frame", "frame_collection", "inspector", "contracts", "solution_providers"}
# Never to be seen in the zygote, whatever imported it.
HEAVY = {"_pytest", "click", "hypothesis", "msgspec", "psutil", "pytest", "rich"}
# Neither are these of the standard library, where the scenario needs none of them: each fork would copy what they load
# (inspect, by way of dataclasses), or do what they want done after a fork (threading: a third of a worker's page
# faults; random: a new seed).
COSTLY = {"dataclasses", "hashlib", "inspect", "platform", "random", "shutil", "subprocess", "threading"}


def module_name(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: dict[str, Path] = {
    module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))
}


def covering(name: str, table: dict[str, int] | dict[str, set[str]] | set[str]) -> str | None:
    """The longest entry of the table that covers the module."""
    while name:
        if name in table:
            return name
        name = name.rpartition(".")[0]
    return None


def covered(name: str, names: set[str]) -> bool:
    return covering(name, names) is not None


def is_lean(name: str) -> bool:
    return name in LEAN_INIT or covered(name, LEAN - LEAN_INIT)


def imports(source: str, name: str, is_package: bool, known: set[str]) -> Iterator[tuple[int, str]]:
    """Every import of a source, wherever it stands, as (line, absolute module name)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".") if is_package else name.split(".")[:-1]
                above = above[: len(above) - (node.level - 1)]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                below = f"{base}.{alias.name}"
                yield node.lineno, below if below in known else base
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            target = node.args[0]
            if (
                called in {"import_module", "__import__"}
                and isinstance(target, ast.Constant)
                and isinstance(target.value, str)
            ):
                yield node.lineno, target.value


def broken_walls(source: str, name: str, is_package: bool = False, known: set[str] | None = None) -> list[str]:
    """What one module imports and must not."""
    found = []
    known = set(MODULES) if known is None else known
    top = name.partition(".")[0]
    for line, target in imports(source, name, is_package, known):
        target_top = target.partition(".")[0]
        why = None
        if target_top == top:
            layer, target_layer = covering(name, LAYERS), covering(target, LAYERS)
            only = covering(name, ONLY)
            if layer is None or target_layer is None:
                why = "is in no layer"
            elif LAYERS[target_layer] > LAYERS[layer]:
                why = f"stands above (layer {LAYERS[target_layer]} > {LAYERS[layer]})"
            elif only is not None and not covered(target, ONLY[only]):
                why = f"is not among {sorted(ONLY[only])}"
            elif is_lean(name) and not is_lean(target):
                why = "is not loaded by the zygote, and this module is"
        elif target_top in PACKAGES:
            why = "is the other package"
        elif target_top in NOT_INSTALLED:
            why = "is not installed"
        elif target_top not in sys.stdlib_module_names:
            allowed = covering(name, THIRD_PARTY)
            if allowed is None or not THIRD_PARTY[allowed] & {ANY, target_top}:
                why = "is not in the standard library"
            elif target_top in CONFINED and not covered(name, CONFINED[target_top]):
                why = f"is imported by {sorted(CONFINED[target_top])} only"
        if why:
            found.append(f"{name}:{line} imports {target}, which {why}")
    return found


@pytest.mark.parametrize("name", sorted(MODULES))
def test_module_keeps_the_walls(name: str) -> None:
    path = MODULES[name]
    found = broken_walls(path.read_text(encoding="utf-8"), name, path.name == "__init__.py")
    assert not found, "\n".join(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_there_and_typed(package: str) -> None:
    assert package in MODULES
    assert (ROOT / package / "py.typed").is_file()


def test_lean_modules_exist() -> None:
    assert sorted((LEAN | LEAN_INIT) - set(MODULES)) == []


def test_no_module_has_a_taken_name() -> None:
    names = {name for name in MODULES if TAKEN & set(name.split(".")[1:])}
    names |= {str(path) for path in (ROOT / "crashtest").rglob("*") if path.is_dir() and path.name in TAKEN}
    assert sorted(names) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("jin_core.wal", "import crashtest"),
        ("jin_core.wal", "from crashtest.trace import Op"),
        ("jin_core.wal", "import google_crc32c"),
        ("crashtest.trace", "from . import persist"),
        ("crashtest.trace", "def f():\n    from .cells import zygote"),
        ("crashtest.observe.steps", "from ..persist.tree import Tree"),
        ("crashtest.observe.steps", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import rich"),
        ("crashtest.persist.models", "import msgspec"),
        ("crashtest.persist.states", "from crashtest import cells"),
        ("crashtest.cells.zygote", "from .matrix import Example"),
        ("crashtest.cells.zygote", "import psutil"),
        ("crashtest.cells.zygote", "import jin_core"),
        ("crashtest.cells.matrix", "import rich"),
        ("crashtest.cells.matrix", "from crashtest.report import events"),
        ("crashtest.cells.judge", "import importlib\nimportlib.import_module('hypothesis')"),
        ("crashtest.report.html", "import crashtest.cli"),
        ("crashtest.cli", "from hypothesis import strategies"),
        ("crashtest.cli", "import scenarios"),
    ],
)
def test_a_broken_wall_is_seen(name: str, source: str) -> None:
    known = set(MODULES) | {"crashtest.cells", "crashtest.persist", "crashtest.cells.zygote"}
    assert len(broken_walls(source, name, known=known)) == 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("jin_core.wal", "import zlib\nfrom . import errors\nfrom .disk import write"),
        (
            "crashtest.observe.steps",
            "import ctypes\nfrom ..trace import Op\nfrom crashtest.values import x",
        ),
        ("crashtest.cells.zygote", "from ..persist.tree import Tree\nfrom crashtest.cells import worker"),
        (
            "crashtest.cells.matrix",
            "import msgspec\nfrom ..persist import states\nfrom . import judge",
        ),
        ("crashtest.explore.generate", "import hypothesis\nfrom crashtest.cells import matrix"),
        (
            "crashtest.cli",
            "import click\nfrom .report import terminal\nfrom crashtest import explore",
        ),
    ],
)
def test_a_kept_wall_is_not_blamed(name: str, source: str) -> None:
    below = ("cells.worker", "cells.matrix", "cells.judge", "persist.states", "report.terminal", "explore")
    known = set(MODULES) | {f"crashtest.{module}" for module in below}
    assert broken_walls(source, name, known=known) == []


@pytest.mark.parametrize("flags", [("-I", "-S"), ("-I",)], ids=["alone", "with site-packages"])
@pytest.mark.parametrize("names", [["crashtest.cells.zygote"], sorted(LEAN)], ids=["zygote", "all lean"])
def test_zygote_loads_the_standard_library_only(names: list[str], flags: tuple[str, ...]) -> None:
    program = (
        "import importlib, sys\n"
        f"before = set(sys.modules); sys.path.insert(0, {str(ROOT)!r})\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "import json; print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    done = subprocess.run(
        [sys.executable, *flags, "-B", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded: list[str] = json.loads(done.stdout)
    assert set(names) <= set(loaded)
    tops = {name.partition(".")[0] for name in loaded}
    assert tops & HEAVY == set()
    if names == ["crashtest.cells.zygote"]:
        assert tops & COSTLY == set()
    foreign = {top for top in tops if top not in sys.stdlib_module_names and not top.startswith("_sysconfigdata")}
    assert foreign == {"crashtest"}
    strangers = [name for name in loaded if name.startswith("crashtest") and not is_lean(name)]
    assert strangers == []
