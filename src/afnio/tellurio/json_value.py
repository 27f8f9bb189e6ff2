"""Values as the store keeps them."""

from __future__ import annotations

import json
from typing import Any


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
    # Half a surrogate pair, as broken model replies hold, has no UTF-8; as an escape it is JSON.
    return text.encode("utf-8", "backslashreplace").decode()
