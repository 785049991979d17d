"""How a result is put into words: the meaning of each guarantee and exit code, and how strange names are
shown.

Guarantees: `safe` and `argument` give printable text on one line, so no control code of a stranger's file
name reaches a terminal; `argument` pasted into bash or zsh gives back exactly the text it was made of. Does
not promise that a plain POSIX sh reads an argument with control characters in it ($'...' is not in its
grammar).
"""

from __future__ import annotations

from typing import Literal

from crashtest.errors import quoted
from crashtest.verdict import RunResult, ScenarioResult, Violation

Mark = Literal["held", "VIOLATED", "caught", "NOT CAUGHT", "INCONCLUSIVE", "not reached"]

MARKS: tuple[Mark, ...] = ("held", "caught", "VIOLATED", "NOT CAUGHT", "INCONCLUSIVE", "not reached")

MEANING = {
    "recovers": "recovery and observation end, in time and without an error",
    "atomic": "the state is one that a run without a crash passes through, never a mixture",
    "durable": "the state is not older than the last ack",
    "ordered": "the state is not newer than one operation past the last ack",
    "idempotent": "recovering twice, or again after recovery was killed, ends in the same state",
    "live": "the next operations then succeed and give the next states",
    "clean": "no file name is left that a run without a crash would not have",
    "visible": "no mixture can be seen even before recovery has run",
    "check": "the scenario's own check passes",
}


def safe(text: object, limit: int = 2000) -> str:
    """`text` on one line and printable, at most `limit` characters."""
    return quoted(text, limit)


def argument(text: str) -> str:
    """`text` as one quoted shell word, printable whatever is in it."""
    if text.isprintable():
        return "'" + text.replace("'", "'\"'\"'") + "'"
    shown = []
    for letter in text:
        if letter in "\\'":
            shown.append("\\" + letter)
        elif letter.isprintable():
            shown.append(letter)
        elif "\udc80" <= letter <= "\udcff":  # an undecodable byte of a file name
            shown.append(f"\\x{ord(letter) - 0xDC00:02x}")
        else:
            shown.extend(f"\\x{byte:02x}" for byte in letter.encode("utf-8", "surrogatepass"))
    return "$'" + "".join(shown) + "'"


def count(number: int, word: str, plural: str = "") -> str:
    """`number` with its noun: "1 cell", "2 cells"."""
    return f"{number} {word if number == 1 else plural or word + 's'}"


def clock(seconds: float) -> str:
    """A duration (seconds) for people: "0.4s", "12.3s", "3m05s", "1h02m"."""
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def unexpected(result: ScenarioResult) -> list[Violation]:
    """The violations that nobody expected."""
    return [one for one in result.violations if not one.expected]


def mark(result: ScenarioResult) -> Mark:
    """The one word a scenario's line begins with. What is unknown is never "held" or "caught"."""
    if result.harness_error:
        return "INCONCLUSIVE"
    if result.verdict == "violated":
        if unexpected(result):
            return "VIOLATED"
        if result.as_expected:
            return "caught"
        return "NOT CAUGHT" if result.violations else "VIOLATED"
    if result.verdict == "held":
        return "held" if result.as_expected else "NOT CAUGHT"
    return "not reached" if result.verdict == "not reached" else "INCONCLUSIVE"


def exit_meaning(result: RunResult) -> str:
    """What the exit code of this run says, in one sentence."""
    marks = {mark(one) for one in result.scenarios}
    if result.exit == 2:
        many = count(sum(one.usage_error for one in result.scenarios), "scenario")
        return f"{many} cannot be judged as written" if result.scenarios else "usage or configuration"
    if result.exit == 0:
        words = "every guarantee held" if "held" in marks else ""
        walked = [pair for one in result.scenarios for pair in one.models.items()]
        skipped = sum(model.skipped for name, model in walked if name == "kill")
        left = []
        if skipped:
            left.append(f"{count(skipped, 'crash state was', 'crash states were')} skipped")
        if any(not m.exhaustive or (m.nested and not m.nested_exhaustive) for name, m in walked if name != "kill"):
            left.append("power cuts were a sample")
        if words and left:
            words += f" where it was tried ({', '.join(left)})"
        if "caught" in marks:
            words += (", and " if words else "") + "every expected violation was caught"
        if result.stopped:
            words += (", " if words else "") + "as far as it went (--allow-partial)"
        return words or "everything is as expected"
    if result.exit == 1:
        reasons = {
            "VIOLATED": "a guarantee is violated",
            "NOT CAUGHT": "an expected violation was not caught",
        }
        return ", and ".join(words for key, words in reasons.items() if key in marks) or "a guarantee is violated"
    if result.exit == 3:
        if result.stopped == "--max-time" and not marks & {"INCONCLUSIVE", "not reached"}:
            return "the time ran out (--max-time), so not everything was judged; --allow-partial accepts that"
        return "not everything could be judged, and unknown is never counted as passed"
    return {5: "nothing was selected", 130: "interrupted"}.get(result.exit, "unknown")
