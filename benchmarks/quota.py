"""Many calls under requests/min and under tokens/min, held by the client's own limits.

The provider keeps a bucket with a window of two seconds and counts what comes. With the limits known from
the start no call should ever be refused, and little of the quota should go unused.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

import afnio
import afnio.cognitive as cog
from afnio.models.openai import AsyncOpenAI
from afnio.testing import Provider, Quota
from benchmarks.children.texts import MODEL, REPLY, message
from benchmarks.report import Claim, show, timed

WINDOW = 2.0
LATENCY = 0.1
REPLY_TOKENS = 50
"""The most that a reply may have; the provider counts it when it admits a call."""
TOKENS = 80
"""About what it counts for one call, its prompt and its reply."""
WORST, USED = 1.02, 0.95
COLUMNS = ["limit on", "calls", "limit a window", "worst window", "used", "429s", "wall s", "CPU ms/call"]


def main(*, full: bool = False) -> list[Claim]:
    """Print the table and return the claims."""
    return compare(calls=5000 if full else 600, in_window=500 if full else 150)


def compare(*, calls: int, in_window: int) -> list[Claim]:
    """Make `calls` calls under a quota for about `in_window` of them in each window, once by each limit."""
    claims: list[Claim] = []
    rows: list[list[Any]] = []
    missing = _missing()
    for unit in [] if missing else ["requests", "tokens"]:
        row = _row(unit, calls, in_window)
        rows.append(row)
        seen = dict(zip(COLUMNS, row, strict=True))
        ideal = calls / in_window * WINDOW
        why = f"{seen['429s']} refusals in {seen['wall s']:.3g} s, where {ideal:.3g} s are ideal"
        claims += [
            Claim(
                f"{unit}: worst window / limit", seen["worst window"] / seen["limit a window"], WORST, why=why
            ),
            Claim(f"{unit}: used without ramp-up and tail", seen["used"], USED, at_least=True, why=why),
            Claim(f"{unit}: 429s", float(seen["429s"]), 0.0, why=why),
        ]
    if missing:
        claims.append(Claim("used without ramp-up and tail", None, USED, at_least=True, why=missing))
    notes = [
        f"windows of {WINDOW:g} s, latency {LATENCY:g} s; `used` leaves out the first and the last window"
    ]
    show("quota", COLUMNS, rows, notes, claims)
    return claims


def _missing() -> str:
    known = {field.name for field in fields(afnio.Limits)}
    lacking = {"requests_per_minute", "tokens_per_minute"} - known
    return f"afnio.Limits has no {', '.join(sorted(lacking))} in this version" if lacking else ""


def _row(unit: str, calls: int, in_window: int) -> list[Any]:
    limit = in_window if unit == "requests" else in_window * TOKENS
    options: dict[str, Any] = {f"{unit}_per_minute": round(limit * 60 / WINDOW)}
    quota = Quota(window=WINDOW, **{unit: limit})
    with Provider.process(latency=LATENCY, reply=REPLY, quota=quota) as provider:
        client = AsyncOpenAI(base_url=provider.base_url, api_key="any", limits=afnio.Limits(**options))
        wall, cpu = timed(lambda: _ask(client, calls))
        stats = provider.stats()
    return [
        unit,
        calls,
        limit,
        stats["worst_window"][unit],
        used_share(stats["windows"], unit, limit),
        stats["sent_429"],
        wall,
        cpu / calls * 1e3,
    ]


def _ask(client: AsyncOpenAI, calls: int) -> None:
    prompt = cog.Parameter("Sort the message.", role="system prompt")
    asked = afnio.Variable("{message}", role="template")
    messages = [{"role": "system", "content": [prompt]}, {"role": "user", "content": [asked]}]
    texts = {"message": [message(number) for number in range(calls)]}
    reply = cog.functional.chat_completion(
        client, messages, texts, model=MODEL, max_completion_tokens=REPLY_TOKENS
    )
    assert reply.data == [REPLY] * calls


def used_share(windows: list[dict[str, Any]], unit: str, limit: int) -> float | None:
    """Return the share of the quota that the windows between the first and the last one used."""
    inner = windows[1:-1]
    if not inner:
        return None
    # A window counts what came; what was refused of it used nothing, and one without calls isn't listed.
    used = sum(window[unit] * (1 - window["refused"] / window["requests"]) for window in inner)
    return float(used / (limit * (windows[-1]["window"] - windows[0]["window"] - 1)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=600)
    parser.add_argument("--in-window", type=int, default=150)
    given = parser.parse_args()
    compare(calls=given.calls, in_window=given.in_window)
