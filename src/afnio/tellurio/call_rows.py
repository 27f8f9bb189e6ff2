"""Call rows: language model calls with what was asked, answered and paid; in the writing thread."""

from __future__ import annotations

import logging
import sqlite3
from functools import lru_cache
from typing import Any, Final

from afnio.models._prices import price_of
from afnio.runtime._spending import Price, cost
from afnio.runtime.events import CallEnded, CallReplayed, CallRetried, Usage
from afnio.tellurio.bodies import Bodies
from afnio.tellurio.json_value import encodable
from afnio.tellurio.phase import phase_of
from afnio.tellurio.redaction import Redaction

# What was paid at one address adds up: a call that failed may be made again when its run is continued.
INSERT: Final = """
INSERT INTO calls (
    run_id, address, node, lane, phase, purpose, account, model, status, replayed, attempts, seconds, waited,
    started, ended, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, cost, error, params,
    messages, reply
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run_id, address) DO UPDATE SET
    model = excluded.model, account = excluded.account, status = excluded.status,
    attempts = attempts + excluded.attempts, seconds = seconds + excluded.seconds,
    waited = waited + excluded.waited, started = excluded.started, ended = excluded.ended,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens,
    cost = coalesce(cost + excluded.cost, cost, excluded.cost), error = excluded.error,
    params = excluded.params, messages = excluded.messages, reply = excluded.reply"""
REPLAY: Final = """
UPDATE calls SET replayed = replayed + 1
WHERE run_id = ? AND address = ? AND status NOT IN ('failed', 'cancelled')"""
INSERT_RETRY: Final = """
INSERT INTO retries (run_id, address, attempt, error, wait, time) VALUES (?, ?, ?, ?, ?, ?)"""

CANCELLED: Final = ("CancelledError", "Cancelled")
"""What asyncio and trio raise in a task that is cancelled."""

RECENT: Final = 1_000
"""Messages and replies that are known by their texts."""


class CallRows:
    """Writes the calls of one run."""

    def __init__(self, run_id: str, redaction: Redaction) -> None:
        self._run_id = run_id
        self._redaction = redaction
        self._bodies = Bodies(run_id)
        self._recent: dict[tuple[Any, ...], int] = {}

    def end(self, connection: sqlite3.Connection, event: CallEnded, time: float) -> None:
        """Write a call that has ended."""
        status, said = outcome(event.error)
        known = float(event.cost) if event.cost is not None else _cost(event)
        error = None if said is None else encodable(self._redaction.text(said))
        effort = (event.attempts, event.seconds, event.waited, time - event.seconds - event.waited, time)
        self._insert(connection, event, (status, 0), effort, event.usage, known, error)

    def replay(self, connection: sqlite3.Connection, event: CallReplayed, time: float) -> None:
        """Count an answer of the journal; its call has a row, unless the process was killed before."""
        if connection.execute(REPLAY, (self._run_id, event.address)).rowcount == 0:
            usage = event.reply.usage if event.reply is not None else Usage()
            self._insert(connection, event, ("replayed", 1), (0, 0.0, 0.0, time, time), usage, 0.0, None)

    def retry(self, connection: sqlite3.Connection, event: CallRetried, time: float) -> None:
        """Write an attempt that failed."""
        error = encodable(self._redaction.text(event.error))
        row = (self._run_id, event.address, event.attempt, error, event.wait, time)
        connection.execute(INSERT_RETRY, row)

    def _insert(
        self,
        connection: sqlite3.Connection,
        event: CallEnded | CallReplayed,
        status: tuple[str, int],
        effort: tuple[Any, ...],
        usage: Usage,
        dollars: float | None,
        error: str | None,
    ) -> None:
        request, reply = event.request, event.reply
        messages = () if request is None else [self._body(connection, part) for part in request.messages]
        row = (
            self._run_id,
            event.address,
            event.node or event.address,
            event.lane,
            phase_of(event.node or event.address),
            event.purpose,
            event.account,
            event.model,
            *status,
            *effort,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
            dollars,
            error,
            None if request is None or not request.params else self._body(connection, request.params),
            ",".join(map(str, messages)),
            None if reply is None else self._body(connection, _shown(reply)),
        )
        connection.execute(INSERT, row)

    def _body(self, connection: sqlite3.Connection, value: Any) -> int:
        # Most messages of a batch are one: knowing it by its text spares making JSON of it and a digest.
        content = value.get("content") if len(value) == 2 else None
        parts = tuple(value.items()) if isinstance(content, str) else None
        try:
            known = None if parts is None else self._recent.get(parts)
        except TypeError:  # a part that can't be a key
            parts = known = None
        if known is None:
            known = self._bodies.number(connection, self._redaction.json(value))
            if parts is not None:
                if len(self._recent) >= RECENT:
                    self._recent.clear()
                self._recent[parts] = known
        return known


def outcome(error: str | None) -> tuple[str, str | None]:
    """Return a call's status and what went wrong; a call that was cancelled didn't fail.

    >>> outcome("CancelledError: "), outcome("ModelError: no")
    (('cancelled', None), ('failed', 'ModelError: no'))
    """
    if error is None:
        return "ok", None
    kind, _, said = error.partition(": ")
    return ("cancelled", said or None) if kind in CANCELLED else ("failed", error)


def _shown(reply: Any) -> dict[str, Any]:
    """A reply as JSON types; its usage has columns of its own."""
    if not hasattr(reply, "content"):
        return {"content": str(reply)}
    shown: dict[str, Any] = {"content": reply.content, "finish_reason": reply.finish_reason}
    if reply.tool_calls:
        shown["tool_calls"] = [call.model_dump() for call in reply.tool_calls]
    return shown


def _cost(event: CallEnded) -> float | None:
    """Dollars by the prices that the user wrote down or that are known; None where nobody says."""
    if event.reply is None:
        return None
    price = _price(event.model, event.account)
    return None if price is None else float(cost(price, event.usage))


@lru_cache(maxsize=256)
def _price(model: str, account: str) -> Price | None:
    try:
        return price_of(model, account)
    except (OSError, ValueError) as error:
        logging.getLogger("afnio").warning("the costs of [%s] are not recorded: %s", model, error)
        return None
