"""ReplyReader: the body of a reply, within a size and without long silences."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from afnio.errors import FinalModelError, ModelError, TransientModelError, UnreachableError
from afnio.runtime._kernel import current_runtime
from afnio.runtime._limits import Account

if TYPE_CHECKING:
    import aiohttp


BETWEEN_BYTES: Final = 60.0
"""Seconds without a byte after which a reply that has begun is given up.

No such deadline holds before a reply begins, as reasoning models are silent for minutes.
"""
MAX_REPLY: Final = 64 << 20
"""Bytes of a reply at most, decompressed."""
MAX_ERROR: Final = 1 << 20
"""Bytes that are read of an error's body, whose start says what is wrong."""
LARGE: Final = 1 << 20
"""Bytes from which on a reply is a large one."""
LARGE_AT_ONCE: Final = 4
"""Large replies that are read at the same time, so that a burst of them doesn't fill the memory."""


@final
class ReplyReader:
    """Reads the replies of one account."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    @classmethod
    def shared(cls, account: Account) -> ReplyReader:
        return current_runtime().resource((cls, account), cls)

    async def read(self, read: Callable[[], Awaitable[bytes]], status: int, most: int, url: str) -> bytes:
        """Return what `read` returns until it returns nothing; of an error's body only the start.

        Raises:
            TransientModelError: if nothing comes for too long.
            FinalModelError: if the reply has more than `most` bytes.
        """
        most = most if status == 200 else min(most, MAX_ERROR)
        pieces: list[bytes] = []
        size, holding = 0, False
        try:
            while piece := await _in_time(read, url):
                size += len(piece)
                if size > most:
                    if status != 200:
                        break
                    raise FinalModelError(
                        f"{url} sent a reply of more than {most:,} bytes; pass max_reply_bytes=… to the client if "
                        "its replies may be that long",
                        status=status,
                    )
                pieces.append(piece)
                if size > LARGE:
                    if not holding:
                        await self._large.acquire()
                        holding = True
                    await asyncio.sleep(
                        0
                    )  # the next piece may be there already, and takes time to decompress
            return b"".join(pieces)
        finally:
            pieces.clear()  # the frame, and what it holds, lives on in the traceback of an error
            if holding:
                self._large.release()

    async def aclose(self) -> None:
        return


async def _in_time(read: Callable[[], Awaitable[bytes]], url: str) -> bytes:
    try:
        async with asyncio.timeout(BETWEEN_BYTES):
            return await read()
    except TimeoutError as error:
        raise TransientModelError(
            f"{url} fell silent in the middle of a reply, for {BETWEEN_BYTES:g} s"
        ) from error


# Transport: how the bytes of a request reach a provider.
#
# Our own aiohttp session costs 0.26 ms of CPU a call where the SDK's default costs 3.5 ms at 1,000 in
# flight, so it is the default; a user's own `http_client` goes through the SDK.


CONNECT_TIMEOUT: Final = 10.0
"""Seconds to reach the host."""
CONNECTIONS: Final = 10_000
"""Connections of one session; admission decides how many are used. (None would silently mean 100.)"""
KEEPALIVE: Final = 120.0
"""Seconds that an idle connection is kept; the pool must survive one long optimizer call."""


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


@final
class AiohttpTransport:
    """One aiohttp session for each account, on the runtime's loop, shared by the account's clients."""

    def __init__(self) -> None:
        import aiohttp

        self._reader = ReplyReader()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=CONNECTIONS, keepalive_timeout=KEEPALIVE),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._proxies: dict[str, str | None] = {}

    @classmethod
    def shared(cls, account: Account) -> AiohttpTransport:
        return current_runtime().resource((cls, account), cls)

    async def post(self, url: str, headers: Mapping[str, str], data: bytes, most: int = MAX_REPLY) -> Answer:
        """Send `data`, a JSON text, and return what came back, a redirect among others.

        Args:
            most: bytes of the reply at most, after decompression.

        Raises:
            UnreachableError: if the host can't be reached.
            TransientModelError: if the connection ended early, or what came is no HTTP.
            FinalModelError: if the reply is too large, or the request can't be sent.
        """
        import aiohttp

        try:
            async with self._session.post(
                url, data=data, headers=headers, proxy=self._proxy(url), allow_redirects=False
            ) as response:
                content = response.content
                if content.is_eof() and content.total_bytes <= min(most, LARGE):  # it came with the head
                    body = await content.readany()
                else:
                    body = await self._reader.read(content.readany, response.status, most, url)
                return Answer(response.status, response.headers, body)
        except aiohttp.ClientConnectorError as error:
            raise unreachable(url, _reason(error)) from error
        except aiohttp.ServerTimeoutError as error:
            raise unreachable(url, f"no connection within {CONNECT_TIMEOUT:g} s") from error
        except aiohttp.ClientHttpProxyError as error:
            raise TransientModelError(
                f"the proxy answered {error.status} when asked for {url} ({error.message[:200]})"
            ) from error
        except aiohttp.ClientResponseError as error:
            # Without the bytes that the parser shows, which may be anything that was sent.
            why = error.message.partition("\n")[0].partition("b'")[0].rstrip(" :")
            raise TransientModelError(f"{url} sent what is no HTTP ({why})") from error
        except ValueError as error:
            raise FinalModelError(f"the request to {url} can't be sent ({error})") from error
        except (aiohttp.ClientError, OSError) as error:
            raise TransientModelError(
                f"the connection to {url} ended early ({error or type(error).__name__})"
            ) from error

    def _proxy(self, url: str) -> str | None:
        """Return the proxy that the environment names for `url`, looked up once.

        aiohttp's own `trust_env` reads the environment and .netrc in a thread for every request, which
        costs more than the rest of the request does.
        """
        if url not in self._proxies:
            parts = urlsplit(url)
            host = parts.hostname or ""
            self._proxies[url] = None if proxy_bypass(host) else getproxies().get(parts.scheme)
        return self._proxies[url]

    async def aclose(self) -> None:
        await self._session.close()


def unreachable(url: str, why: object) -> UnreachableError:
    """Return the error for a host that can't be reached."""
    return UnreachableError(f"can't reach {url} ({why}); check base_url and that the server runs")


def _reason(error: aiohttp.ClientConnectorError) -> str:
    cause = error.os_error
    why = "connection refused" if cause.errno == errno.ECONNREFUSED else cause.strerror or cause
    return f"{error.host}:{error.port}: {why}"


# SDK bodies: bounds on what the SDK's transport reads and decompresses at a time.


PIECE: Final = 8 << 10
"""Bytes that are decompressed at a time, to a thousand times as many at the most."""
MAX_SDK_ERROR: Final = 16 << 10
"""Bytes that are read of an error's body, which the SDK reads whole."""
RAW: Final = "X-Stainless-Raw-Response"
"""The header by which the SDK is told to leave a body unread; Afnio's requests have it."""


def bound_bodies(client: Any) -> None:
    """Have an `httpx2.AsyncClient` read the replies to Afnio's requests, and no others, within the bounds."""
    import httpx2

    if isinstance(client, httpx2.AsyncClient):
        hooks = client.event_hooks["response"]
        if _bound not in hooks:
            hooks.append(_bound)


async def _bound(response: Any) -> None:
    if response.request.headers.get(RAW) == "stream":
        response.stream = _bounded(response.stream, None if response.is_success else MAX_SDK_ERROR)


def _bounded(stream: Any, most: int | None) -> Any:
    import httpx2

    class Bounded(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for chunk in stream:
                for start in range(0, len(chunk), PIECE):
                    piece = chunk[start : start + PIECE]
                    yield piece
                    size += len(piece)
                    if most is not None and size >= most:
                        return

        async def aclose(self) -> None:
            await stream.aclose()

    return Bounded()


# Silence: says once when an account leaves its calls without a reply.


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
