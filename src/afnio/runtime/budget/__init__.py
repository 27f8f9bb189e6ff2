"""Budgets: nothing is sent that may cost more than is allowed, and what was spent is on the ledger."""

from __future__ import annotations

from afnio.runtime.budget.budget import Budget as Budget
from afnio.runtime.budget.budget import budget as budget
from afnio.runtime.budget.budget import current_budgets as current_budgets
from afnio.runtime.budget.estimate import Estimate as Estimate
from afnio.runtime.budget.ledger import COLUMNS as COLUMNS
from afnio.runtime.budget.ledger import Item as Item
from afnio.runtime.budget.ledger import Ledger as Ledger
from afnio.runtime.budget.ledger import Spent as Spent
from afnio.runtime.budget.price import Price as Price
from afnio.runtime.budget.price import Tier as Tier
from afnio.runtime.budget.price import UnknownPriceError as UnknownPriceError
from afnio.runtime.budget.price import cost as cost
from afnio.runtime.budget.reservation import Reservation as Reservation
from afnio.runtime.budget.reservation import reservation_of as reservation_of
from afnio.runtime.budget.reservation import reserve as reserve
from afnio.runtime.budget.reservation import time_over as time_over
