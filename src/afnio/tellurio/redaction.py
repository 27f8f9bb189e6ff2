"""Redaction: what a user wants kept out of texts, taken out before anything is written."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from pydantic import BaseModel

from afnio.tellurio.json_value import lenient

Redact: TypeAlias = Callable[[str], str] | Iterable[str | re.Pattern[str]]
"""A function of a text that returns what may be written, or patterns whose matches become `[redacted]`."""

MASK: Final = "[redacted]"


class Redaction:
    """Applies the user's `redact` to every text in a value.

    A function that fails takes the whole text out, and is reported once: a text that it was to look at
    must not slip through.

    >>> redaction = Redaction([r"sk-\\w+"])
    >>> redaction.value({"prompt": ["use sk-123", 4]})
    {'prompt': ['use [redacted]', 4]}
    """

    def __init__(self, redact: Redact | None) -> None:
        self._function = _function(redact)
        self._failed = False

    def text(self, text: str) -> str:
        """The text as it may be written."""
        if self._function is None:
            return text
        try:
            redacted = self._function(text)
            if not isinstance(redacted, str):
                raise TypeError(f"redact must return a text (got {type(redacted).__name__})")
        except Exception as error:
            if not self._failed:
                self._failed = True
                logging.getLogger("afnio").warning(
                    "redact failed, so %s is written in place of a text (%s)", MASK, type(error).__name__
                )
            return MASK
        return redacted

    def value(self, value: Any) -> Any:
        """The value with every text in it as it may be written: of lists, dicts, events, requests, replies.

        The keys of a dict are names, and stay.
        """
        return value if self._function is None else self._value(value)

    def json(self, value: Any) -> str:
        """The value as JSON as it may be written; what JSON can't express is a text as well.

        >>> print(Redaction(["sk-1"]).json([{"sk-1"}]))
        ["{'[redacted]'}"]
        """
        return lenient(value) if self._function is None else lenient(self._value(value), self._text_of)

    def _text_of(self, value: Any) -> str:
        return self.text(str(value))

    def _value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self._value(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if isinstance(value, set | frozenset):
            return type(value)(self._value(item) for item in value)
        if isinstance(value, tuple):
            parts = [self._value(item) for item in value]
            return value._make(parts) if hasattr(value, "_make") else tuple(parts)
        if isinstance(value, BaseModel):
            return value.model_copy(update={name: self._value(item) for name, item in value})
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [field.name for field in dataclasses.fields(value) if field.init]
            return dataclasses.replace(
                value, **{name: self._value(getattr(value, name)) for name in fields if name not in PLAIN}
            )
        return value


PLAIN: Final = frozenset({"address", "node", "account", "model", "purpose", "kind", "line", "run_id"})
"""Fields of events that are no texts of the user's, and by which rows are found."""


def _function(redact: Redact | None) -> Callable[[str], str] | None:
    if redact is None or callable(redact):
        return redact
    if isinstance(redact, str):
        raise TypeError(f"redact must be a function or a list of patterns (got {redact!r}); put it in a list")
    patterns = [re.compile(pattern) for pattern in redact]

    def mask(text: str) -> str:
        for pattern in patterns:
            text = pattern.sub(MASK, text)
        return text

    return mask
