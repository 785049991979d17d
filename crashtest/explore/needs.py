"""The words of `crashtest syncs`: a verdict for each place that syncs, what is missing, and the bound of both.

These records are syncs.json (schema 1): later versions add fields and rename nothing.
"""

from __future__ import annotations

import msgspec

from crashtest.verdict import Violation

NEEDED, NOT_NEEDED = "needed", "not needed by any claimed guarantee within the bound"
NOT_REACHED, UNKNOWN = "not reached", "inconclusive"


class SyncVerdict(msgspec.Struct, kw_only=True):
    """One place that issues syncs."""

    #: what the place is known by (`cells.drops.site_key`), "" where it was not reached
    key: str = ""
    #: "run", "recovery", or "" where it was not reached
    part: str
    #: the system call, and what it is called on, the first few names
    call: str
    paths: list[str] = []
    #: the code lines, innermost first, or the program
    where: str
    #: how many syncs it issues in one run, or at most in one recovery; and the ordinals of those that are needed
    count: int = 0
    needed: list[int] = []
    verdict: str
    #: models under which it is needed
    models: list[str] = []
    #: what would do in its place, in words
    weaker: str = ""
    #: the proof
    violation: Violation | None = None
    #: what makes the same durable later, in words; "" where it is durable already, or never is
    covered: str = ""
    #: losses tried and left out to find that it is not needed
    tried: int = 0
    left: int = 0
    exhaustive: bool = False
    reason: str = ""
    #: of one sync on the disk named, the median; None where it was not measured
    milliseconds: float | None = None


class Missing(msgspec.Struct, kw_only=True):
    """A violation, and the smallest added syncs that remove it; none where no sync does."""

    violation: Violation
    #: models under which the same syncs remove the same
    models: list[str] = []
    #: in words: "fsync of the directory ., after a.py:7 in save and before a.py:8 in save"
    barriers: list[str]


class SyncsResult(msgspec.Struct, kw_only=True):
    """What `crashtest syncs` found, as written to syncs.json."""

    schema: int = 1
    scenario: str
    file: str
    exit: int
    reason: str = ""
    models: list[str]
    guarantees: list[str]
    seed: int
    seconds: float = 0.0
    #: the bound: operations, losses tried for one question at most, recoveries in which syncs were dropped as well
    sequences: int = 0
    operations: int = 0
    losses: int = 0
    depth: int = 2
    recoveries: int = 0
    syncs: list[SyncVerdict] = []
    missing: list[Missing] = []
    #: whether no violation was left, within the bound, when the missing syncs were added
    mended: bool = False
    #: where and on which file system times were measured
    disk: str = ""
    notes: list[str] = []
