"""Silence: says once when an account leaves its calls without a reply."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from types import TracebackType
from typing import Final, final

from afnio.errors import ModelError
from afnio.runtime._kernel import current_runtime
from afnio.runtime._limits import Account

FIRST_HINT: Final = 30.0
"""Seconds without a reply after which the user is told."""
LAST_HINT: Final = 600.0
"""The same for an account that has been found to be slow, at most."""

_logger = logging.getLogger("afnio")


@final
class Silence:
    """Watches one account: held by `with` for each attempt, it warns when none of them ends in a reply.

    One timer serves all attempts. A reply that comes after the warning raises the patience to twice the time that
    it took, so that a slow model is warned of once and not at each call.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._open = 0
        self._model = ""
        self._since = 0.0
        self._patience = FIRST_HINT
        self._told = False
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, account: Account, model: str) -> Silence:
        """Return the account's watch, for an attempt that asks `model`."""
        silence = current_runtime().resource((cls, account), partial(cls, account.url))
        silence._model = model
        return silence

    def __enter__(self) -> None:
        self._open += 1
        if self._open == 1:
            self._since = self._loop.time()
            self._arm()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open -= 1
        if error is None or isinstance(error, ModelError):  # not where the call was cancelled, or out of time
            self._heard()

    def _heard(self) -> None:
        now = self._loop.time()
        if self._told:
            self._told = False
            self._patience = min(LAST_HINT, max(self._patience, 2 * (now - self._since)))
        self._since = now
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and not self._told and self._open:
            self._timer = self._loop.call_at(self._since + self._patience, self._look)

    def _look(self) -> None:
        self._timer = None
        silent = self._loop.time() - self._since
        if silent < self._patience:
            self._arm()
            return
        if not self._open:
            return
        self._told = True
        _logger.warning(
            "%s has sent no reply for %.0f s (calls waiting: %d, the last for %s); the model may be thinking, or the "
            "server is overloaded or hangs. Pass timeout=… to the client to wait less",
            self._url,
            silent,
            self._open,
            self._model,
        )

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
