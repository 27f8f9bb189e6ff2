"""The gateway's keys: each has limits of its own, for as long as it is used."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Set as AbstractSet
from typing import Final, final

from afnio.runtime._kernel import current_runtime
from afnio.runtime._limits import Account, Limits, forget_limits, give_limits

MOST_KEYS: Final = 10_000
"""Keys with limits of their own. A client that invents keys must not fill the memory, and tokens change by the hour."""


@final
class Keys:
    """The accounts that are used through a gateway, least recently used first.

    Args:
        limits: of each one.
    """

    def __init__(self, limits: Limits | None) -> None:
        self._limits = limits
        self._used: OrderedDict[Account, None] = OrderedDict()

    def admit(self, account: Account, busy: AbstractSet[Account]) -> bool:
        """Give an account its limits, and forget another one if there are too many.

        Args:
            busy: accounts with open calls, which can't be forgotten.

        Returns:
            False if all have.
        """
        if account in self._used:
            self._used.move_to_end(account)
            return True
        if len(self._used) >= MOST_KEYS:
            oldest = next((used for used in self._used if used not in busy), None)
            if oldest is None:
                return False
            del self._used[oldest]
            forget_limits(oldest)
            current_runtime().drop_resources(oldest)
        self._used[account] = None
        if self._limits is not None:
            give_limits(account, self._limits)
        return True
