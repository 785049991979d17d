"""The pytest plugin: every scenario below the directories that are named is one test, and any test can run one.

Guarantees: a file is neither imported nor collected unless the user named it, or a directory above it that
`crashtest_paths` matches, and its text declares a scenario; a test passes only if everything is as expected, so
"inconclusive" fails; a scenario that cannot be judged as it is written is an error, not a failure. Runs go on in the
process of the test, one at a time; what they change in it (SIGTERM, subreaper) is put back. Loading this module
imports nothing that pytest has not imported anyway; the engine is imported when the first scenario is run.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from copy import copy
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from crashtest.errors import HarnessError, UsageError, quoted
from crashtest.scenario import DEFAULT_MODELS, MODELS, NO_SCENARIOS, Scenario, load

if TYPE_CHECKING:
    from crashtest.verdict import RunResult, ScenarioResult

#: where violations are stored, relative to the directory pytest was started in; also the command line's default
REPORT_DIR = Path(".crashtest")

#: compiled when they are first needed: every call of pytest loads this module
_IMPORTS = rb"(?m)^\s*(?:from\s+crashtest\b|import\s[^#\n]*\bcrashtest\b)"
_DECLARES = rb"(?m)^\s*@[\w.]*\bscenario\b"
_HAS_TESTS = rb"(?m)^\s*(?:async\s+)?(?:def\s+test|class\s+Test)"


class NotAsExpected(AssertionError):
    """A scenario did not end as it has to; the message is its story. `result`: what was found."""

    def __init__(self, story: str, headline: str, result: ScenarioResult) -> None:
        super().__init__(story)
        self.headline = headline
        self.result = result


class Session:
    """What is the same for all scenarios of one call of pytest, in each of its processes.

    searched: whether directories are searched for scenarios (the user named one, or set `crashtest_paths`).
    worker: the number of this process among those of xdist, or None without it.
    """

    def __init__(self, seed: int, searched: bool, worker: int | None) -> None:
        self.seed = seed
        self.searched = searched
        self.worker = worker


_SESSION = pytest.StashKey[Session]()
#: of each run in a test: its seed, the steps it was killed at, the steps it did not reach
_TOLD = pytest.StashKey[list[list[Any]]]()
_ATTRIBUTE = "crashtest"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("crashtest", "crash consistency (crashtest)")
    group.addoption(
        "--crashtest-seed", type=int, metavar="N",
        help="Seed of generated operations; random if not given, and told at the end.",
    )  # fmt: skip
    group.addoption(
        "--crashtest-examples", type=int, default=5, metavar="N",
        help="Sequences of operations drawn for a scenario whose ops is a strategy (default: 5).",
    )  # fmt: skip
    group.addoption(
        "--crashtest-model", default=",".join(DEFAULT_MODELS), metavar="NAMES",
        help=f"Persistence models, comma separated, of {', '.join(MODELS)} (default: {','.join(DEFAULT_MODELS)}).",
    )  # fmt: skip
    group.addoption(
        "--crashtest-losses", type=int, metavar="N",
        help="How many losses of a power cut are tried for one sequence of operations.",
    )  # fmt: skip
    group.addoption(
        "--crashtest-timeout", type=float, default=10.0, metavar="SECONDS",
        help="How long one run of a part of a scenario may take, where the scenario does not say so (default: 10).",
    )  # fmt: skip
    group.addoption(
        "--crashtest-jobs", type=int, metavar="N",
        help="Workers of one scenario (default: every usable core; 1 in a process of xdist).",
    )  # fmt: skip
    parser.addini(
        "crashtest_paths",
        type="args",
        default=None,
        help="Directories whose files are searched for scenarios, as globs: a name, or the end of a path (default: "
        "scenarios, and only if a directory is named on the command line or in testpaths)",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "crashtest: set on every scenario that is collected (-m 'not crashtest')")
    for option, value, least, most in (
        ("--crashtest-seed", config.getoption("crashtest_seed"), 0, 2**63 - 1),
        ("--crashtest-examples", config.getoption("crashtest_examples"), 1, 10**6),
        ("--crashtest-losses", config.getoption("crashtest_losses"), 1, 10**9),
        ("--crashtest-timeout", config.getoption("crashtest_timeout"), 1e-3, 1e9),
        ("--crashtest-jobs", config.getoption("crashtest_jobs"), 1, 9999),
    ):
        if value is not None and not least <= value <= most:
            raise pytest.UsageError(f"{option} {value} is not between {least} and {most}")
    unknown = [name for name in config.getoption("crashtest_model").split(",") if name not in MODELS]
    if unknown:
        raise pytest.UsageError(f"--crashtest-model {quoted(unknown[0])} is none; known: {', '.join(MODELS)}")
    told: dict[str, Any] | None = getattr(config, "workerinput", None)
    if told is not None:
        number = int(re.sub(r"\D", "", told["workerid"]) or 0)
        config.stash[_SESSION] = Session(told["crashtest_seed"], told["crashtest_searched"], number)
        return
    seed = config.getoption("crashtest_seed")
    named = config.args_source is not config.ArgsSource.INVOCATION_DIR
    config.stash[_SESSION] = Session(
        seed=int.from_bytes(os.urandom(4), "little") if seed is None else seed,
        searched=named or config.getini("crashtest_paths") is not None,
        worker=None,
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """xdist starts a process: it has to collect what this one would, and draw from the same seed."""
    session = node.config.stash[_SESSION]
    node.workerinput.update(crashtest_seed=session.seed, crashtest_searched=session.searched)


# -- collection ---------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(
    file_path: Path, parent: pytest.Collector
) -> Generator[None, list[pytest.Collector], list[pytest.Collector]]:
    found = yield
    if file_path.suffix != ".py":
        return found
    session = parent.session
    for_pytest = any(file_path.match(pattern) for pattern in parent.config.getini("python_files"))
    named = session.isinitpath(file_path) and not for_pytest
    if not named and not _searched(parent.config, file_path):
        return found
    try:
        text = file_path.read_bytes()
    except OSError:
        return found
    if not (re.search(_IMPORTS, text) and re.search(_DECLARES, text)):
        return found
    if not for_pytest and not re.search(_HAS_TESTS, text):
        # pytest takes any file that is named for a test module: this one is not, and need not be imported twice
        found = [one for one in found if not isinstance(one, pytest.Module)]
    return [*found, ScenarioFile.from_parent(parent, path=file_path)]


def _searched(config: pytest.Config, file: Path) -> bool:
    """Whether a file that was not named itself is to be searched for scenarios."""
    if not config.stash[_SESSION].searched or file.name.startswith(NO_SCENARIOS):
        return False
    globs = config.getini("crashtest_paths")
    base = config.inipath.parent if config.inipath else config.invocation_params.dir
    for glob in ["scenarios"] if globs is None else globs:
        exactly = os.path.normpath(base / glob)
        end = f"*/{glob.strip('/')}"
        if any(str(above) == exactly or fnmatchcase(str(above), end) for above in file.parents):
            return True
    return False


class ScenarioFile(pytest.File):
    """A file of scenarios. Collecting it executes it, as importing a test module does."""

    def collect(self) -> Iterator[ScenarioItem]:
        try:
            scenarios = load(self.path, _label(self.config, self.path))
        except UsageError as error:
            raise self.CollectError(str(error)) from None
        for one in scenarios:
            yield ScenarioItem.from_parent(self, name=one.function, scenario=one)


class ScenarioItem(pytest.Item):
    """One scenario: its whole matrix of crashes."""

    def __init__(self, *, scenario: Scenario, **others: Any) -> None:
        super().__init__(**others)
        self.scenario = scenario
        self.add_marker("crashtest")

    def runtest(self) -> None:
        story = _judge(self, self.scenario, self.path, {})[1]
        self.add_report_section("call", "crashtest", story)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """The story, or the message of an error; a traceback only where crashtest itself broke."""
        error = excinfo.value
        if isinstance(error, NotAsExpected):
            headline, text = error.headline, str(error)
        elif isinstance(error, UsageError | HarnessError):
            headline = text = quoted(error, 4000)
        else:
            return super().repr_failure(excinfo, style)
        shown = excinfo.getrepr(style="value", chain=False)
        shown.reprtraceback.reprentries[-1].lines = text.splitlines()
        if shown.reprcrash is not None:  # the short summary and the message in junit's XML
            shown.reprcrash.path = str(self.path)
            shown.reprcrash.lineno = self._line + 1
            shown.reprcrash.message = headline
        return shown

    @property
    def _line(self) -> int:
        return 0 if self.scenario.driven else self.scenario.workload.__code__.co_firstlineno - 1

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, self._line, self.name


# -- a scenario in an ordinary test -------------------------------------------------------------------------------


@pytest.fixture
def crashtest(request: pytest.FixtureRequest) -> Callable[..., ScenarioResult]:
    """Run a scenario: crashtest(scenario, **settings) gives its result, or fails with its story unless as expected.

    Settings are those of `crashtest.config.Settings`: seed, jobs, timeout, examples, allow_outside and so on.
    """

    def run(scenario: Scenario, **settings: Any) -> ScenarioResult:
        __tracebackhide__ = True
        if not isinstance(scenario, Scenario):
            raise UsageError(f"crashtest() takes a scenario, not a {type(scenario).__name__}")
        module = sys.modules.get(scenario.workload.__module__)
        if module is not None and not any(value is scenario for value in vars(module).values()):
            raise UsageError(
                f"the scenario {scenario.function} is no global name of its module, so the processes that run it "
                "cannot find it; declare it outside of any function"
            )
        file = request.config.invocation_params.dir / scenario.workload.__code__.co_filename
        return _judge(request.node, scenario, file, settings)[0]

    return run


# -- running ------------------------------------------------------------------------------------------------------


def _judge(node: pytest.Item, scenario: Scenario, file: Path, changed: Mapping[str, Any]) -> tuple[ScenarioResult, str]:
    """Run one scenario for a test: its result and story. Raises `NotAsExpected`, `UsageError`, `HarnessError`."""
    __tracebackhide__ = True
    from crashtest.report import story, words

    file = file.resolve()
    scenario = copy(scenario)  # the engine writes to it
    scenario.file = _label(node.config, file)
    scenario.validate()
    whole = _run(node.config, scenario, file, changed)
    if whole.stopped == "interrupted":
        raise KeyboardInterrupt
    if len(whole.scenarios) != 1:
        raise HarnessError(f"{scenario.name} has no result; the run was stopped ({whole.stopped})")
    result = whole.scenarios[0]
    if result.usage_error:
        raise UsageError(f"{result.name}: {result.reason}")
    place = changed.get("report_dir", REPORT_DIR)
    lines = [*story.scenario_story(result, place)]
    lines += [story.field("note", words.safe(note)) for note in whole.notes]
    lines.append(story.field("seed", str(whole.seed)))
    shown = "\n".join(story.plain(line) for line in lines)
    mark = words.mark(result)
    walked = result.models.values()
    node.user_properties += [
        ("verdict", mark.lower()),
        ("cells", sum(model.cells for model in walked)),
        ("points", sum(model.crash_points for model in walked)),
        ("seed", whole.seed),
    ]
    for one in result.violations:
        node.user_properties.append(("replay", story.plain(story.replay_line(one.id, place)).split(": ", 1)[1]))
    seeds = node.stash.setdefault(_TOLD, [])
    seeds.append([whole.seed, result.steps_killed, result.steps_not_reached])
    if whole.exit:
        because = result.harness_error or result.reason
        surprising = words.unexpected(result)
        if surprising:
            first = surprising[0]
            how = "died" if first.model == "kill" else "power cut"
            because = f"{first.guarantee} is violated under {first.model}, {how} {first.point}"
        raise NotAsExpected(shown, words.safe(f"{mark}: {because}" if because else mark, 400), result)
    return result, shown


def _run(config: pytest.Config, scenario: Scenario, file: Path, changed: Mapping[str, Any]) -> RunResult:
    import warnings

    from crashtest.config import Settings
    from crashtest.scale import local

    session = config.stash[_SESSION]
    jobs = config.getoption("crashtest_jobs")
    if jobs is None:
        jobs = 1
        if session.worker is None:
            from crashtest.options import usable_cores

            jobs = usable_cores()
    losses = config.getoption("crashtest_losses")
    given: dict[str, Any] = {
        "seed": session.seed,
        "models": tuple(config.getoption("crashtest_model").split(",")),
        **({} if losses is None else {"losses": losses}),
        "timeout": config.getoption("crashtest_timeout"),
        "examples": config.getoption("crashtest_examples"),
        "remember": config.getoption("crashtest_seed") is None,
        "jobs": jobs,
        "report_dir": config.invocation_params.dir / REPORT_DIR,
        "first_core": (session.worker or 0) * jobs,
        **changed,
    }
    unknown = sorted(set(given) - set(Settings.__dataclass_fields__))
    if unknown:
        raise UsageError(f"crashtest() knows no settings {unknown}; known: {', '.join(Settings.__dataclass_fields__)}")
    with warnings.catch_warnings():
        # Python 3.12 and later warn of any fork beside threads (xdist has one); that child makes two system calls
        warnings.filterwarnings("ignore", message=".*multi-threaded.*fork", category=DeprecationWarning)
        return local.run([scenario], {scenario.file: file}, Settings(**given), lambda event: None)


def _label(config: pytest.Config, file: Path) -> str:
    """The path in names and ids, as `crashtest run` writes it where pytest was started."""
    file, base = file.resolve(), config.invocation_params.dir.resolve()
    return quoted(file.relative_to(base).as_posix() if file.is_relative_to(base) else file.as_posix(), 4096)


# -- reports ------------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call":
        if isinstance(item, ScenarioItem) and call.excinfo and call.excinfo.errisinstance((UsageError, HarnessError)):
            report.when = "setup"  # so that it counts as an error and not as a failure
        told = item.stash.get(_TOLD, None)
        if told:
            vars(report)[_ATTRIBUTE] = told  # plain values: they pass from a process of xdist to the first one
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The seed, and the declared steps that no cell of any scenario was killed at."""
    seeds: set[int] = set()
    killed: set[str] = set()
    missed: set[str] = set()
    count = 0
    for reports in terminalreporter.stats.values():
        for report in reports:
            for seed, some, others in getattr(report, _ATTRIBUTE, ()):
                count += 1
                seeds.add(seed)
                killed.update(some)
                missed.update(others)
    if not count:
        return
    what = "scenario" if count == 1 else "scenarios"
    terminalreporter.write_line(f"crashtest: {count} {what}, seed {', '.join(map(str, sorted(seeds)))}")
    if missed - killed:
        terminalreporter.write_line(
            f"crashtest: steps never reached: {', '.join(map(quoted, sorted(missed - killed)))}"
        )
