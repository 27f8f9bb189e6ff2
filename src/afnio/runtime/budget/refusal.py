"""Refusal: what an exceeded budget says."""

from __future__ import annotations

from typing import Any, Final

from afnio.errors import BudgetExceeded
from afnio.runtime.budget.amount import Amount
from afnio.runtime.budget.balance import Balance
from afnio.runtime.budget.estimate import Estimate
from afnio.runtime.budget.ledger import Ledger, dollars

_AGAIN: Final = "and run again, as a journal replays what was paid for"


def out_of_room(
    balance: Balance, ledger: Ledger, field: str, estimate: Estimate, need: Amount
) -> BudgetExceeded:
    """Return the error of a budget whose `field` has no room for `need`."""
    value, needed = getattr(balance.caps, field), getattr(need, field)
    spent = getattr(balance.before + balance.spent, field)
    reserved = getattr(balance.promised, field)
    fix = f"raise max_{field}"
    if field != "calls":
        fix += " or give the request a smaller max_completion_tokens"
    return BudgetExceeded(
        f"max_{field}={value} leaves no room for a call of {estimate.model} ({estimate.purpose}), which may "
        f"need {_shown(field, needed)}: {_shown(field, spent)} spent, {_shown(field, reserved)} reserved by "
        f"attempts under way; {fix} {_AGAIN}",
        limit=f"max_{field}",
        value=value,
        spent=spent,
        reserved=reserved,
        ledger=ledger,
    )


def out_of_time(seconds: float, passed: float, ledger: Ledger) -> BudgetExceeded:
    """Return the error of a budget whose time is over."""
    return BudgetExceeded(
        f"max_seconds={seconds:g} are over ({passed:.1f} s since the block was entered; {ledger}); nothing more "
        "is sent, and what was on the wire is cut off and counts as unknown, at its reserve; raise max_seconds "
        f"{_AGAIN}",
        limit="max_seconds",
        value=seconds,
        spent=passed,
        reserved=0.0,
        ledger=ledger,
    )


def _shown(field: str, number: Any) -> str:
    return dollars(number) if field == "cost" else f"{number:,} {field}"
