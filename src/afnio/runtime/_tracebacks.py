"""Fold: errors show the user's frames, not those of the engine and of the libraries that it runs on.

A lane fails several tasks and threads away from the line that reads it. The frames between are the same for
every error and explain none.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final, NamedTuple, TypeVar, cast

from afnio.errors import AfnioError, text_of

F = TypeVar("F", bound=Callable[..., Any])

LIBRARIES: Final = frozenset(
    {
        "aiohappyeyeballs", "aiohttp", "anyio", "asyncio", "concurrent", "contextlib", "httpx2", "json", "openai",
        "tenacity", "threading",
    }
)  # fmt: skip
"""What the engine calls or is run by. Below a frame of the user's it is the user who called them."""
_RUNTIME: Final = "afnio.runtime."


def fold(error: BaseException) -> None:
    """Take the engine's frames out of the traceback of `error`, and of its causes and parts.

    An error that is none of Afnio's and shows no frame of the user's may be a fault of the engine; it keeps
    the frames that can explain it. A cause that says nothing new is not shown.
    """
    _fold(error, explained=False, done=set())


def folding(function: F) -> F:
    """Have errors leave `function`, be it a `def`, an `async def` or a generator, without its own frame, and folded."""
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
    # Only a library's error: callers may tell failures apart by an Afnio error that caused another.
    repeats = isinstance(error, AfnioError) and text_of(cause) in text_of(error)
    if bare and repeats and not isinstance(cause, AfnioError):
        error.__cause__ = None  # which suppresses the context, too


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


# Line: where in the user's code a launch happened.


_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_PROGRAMS = _PACKAGE + "demo" + os.sep
"""Programs that come with the package; to the engine they are users."""


class Line(NamedTuple):
    """A place in the user's code, shown as `file:number in function`."""

    file: str
    number: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.number} in {self.function}"


def caller_line() -> Line:
    """Return the innermost line of the call stack that is not Afnio's own."""
    frame = sys._getframe(1)
    while frame.f_back is not None and is_engine(frame.f_code.co_filename):
        frame = frame.f_back
    code = frame.f_code
    return Line(code.co_filename, frame.f_lineno, code.co_name)


def is_engine(file: str) -> bool:
    """Whether `file` is of the package, and none of the programs that come with it."""
    return file.startswith(_PACKAGE) and not file.startswith(_PROGRAMS)
