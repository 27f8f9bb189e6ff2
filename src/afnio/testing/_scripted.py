"""ScriptedClient: a model without a network, whose replies you write.

Its calls go through the engine like those of a real client: admission, limits, retries, journal. Only the wire is
missing. To test the wire too, use `Provider`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from typing import Any, Final, final

import anyio

from afnio.errors import FinalModelError
from afnio.models._client import ChatClient
from afnio.models._messages import ChatRequest, ChatResponse
from afnio.runtime._limits import Account, Limits
from afnio.runtime.events import Usage

Reply = str | dict[str, Any] | ChatResponse | BaseException
Script = Reply | Iterable[Reply] | Callable[[ChatRequest], Any]

_REPLY: Final = (str, dict, ChatResponse, BaseException)
_numbers = itertools.count(1)


@final
class ScriptedClient(ChatClient):
    """A chat client that answers from a script: one reply for all requests, a list in order, or a function.

    A reply is a text, a dict that is sent as its JSON, a `ChatResponse`, or an exception to raise.

    Args:
        script: a reply; an iterable of replies, one for each request; or a function of the request, which may be
            `async def`.
        latency: seconds before each reply.
        limits: limits for admission, as for any client.

    Attributes:
        requests: the requests so far, in order.
        peak: the most requests in flight at the same time.

    Raises:
        FinalModelError: from a call, if the list has no reply left.
        TypeError: from a call, for a reply of another type.

    >>> client = ScriptedClient("Hello")
    >>> client.chat(messages=[{"role": "user", "content": "Hi"}], model="any").content
    'Hello'
    """

    def __init__(self, script: Script = "", *, latency: float = 0.0, limits: Limits | None = None) -> None:
        # One address for all clients: a resumed program must find its calls in the journal. The number makes each
        # client a separate account.
        super().__init__(Account("scripted://model", str(next(_numbers))), limits=limits)
        self.requests: list[ChatRequest] = []
        self.peak = 0
        self._latency = latency
        self._open = 0
        self._script: Any = script
        if not callable(script) and not isinstance(script, _REPLY):
            self._script = iter(script)

    async def send(self, request: ChatRequest) -> ChatResponse:
        self.requests.append(request)
        self._open += 1
        self.peak = max(self.peak, self._open)
        try:
            if self._latency:
                await anyio.sleep(self._latency)
            reply = self._next(request)
            if hasattr(reply, "__await__"):
                reply = await reply
        finally:
            self._open -= 1
        if isinstance(reply, BaseException):
            raise reply
        if isinstance(reply, ChatResponse):
            return reply
        if isinstance(reply, dict):
            reply = json.dumps(reply, ensure_ascii=False)
        if not isinstance(reply, str):
            raise TypeError(
                f"a scripted reply must be a text, a dict, a ChatResponse or an exception (got {reply!r})"
            )
        asked = sum(len(str(message.get("content") or "")) for message in request.messages)
        usage = Usage(prompt_tokens=-(-asked // 4), completion_tokens=-(-len(reply) // 4))
        return ChatResponse(content=reply, finish_reason="stop", model=request.model, usage=usage)

    def _next(self, request: ChatRequest) -> Any:
        if isinstance(self._script, _REPLY):
            return self._script
        if callable(self._script):
            return self._script(request)
        try:
            return next(self._script)
        except StopIteration:
            number = len(self.requests)
            return FinalModelError(
                f"a script must have a reply for each request (got request {number}); add one"
            )
