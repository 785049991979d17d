"""The terminal report: golden files for plain lines, and what must never reach a terminal.

To write the golden files anew, run with CRASHTEST_UPDATE_GOLDEN=1, and read the difference before it is
committed.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from crashtest.report import story, terminal, words
from crashtest.verdict import (
    MOST,
    Event,
    ModelResult,
    Nested,
    Note,
    Progress,
    RunFinished,
    RunResult,
    RunStarted,
    ScenarioFinished,
    ScenarioResult,
    ScenarioStarted,
    Violation,
    exit_code,
)

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
DEFAULT = Path(".crashtest")
REFS = "scenarios/known_bad/git_update_ref.py::update_ref_three_refs"
SAVE = "scenarios/app/save.py::replace_config"


def model(**verdicts: Any) -> dict[str, ModelResult]:
    guarantees = {
        "recovers": "held",
        "atomic": "held",
        "durable": "held",
        "ordered": "held",
        "idempotent": "held",
    }
    return {
        "kill": ModelResult(
            crash_points=43,
            cells=120,
            trees=37,
            unique_states=41,
            guarantees={**guarantees, **verdicts},  # type: ignore[dict-item]
        )
    }


def held(name: str = SAVE) -> ScenarioResult:
    return ScenarioResult(
        name=name,
        verdict="held",
        as_expected=True,
        operations=4,
        seconds=1.24,
        models=model(visible="not claimed"),
        self_proofs=12,
    )


def violated() -> ScenarioResult:
    one = Violation(
        id=f"{SAVE}/9f2c01/p14/kill/00",
        guarantee="atomic",
        model="kill",
        expected=False,
        count=3,
        point="before rename(config.tmp -> config), the 14th change",
        where="app.py:12 in save",
        acked=1,
        wanted="b'one' or b'two'",
        observed="b''",
        lost=["write(config.tmp, 0..512)", "fsync(config.tmp)"],
        hint="config is truncated before the new content is written; write a temporary file and rename it",
    )
    two = Violation(
        id=f"{SAVE}/9f2c01/p15/kill/00>p2/kill/00",
        guarantee="idempotent",
        model="kill",
        expected=False,
        count=1,
        point="after the normal end",
        where="",
        acked=2,
        wanted="b'two'",
        observed="b'twotwo'",
    )
    return ScenarioResult(
        name=SAVE,
        verdict="violated",
        as_expected=False,
        operations=4,
        seconds=2.0,
        models=model(atomic="violated", idempotent="violated"),
        violations=[one, two],
    )


def caught() -> ScenarioResult:
    one = Violation(
        id=f"{REFS}/1/p31/kill/0",
        guarantee="atomic",
        model="kill",
        expected=True,
        count=2,
        point="before rename(refs/heads/b.lock -> refs/heads/b), the 31st change",
        where="git update-ref --stdin",
        acked=0,
        wanted="('1', '1', '1') or ('2', '2', '2')",
        observed="('2', '1', '1')",
    )
    return ScenarioResult(
        name=REFS,
        verdict="violated",
        as_expected=True,
        operations=1,
        sequences=5,
        seconds=3.1,
        models=model(atomic="violated"),
        violations=[one],
        nested=Nested(depth=2, cells=80, unique_states=33),
    )


def not_caught() -> ScenarioResult:
    return ScenarioResult(name=REFS, verdict="held", as_expected=False, operations=1, seconds=3.1, models=model())


def half_caught() -> ScenarioResult:
    result = caught()
    result.as_expected = False
    result.reason = "durable was expected to be violated under kill as well, and was not"
    return result


def inconclusive(**more: Any) -> ScenarioResult:
    given = {"reason": "observe cannot see operation 2: S1 and S2 are equal, although the operation changed bytes"}
    return ScenarioResult(
        name=SAVE,
        verdict="inconclusive",
        as_expected=False,
        operations=4,
        seconds=0.3,
        models={
            "kill": ModelResult(
                crash_points=9, cells=0, skipped=9, exhaustive=False, guarantees={"atomic": "inconclusive"}
            )
        },
        notes=["the workload also wrote to /tmp/other"],
        **{**given, **more},
    )


def not_reached() -> ScenarioResult:
    return ScenarioResult(name=SAVE, verdict="not reached", as_expected=False, seconds=0.1)


def odd() -> ScenarioResult:
    """Everything a stranger can name, with everything that hurts a terminal in it."""
    evil = "[red]a\nb\x1b[31m\x07\udc80\u202e\r[/red]:boom:"
    one = Violation(
        id=f"{evil}'\\::f/0/1/kill/0",
        guarantee=evil,
        model=evil,
        expected=False,
        count=2,
        point=evil,
        where=evil,
        acked=1,
        wanted=evil,
        observed=evil,
        lost=[evil],
        hint=evil,
    )
    two = Violation(
        id=f"{evil}::f/0/2/kill/0",
        guarantee=evil,
        model=evil,
        expected=True,
        count=1,
        point=evil,
        where=evil,
        acked=1,
        wanted=evil,
        observed=evil,
    )
    return ScenarioResult(
        name=f"{evil}::f",
        verdict="violated",
        as_expected=False,
        reason=evil,
        notes=[evil],
        seconds=61.0,
        models={evil: ModelResult(guarantees={evil: "violated"}), "kill": ModelResult()},
        violations=[one, two],
    )


def events(*results: ScenarioResult, stopped: str = "", more: tuple[str, ...] = (), **extra: Any) -> list[Event]:
    names = [one.name for one in results] + list(more)
    told: list[Event] = [RunStarted(names, 4711, 2, ["kill"], "seccomp", "/dev/shm/crashtest-1")]
    for one in results:
        told.append(ScenarioStarted(one.name))
        told.append(Progress(one.name, 20, 43))
        told.append(ScenarioFinished(one))
    result = RunResult(
        seed=4711,
        exit=exit_code(list(results), stopped),
        seconds=5.0,
        observation="seccomp",
        scenarios=list(results),
        stopped=stopped,
        **extra,
    )
    told.append(RunFinished(result))
    return told


def show(stream: io.StringIO, told: list[Event], display: terminal.Plain | terminal.Live | None = None) -> str:
    report = terminal.Terminal(stream, DEFAULT, "0.1.0", display=display)
    for event in told:
        report(event)
    assert isinstance(told[-1], RunFinished)
    report.finish(told[-1].result, [DEFAULT / "result.json"])
    return stream.getvalue()


CASES: dict[str, list[Event]] = {
    "held": events(
        held(),
        held("scenarios/x.py::other"),
        steps_not_reached=["jin_core.wal.checkpoint", "jin_core.wal.cut"],
    ),
    "violated": events(violated(), held("scenarios/x.py::other"), caught()),
    "caught": events(caught(), held()),
    "not_caught": events(not_caught(), half_caught()),
    "inconclusive": events(inconclusive()),
    "harness_error": events(
        inconclusive(reason="", harness_error="the record of a killed run does not rebuild config")
    ),
    "not_reached": events(not_reached()),
    "interrupted": events(held(), stopped="interrupted", more=("scenarios/x.py::other", "scenarios/x.py::third")),
    "out_of_time": events(held(), stopped="--max-time", more=("scenarios/x.py::other",)),
    "odd": events(odd(), notes=["[red]\x1b[0m\n"]),
}


def compare(name: str, shown: str) -> None:
    golden = GOLDEN / f"terminal_{name}.txt"
    if os.environ.get("CRASHTEST_UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(shown, encoding="utf-8")
    assert shown == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", CASES)
def test_plain_output_is_as_the_golden_file_shows(name: str) -> None:
    compare(name, show(io.StringIO(), CASES[name]))


def test_a_replay_is_as_the_golden_file_shows() -> None:
    stream = io.StringIO()
    report = terminal.Replayed(stream, Path("out dir"))
    for event in [Note("one note"), *events(caught(), notes=["it was replayed by a real kill"])]:
        report(event)
    result = CASES["caught"][-1]
    assert isinstance(result, RunFinished)
    report.finish(RunResult(seed=1, exit=1, seconds=1.0, observation="seccomp", scenarios=[caught(), held()]))
    compare("replay", stream.getvalue())


@pytest.mark.parametrize("name", CASES)
def test_plain_output_has_no_control_code(name: str) -> None:
    shown = show(io.StringIO(), CASES[name])
    assert [c for c in shown if not (c.isprintable() or c == "\n")] == []
    assert shown.encode("utf-8")


@pytest.mark.parametrize("columns", ["20", "80", "300"])
def test_plain_output_does_not_depend_on_the_width(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = show(io.StringIO(), CASES["violated"])
    monkeypatch.setenv("COLUMNS", columns)
    assert show(io.StringIO(), CASES["violated"]) == expected


# --- a terminal that can be redrawn -----------------------------------------------------------------------


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CI", "NO_COLOR", "COLORTERM", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "60")


CODE = re.compile(r"\x1b\[[0-9;?]*([A-Za-z])")


@pytest.mark.usefixtures("at_a_terminal")
def test_a_terminal_gets_progress_and_colour_and_the_same_words() -> None:
    shown = show(Screen(), CASES["violated"])
    assert "\x1b[" in shown
    text = CODE.sub("", shown)
    for line in show(io.StringIO(), CASES["violated"]).splitlines():
        assert line.strip() in text, "a line was wrapped, cut or changed"


@pytest.mark.usefixtures("at_a_terminal")
@pytest.mark.parametrize("name", CASES)
def test_a_terminal_gets_no_code_that_is_not_of_the_report(name: str) -> None:
    shown = show(Screen(), CASES[name])
    kinds = {found[1] for found in CODE.finditer(shown)}
    assert kinds <= set("mKAlhGJ"), "colours, and what redraws a bar"
    text = CODE.sub("", shown)
    assert [c for c in text if not (c.isprintable() or c in "\n\r")] == []
    assert "\x1b[31m\\" not in shown


@pytest.mark.usefixtures("at_a_terminal")
def test_markup_in_names_is_shown_and_not_obeyed() -> None:
    text = CODE.sub("", show(Screen(), CASES["odd"]))
    assert "[red]a\\nb\\x1b[31m\\x07\\udc80\\u202e\\r[/red]:boom:::f" in text


@pytest.mark.usefixtures("at_a_terminal")
def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = show(Screen(), CASES["violated"])
    colours = [
        code
        for found in re.finditer(r"\x1b\[([0-9;]*)m", shown)
        for code in found[1].split(";")
        if code and (30 <= int(code) <= 49 or 90 <= int(code) <= 107)
    ]
    assert colours == []


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "CI": "false"}, True),
        ({"TERM": "xterm", "CI": "true"}, False),
        ({"TERM": "xterm", "CI": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_a_terminal_is_redrawn_only_where_that_makes_sense(environ: dict[str, str], expected: bool) -> None:
    assert terminal.interactive(Screen(), environ) is expected
    assert terminal.interactive(io.StringIO(), environ) is False


@pytest.mark.usefixtures("at_a_terminal")
def test_the_bars_start_no_thread_because_the_engine_may_fork() -> None:
    report = terminal.Terminal(Screen(), DEFAULT, "0.1.0")
    before = threading.active_count()
    for event in CASES["held"][:3]:
        report(event)
    assert threading.active_count() == before
    report.close()


@pytest.mark.usefixtures("at_a_terminal")
def test_the_bars_show_how_far_a_running_scenario_is() -> None:
    now = [1.0]
    stream = Screen()
    report = terminal.Terminal(stream, DEFAULT, "0.1.0", display=terminal.Live(stream, lambda: now[0]))
    report(RunStarted(["a.py::f"], 1, 1, ["kill"], "seccomp", "/tmp"))
    report(ScenarioStarted("a.py::f"))
    for done in range(1, 41):
        now[0] += 0.01
        report(Progress("a.py::f", done, 43))
    report.close()
    shown = CODE.sub("", stream.getvalue())
    assert "a.py::f" in shown
    assert set(re.findall(r"(\d+)/43", shown)) == {"1", "11", "21", "31", "40"}, "a few times a second"


@pytest.mark.usefixtures("at_a_terminal")
def test_the_bars_are_gone_when_the_run_breaks_in_the_middle() -> None:
    stream = Screen()
    report = terminal.Terminal(stream, DEFAULT, "0.1.0")
    for event in CASES["held"][:3]:
        report(event)
    report.close()
    report.close()
    assert stream.getvalue().endswith(("\x1b[?25h", "\x1b[2K")), "the cursor is shown again"
    assert "\x1b[?25h" in stream.getvalue()


# --- what a log is told while it waits --------------------------------------------------------------------


def test_a_log_hears_of_a_long_scenario_now_and_then() -> None:
    now = [0.0]
    stream = io.StringIO()
    display = terminal.Plain(stream, lambda: now[0])
    report = terminal.Terminal(stream, DEFAULT, "0.1.0", display=display)
    report(ScenarioStarted(SAVE))
    for second in range(100):
        now[0] = float(second)
        report(Progress(SAVE, second, 100))
    lines = stream.getvalue().splitlines()
    assert lines == [f"running      {SAVE}  {second} of 100 cells" for second in (30, 60, 90)]


def test_a_line_is_written_as_soon_as_its_scenario_ends() -> None:
    flushed: list[str] = []

    class Log(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    stream = Log()
    report = terminal.Terminal(stream, DEFAULT, "0.1.0")
    for event in CASES["held"][:4]:
        report(event)
    assert "held         scenarios/app/save.py::replace_config" in flushed[-1]


def test_a_note_is_told_once() -> None:
    stream = io.StringIO()
    report = terminal.Terminal(stream, DEFAULT, "0.1.0")
    told = events(held(), notes=["state is on the disk"])
    report(Note("state is on the disk"))
    for event in told:
        report(event)
    assert isinstance(told[-1], RunFinished)
    report.finish(told[-1].result, [])
    assert stream.getvalue().count("state is on the disk") == 1


# --- words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "a b",
        "it's",
        "a\nb",
        "'\\\x1b[31m$(touch x)`id`",
        "grün\t",
        "-x",
        "",
        "a>b*?[c]",
        "x\\'\n",
        "\u202ex",
        "\x01f",
    ],
)
def test_an_argument_pasted_into_a_shell_is_the_text_it_was_made_of(text: str) -> None:
    shown = words.argument(text)
    assert shown.isprintable()
    environ = {**os.environ, "LC_ALL": "C.UTF-8"}
    echoed = subprocess.run(
        ["bash", "-c", f"printf %s {shown}"], capture_output=True, check=True, env=environ, timeout=30
    )
    assert echoed.stdout == text.encode()


def test_an_undecodable_byte_of_a_file_name_survives_an_argument() -> None:
    shown = words.argument(os.fsdecode(b"a\xff\xfeb"))
    echoed = subprocess.run(["bash", "-c", f"printf %s {shown}"], capture_output=True, check=True, timeout=30)
    assert echoed.stdout == b"a\xff\xfeb"


@pytest.mark.parametrize(
    ("result", "word"),
    [
        (held(), "held"),
        (violated(), "VIOLATED"),
        (caught(), "caught"),
        (not_caught(), "NOT CAUGHT"),
        (half_caught(), "NOT CAUGHT"),
        (inconclusive(), "INCONCLUSIVE"),
        (inconclusive(harness_error="x"), "INCONCLUSIVE"),
        (not_reached(), "not reached"),
        (ScenarioResult(name="x", verdict="held", as_expected=True, harness_error="x"), "INCONCLUSIVE"),
        (ScenarioResult(name="x", verdict="violated", as_expected=False), "VIOLATED"),
    ],
)
def test_the_mark_of_a_scenario_never_folds_the_unknown_into_held(result: ScenarioResult, word: str) -> None:
    assert words.mark(result) == word


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0s"), (12.34, "12.3s"), (59.94, "59.9s"), (59.96, "1m00s"), (185, "3m05s"), (3725, "1h02m")],
)
def test_a_duration_is_short_and_exact(seconds: float, shown: str) -> None:
    assert words.clock(seconds) == shown


def test_every_guarantee_that_can_be_claimed_has_a_meaning() -> None:
    from crashtest.scenario import GUARANTEES

    assert set(words.MEANING) == set(GUARANTEES)


def test_the_story_of_a_violation_answers_every_question() -> None:
    text = "\n".join(story.plain(line) for line in story.full(violated().violations[0], Path("out")))
    for answer in (
        "atomic is violated under kill",
        "promise the state is one that a run without a crash passes through, never a mixture",
        "died    before rename(config.tmp -> config), the 14th change",
        "in      app.py:12 in save",
        "acked   1 operation",
        "wanted  b'one' or b'two'",
        "found   b''",
        "lost    fsync(config.tmp)",
        "hint    config is truncated",
        f"replay: crashtest replay '{SAVE}/9f2c01/p14/kill/00' --from 'out'",
    ):
        assert answer in text


def test_the_story_of_a_signal_tells_what_the_program_did_then() -> None:
    one = violated().violations[0]
    one.point, one.ended = "SIGTERM before rename(a -> b)", "ended with status 143"
    one.after = ["unlink(a)", "ack 1\x1b"]
    for lines in (story.full(one, None), story.compact(one, Path("out"))):
        text = "\n".join(story.plain(line) for line in lines)
        assert "died" not in text and re.search("got +SIGTERM before rename\\(a -> b\\)", text)
        assert "    then    unlink(a), ack 1\\x1b\n    ended   ended with status 143" in text
    result = violated()
    result.models["kill"].signals = {"TERM": 7}
    assert "120 cells, 41 states, 7 by SIGTERM" in story.plain(story.scenario_line(result))


def test_what_a_kill_broke_as_expected_is_caught_under_each_model_in_the_table() -> None:
    caught = violated()
    caught.as_expected = True
    caught.models["posix"] = model(atomic="violated", idempotent="violated")["kill"]
    for one in caught.violations:
        one.expected = True
    result = RunResult(seed=1, exit=1, seconds=1.0, observation="seccomp", scenarios=[caught, violated()])
    lines = ["".join(text for text, _ in line) for line in story.summary(result, [], [])]
    (row,) = (re.split(r"  +", line) for line in lines if line.startswith("atomic"))
    assert row == ["atomic", "1 caught, 1 violated", "1 caught"]


@pytest.mark.parametrize(
    ("skipped", "told"), [(999_999, "999,999"), (12_345_678, "about 10^7"), (MOST, "more than 10^15")]
)
def test_losses_left_out_are_told_as_a_number_a_person_can_use(skipped: int, told: str) -> None:
    """One that was cut off at what JSON carries is not told as if it were the number."""
    figures = story.power_figures(ModelResult(cells=2, skipped=skipped, exhaustive=False))
    assert figures == f"2 states, {told} more losses not tried"
