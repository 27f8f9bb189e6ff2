"""Permit: the right to make one attempt of a call."""

from __future__ import annotations

from collections.abc import Hashable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self, final

from afnio.runtime.allowance import Taken
from afnio.runtime.events import Usage
from afnio.runtime.priority import Urgency
from afnio.runtime.server_limits import Reading

if TYPE_CHECKING:
    from afnio.runtime.admission import Admitter


class Demand(Protocol):
    """What admission needs to know of a call."""

    @property
    def urgency(self) -> Urgency: ...
    @property
    def depth(self) -> int: ...
    @property
    def model(self) -> str: ...
    @property
    def purpose(self) -> str: ...
    @property
    def site(self) -> Hashable: ...
    @property
    def prompt_tokens(self) -> int: ...
    @property
    def max_output(self) -> int | None: ...


@final
class Permit:
    """One place on the wire for a `with` block, which is one attempt of a call.

    Attributes:
        number: counts the account's requests in the order of sending.
        probe: whether the attempt tries an account whose circuit is open.
        spared: whether it was a probe that failed, which uses up no attempt of its call.
    """

    __slots__ = ("_admitter", "_token", "demand", "first", "number", "probe", "spared", "taken", "usage")

    def __init__(self, admitter: Admitter, demand: Demand, *, first: bool) -> None:
        self._admitter = admitter
        self.demand = demand
        self.first = first
        self.number = 0
        self.probe = self.spared = False
        self.taken: list[Taken] = []
        self.usage: Usage | None = None

    async def __aenter__(self) -> Self:
        await self._admitter.enter(self)
        self._token: Token[Permit] = _current.set(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._token)
        self._admitter.leave(self, error)

    def settle(self, usage: Usage) -> None:
        """Note what the provider says that the attempt used."""
        self.usage = usage

    @property
    def used(self) -> float | None:
        """The tokens that the provider counted against the account; None where it doesn't say.

        A request that says how long its reply may be is counted with all of that when it is admitted.
        """
        usage, most = self.usage, self.demand.max_output
        if usage is None or not usage.total_tokens:
            return None
        prompt = usage.prompt_tokens or self.demand.prompt_tokens
        return prompt + (usage.completion_tokens if most is None else most)

    def hear(self, requests: Reading | None, tokens: Reading | None) -> None:
        self._admitter.hear(self, requests, tokens)


_current: Final[ContextVar[Permit]] = ContextVar("afnio_permit")


def hear_limits(requests: Reading | None, tokens: Reading | None) -> None:
    """Take in what the headers of a reply say of the limits; in the attempt that got it."""
    permit = _current.get(None)
    if permit is not None and (requests is not None or tokens is not None):
        permit.hear(requests, tokens)
