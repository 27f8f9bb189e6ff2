"""Spending: prices for the calls that budgets govern, and what earlier runs of a journal had spent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio.to_thread

from afnio.runtime._budget import Budget, current_budgets
from afnio.runtime._spending import Item, Ledger, Price, Spent
from afnio.runtime._waiting import active_journal

if TYPE_CHECKING:
    from afnio.runtime._journal import Journal


async def governed_price(model: str, url: str) -> Price | None:
    """Return the price of a model for the budgets of this context; without any nobody asks, and it is None.

    The budgets are first made to count what the context's journal says was paid before it was opened.
    """
    budgets = current_budgets()
    if not budgets:
        return None
    from afnio.models.prices import price_of

    journal = active_journal.get()
    if journal is not None:
        await _count_earlier_runs(budgets, journal)
    # In a thread, as the first question reads a file or imports a package.
    return await anyio.to_thread.run_sync(price_of, model, url)


async def _count_earlier_runs(budgets: tuple[Budget, ...], journal: Journal) -> None:
    new = [budget for budget in budgets if not budget.has_charged(journal)]
    if not new:
        return
    ledger = await anyio.to_thread.run_sync(earlier_ledger, journal)
    for budget in new:
        if not budget.has_charged(journal):  # another call may have been quicker
            budget.charge(ledger, journal)


def earlier_ledger(journal: Journal) -> Ledger:
    """Return what a journal says was spent before it was opened; reads price files, so in a thread."""
    from afnio.models.prices import price_of

    items = {}
    for (purpose, model, account), spent in journal.spent_before.items():
        items[Item(purpose, account, model)] = Spent.of(
            price_of(model, account),
            spent.usage,
            calls=spent.calls,
            attempts=spent.calls + spent.failed + spent.unknown,
            unknown=spent.unknown,
            reserved=spent.reserved,
        )
    return Ledger(items)
