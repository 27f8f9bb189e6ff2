"""The part of a run's page that steers the run, and the orders that its forms send."""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

from afnio.tellurio._control import COMMANDS, LIMITS, InForce, Order, number_of
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._records import RunRecord

# The most of a form.
MOST_BYTES: Final = 4_096


class LimitField(NamedTuple):
    """A field of the form: the name of a limit, its label, and the number that holds now or "no limit"."""

    name: str
    label: str
    now: str


class ControlView(NamedTuple):
    """What a run's page shows of its orders: those so far with their times, the newest first, and what is in force."""

    orders: list[tuple[Order, float]]
    paused: bool
    fields: list[LimitField]


_LABELS: Final = {
    "requests_per_minute": "Requests a minute",
    "tokens_per_minute": "Tokens a minute",
    "max_in_flight": "In flight",
    "max_calls": "Attempts in all",
    "max_tokens": "Tokens in all",
    "max_cost": "Dollars in all",
}


def control_view(reader: StoreReader, run: RunRecord) -> ControlView:
    orders = reader.orders(run.id)
    state = InForce.after(order for order, _ in orders)
    fields = [
        LimitField(name, _LABELS[name], f"now {state.limits[name]:,}" if name in state.limits else "no limit")
        for name in LIMITS
    ]
    return ControlView(orders[::-1], state.paused, fields)


def order_of(body: bytes) -> Order:
    """Return the order that a form sent.

    Raises:
        ValueError: if it is none.
    """
    fields = dict(parse_qsl(body.decode("utf-8", "replace"), max_num_fields=20))
    command: Any = fields.pop("command", "")
    if command not in COMMANDS:
        raise ValueError(f"an order must be one of {', '.join(COMMANDS)} (got {command[:40]!r})")
    return Order(command, "page", {name: number_of(text) for name, text in fields.items()})
