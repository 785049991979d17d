"""Whether a forked Python can end at once, because an orderly end would do nothing more to any file.

An orderly end (exit handlers, then freeing every object) costs a forked worker about 9 ms, most of it copying pages
it shares with its zygote. It matters where something is still to be written: a buffered file that nobody closed, an
exit handler, a destructor. Guarantees: `nothing_left` is True only when no thread but this one runs, no exit handler
was added, and no object made since the fork is an open file, a suspended generator, has a `__del__`, or is of a C type
that is not known to be inert. Does not see C objects that the garbage collector does not track. Runs without a crash,
from which the expected states come, never use it.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import io
import sys
import types
from typing import Any

_INERT_MODULES = frozenset({"_collections", "_functools", "_json", "_operator", "_random", "_struct", "_thread",
                            "_weakref", "builtins", "collections", "functools", "itertools", "operator", "re",
                            "types", "weakref"})  # fmt: skip
#: what every open file is an object of. Asking the abstract `io.IOBase` runs Python code that touches many pages
_OPENED = io.IOBase.__mro__[1]
_SUSPENDED = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)
_HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE: the class was made at run time, by Python code or a C module
_DECLARED = frozenset({"__dict__", "__slots__", "__weakref__"})


#: types whose answer is known before the fork, because asking touches many pages
_known: dict[type, bool] = {}
_exit_c = ctypes.CDLL(None).exit  # looked up here, because a forked child pays for every page it touches


def exit_c(status: int) -> None:
    """End as a C program does: its exit handlers run and its stdio buffers are flushed, Python's objects stay."""
    _exit_c(status)


def mark() -> int:
    """Called before the fork: from here on objects count as new. How many exit handlers there are."""
    for kind in {type(thing) for thing in gc.get_objects()}:
        if not kind.__flags__ & _HEAP:  # made by the interpreter: it stays as it is
            _known[kind] = _inert(kind)
    gc.freeze()
    return atexit._ncallbacks()


def prepare() -> None:
    """Before an orderly end: what was set aside can be collected again, and so a file kept open is flushed."""
    gc.unfreeze()


def pass_over() -> None:
    """What is there now has been looked at: only what is made from here on counts as new."""
    gc.freeze()


def nothing_left(handlers: int) -> bool:
    """Whether ending now leaves every file as an orderly end would. handlers: what `mark` returned."""
    if len(sys._current_frames()) > 1 or atexit._ncallbacks() != handlers:
        return False
    inert = _known
    for thing in gc.get_objects():
        kind = type(thing)
        if kind not in inert:
            inert[kind] = _inert(kind)
        if not inert[kind] and not _finished(thing):
            return False
    return True


def _inert(kind: type) -> bool:
    """Whether freeing any object of this type can change no file."""
    if kind in _SUSPENDED:  # they have no subclasses
        return False
    by_python = False
    for base in reversed(kind.__mro__[:-1]):
        if base is _OPENED:
            return False
        if "__del__" in base.__dict__:
            return False
        if base.__module__ in _INERT_MODULES:
            continue
        # a class statement declares slots or gets these two descriptors, unless a class below it has them already
        by_python = bool(base.__flags__ & _HEAP) and (by_python or not _DECLARED.isdisjoint(base.__dict__))
        if not by_python:
            return False
    return True


def _finished(thing: Any) -> bool:
    if isinstance(thing, io.IOBase):
        try:
            return thing.closed or not thing.writable() or thing in (sys.stdout, sys.stderr)
        except ValueError:
            return True
    if isinstance(thing, types.GeneratorType):
        return thing.gi_frame is None
    return False


def orderly_after(handlers: int) -> bool:
    """Flush what Python itself buffers and say whether the long way is needed."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    return not nothing_left(handlers)
