"""The transport: how a request's bytes reach a provider and how a reply's bytes come back.

`AiohttpTransport` has one aiohttp session for each account. It costs 0.26 ms of CPU time a call, where the SDK's
default transport costs 3.5 ms at 1,000 calls in flight. A user's own `http_client` goes through the SDK instead, with
bounds on what it reads (`bound_bodies`).

`ReplyReader` reads bodies. A server may send gigabytes, a decompression bomb, or one byte a minute: bodies have a
limit in bytes, pauses have a limit in seconds, and only a few large bodies are read at the same time.

`Silence` warns the user when an account sends no reply. A request without a reply looks like a program that hangs.
"""

from __future__ import annotations

import asyncio
import errno
import io
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import cache, partial
from importlib import import_module
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from afnio.errors import FinalModelError, ModelError, TransientModelError, UnreachableError
from afnio.runtime._kernel import current_runtime
from afnio.runtime._limits import Account

if TYPE_CHECKING:
    import aiohttp


# The longest pause in seconds within a reply.
#
# It doesn't apply before the first byte: reasoning models are silent for minutes.
BETWEEN_BYTES: Final = 60.0
# The default limit of a reply, in bytes after decompression.
MAX_REPLY: Final = 64 << 20
# The limit of an error's body, in bytes. The rest isn't read: the message is at the start.
MAX_ERROR: Final = 1 << 20
# Longer replies count as large, in bytes.
LARGE: Final = 1 << 20
# The number of large replies read at the same time. A burst of more would fill the memory.
LARGE_AT_ONCE: Final = 4


@final
class ReplyReader:
    """Reads the replies of one account."""

    def __init__(self) -> None:
        self._large = asyncio.Semaphore(LARGE_AT_ONCE)

    @classmethod
    def shared(cls, account: Account) -> ReplyReader:
        return current_runtime().resource((cls, account), cls)

    async def read(self, read: Callable[[], Awaitable[bytes]], status: int, most: int, url: str) -> bytes:
        """Return the body, or the start of an error's body.

        Args:
            read: returns the next piece, b"" at the end.
            status: the HTTP status.
            most: the limit in bytes.
            url: for error messages.

        Raises:
            TransientModelError: if no byte arrives for `BETWEEN_BYTES` seconds.
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
                    # The next piece may have arrived already. Decompressing it must not block other calls.
                    await asyncio.sleep(0)
            return b"".join(pieces)
        finally:
            pieces.clear()  # an error's traceback would keep them alive through this frame
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


# The session


# The longest time in seconds to connect.
CONNECT_TIMEOUT: Final = 10.0
# The session's limit. Admission decides how many are used. (None would mean aiohttp's default of 100.)
CONNECTIONS: Final = 10_000
# Seconds until an idle connection is closed. The pool must survive one long optimizer call.
KEEPALIVE: Final = 120.0


class Answer(NamedTuple):
    """A provider's HTTP response."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@final
class AiohttpTransport:
    """An aiohttp session on the runtime's loop. The clients of a host share one.

    Args:
        tls: whether its URL begins with https.
    """

    def __init__(self, *, tls: bool) -> None:
        import aiohttp

        from afnio.models._connections import Connections

        self._reader = ReplyReader()
        self._session = aiohttp.ClientSession(
            connector=Connections(limit=CONNECTIONS, keepalive_timeout=KEEPALIVE, tls=tls),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT),
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._proxies: dict[str, str | None] = {}

    @classmethod
    def shared(cls, account: Account) -> AiohttpTransport:
        """Return the session for an account's host. Keys share it: a gateway has thousands of them."""
        place = urlsplit(account.url)[:2]
        return current_runtime().resource((cls, place), lambda: cls(tls=place[0] == "https"))

    async def post(self, url: str, headers: Mapping[str, str], data: bytes, most: int = MAX_REPLY) -> Answer:
        """Send `data`, a JSON text, and return the response with any status. Redirects aren't followed.

        Args:
            headers: as `prepared` returns them.
            most: the reply's limit in bytes, after decompression.

        Raises:
            UnreachableError: if the host can't be reached.
            TransientModelError: if the connection ended early, or the response isn't HTTP.
            FinalModelError: if the reply is too large, or the request can't be sent.
        """
        import aiohttp

        try:
            response = await self._session.post(
                url,
                data=data,
                headers=headers,
                proxy=self._proxy(url),
                allow_redirects=False,
            )
            try:
                content = response.content
                if content.is_eof() and content.total_bytes <= min(most, LARGE):  # it came with the headers
                    body = await content.readany()
                else:
                    body = await self._reader.read(content.readany, response.status, most, url)
                return Answer(response.status, response.headers, body)
            finally:
                response.release()  # closes the connection unless all of the body was read
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise _failure(error, url, str(error)) from error

    async def open(
        self, url: str, headers: Mapping[str, str], data: Any, shown: str, method: str = "POST"
    ) -> OpenAnswer:
        """Send `data` and return the response as soon as its headers are there. Redirects aren't followed.

        Args:
            url: percent-encoded. It may contain a key.
            data: bytes, a file, a form, or None.
            shown: the URL without credentials, for errors.

        Raises:
            ModelError: as `post`.
        """
        import aiohttp
        from yarl import URL

        # A long body is written piece by piece, so that it doesn't block the loop.
        content = io.BytesIO(data) if isinstance(data, bytes) and len(data) > LARGE else data
        try:
            response = await self._session.request(
                method,
                URL(url, encoded=True),
                data=content,
                headers=headers,
                proxy=self._proxy(shown),
                allow_redirects=False,
            )
        except (aiohttp.ClientError, ValueError, OSError) as error:
            raise _failure(error, shown) from None  # its text may contain the URL
        return OpenAnswer(response, self._reader, shown)

    def _proxy(self, url: str) -> str | None:
        """Return the environment's proxy for `url`, or None. Looked up once for each URL.

        aiohttp's own `trust_env` reads the environment and .netrc in a thread for every request. That costs more
        than the rest of the request.
        """
        if url not in self._proxies:
            parts = urlsplit(url)
            host = parts.hostname or ""
            self._proxies[url] = None if proxy_bypass(host) else getproxies().get(parts.scheme)
        return self._proxies[url]

    async def aclose(self) -> None:
        await self._session.close()


def prepared(headers: Mapping[str, object]) -> Mapping[str, str]:
    """Return those headers that have a value, in aiohttp's own form: it would convert them for each request."""
    from multidict import CIMultiDict, istr

    return CIMultiDict((istr(name), value) for name, value in headers.items() if isinstance(value, str))


@final
class OpenAnswer:
    """A response whose body is still to be read. Use it in an `async with`, which frees the connection."""

    def __init__(self, response: aiohttp.ClientResponse, reader: ReplyReader, url: str) -> None:
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        self._reader = reader
        self._url = url

    async def __aenter__(self) -> OpenAnswer:
        return self

    async def __aexit__(self, *exc: object) -> None:
        content = self._response.content
        if content.is_eof() or content.at_eof():
            self._response.release()
        else:
            self._response.close()  # the rest would have to be read before the connection could be used again

    async def read(self) -> bytes:
        """Return the next piece of the body, b"" at its end."""
        import aiohttp

        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise _failure(error, self._url) from None

    async def read_all(self, most: int = MAX_REPLY) -> bytes:
        """Return the body, or the start of an error's body."""
        content = self._response.content
        if content.is_eof() and content.total_bytes <= min(most, LARGE):
            return await self.read()
        return await self._reader.read(self.read, self.status, most, self._url)


def _failure(error: Exception, url: str, text: str = "") -> ModelError:
    """Return the error for a request that got no reply.

    Args:
        text: of `error`; without it nothing is quoted that may contain a key.
    """
    import aiohttp

    why = text or type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorError):
        return unreachable(url, *_reason(error))
    if isinstance(error, aiohttp.ServerTimeoutError):
        return unreachable(url, f"no connection within {CONNECT_TIMEOUT:g} s")
    if isinstance(error, aiohttp.ClientHttpProxyError):
        said = f" ({error.message[:200]})" if text else ""
        return TransientModelError(f"the proxy answered {error.status} when asked for {url}{said}")
    if isinstance(error, aiohttp.ClientResponseError):
        # Leave out the bytes that the parser quotes: they may be anything.
        said = error.message.partition("\n")[0].partition("b'")[0].rstrip(" :") if text else why
        return TransientModelError(f"{url} sent a response that isn't HTTP ({said})")
    if isinstance(error, ValueError):
        return FinalModelError(f"the request to {url} can't be sent ({why})")
    return TransientModelError(f"the connection to {url} ended early ({why})")


def unreachable(
    url: str, why: object, advice: str = "check base_url and that the server runs"
) -> UnreachableError:
    """Return the error for a host that can't be reached, for the reason `why`."""
    return UnreachableError(f"can't reach {url} ({why}); {advice}")


_TRUST: Final = "set SSL_CERT_FILE to the certificate of its authority, before the first call"
_CLOCK: Final = "renew the server's certificate, or set this machine's clock"
_NAME: Final = "use a host in base_url that the certificate is for"
# Advice about a certificate, for OpenSSL's codes of the reasons why it is refused (X509_V_ERR_…).
_CERTIFICATES: Final = {
    **dict.fromkeys((18, 19, 20, 21), _TRUST),
    **dict.fromkeys((9, 10), _CLOCK),
    **dict.fromkeys((62, 64), _NAME),
}


def _reason(error: aiohttp.ClientConnectorError) -> tuple[str, str] | tuple[str]:
    """Return why there is no connection, and what to do about it if that isn't the usual."""
    cause, where = error.os_error, f"{error.host}:{error.port}"
    if isinstance(cause, ssl.SSLCertVerificationError):
        advice = _CERTIFICATES.get(cause.verify_code, "check the server's certificate")
        return f"{where}: its certificate is refused: {cause.verify_message.rstrip('.')}", advice
    if isinstance(cause, ssl.SSLError):
        reason = (cause.reason or str(cause)).replace("_", " ").lower()
        return f"{where}: no TLS: {reason}", "check that the server speaks TLS, or use http:// in base_url"
    why = "connection refused" if cause.errno == errno.ECONNREFUSED else cause.strerror or cause
    return (f"{where}: {why}",)


# Bounds on the SDK's own transport


# Bytes decompressed at a time. The result is at most a thousand times as long.
PIECE: Final = 8 << 10
# The limit of an error's body, in bytes. The SDK reads all of it before it raises.
MAX_SDK_ERROR: Final = 16 << 10
# The header that makes the SDK leave a body unread. It also marks Afnio's requests.
RAW: Final = "X-Stainless-Raw-Response"


@cache
def http_library() -> str:
    """Return the name of the HTTP library of the installed OpenAI SDK: httpx2, or httpx before openai 3."""
    from importlib.metadata import version

    return "httpx2" if int(version("openai").partition(".")[0]) >= 3 else "httpx"


def bound_bodies(client: Any) -> None:
    """Apply the bounds to the replies that `client`, an HTTP client of the SDK, gets to Afnio's requests."""
    if hasattr(client, "event_hooks"):  # httpx2's, or httpx's with openai 2
        hooks = client.event_hooks["response"]
        if _bound not in hooks:
            hooks.append(_bound)


async def _bound(response: Any) -> None:
    if response.request.headers.get(RAW) == "stream":
        library = import_module(type(response).__module__.partition(".")[0])
        most = None if response.is_success else MAX_SDK_ERROR
        response.stream = _bounded(library, response.stream, most)


def _bounded(library: Any, stream: Any, most: int | None) -> Any:
    class Bounded(library.AsyncByteStream):  # type: ignore[misc]
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


# The warning about silence


# Seconds without a reply before the first warning.
FIRST_HINT: Final = 30.0
# The same for a slow account: its patience grows up to this.
LAST_HINT: Final = 600.0

_logger = logging.getLogger("afnio")


@final
class Silence:
    """Warns once if none of an account's attempts gets a reply for a while. Each attempt runs in a `with` of it.

    One timer serves all attempts. A reply after the warning raises the patience to twice the time that the reply
    took, so that a slow model causes one warning and not one for each call.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.get_running_loop()
        self._open = 0
        self._model = ""
        self._since = 0.0
        self._patience = FIRST_HINT
        self._warned = False
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, account: Account, model: str) -> Silence:
        """Return the account's watch, for an attempt with `model`."""
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
        if error is None or isinstance(
            error, ModelError
        ):  # a cancelled call, or one out of time, got no reply
            self._replied()

    def _replied(self) -> None:
        now = self._loop.time()
        if self._warned:
            self._warned = False
            self._patience = min(LAST_HINT, max(self._patience, 2 * (now - self._since)))
        self._since = now
        self._arm()

    def _arm(self) -> None:
        if self._timer is None and not self._warned and self._open:
            self._timer = self._loop.call_at(self._since + self._patience, self._look)

    def _look(self) -> None:
        self._timer = None
        silent = self._loop.time() - self._since
        if silent < self._patience:
            self._arm()
            return
        if not self._open:
            return
        self._warned = True
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
