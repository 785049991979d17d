"""The errors of the engine: each says what happened, to what, and what to do next.

Guarantees: everything the engine refuses or fails at is a `JinError`; names that come from outside (file
names, ref names, messages of git) are escaped, so an error can be printed on a terminal and written to a
log line.
Does not guarantee: that the wording stays the same; branch on the class and its attributes.
"""

from __future__ import annotations


def escape(text: str | bytes, limit: int = 400) -> str:
    """`text` on one printable line: everything that is not printable becomes a backslash escape.

    Bytes are read as UTF-8 where they can be. At most `limit` characters are kept.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    out = "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in text)
    return out if len(out) <= limit else out[: limit - 3] + "..."


class JinError(Exception):
    """What happened, in `args[0]`, and `remedy`: what the reader can do about it (may be empty)."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.args[0]}: {self.remedy}" if self.remedy else str(self.args[0])


class NotARepository(JinError):
    """The path is not the top of a git work tree that the engine can serve."""


class Busy(JinError):
    """Another holder has the store open and waiting for it was not wanted or cannot end."""


class Misuse(JinError):
    """The interface was used in a way that it does not allow; the repository is untouched."""


class PathRefused(JinError):
    """A file path that leaves the work tree, enters `.git`, or passes through a symbolic link or a file."""


class RefRefused(JinError):
    """A ref name that git would not take, or a kind of ref that this version does not change."""


class ObjectMissing(JinError):
    """A ref would name an object that the repository does not have."""


class Conflict(JinError):
    """The repository is not what the transaction expects; nothing of the transaction was kept.

    `participant` is "files" or "refs", `reason` the same sentence without the remedy.
    """

    def __init__(self, participant: str, reason: str, remedy: str = "") -> None:
        super().__init__(f"{participant}: {reason}", remedy)
        self.participant = participant
        self.reason = reason


class RefMoved(Conflict):
    """A ref has another value than the transaction expects, or exists, or does not."""


class RefLocked(Conflict):
    """Somebody else holds git's lock of a ref, of HEAD or of packed-refs."""


class RefNameTaken(Conflict):
    """A ref `a` and a ref `a/b` cannot both exist."""


class FileChanged(Conflict):
    """A file is not what it was when the transaction looked, or is missing and was to be deleted."""


class NotAFile(Conflict):
    """There is a directory, a device or a socket where the transaction wants a file."""


class GitFailed(Conflict):
    """The git child refused or died; its own words are in the reason."""


class IoFailed(JinError):
    """The operating system refused a call before the commit point; the transaction was rolled back."""


class LogCorrupt(JinError):
    """The log has a damaged record that is not simply a torn end; nothing was changed."""


class LogFailed(JinError):
    """The log could not be written or synced; no further transaction is taken before recovery has run."""


class OutcomeUnknown(JinError):
    """The commit record may or may not be on the disk; recovery decides, the process must not."""


class NotFinished(JinError):
    """The transaction is committed for good, but not all of it is visible yet; recovery finishes it."""


class NeedsRecovery(JinError):
    """An earlier transaction of this store is unfinished; call `recover()` or open the store again."""


class RecoveryConflict(JinError):
    """Recovery met work that is neither the old nor the new state, and has not touched it.

    `participant` is "files" or "refs".
    """

    def __init__(self, participant: str, reason: str, remedy: str = "") -> None:
        super().__init__(f"recovery stopped at {participant}: {reason}", remedy)
        self.participant = participant
        self.reason = reason
