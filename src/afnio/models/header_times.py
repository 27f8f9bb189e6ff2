"""Header times: what a number in a header says about when."""

from __future__ import annotations

import time
from typing import Final

DAY: Final = 86_400.0
_UNIX: Final = 1e9
"""From here on a number is a Unix time, as durations of 30 years aren't meant."""
_UNIX_MS: Final = 1e11


def seconds_ahead(number: float) -> float | None:
    """Return the seconds from now that `number` means, as a duration or as a Unix time.

    None where that is more than a day: no limit is worth such a wait, so it is an error of the provider's.

    >>> seconds_ahead(60.0), seconds_ahead(1e300)
    (60.0, None)
    >>> round(seconds_ahead(time.time() + 60))
    60
    """
    if number >= _UNIX:
        number = (number / 1000 if number >= _UNIX_MS else number) - time.time()
    return max(0.0, number) if abs(number) <= DAY else None
