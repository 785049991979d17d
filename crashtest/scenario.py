"""What a user declares: one decorated workload, with its parts hung on it, and how such files are found.

Guarantees: a declaration that cannot be judged as it stands (a guarantee that needs a missing part, an unknown
name) is a `UsageError` when it is collected, never a silent pass. Loading a file executes it: it is the user's
own code. Imports the standard library only, because workers load it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from crashtest.errors import UsageError, quoted
from crashtest.values import canonical

GUARANTEES = ("recovers", "atomic", "durable", "ordered", "idempotent", "live", "clean", "visible", "check")
DEFAULT = frozenset({"recovers", "atomic", "durable", "ordered", "idempotent"})
ALL = frozenset(GUARANTEES) - {"check"}
#: the strongest first (`persist.filesystems`)
MODELS = ("kill", "ext4-lock", "ext4", "ext4-noda", "xfs", "btrfs", "posix")
DEFAULT_MODELS = ("kill", "posix")
#: signals that a program may handle, by which it can be ended instead of by SIGKILL
SIGNALS = ("TERM", "INT", "HUP")
#: real file systems (`persist.realfs`), named like models, and the model that each is held against
REAL = {
    "real-ext4-lock": "ext4-lock", "real-ext4": "ext4", "real-ext4-journal": "ext4", "real-ext4-noda": "ext4-noda",
    "real-xfs": "xfs", "real-btrfs": "btrfs",
}  # fmt: skip


def strength(model: str) -> int:
    """A model's place among all, 0 the strongest."""
    return MODELS.index(model)


#: code flags of generators, coroutines and asynchronous generators (inspect, CO_*)
_NEVER_RUNS = 0x20 | 0x80 | 0x200
#: how the names of files end that declare commands in plain data (`commands.py`)
DECLARATIONS = (".json", ".toml")
#: how the names of files begin that are passed over when a directory is searched
NO_SCENARIOS = ("_", "test_", "conftest")

OpsPart = TypeVar("OpsPart", bound=Callable[[], Any])
DirPart = TypeVar("DirPart", bound=Callable[[Path], Any])
CheckPart = TypeVar("CheckPart", bound=Callable[[Path, list[Any]], Any])
Setup = Mapping[str, "bytes | str"] | Callable[[Path], object]
Expect = Iterable[str] | Mapping[str, Iterable[str]]


class Run:
    """What a workload is given: a directory, the operations to do, and a way to tell the world of each one.

    `dir` is the state directory (`pathlib.Path`), `ops` the operations of this run (a list; empty when the
    scenario has no `ops`).
    """

    def __init__(self, directory: Path, ops: Sequence[Any], tell: Callable[[bytes], None], ack_fd: int = -1) -> None:
        self.dir = directory
        #: where acks are written: the standard output of a command whose lines are acks (`commands.py`)
        self.ack_fd = ack_fd
        self.ops = list(ops)
        self._tell = tell
        self._told = 0

    def ack(self, value: Any = None, *, same: bool = False) -> None:
        """Tell the outside world that the next operation is done; it has left the process when this returns.

        `value` is any plain value, handed to `@x.check`. `same=True` says that this operation changes nothing
        an observation can see. One operation gives one ack, also when it was refused. Raises `UsageError` when
        `value` is not plain.
        """
        text = canonical(value, "the value of run.ack()")
        self._told += 1
        self._tell(f"{int(same)}{text}\n".encode())


class Scenario:
    """One workload and its parts. Made by `@scenario`; the attributes are read by the harness."""

    def __init__(
        self,
        workload: Callable[[Run], object],
        setup: Setup | None = None,
        guarantees: frozenset[str] = DEFAULT,
        expect: Expect = (),
        steps: tuple[str, ...] = (),
        ignore: tuple[str, ...] = (),
        allow_outside: tuple[str, ...] = (),
        timeout: float | None = None,
        source: str = "",
        signals: tuple[str, ...] = (),
    ) -> None:
        self.workload = workload
        self.setup: Setup = {} if setup is None else setup
        self.guarantees = guarantees
        self.expect = expect
        self.steps = steps
        self.ignore = ignore
        self.allow_outside = allow_outside
        self.timeout = timeout
        #: names out of `SIGNALS`: the program is ended by each of them too, at each crash point
        self.signals = signals
        #: the file that declares it, as it was opened; `file` is how it is shown
        self.source = self.file = source
        self.make_ops: Callable[[], Any] | None = None
        self.do_recover: Callable[[Path], object] | None = None
        self.do_observe: Callable[[Path], Any] | None = None
        self.do_glance: Callable[[Path], Any] | None = None
        self.do_check: Callable[[Path, list[Any]], object] | None = None
        #: looks through what the first state is made of, before anything runs: what a user has to know of it, or ""
        self.examine: Callable[[], str] | None = None
        #: a regular expression: what is written where acks go is a program's output, and lines that have it are acks
        self.ack_line: str | None = None
        #: observe gives what `looking.look_at` does, with files in it that a crash may have left beside the state
        self.looks = False
        #: the worker only starts the program under test, which is its child
        self.driven = False
        #: only the whole group is killed, never one process of it alone
        self.whole = False

    @property
    def function(self) -> str:
        return self.workload.__name__

    @property
    def name(self) -> str:
        """`path::function`, as it is written in reports and ids."""
        return f"{self.file}::{self.function}"

    # The parts hang on the workload the way property setters do; each decorator gives the function back.

    def ops(self, function: OpsPart) -> OpsPart:
        """The operations: a list of plain values, or a Hypothesis strategy for one. Main process only."""
        self.make_ops = function
        return function

    def recover(self, function: DirPart) -> DirPart:
        """What starting again after a crash does. Runs in a fresh process."""
        self.do_recover = function
        return function

    def observe(self, function: DirPart) -> DirPart:
        """What the recovered state is, as a plain value. Runs in a fresh process."""
        self.do_observe = function
        return function

    def glance(self, function: DirPart) -> DirPart:
        """What a reader sees before any recovery; it opens nothing that recovers. Needed by `visible`."""
        self.do_glance = function
        return function

    def check(self, function: CheckPart) -> CheckPart:
        """Assertions of one's own over the recovered directory and the values acked so far."""
        self.do_check = function
        return function

    def claimed(self) -> frozenset[str]:
        """The guarantees this scenario claims; `recovers` always, `check` when it has one."""
        return self.guarantees | {"recovers"} | ({"check"} if self.do_check else frozenset())

    @property
    def shows(self) -> bool:
        """Whether the program itself starts again and shows a state, which must outlive a power cut after it."""
        return self.do_recover is not None or not self.looks

    def expected(self, model: str) -> frozenset[str]:
        """The guarantees that must be caught violated under `model`."""
        if isinstance(self.expect, Mapping):
            return frozenset(self.expect.get(REAL.get(model, model), ()))
        return frozenset(self.expect)

    def validate(self) -> None:
        """Raises `UsageError` when the declaration cannot be judged as it stands."""
        unknown_signals = sorted(set(self.signals) - set(SIGNALS))
        if unknown_signals:
            raise UsageError(f"{self.name}: unknown signals {unknown_signals}; known: {', '.join(SIGNALS)}")
        expected: set[str] = set()
        if isinstance(self.expect, Mapping):
            unknown_models = sorted(set(self.expect) - set(MODELS))
            if unknown_models:
                raise UsageError(f"{self.name}: expect names unknown models {unknown_models}; known: {list(MODELS)}")
            for names in self.expect.values():
                expected |= set(names)
        else:
            expected = set(self.expect)
        unknown = sorted((set(self.guarantees) | expected) - set(GUARANTEES))
        if unknown:
            raise UsageError(f"{self.name}: unknown guarantees {unknown}; known: {', '.join(GUARANTEES)}")
        for label, function in (
            ("the workload", self.workload), ("setup", self.setup), ("ops", self.make_ops),
            ("recover", self.do_recover), ("observe", self.do_observe), ("glance", self.do_glance),
            ("check", self.do_check),
        ):  # fmt: skip
            code = getattr(function, "__code__", None)
            if code is not None and code.co_flags & _NEVER_RUNS:
                raise UsageError(
                    f"{self.name}: {label} is async or a generator, which a call does not run; make it plain"
                )
        if self.do_observe is None:
            raise UsageError(f"{self.name} has no observe part; add @{self.function}.observe, which returns the state")
        if "live" in self.guarantees and self.make_ops is None:
            raise UsageError(f"{self.name} claims live, which needs @{self.function}.ops")
        if "visible" in self.guarantees and self.do_glance is None:
            raise UsageError(f"{self.name} claims visible, which needs @{self.function}.glance")
        unclaimed = sorted(expected - self.claimed())
        if unclaimed:
            raise UsageError(
                f"{self.name} expects {unclaimed} violated, but does not claim them; add them to guarantees"
            )


def scenario(
    workload: Callable[[Run], object] | None = None,
    *,
    setup: Setup | None = None,
    guarantees: Iterable[str] = DEFAULT,
    expect: Expect = (),
    steps: Iterable[str] = (),
    ignore: Iterable[str] = (),
    allow_outside: Iterable[str] = (),
    timeout: float | None = None,
    signals: Iterable[str] = (),
) -> Any:
    """Declare a scenario; decorates the workload, a function of one `Run`.

    setup: a dict of file names to contents, or a function of the (empty) state directory.
    guarantees: the names claimed (`DEFAULT`, `DEFAULT | {"live", "clean"}`, ...).
    expect: guarantees that must be caught violated (known-bad software), a set or a dict by model.
    steps: every named step the program under test has; those no crash point reached are reported.
    ignore: globs of names that `clean` passes over.
    allow_outside: globs of paths outside the state directory that may change.
    timeout: seconds that one run of a part may take (default: the run's `--timeout`).
    signals: names out of `SIGNALS`: at each crash point the workload is ended by each of these as well.
    """
    for label, value in (("guarantees", guarantees), ("steps", steps), ("ignore", ignore), ("signals", signals)):
        if isinstance(value, str):
            raise UsageError(f"{label}={value!r} is a string; give a set of names: {label}={{{value!r}}}")
    if isinstance(expect, str):
        raise UsageError(f"expect={expect!r} is a string; give a set of names: expect={{{expect!r}}}")

    def declare(function: Callable[[Run], object]) -> Scenario:
        return Scenario(
            workload=function,
            setup=setup,
            guarantees=frozenset(guarantees),
            expect=expect if isinstance(expect, Mapping) else frozenset(expect),
            steps=tuple(steps),
            ignore=tuple(ignore),
            allow_outside=tuple(allow_outside),
            timeout=timeout,
            source=function.__code__.co_filename,
            signals=tuple(signals),
        )

    return declare if workload is None else declare(workload)


def _import_root(path: Path) -> tuple[Path, str]:
    """The directory to import `path` from and its dotted name: the first parent that is no package."""
    parts = [path.stem]
    root = path.parent
    while (root / "__init__.py").exists() and root.name.isidentifier():
        parts.insert(0, root.name)
        root = root.parent
    return root, ".".join(parts)


def load(path: Path, shown_as: str | None = None) -> list[Scenario]:
    """Execute the scenario file `path`, or read the declaration file; its scenarios in the order of their definition.

    `shown_as` is the path used in names and ids. Raises `UsageError` (with the cause's place) when the file
    cannot be read, has a syntax error, or fails while it is imported.
    """
    label = shown_as or str(path)
    path = path.resolve()
    if path.suffix in DECLARATIONS:
        from crashtest import commands

        return commands.read(path, label)
    root, name = _import_root(path)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    known = sys.modules.get(name)
    if known is None or getattr(known, "__file__", None) != str(path):
        if known is not None:
            import zlib  # here, because few need it and each forked process would carry it along

            name = f"{name}__{zlib.crc32(os.fsencode(path)):x}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise UsageError(f"{label} is not a Python file")
        known = importlib.util.module_from_spec(spec)
        sys.modules[name] = known
        try:
            spec.loader.exec_module(known)
        except SyntaxError as error:
            del sys.modules[name]
            raise UsageError(
                f"{label} has a syntax error at {quoted(error.filename or label)}:{error.lineno}: {quoted(error.msg)}"
            ) from error
        except ModuleNotFoundError as error:
            del sys.modules[name]
            raise UsageError(
                f"{label} needs the module {error.name!r}, which is not installed here; install it, or leave this "
                "file out (the ready scenarios need: pip install 'jin-crashtest[scenarios]')"
            ) from error
        except UsageError:
            del sys.modules[name]
            raise
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise UsageError(
                f"{label} could not be loaded: {type(error).__name__}: {quoted(error)}{_place(error)}"
            ) from error
    found: dict[str, Scenario] = {}
    for variable, value in vars(known).items():
        if isinstance(value, Scenario) and os.path.realpath(value.source) == str(path):
            value.file = label
            if value.driven:
                value.workload.__name__ = variable
            if found.setdefault(value.function, value) is not value:
                raise UsageError(f"{label} defines two scenarios named {value.function}; rename one of them")
    for one in found.values():
        one.validate()
    return list(found.values())


def probe_loading(files: Iterable[tuple[Path, str]], seconds: float) -> None:
    """Load the files in a forked child first: one that ends its process, or does not end, must not do so to us.

    seconds: how long each file may take. Raises `UsageError` naming the file; what else is wrong with a file, `load`
    says.
    """
    files = list(files)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (1, 2):
            os.dup2(null, fd)
        for path, label in files:
            os.write(writing, b".")
            with contextlib.suppress(BaseException):
                load(path, label)
        os.write(writing, b"!")
        os._exit(0)
    os.close(writing)
    begun, late = 0, False
    try:
        while select.select([reading], [], [], seconds)[0]:
            said = os.read(reading, 1024)
            if not said or said.endswith(b"!"):
                break
            begun += len(said)
        else:
            late = True
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if late:
        raise UsageError(f"{files[max(begun, 1) - 1][1]} does not come to an end of loading within {seconds:g} seconds")
    if not said:
        code = os.waitstatus_to_exitcode(status)
        raise UsageError(
            f"{files[max(begun, 1) - 1][1]} ended its process with status {code} while it was loaded; a scenario file "
            "only declares, it does its work in the parts"
        )


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    last = None
    while trace is not None:
        if "importlib" not in trace.tb_frame.f_code.co_filename:
            last = trace
        trace = trace.tb_next
    return "" if last is None else f" (at {last.tb_frame.f_code.co_filename}:{last.tb_lineno})"


def discover(paths: Iterable[str | Path]) -> list[tuple[Path, str]]:
    """The scenario files below `paths`: (path, name to show), each once, sorted within each directory.

    A directory is searched for `*.py` files that do not begin with `_` or `test_`; a file is taken as it is.
    Raises `UsageError` when a path does not exist.
    """
    found: dict[Path, str] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            files = sorted(
                p
                for p in path.rglob("*.py")
                if not p.name.startswith(NO_SCENARIOS)
                and not any(part.startswith((".", "__")) for part in p.relative_to(path).parts[:-1])
            )
        elif path.exists():
            files = [path]
        else:
            raise UsageError(f"{quoted(given)} does not exist; give a scenario file or a directory of them")
        for file in files:
            found.setdefault(file.resolve(), _label(file))
    return list(found.items())


def _label(file: Path) -> str:
    """The path as it stands in names: relative to the current directory where possible, with forward slashes."""
    absolute = file.resolve()
    try:
        return absolute.relative_to(Path.cwd().resolve()).as_posix()
    except ValueError:
        return absolute.as_posix()
