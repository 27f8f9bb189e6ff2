"""Query number: a whole number that an address asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

LARGEST: Final = 2**63 - 1
"""SQLite's numbers have 64 bits; larger ones in an address are nobody's."""


def query_number(asked: Mapping[str, str], name: str) -> int:
    """Return the number that a query has by this name; 0 where it has none.

    >>> query_number({"from": "20"}, "from"), query_number({"from": "-1"}, "from"), query_number({}, "from")
    (20, 0, 0)
    """
    text = asked.get(name, "")
    if not text.isdecimal():
        return 0
    # Python refuses to read thousands of digits.
    return min(int(text), LARGEST) if len(text) < 20 else LARGEST
