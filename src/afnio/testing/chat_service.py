"""ChatService: what becomes of one chat completion request that has come in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

from afnio.testing.completions import ApiError, completion, prompt_tokens, read_request, reply_limit
from afnio.testing.connection import Connection
from afnio.testing.draw import digest
from afnio.testing.fault import Fault
from afnio.testing.fault_kind import FaultKind, Occasion
from afnio.testing.fault_plan import FaultPlan
from afnio.testing.latency import Latency
from afnio.testing.ledger import Ledger
from afnio.testing.quota import Accounts, Quota, QuotaError
from afnio.testing.simulated import SimulatedLM, kind_of

LM = Callable[[dict[str, Any]], str | dict[str, Any]]
FaultHook = Callable[[dict[str, Any], int], Fault | None]

_NO_FAULTS: Final = FaultPlan({})


@final
@dataclass(slots=True)
class _Chat:
    """One request under way."""

    request: dict[str, Any]
    index: int
    prompt_tokens: int
    attempt: int
    connection: Connection
    headers: Mapping[str, str] | None


@final
class ChatService:
    """Counts a request, holds it against the quota, draws its fault and its latency, and answers it.

    Args:
        lm: maps a request to its reply.
        models: the models that exist; None takes any name.
        fault: a function that says what goes wrong with a request, before the plan is asked.
    """

    def __init__(
        self,
        *,
        lm: LM,
        models: Collection[str] | None,
        latency: Latency,
        faults: FaultPlan | None,
        fault: FaultHook | None,
        quota: Quota | None,
        seed: int,
        window: float,
    ) -> None:
        self.ledger = Ledger(window)
        self.accounts = Accounts(quota) if quota is not None else None
        self._lm = lm
        self._models = models
        self._latency = latency
        self._constant = latency.numbers[0] if latency.shape == "constant" else None
        self._plan = faults if faults is not None else _NO_FAULTS
        self._hook = fault
        self._seed = seed
        self._refused: dict[str, int] = {}

    def answer(self, body: bytes, key: str, index: int, connection: Connection) -> None:
        """Answer the request in `body`, sent with that API key, now or later.

        Raises:
            ApiError: if the request is none.
        """
        request = read_request(body, self._models)
        asked, now, name = prompt_tokens(request), asyncio.get_running_loop().time(), digest(body)
        cost = asked + reply_limit(request)
        self.ledger.kinds[kind_of(request)] += 1
        # A request that the quota refuses doesn't use up an attempt's fate: how often that happens
        # hangs on the order of arrival.
        attempt = self.ledger.read(name, cost, now) - self._refused.get(name, 0)
        chat = _Chat(request, index, asked, attempt, connection, None)
        if self._hook is not None and (fault := self._hook(request, index)) is not None:
            self._apply(fault, fault.name, chat)
            return
        kind = self._plan.fate(self._seed, name, attempt) if self._plan.shares else None
        if self.accounts is not None and not self._admit(chat, name, key, cost, now, kind):
            return
        delay = self._constant
        if delay is None:
            delay = self._latency.seconds(self._seed, name, attempt)
        finish, rest = (self._reply, ()) if kind is None else (self._fail, (kind,))
        if delay > 0 and (kind is None or not kind.at_the_gate):
            connection.later(delay, finish, chat, *rest)
        else:
            finish(chat, *rest)

    def scale_quota(self, factor: float) -> Quota:
        """Multiply the limits of all accounts by `factor` from now on; returns those of new ones."""
        if self.accounts is None:
            raise ApiError(409, "The provider has no quota to scale; start it with one.")
        if not 0 < factor < float("inf"):
            raise ApiError(400, f"The factor [{factor}] can't scale a quota; give one above 0.")
        self.accounts.scale(factor, asyncio.get_running_loop().time())
        return self.accounts.quota

    def _admit(self, chat: _Chat, name: str, key: str, cost: int, now: float, kind: FaultKind | None) -> bool:
        assert self.accounts is not None
        balance = self.accounts.balance(key, chat.request["model"])
        if kind is None or not kind.at_the_gate:
            try:
                balance.admit(cost, now)
            except QuotaError as refusal:
                self._refused[name] = self._refused.get(name, 0) + 1
                self.ledger.refuse(refusal.limit, now)
                error = ApiError(429, str(refusal), kind=refusal.limit, code="rate_limit_exceeded")
                chat.connection.send(429, error.body(), balance.headers(now) | refusal.headers())
                return False
        chat.headers = balance.headers(now)
        return True

    def _reply(self, chat: _Chat) -> None:
        try:
            body = self._complete(chat)
        except Exception as error:  # a broken `lm` must not leave its client waiting
            self._send_broken(error, chat)
            return
        chat.connection.send(200, json.dumps(body).encode(), chat.headers)

    def _fail(self, chat: _Chat, kind: FaultKind) -> None:
        plan = self._plan
        try:
            fault = kind.make(Occasion(lambda: self._complete(chat), plan.retry_after, plan.drip))
        except Exception as error:
            self._send_broken(error, chat)
            return
        self._apply(fault, kind.name, chat)

    def _apply(self, fault: Fault, name: str, chat: _Chat) -> None:
        self.ledger.faults[name] += 1
        self.ledger.limited += fault.status == 429 and not (fault.close or fault.hang)
        fault.apply(chat.connection, chat.headers)

    def _complete(self, chat: _Chat) -> dict[str, Any]:
        # Only the simulated LM has moods: a function of the user's gets the request alone.
        sampled = {"attempt": chat.attempt} if isinstance(self._lm, SimulatedLM) else {}
        reply = self._lm(chat.request, **sampled)
        body, given = completion(chat.request, reply, chat.index, chat.prompt_tokens)
        self.ledger.prompt_tokens += chat.prompt_tokens
        self.ledger.completion_tokens += given
        return body

    @staticmethod
    def _send_broken(error: Exception, chat: _Chat) -> None:
        failure = ApiError(500, f"The lm raised [{error!r}].", kind="server_error")
        chat.connection.send(500, failure.body(), chat.headers)
