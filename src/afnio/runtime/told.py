"""Told: warnings about an account that are logged once."""

from __future__ import annotations

import logging
from typing import Final

_told: Final[set[tuple[str, str]]] = set()


def tell_once(url: str, kind: str, text: str, *figures: object) -> None:
    """Log a warning about the account at `url`, the first time that one of its kind comes up.

    Args:
        text: begins with the URL's `%s`; `figures` fill in the rest.
    """
    if (url, kind) not in _told:
        _told.add((url, kind))
        logging.getLogger("afnio").warning(text, url, *figures)
