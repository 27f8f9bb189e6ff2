"""Values as the store keeps them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

# Made once: making an encoder takes longer than most of the values that it gets.
_LENIENT = json.JSONEncoder(default=str, ensure_ascii=False)


def encode(what: str, value: Any) -> str:
    """The value as JSON, taken now, so that later changes don't reach the record.

    >>> encode("metric [loss]", {"sum": 0.5})
    '{"sum": 0.5}'
    """

    def refuse(part: Any) -> Any:
        raise TypeError(
            f"The {what} holds a [{type(part).__name__}], which JSON can't express; pass numbers, "
            "strings, lists and dicts, e.g. `.data` of a Variable."
        )

    try:
        text = json.dumps(value, default=refuse, ensure_ascii=False)
    except ValueError as error:
        raise TypeError(f"The {what} is a [{type(value).__name__}] that contains itself.") from error
    return encodable(text)


def lenient(value: Any, text: Callable[[Any], str] = str) -> str:
    """Any value as JSON; what JSON can't express as its `text`.

    >>> lenient({"at": (1, {2})})
    '{"at": [1, "{2}"]}'
    """
    encoder = _LENIENT if text is str else json.JSONEncoder(default=text, ensure_ascii=False)
    return encodable(encoder.encode(value))


def as_text(value: Any) -> str:
    """A text as it is, any other value as JSON.

    >>> as_text("yes"), as_text(1.5)
    ('yes', '1.5')
    """
    return encodable(value) if isinstance(value, str) else lenient(value)


def encodable(text: str) -> str:
    """The text, with an escape for half a surrogate pair, as broken model replies hold: it has no UTF-8."""
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode()
