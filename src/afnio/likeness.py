"""Likeness: which errors tell the same, so that a message has each once, and what of an error fits into a line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

E = TypeVar("E", bound=BaseException)

MAX_REASON: Final = 300
"""Characters of an error's text in the message of another one."""


def distinct(errors: Iterable[E]) -> list[E]:
    """Return the first of each kind of equal errors."""
    found: dict[object, E] = {}
    for error in errors:
        found.setdefault(likeness(error), error)
    return list(found.values())


def likeness(error: BaseException) -> object:
    """Return what errors that tell the same have in common: the type, the text, the line that raised them."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    line = None if last is None else (last.tb_frame.f_code.co_filename, last.tb_lineno)
    return type(error), text_of(error), line


def text_of(error: BaseException) -> str:
    """Return what `error` says; a class of the user's may fail to."""
    try:
        return str(error)
    except Exception:
        return ""


def reason(error: BaseException) -> str:
    """Return an error's type and the first line of its text, for the message of another one."""
    text = text_of(error).strip().partition("\n")[0]
    text = text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
