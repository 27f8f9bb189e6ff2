"""Orders to a run that is running: pause, resume, limit, stop.

Any process that can write the run's store gives an order: `afnio runs`, the studio, or the program itself. `give`
checks it and adds it to the run's events, where its page shows it. The process that runs the run reads new orders
whenever its writer does something, two seconds later at most, and obeys (`Run`).

What orders have left in force holds on when the run is continued, except for a stop: a program that is started again is
meant to run. The page only lowers what costs money; the command line and code may also raise it, up to what the program
itself has set.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple, final

from afnio.errors import ControlError
from afnio.runtime._limits import Limits
from afnio.runtime._spending import Caps
from afnio.tellurio._records import RunRecord, loaded
from afnio.tellurio._schema import connect

# The kind of the events.
CONTROL: Final = "Control"

Command = Literal["pause", "resume", "limit", "stop", "stop now"]
Origin = Literal["page", "command line", "code"]

COMMANDS: Final = ("pause", "resume", "limit", "stop", "stop now")
WHOLE: Final = ("requests_per_minute", "tokens_per_minute", "max_in_flight", "max_calls", "max_tokens")
# What can be limited. All but `max_cost`, in dollars, are whole numbers.
LIMITS: Final = (*WHOLE, "max_cost")


@final
@dataclass(frozen=True, slots=True)
class Order:
    """What a run is to do.

    Attributes:
        limits: of "limit": numbers by the names of `LIMITS`, None to lift one.
        by: where the order came from.
    """

    command: Command
    by: Origin
    limits: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.command == "limit" and not self.limits:
            raise ValueError(f"a limit must be given; pass one of {', '.join(LIMITS)}")
        for name, value in self.limits.items():
            _check(name, value)

    def to_json(self) -> dict[str, Any]:
        return {"command": self.command, "by": self.by, "limits": dict(self.limits)}

    @classmethod
    def read(cls, payload: Any) -> Order | None:
        """Return the order that an event holds; None if it holds none, as other programs write the file, too."""
        value = loaded(payload) if isinstance(payload, str) else payload
        try:
            if value["command"] not in COMMANDS or value["by"] not in ("page", "command line", "code"):
                return None
            return cls(value["command"], value["by"], value["limits"])
        except (KeyError, TypeError, ValueError, AttributeError):
            return None

    @property
    def giver(self) -> str:
        """Where the order came from, in a sentence."""
        return "its program" if self.by == "code" else f"the {self.by}"

    def __str__(self) -> str:
        done = _DONE.get(self.command) or ", ".join(
            f"{name} lifted" if value is None else f"{name} set to {value:,}"
            for name, value in self.limits.items()
        )
        return f"{done} by {self.giver}"


_DONE: Final = {
    "pause": "paused",
    "resume": "resumed",
    "stop": "asked to stop after its step",
    "stop now": "stopped at once",
}


class InForce(NamedTuple):
    """What the orders of a run have left in force."""

    paused: bool = False
    limits: Mapping[str, float] = {}

    @classmethod
    def after(cls, orders: Iterable[Order]) -> InForce:
        """Return what is in force after these.

        >>> InForce.after([Order("pause", "page"), Order("limit", "code", {"max_calls": 9})])
        InForce(paused=True, limits={'max_calls': 9})
        """
        paused, limits = False, dict[str, float]()
        for order in orders:
            # A gentle stop lets a paused run finish its step.
            paused = order.command == "pause" or (paused and order.command == "limit")
            for name, value in order.limits.items():
                limits.pop(name, None)
                if value is not None:
                    limits[name] = value
        return cls(paused, limits)

    @property
    def rates(self) -> Limits:
        """The limits of the calls."""
        whole = {name: int(self.limits[name]) for name in WHOLE[:3] if name in self.limits}
        return Limits(**whole)

    @property
    def caps(self) -> Caps:
        """The limits of the spending."""
        calls, tokens = (
            None if (value := self.limits.get(name)) is None else int(value) for name in WHOLE[3:]
        )
        cost = self.limits.get("max_cost")
        return Caps(calls, tokens, None if cost is None else Decimal(str(cost)))

    def __str__(self) -> str:
        limits = [f"{name} {value:,}" for name, value in self.limits.items()]
        return ", ".join([*(["paused"] if self.paused else []), *limits])


def number_of(text: str) -> float | None:
    """Return a limit as a person writes it: a number, or "none" to lift it.

    Raises:
        ValueError: if it is neither.

    >>> number_of("1,200"), number_of("0.5"), number_of("none")
    (1200, 0.5, None)
    """
    plain = text.strip().replace(",", "").replace("_", "").lower()
    if plain == "none":
        return None
    try:
        return int(plain) if plain.isascii() and plain.isdecimal() else float(plain)
    except ValueError:
        raise ValueError(f"a limit must be a number or none (got {text[:40]!r})") from None


def give(run: RunRecord, order: Order) -> str:
    """Record an order for a run of any process, and return what becomes of it, as a sentence.

    Raises:
        ControlError: if the run doesn't run, or the page asks for more than there is. Nothing is changed then.
    """
    if not run.is_running:
        ended = "was killed" if run.status == "CRASHED" else f"has ended ({run.status})"
        raise ControlError(f"{run.path} must be running (it {ended}); start its program again first")
    try:
        with closing(connect(run.store)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                refusal, said = _considered(connection, run, order)
                if refusal is None and said is None:
                    text = json.dumps(order.to_json())
                    connection.execute(INSERT_ORDER, (run.id, CONTROL, text))
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
    except sqlite3.Error as error:
        raise ControlError(f"{run.store} must be writable (got {error}); nothing was changed") from error
    if refusal is not None:
        raise ControlError(refusal)
    return said or f"{run.path} {_WILL[order.command]}"


_WILL: Final = {
    "pause": "pauses within two seconds; calls in flight end",
    "resume": "goes on within two seconds",
    "limit": "keeps to that within two seconds",
    "stop": "stops after this step, and what is in flight ends; its page shows when",
    "stop now": "stops within two seconds; what is in flight is cut off",
}


def _considered(
    connection: sqlite3.Connection, run: RunRecord, order: Order
) -> tuple[str | None, str | None]:
    """Return why an order is refused, or why it changes nothing."""
    state = InForce.after(orders_of(connection, run.id).values())
    if order.command in ("pause", "resume") and state.paused is (order.command == "pause"):
        return None, f"{run.path} {'is paused already' if state.paused else 'is not paused'}"
    return _refusal(connection, run.id, state, order), None


def _refusal(connection: sqlite3.Connection, run_id: str, state: InForce, order: Order) -> str | None:
    for name, value in order.limits.items():
        before = state.limits.get(name)
        if order.by == "page" and (value is None or (before is not None and value > before)):
            asked = "none" if value is None else f"{value:,}"
            return (
                f"{name} must be at most {before:,} (got {asked}); only the command line and code raise a limit"
                if before is not None
                else f"{name} must be a number (got none); the page only lowers limits"
            )
        if name == "max_cost" and value is not None and connection.execute(UNPRICED, (run_id,)).fetchone():
            return "max_cost needs prices, and calls of this run have none; limit max_calls or max_tokens"
    return None


def orders_of(connection: sqlite3.Connection, run_id: str, after: int = 0) -> dict[int, Order]:
    """Return the orders to a run by the numbers of their rows, from a row on. Rows that hold none are left out."""
    rows = connection.execute(SELECT_ORDERS, (run_id, CONTROL, after))
    return {number: order for number, text in rows if (order := Order.read(text)) is not None}


SELECT_ORDERS: Final = "SELECT id, payload FROM events WHERE run_id = ? AND kind = ? AND id > ? ORDER BY id"
INSERT_ORDER: Final = """
INSERT INTO events (run_id, kind, payload, time) VALUES (?, ?, ?, (julianday('now') - 2440587.5) * 86400)"""
UNPRICED: Final = "SELECT 1 FROM calls WHERE run_id = ? AND cost IS NULL AND status = 'ok' LIMIT 1"


def _check(name: str, value: Any) -> None:
    if name not in LIMITS:
        raise ValueError(f"a limit must be one of {', '.join(LIMITS)} (got {name!r})")
    if value is None:
        return
    fits = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**53
    if not fits and name == "max_cost":
        raise ValueError(f"max_cost must be a number of dollars, 0 or more (got {value!r:.40})")
    if name != "max_cost" and (not fits or value < 1 or value != int(value)):
        raise ValueError(f"{name} must be a whole number of 1 or more (got {value!r:.40})")
