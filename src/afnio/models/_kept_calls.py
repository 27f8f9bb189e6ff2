"""Kept calls: a lane that is run again pays for nothing twice.

The worker of a lane may be lost after its calls were answered, or in the middle of one. So the lane's address keeps its
calls until the lane ends, those in flight included: a client that hangs up cancels nothing. When the function runs
again, its n-th request with some content gets the reply of the n-th before it, with or without a journal. One that
failed is sent again, at the same address, where a resumed program will ask for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import Context
from typing import final

import anyio

from afnio.models._bridging import Bridged, launch_request
from afnio.models._raw import RawRequest
from afnio.models._streams import BrokenReplyError, Head
from afnio.runtime._kernel import current_runtime
from afnio.runtime._limits import Account


@final
class KeptCall:
    """A call of a lane, read to its end whoever listens."""

    def __init__(self, bridged: Bridged) -> None:
        self._bridged = bridged
        self._head: Head | None = None
        self._pieces: list[bytes] = []
        self._ended = False
        self._broken: BrokenReplyError | None = None
        self._changed = anyio.Event()
        self._task = current_runtime().spawn(self._read(), Context())

    @property
    def failed(self) -> bool:
        """True if another run should ask again."""
        return self._ended and (self._broken is not None or self._bridged.exchange.error is not None)

    @property
    def address(self) -> str:
        return self._bridged.exchange.origin.address

    async def head(self) -> Head:
        while self._head is None:
            await self._changed.wait()
        return self._head

    async def __aiter__(self) -> AsyncIterator[bytes]:
        number = 0
        while True:
            while number < len(self._pieces):
                yield self._pieces[number]
                number += 1
            if self._ended:
                break
            await self._changed.wait()
        if self._broken is not None:
            raise self._broken

    def leave(self) -> None:
        """A reader has gone. The call stays."""

    def cancel(self) -> None:
        if not self._ended:
            self._bridged.cancel()

    async def _read(self) -> None:
        pipe = self._bridged.exchange.pipe
        try:
            self._head = await pipe.head()
            self._change()
            async for piece in pipe:
                self._pieces.append(piece)
                self._change()
        except BrokenReplyError as error:
            self._broken = error
        finally:
            self._ended = True
            self._change()

    def _change(self) -> None:
        changed, self._changed = self._changed, anyio.Event()
        changed.set()


Name = tuple[Account, str]
"""The account and the key of a request."""


@final
class KeptCalls:
    """The calls of one lane, over all runs of its function.

    Args:
        context: the lane's, in which its calls are launched.
    """

    def __init__(self, context: Context) -> None:
        self.by_name: dict[Name, list[KeptCall]] = {}
        self.context = context
        self._runs: dict[str, LaneRun] = {}

    def run(self, name: str) -> LaneRun:
        """Return a run of the lane's function, by the name that it gave itself."""
        found = self._runs.get(name)
        if found is None:
            found = self._runs[name] = LaneRun(self)
        return found

    def cancel(self) -> None:
        """Cancel those that haven't ended: the lane has."""
        for calls in self.by_name.values():
            for call in calls:
                call.cancel()


@final
class LaneRun:
    """The requests of one run of a lane's function, in the order in which equal ones arrive."""

    def __init__(self, kept: KeptCalls) -> None:
        self._kept = kept
        self._uses: dict[Name, int] = {}
        self._left: dict[Name, list[KeptCall]] = {}

    def call_for(self, raw: RawRequest, *, read_timeout: float | None) -> KeptCall:
        """Return the call for a request: one that an earlier run made, or a new one."""
        name = (raw.account, raw.key)
        left = self._left.get(name)
        if left and raw.headers.get("x-stainless-retry-count", "0") != "0":
            return left.pop(0)  # an SDK whose timeout passed asks again
        number = self._uses[name] = self._uses.get(name, 0) + 1
        calls = self._kept.by_name.setdefault(name, [])
        if number <= len(calls) and not calls[number - 1].failed:
            return calls[number - 1]
        failed = calls[number - 1] if number <= len(calls) else None
        bridged = self._kept.context.copy().run(
            launch_request, raw, read_timeout=read_timeout, address=None if failed is None else failed.address
        )
        call = KeptCall(bridged)
        calls[number - 1 : number] = [call]
        return call

    def leave(self, raw: RawRequest, call: KeptCall) -> None:
        """The client of a request has gone before it had the reply."""
        self._left.setdefault((raw.account, raw.key), []).append(call)
