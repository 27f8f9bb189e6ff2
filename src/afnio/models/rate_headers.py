"""Rate headers: what a reply's `x-ratelimit-*` headers say about the account's limits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Final

from afnio.models.header_times import seconds_ahead
from afnio.runtime._admission import hear_limits
from afnio.runtime._limits import NO_LIMIT, Reading, tell_once

_UNITS: Final = {
    "d": 86400.0,
    "h": 3600.0,
    "m": 60.0,
    "s": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "µs": 1e-6,
    "ns": 1e-9,
}
_PART: Final = re.compile(r"(\d+(?:\.(\d+))?)(ms|us|µs|ns|d|h|m|s)")
_DURATION: Final = re.compile(rf"(?:{_PART.pattern})+")


def hear_headers(headers: Mapping[str, str], url: str) -> None:
    """Tell admission what the headers of a reply from `url` say; in the attempt that got it."""
    hear_limits(read_limit(headers, "requests", url), read_limit(headers, "tokens", url))


def read_limit(headers: Mapping[str, str], kind: str, url: str = "the provider") -> Reading | None:
    """Return what the headers say of the limit of `requests` or `tokens`; None where they don't.

    What can't be meant as it stands is told once for each URL.

    >>> read_limit({"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59",
    ...             "x-ratelimit-reset-requests": "1s"}, "requests")
    Reading(limit=60, remaining=59, reset=1.0, precision=0.0005)
    """
    limit = _whole(headers.get(f"x-ratelimit-limit-{kind}"))
    remaining = _whole(headers.get(f"x-ratelimit-remaining-{kind}"))
    if limit is None or remaining is None or limit < 1:
        return None
    if limit >= NO_LIMIT:
        name = f"x-ratelimit-limit-{kind}"
        tell_once(url, name, "%s says %s: %.40s, which is taken for no limit", name, headers[name])
        return None
    reset, precision = _read_reset(headers.get(f"x-ratelimit-reset-{kind}"), kind, url)
    return Reading(limit, max(0, min(remaining, limit)), reset, precision)


def _read_reset(text: str | None, kind: str, url: str) -> tuple[float | None, float]:
    number, precision = read_duration(text)
    if number is None:
        return None, 0.0
    reset = seconds_ahead(number)
    if reset == number:
        return reset, precision
    name = f"x-ratelimit-reset-{kind}"
    if reset is None:
        tell_once(url, name, "%s says %s: %.40s, which is more than a day and is ignored", name, text)
        return None, 0.0
    told = "%s says %s: %.40s, which is taken for a Unix time, %.0f s from now"
    tell_once(url, name, told, name, text, reset)
    return reset, 1.0


def read_duration(text: str | None) -> tuple[float | None, float]:
    """Return a duration in seconds, and by how much its rounding may be off: `6m0s`, `20ms`, `1.5`.

    With units it is exact to the millisecond, as who writes them leaves out the zeros; a plain number may be
    off by half of its last digit, by a second where it is whole.

    >>> read_duration("6m0s"), read_duration("20ms"), read_duration("12")
    ((360.0, 0.0005), (0.02, 0.0005), (12.0, 1.0))
    """
    text = (text or "").strip()
    if _DURATION.fullmatch(text):
        parts = list(_PART.finditer(text))
        seconds = sum(float(part[1]) * _UNITS[part[3]] for part in parts)
        if not math.isfinite(seconds):
            return None, 0.0
        last = parts[-1]
        return seconds, min(5e-4, _UNITS[last[3]] * 10.0 ** -len(last[2] or "") / 2)
    try:
        seconds = float(text)
    except ValueError:
        return None, 0.0
    if not math.isfinite(seconds) or seconds < 0:
        return None, 0.0
    decimals = len(text.partition(".")[2])
    return seconds, 10.0**-decimals / 2 if decimals else 1.0


def _whole(text: str | None) -> int | None:
    try:
        number = None if text is None else float(text)
    except ValueError:
        return None
    return int(number) if number is not None and math.isfinite(number) else None
