"""Tracebacks and failures: which line of the user's an error is about, and the log of errors that nobody reads.

A lane fails several tasks and threads away from the line that reads its value. Unedited, its traceback would have
dozens of frames of the engine, asyncio, anyio and the HTTP client, the same ones for every error, and the one line
that the user wrote would be lost among them. `fold` removes these frames; `folding` decorates the functions through
which errors leave the engine.

Frames are kept if they may explain something: an error that isn't Afnio's and shows no line of the user's may be a
bug in the engine.

`caller_line` finds the line of the user's code that launched an op, by the same rule; it skips libraries, too.

A `Failure` is the outcome of a lane that failed. It keeps the error and the line that launched its op.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable
from types import FrameType, TracebackType
from typing import Any, Final, NamedTuple, TypeVar, cast, final

from afnio.errors import AfnioError, text_of

F = TypeVar("F", bound=Callable[..., Any])

# Packages that the engine calls, or that call it. Below a frame of the user's they were called by the user.
LIBRARIES: Final = frozenset(
    {
        "aiohappyeyeballs", "aiohttp", "anyio", "asyncio", "concurrent", "contextlib", "httpx2", "json", "openai",
        "tenacity", "threading",
    }
)  # fmt: skip
_RUNTIME: Final = "afnio.runtime."


def fold(error: BaseException) -> None:
    """Remove the engine's frames from the traceback of `error`, its causes and its parts.

    If no frame of the user's is left and the error isn't Afnio's, the frames outside of `afnio.runtime` stay. A
    library's error whose text the Afnio error repeats is no longer shown as its cause.

    With AFNIO_TRACEBACK=full in the environment nothing is removed.
    """
    if os.environ.get("AFNIO_TRACEBACK") == "full":
        return
    _fold(error, explained=False, done=set())


def folding(function: F) -> F:
    """Fold the errors that leave `function`: a `def`, an `async def` or a generator."""
    made: Callable[..., Any]
    if inspect.iscoroutinefunction(function):

        async def awaiting(*args: Any, **kwargs: Any) -> Any:
            try:
                return await function(*args, **kwargs)
            except Exception as error:
                fold(error)
                raise

        made = awaiting
    elif inspect.isgeneratorfunction(function):

        def yielding(*args: Any, **kwargs: Any) -> Any:
            try:
                return (yield from function(*args, **kwargs))
            except Exception as error:
                fold(error)
                raise

        made = yielding
    else:

        def calling(*args: Any, **kwargs: Any) -> Any:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                fold(error)
                raise

        made = calling
    return cast("F", functools.wraps(function)(made))


def _fold(error: BaseException, *, explained: bool, done: set[int]) -> None:
    if id(error) in done:
        return
    done.add(id(error))
    explained = explained or isinstance(error, AfnioError | BaseExceptionGroup)
    error.__traceback__ = _folded(error.__traceback__, explained=explained)
    for part in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        _fold(part, explained=False, done=done)
    cause = error.__cause__ if error.__suppress_context__ else error.__context__
    if cause is None:
        return
    raised = cause.__traceback__ is not None
    _fold(cause, explained=explained, done=done)
    bare = raised and cause.__traceback__ is None
    # Keep Afnio's own causes: callers may look at them to distinguish failures.
    repeats = isinstance(error, AfnioError) and text_of(cause) in text_of(error)
    if bare and repeats and not isinstance(cause, AfnioError):
        error.__cause__ = None  # this also suppresses the context


def _folded(traceback: TracebackType | None, *, explained: bool) -> TracebackType | None:
    users: list[TracebackType] = []
    engine: list[TracebackType] = []
    ours, at = True, traceback
    while at is not None:
        name = str(at.tb_frame.f_globals.get("__name__", ""))
        if is_engine(at.tb_frame.f_code.co_filename):
            ours = True
            engine += [] if name.startswith(_RUNTIME) else [at]
        elif not ours or name.partition(".")[0] not in LIBRARIES:
            ours = False
            users.append(at)
        at = at.tb_next
    if users or explained:
        return _linked(users)
    return _linked(engine) or traceback


def _linked(entries: Iterable[TracebackType]) -> TracebackType | None:
    linked: TracebackType | None = None
    for entry in reversed(list(entries)):
        linked = TracebackType(linked, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return linked


# The caller's line


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
# Programs that are part of the package. The engine treats them as user code.
_PROGRAMS = _PACKAGE + "demo" + os.sep


class Line(NamedTuple):
    """A line of the user's code. `str()` of it is `file:number in function`."""

    file: str
    number: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number} in {self.function}"


def caller_line() -> Line:
    """Return the innermost line of the call stack that belongs neither to Afnio nor to a library.

    A task or a thread that a library started has none. Then it is the library's line that called Afnio.
    """
    here = sys._getframe(1)
    frame: FrameType | None = here
    library: FrameType | None = None
    while frame is not None:
        file = frame.f_code.co_filename
        if is_users(file):
            break
        if not is_engine(file):
            library = library or frame
        frame = frame.f_back
    shown = frame or library or here
    return Line(shown.f_code.co_filename, shown.f_lineno, shown.f_code.co_name)


@functools.lru_cache(maxsize=4096)
def is_users(file: str) -> bool:
    """Return True for a file of the user's: neither Afnio's, nor Python's, nor an installed package's."""
    return not (is_engine(file) or any(part in file for part in _INSTALLED))


# Parts of the names of files that belong to Python or to an installed package.
_INSTALLED: Final = (
    f"{os.sep}site-packages{os.sep}",
    f"{os.sep}dist-packages{os.sep}",
    f"{os.path.dirname(os.__file__)}{os.sep}",
    "<frozen",
)


def is_engine(file: str) -> bool:
    """Return True if `file` belongs to the package, the demo excepted."""
    return file.startswith(_PACKAGE) and not file.startswith(_PROGRAMS)


@final
class Failure:
    """Outcome of a lane that failed: its error, kept so that it can be raised more than once.

    An unread failure is logged when the last slot that holds it is garbage-collected.
    """

    __slots__ = ("__weakref__", "_causes", "_read", "_traceback", "error", "place")

    def __init__(self, error: BaseException, *, read: bool = False, place: str | None = None) -> None:
        self.error = error
        # The op that failed and the line that launched it. The reader may be many ops further downstream.
        self.place = place
        self._read = read
        self._traceback: TracebackType | None = error.__traceback__
        # Reading a batch's failure counts as reading those of its samples.
        self._causes: tuple[Failure, ...] = getattr(error, "failures", ())

    @property
    def read(self) -> bool:
        return self._read or (bool(self._causes) and all(cause.read for cause in self._causes))

    @property
    def causes(self) -> tuple[Failure, ...]:
        """The failures of the samples, if this is the failure of a batch."""
        return self._causes

    def mark_read(self) -> None:
        """Don't log this failure: its error has been raised or reported."""
        self._read = True
        for cause in self._causes:
            cause.mark_read()

    def raised(self) -> BaseException:
        """Return the error to raise. Its traceback is reset, because each `raise` of a shared error would extend it."""
        self.mark_read()
        return self.error.with_traceback(self._traceback)

    def __repr__(self) -> str:
        return f"<failure: {self.error!r}>"

    def __del__(self) -> None:
        if not self.read:
            unread.add(self)


@final
class UnreadFailures:
    """Logs failures that were never read: the first of each kind and launching line, and at the end how many more."""

    def __init__(self) -> None:
        self._seen: set[tuple[type, str | None]] = set()
        self._more = 0

    def add(self, failure: Failure) -> None:
        kind = type(failure.error), failure.place
        if kind in self._seen:
            self._more += 1
            return
        self._seen.add(kind)
        notes = "; ".join(getattr(failure.error, "__notes__", ()))
        logging.getLogger("afnio").error(
            "a failure was never read: %s: %s (%s)", type(failure.error).__name__, failure.error, notes
        )

    def end(self) -> None:
        more, self._more = self._more, 0
        if more:
            logging.getLogger("afnio").error("%d more failures of these kinds were never read", more)


unread: Final = UnreadFailures()
