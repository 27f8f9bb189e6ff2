"""Transport: how the bytes of a request reach a provider.

Our own aiohttp session costs 0.26 ms of CPU a call where the SDK's default costs 3.5 ms at 1,000 in
flight, so it is the default; a user's own `http_client` goes through the SDK.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from afnio.errors import FinalModelError, TransientModelError, UnreachableError
from afnio.models.reply_reader import LARGE, MAX_REPLY, ReplyReader
from afnio.runtime._kernel import current_runtime
from afnio.runtime._limits import Account

if TYPE_CHECKING:
    import aiohttp

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
