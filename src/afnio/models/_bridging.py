"""Bridging: raw requests become launches of the lane that makes them.

`launch_request` is called where an SDK sends its request: in a task, in a worker thread, on a caller's own loop. The
context says which lane that is. The launch belongs to the lane's scope like a native one, so that it is cancelled,
counted and replayed with it.

Its address is different. Native launches are numbered in the order of the program. An agent's tools race each other, so
numbers would change from run to run, and every resumed run would look like another program. A bridged call's address
is what it asks: the lane, the request's key, and how many equal requests the lane made before. Equal requests may swap
their replies. That changes nothing, because nobody can tell them apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, final

from afnio.errors import AfnioError, RuntimeClosedError
from afnio.models._apis import EMBEDDINGS
from afnio.models._exchange import CallOrigin, Exchange, Sender, send_by_aiohttp
from afnio.models._installed import limits_here
from afnio.models._raw import RawRequest
from afnio.models._trace import current_trace
from afnio.runtime._kernel import Job, Launch, Scope, Slot, current_scope
from afnio.runtime._limits import Limits, give_limits, given_limits, tightest
from afnio.runtime._tracebacks import caller_line
from afnio.runtime._waiting import active_journal

_numbers: Final = itertools.count(1)
"""Distinguishes calls outside of any scope when nothing is recorded. Counting each request would fill the memory."""


@final
class Bridged:
    """A raw call that was launched. Its reply is in `exchange.pipe`."""

    def __init__(self, exchange: Exchange, launch: Launch | None) -> None:
        self.exchange = exchange
        self._launch = launch

    def cancel(self) -> None:
        """Take the call off the wire or out of the queue. Safe to call from any thread, and after its end."""
        if self._launch is not None:
            with suppress(RuntimeClosedError):
                self._launch.runtime.post(self._launch.runtime.cancel, self._launch)


def launch_request(
    request: RawRequest,
    *,
    read_timeout: float | None = None,
    address: str | None = None,
    send: Sender = send_by_aiohttp,
    limits: Limits | None = None,
) -> Bridged:
    """Launch a call in the current scope. It never raises: errors are replies.

    Args:
        address: of an equal call that failed and is sent again. Default: the scope's next one.
        limits: of its account. With those of the block of `installed` around it, the tightest hold.
    """
    limits = tightest(limits_here(), limits)
    if limits is not None and given_limits(request.account) != limits:
        give_limits(request.account, limits)
    scope = current_scope()
    job = scope.job
    trace = current_trace.get()
    purpose = "chat" if trace is None else trace.purpose
    line = caller_line() if job is None else job.launch.line
    origin = CallOrigin(
        address=address or _address(scope, request),
        scope=scope.matched_in,
        purpose="embed" if request.dialect is EMBEDDINGS else purpose,
        depth=0 if job is None else job.launch.depth + 1,
        node="" if job is None else job.launch.address,
        lane=None if job is None else job.lane,
        site=(line, request.dialect.name),
    )
    exchange = Exchange(request, origin, read_timeout=read_timeout, send=send)
    try:
        scope.check_can_launch()  # its own lane may have been cancelled, without the scope that owns it
        launch = Launch("http", address=origin.address, line=line)
    except AfnioError as error:
        exchange.abort(error)
        return Bridged(exchange, None)

    async def body(own: Job, values: list[Any]) -> Sequence[Any]:
        scope.guests[launch] = None
        try:
            return [await exchange.run()]
        finally:
            scope.guests.pop(launch, None)

    # With `recover` the launch never fails: whoever reads the reply gets the error, so nothing else has to report it.
    launch.add(body, [], [Slot(launch)], recover=lambda own, error: [exchange.abort(error)])
    launch.start()
    return Bridged(exchange, launch)


def _address(scope: Scope, request: RawRequest) -> str:
    name = f"http:{request.key[:16]}"
    if scope.is_root and active_journal.get() is None:
        return f"{name}#{next(_numbers)}"
    count = scope.count_equal(name)
    path = f"{scope.path}/{name}" if scope.path else name
    return path if count == 1 else f"{path}#{count}"
