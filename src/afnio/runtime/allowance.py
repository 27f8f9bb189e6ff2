"""Allowance: what an account, or one model of it, may still send of requests and of tokens."""

from __future__ import annotations

from typing import Final, final

from afnio.runtime.limits import NO_LIMIT, Limits
from afnio.runtime.pacer import Pacer
from afnio.runtime.server_limits import Reading, ServerLimit
from afnio.runtime.token_bucket import Reservation, TokenBucket

LONG: Final = 900.0
"""Seconds from which on a provider's window isn't paced. Who has a day's requests left wants them now, not evenly
over the day; what the provider says is left holds all the same."""


@final
class Taken:
    """What one request took of an allowance, and how much had been taken with it."""

    __slots__ = ("allowance", "at", "bucket", "requests", "reservation", "tokens", "tokens_before")

    def __init__(self, allowance: Allowance, tokens: float, at: float) -> None:
        self.allowance = allowance
        self.at = at
        self.tokens = tokens
        self.requests = allowance.requests_sent
        self.tokens_before = allowance.tokens_sent
        self.bucket: TokenBucket | None = allowance.bucket
        self.reservation: Reservation | None = (
            None if self.bucket is None else self.bucket.reserve(tokens, at)
        )


@final
class Allowance:
    """Requests and tokens under limits that were given, or that the provider's replies tell.

    Given limits set the pace. What a reply says is left holds in any case: a request that the provider
    has no room for would only be refused.
    """

    def __init__(self) -> None:
        self.pacer: Pacer | None = None
        self.bucket: TokenBucket | None = None
        self.requests: ServerLimit | None = None
        self.tokens: ServerLimit | None = None
        self.requests_sent = 0
        self.tokens_sent = 0.0

    @classmethod
    def given(cls, limits: Limits, now: float) -> Allowance:
        """Return an allowance under explicit limits, nothing of them used."""
        made = cls()
        if limits.requests_per_minute is not None and limits.requests_per_minute < NO_LIMIT:
            made.pacer = Pacer(limits.requests_per_minute)
        if limits.tokens_per_minute is not None and limits.tokens_per_minute < NO_LIMIT:
            made.bucket = TokenBucket(limits.tokens_per_minute, now=now)
        return made

    @property
    def paced(self) -> bool:
        return self.pacer is not None or self.bucket is not None

    def wait(self, tokens: float, now: float) -> float:
        """Return the seconds until a request of `tokens` may go, 0 if it may now."""
        wait = 0.0
        if self.pacer is not None:
            wait = self.pacer.wait(now)
        if self.bucket is not None:
            wait = max(wait, self.bucket.wait(tokens, now))
        if self.requests is not None:
            wait = max(wait, self.requests.wait(1, now))
        if self.tokens is not None:
            wait = max(wait, self.tokens.wait(tokens, now))
        return wait

    def take(self, tokens: float, now: float) -> Taken:
        """Take a request of `tokens`, which fits."""
        self.requests_sent += 1
        self.tokens_sent += tokens
        if self.pacer is not None:
            self.pacer.take(now)
        if self.requests is not None:
            self.requests.take(1)
        if self.tokens is not None:
            self.tokens.take(tokens)
        return Taken(self, tokens, now)

    def settle(self, taken: Taken, tokens: float, now: float) -> None:
        """Correct the tokens of a request to those that it used."""
        if self.tokens is not None:
            self.tokens.take(tokens - taken.tokens)
        self._correct(taken, tokens, now)

    def refund(self, taken: Taken, now: float, *, counted: bool) -> None:
        """Give back the tokens of a request that failed; and the request, if the provider didn't count it.

        What the provider has left is as its reply says, not as we would have it.
        """
        self.requests_sent -= not counted
        self._correct(taken, 0.0, now)

    def _correct(self, taken: Taken, tokens: float, now: float) -> None:
        if taken.bucket is not None and taken.reservation is not None:
            taken.bucket.settle(taken.reservation, tokens, now)
        self.tokens_sent += tokens - taken.tokens
        taken.tokens = tokens

    def hear(
        self,
        taken: Taken,
        requests: Reading | None,
        tokens: Reading | None,
        now: float,
        limits: Limits | None,
    ) -> bool:
        """Take in what a reply says is left; returns whether the pace is another than before.

        Args:
            taken: what its request took.
            limits: explicit limits; they set the pace, whatever the replies say.
        """
        changed = False
        if requests is not None:
            since = self.requests_sent - taken.requests
            self.requests, new = _heard(self.requests, requests, taken.at, since, now)
            if new and (limits is None or limits.requests_per_minute is None):
                self._pace_requests(self.requests, now)
                changed = True
        if tokens is not None:
            used = self.tokens_sent - taken.tokens_before
            self.tokens, new = _heard(self.tokens, tokens, taken.at, used, now)
            if new and (limits is None or limits.tokens_per_minute is None):
                self._pace_tokens(self.tokens, now)
                changed = True
        return changed

    def _pace_requests(self, server: ServerLimit, now: float) -> None:
        if server.window > LONG:
            self.pacer = None
        elif self.pacer is not None and self.pacer.limit == server.limit:
            self.pacer.retune(server.limit, server.window)
        else:
            # As if what is used of the window had been paced, too: so no window holds more than the limit.
            self.pacer = Pacer(server.limit, server.window, now=now, used=server.used)

    def _pace_tokens(self, server: ServerLimit, now: float) -> None:
        if server.window > LONG:
            self.bucket = None
        elif self.bucket is not None and self.bucket.limit == server.limit:
            self.bucket.retune(server.limit, server.window)
        else:
            self.bucket = TokenBucket(server.limit, server.window, now=now, used=server.used)

    def absorb(self, other: Allowance, now: float, limits: Limits | None) -> None:
        """Take over what `other` has sent, where the provider counts the two together."""
        mine, theirs = self.requests, other.requests
        if mine is not None and theirs is not None:
            mine.take(max(0.0, mine.level(now) - theirs.level(now)))
            if limits is None or limits.requests_per_minute is None:
                self._pace_requests(mine, now)
        mine, theirs = self.tokens, other.tokens
        if mine is not None and theirs is not None:
            mine.take(max(0.0, mine.level(now) - theirs.level(now)))
            if limits is None or limits.tokens_per_minute is None:
                self._pace_tokens(mine, now)

    def yield_to(self, limits: Limits) -> None:
        """Leave the pace to explicit limits."""
        if limits.requests_per_minute is not None:
            self.pacer = None
        if limits.tokens_per_minute is not None:
            self.bucket = None


def _heard(
    server: ServerLimit | None, reading: Reading, sent_at: float, sent_since: float, now: float
) -> tuple[ServerLimit, bool]:
    if server is None:
        return ServerLimit(reading, sent_at, sent_since, now), True
    return server, server.hear(reading, sent_at, sent_since, now)
