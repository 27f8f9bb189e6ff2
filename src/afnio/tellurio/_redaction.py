"""The texts and the JSON that a run writes, and what is masked in them.

`Redaction` applies the user's `redact` to every text before the store or a sink gets it. The functions after it turn
values into JSON and text: `encode` refuses what JSON can't express, because the program logged it, and `lenient`
writes it as text, because the engine did.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeAlias

from afnio.models._messages import is_pydantic_model

# A function that returns the text that may be written, or patterns whose matches become `[redacted]`.
Redact: TypeAlias = Callable[[str], str] | Iterable[str | re.Pattern[str]]

MASK: Final = "[redacted]"


class Redaction:
    """Applies the user's `redact` to every text in a value.

    If the function fails, the whole text is masked, and the failure is reported once. Otherwise the secret that it
    should have removed would be written.

    >>> redaction = Redaction([r"sk-\\w+"])
    >>> redaction.value({"prompt": ["use sk-123", 4]})
    {'prompt': ['use [redacted]', 4]}
    """

    def __init__(self, redact: Redact | None) -> None:
        self._function = _function(redact)
        self._failed = False

    def text(self, text: str) -> str:
        """Return the text that may be written."""
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
        """Return the value with every text in it redacted: in lists, dicts, events, requests and replies.

        The keys of a dict are names and stay unchanged.
        """
        return value if self._function is None else self._value(value)

    def json(self, value: Any) -> str:
        """Return the redacted value as JSON. The text of a part that JSON can't express is redacted too.

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
        if is_pydantic_model(type(value)):
            return value.model_copy(update={name: self._value(item) for name, item in value})
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [field.name for field in dataclasses.fields(value) if field.init]
            return dataclasses.replace(
                value, **{name: self._value(getattr(value, name)) for name in fields if name not in PLAIN}
            )
        return value


# Fields of events by which rows are found. They aren't texts of the user.
PLAIN: Final = frozenset({"address", "node", "account", "model", "purpose", "kind", "line", "run_id"})


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


# --- JSON and text ---

# Reused, because making an encoder takes longer than encoding most values.
_LENIENT = json.JSONEncoder(default=str, ensure_ascii=False)


def encode(what: str, value: Any) -> str:
    """Return the value as JSON, now, so that later changes to it aren't recorded.

    Raises:
        TypeError: JSON can't express the value.


    >>> encode("metric accuracy", {"sum": 0.5})
    '{"sum": 0.5}'
    """

    def refuse(part: Any) -> Any:
        raise TypeError(
            f"the {what} must be JSON (got {type(part).__name__} in it); pass numbers, strings, lists and "
            "dicts, such as the `data` of a Variable"
        )

    try:
        text = json.dumps(value, default=refuse, ensure_ascii=False)
    except ValueError as error:
        raise TypeError(
            f"the {what} must be JSON (got {type(value).__name__} that contains itself)"
        ) from error
    return encodable(text)


def lenient(value: Any, text: Callable[[Any], str] = str) -> str:
    """Return any value as JSON; parts that JSON can't express become `text(part)`.

    >>> lenient({"at": (1, {2})})
    '{"at": [1, "{2}"]}'
    """
    encoder = _LENIENT if text is str else json.JSONEncoder(default=text, ensure_ascii=False)
    return encodable(encoder.encode(value))


def as_text(value: Any) -> str:
    """Return a text unchanged and any other value as JSON.

    >>> as_text("yes"), as_text(1.5)
    ('yes', '1.5')
    """
    return encodable(value) if isinstance(value, str) else lenient(value)


def encodable(text: str) -> str:
    """Escape lone surrogates. Broken model replies contain them, and they have no UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()
