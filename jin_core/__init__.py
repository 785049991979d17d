"""Change git refs and work-tree files together, all or nothing, even when the process is killed.

    from jin_core import Jin

    with Jin.open("path/to/worktree") as jin:
        with jin.transaction() as tx:
            tx.write("config.json", b"{}")
            tx.update_ref("refs/heads/main", new_commit, old=old_commit)

When the block ends, all of it is durable and visible; when it raises, none of it is. After a crash the next
opening finishes or undoes what was under way. Programs that watch the engine listen to `sys.audit` events
named in `STEPS`.
"""

from jin_core.errors import (
    Busy,
    Conflict,
    FileChanged,
    GitFailed,
    IoFailed,
    JinError,
    LogCorrupt,
    LogFailed,
    Misuse,
    NeedsRecovery,
    NotAFile,
    NotARepository,
    NotFinished,
    ObjectMissing,
    OutcomeUnknown,
    PathRefused,
    RecoveryConflict,
    RefLocked,
    RefMoved,
    RefNameTaken,
    RefRefused,
)
from jin_core.recovery import Recovery
from jin_core.steps import STEPS
from jin_core.store import Jin, Status
from jin_core.transaction import Transaction

__all__ = [
    "STEPS",
    "Busy",
    "Conflict",
    "FileChanged",
    "GitFailed",
    "IoFailed",
    "Jin",
    "JinError",
    "LogCorrupt",
    "LogFailed",
    "Misuse",
    "NeedsRecovery",
    "NotAFile",
    "NotARepository",
    "NotFinished",
    "ObjectMissing",
    "OutcomeUnknown",
    "PathRefused",
    "Recovery",
    "RecoveryConflict",
    "RefLocked",
    "RefMoved",
    "RefNameTaken",
    "RefRefused",
    "Status",
    "Transaction",
]
