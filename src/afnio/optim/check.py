"""Check: whether a proposed text may become a parameter's value."""

from __future__ import annotations

import re
from typing import Final

_PLACEHOLDER: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")


def objections(before: str, after: str) -> list[str]:
    """Return what speaks against replacing `before` by `after`, in words for the proposer.

    >>> objections("Answer {question}.", "Answer.")
    ['it must keep the placeholder {question}']
    """
    if not after.strip():
        return ["it must not be empty"]
    kept = _PLACEHOLDER.findall(after)
    lost = [name for name in dict.fromkeys(_PLACEHOLDER.findall(before)) if name not in kept]
    return [f"it must keep the placeholder {name}" for name in lost]
