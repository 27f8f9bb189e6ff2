"""AccountHealth: whether an account answers, and how often its calls may be tried again."""

from __future__ import annotations

import logging
from typing import Final, final

from afnio.errors import ProviderDownError, TransientModelError, UnreachableError
from afnio.runtime.circuit import Circuit
from afnio.runtime.events import CircuitClosed, CircuitOpened, emit
from afnio.runtime.retry import ATTEMPTS, is_first_contact
from afnio.runtime.retry_budget import SPARE, RetryBudget

FIRST_CONTACT: Final = 2.5
"""Seconds after which the next attempt is the last one to a host that was never reached."""
ANEW: Final = 60.0
"""Seconds without an attempt after which a host that was never reached gets as many again."""

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
        self._reached = False
        self._unreached: tuple[float, float] | None = None  # since when, and at last when

    def answered(self, number: int, now: float) -> None:
        """Count an answer to a request, be it a refusal: the account is alive."""
        self._reached = True
        seconds = self.circuit.succeeded(number, now)
        if seconds is not None:
            _logger.warning("%s answers again, after %.0f s", self._url, seconds)
            emit(CircuitClosed(self._url, seconds))

    def failed(
        self, number: int, error: TransientModelError, now: float, *, probe: bool
    ) -> ProviderDownError | None:
        """Count a failure; returns the error of those who wait, where they shouldn't any longer."""
        if not isinstance(error, UnreachableError):
            self._reached = True
        elif not self._reached:
            error.first_contact = True
            if self._never_reached(now):
                return ProviderDownError(str(error))
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
        return ProviderDownError(
            f"{self._url} has answered nothing for {(now - circuit.opened_at) / 60:.0f} minutes: "
            f"{circuit.failures} requests failed, at last with [{error}]; start again when it works",
            status=error.status,
        )

    def _never_reached(self, now: float) -> bool:
        """Whether a host that was never reached is given up: a wrong URL, or a server that doesn't run."""
        since, last = self._unreached or (now, now)
        if now - last > ANEW:
            since = now
        self._unreached = since, now
        return now - since >= FIRST_CONTACT

    def grant_retry(self, error: BaseException, now: float) -> bool:
        """Take one retry from the budget; an error that gets none says why."""
        if not self._told and not self.circuit.answered:
            # At once, as a wrong URL is not worth the minute that all attempts take.
            how = "for some seconds" if is_first_contact(error) else f"(1 of {ATTEMPTS})"
            _logger.warning("%s; trying again %s", error, how)
        self._told = True
        if is_first_contact(error):
            return True
        if self.retries.spend(now):
            return True
        error.add_note(
            f"not tried again: {self._url} had [{self.retries.retries}] retries in ten minutes, which is all "
            f"that [{self.retries.calls}] calls and {SPARE} more allow"
        )
        return False
