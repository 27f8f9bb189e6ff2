"""The engine: slots, launches, scopes, limits, retries, journal, budgets, events.

It knows nothing of prompts, gradients or HTTP: a call is a coroutine with an account, a key and a price. Start reading
in `_kernel.py`.
"""

from __future__ import annotations

from afnio._public import show_in
from afnio.runtime._batch_api import batch_api
from afnio.runtime._budget import Budget, budget
from afnio.runtime._callables import run, set_threads, to_thread, tolerate
from afnio.runtime._kernel import close, current_runtime
from afnio.runtime._limits import Account, LimitReading, Limits, RateLimits
from afnio.runtime._places import places
from afnio.runtime._settings import priority
from afnio.runtime._spending import Ledger, Price, Tier
from afnio.runtime._waiting import Pending, journal, scope, set_sync_mode

__all__ = [
    "Account",
    "Budget",
    "Ledger",
    "LimitReading",
    "Limits",
    "Price",
    "RateLimits",
    "Tier",
    "Pending",
    "batch_api",
    "budget",
    "close",
    "current_runtime",
    "journal",
    "places",
    "priority",
    "run",
    "scope",
    "set_sync_mode",
    "set_threads",
    "to_thread",
    "tolerate",
]

show_in(__name__, globals(), __all__)
