"""AccountHealth: whether an account answers, and how often its calls may be tried again."""

from __future__ import annotations

import logging
from typing import final

from afnio.errors import FinalModelError, TransientModelError
from afnio.runtime.circuit import Circuit
from afnio.runtime.events import CircuitClosed, CircuitOpened, emit
from afnio.runtime.retry import ATTEMPTS
from afnio.runtime.retry_budget import SPARE, RetryBudget

_logger = logging.getLogger("afnio")


@final
class AccountHealth:
    """The circuit and the retry budget of one account, and what its user is told of them.

    >>> health = AccountHealth("http://localhost:8000/v1")
    >>> health.answered(0, now=0.0)
    >>> health.circuit.answered
    True
    """

    def __init__(self, url: str) -> None:
        self.circuit = Circuit()
        self.retries = RetryBudget()
        self._url = url
        self._told = False

    def answered(self, number: int, now: float) -> None:
        """Count an answer to a request, be it a refusal: the account is alive."""
        seconds = self.circuit.succeeded(number, now)
        if seconds is not None:
            _logger.warning("%s answers again, after %.0f s", self._url, seconds)
            emit(CircuitClosed(self._url, seconds))

    def failed(
        self, number: int, error: TransientModelError, now: float, *, probe: bool
    ) -> FinalModelError | None:
        """Count a failure; returns the error of those who wait, where they shouldn't any longer."""
        circuit = self.circuit
        if circuit.failed(number, now, probe=probe):
            failed, sent = circuit.opened_by
            _logger.warning(
                "%d of %d requests sent one after another to %s have failed (%s); its calls wait, and one at a "
                "time tries it",
                failed,
                sent,
                self._url,
                error,
            )
            emit(CircuitOpened(self._url, failed, str(error)))
        if not (probe and circuit.given_up(now)):
            return None
        assert circuit.opened_at is not None
        return FinalModelError(
            f"{self._url} has answered nothing for {(now - circuit.opened_at) / 60:.0f} minutes: "
            f"{circuit.failures} requests failed, at last with [{error}]; start again when it works",
            status=error.status,
        )

    def grant_retry(self, error: BaseException, now: float) -> bool:
        """Take one retry from the budget; an error that gets none says why."""
        if not self._told and not self.circuit.answered:
            # At once, as a wrong URL is not worth the minute that all attempts take.
            _logger.warning("%s; trying again (1 of %d)", error, ATTEMPTS)
        self._told = True
        if self.retries.spend(now):
            return True
        error.add_note(
            f"not tried again: {self._url} had [{self.retries.retries}] retries in ten minutes, which is all "
            f"that [{self.retries.calls}] calls and {SPARE} more allow"
        )
        return False
