"""Gate: who may read the studio's pages, and what their browser may do with them."""

from __future__ import annotations

import secrets
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOSTS: Final = ("127.0.0.1", "localhost")
"""Names under which this machine reaches itself; any other came by DNS rebinding, or by mistake."""

# Prompts and replies are hostile text. Escaping keeps them text; this keeps a hole in it harmless.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

HEADERS: Final = {
    "content-security-policy": POLICY,
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Refusal(NamedTuple):
    """What a request that gets nothing is told; it names neither a run nor a file."""

    status: int
    reason: str


class Gate:
    """Lets through what this machine's user asks for, and says the same few words to everybody else.

    The token comes in the address once, is moved to a cookie, and is out of the address bar from then on.
    """

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app = app
        self._token = token.encode()
        # Cookies don't know ports: two studios of one browser need two names.
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no web sockets here; the server answers 403

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        app = self._answer(scope) or self._app
        await app(scope, receive, send_with_headers)

    def _answer(self, scope: Scope) -> Response | None:
        """Return what to say instead of a page; None where the page is allowed."""
        headers = Headers(scope=scope)
        refusal = refused_by_method(scope["method"]) or refused_by_origin(headers)
        if refusal is not None:
            return PlainTextResponse(refusal.reason + "\n", refusal.status)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if given and self._is_token(given[-1]):
            return self._move_token(scope["path"], query)
        if self._is_token(_cookie(headers, self._cookie)):
            return None
        return PlainTextResponse("Open the address that `afnio studio` printed; it holds the token.\n", 401)

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "replace"), self._token)

    def _move_token(self, path: str, query: list[tuple[str, str]]) -> Response:
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        # A path that starts with two slashes would be another host.
        place = "/" + path.lstrip("/\\")
        response = RedirectResponse(f"{place}?{rest}" if rest else place, 303)
        response.set_cookie(self._cookie, self._token.decode(), path="/", httponly=True, samesite="strict")
        return response


def refused_by_method(method: str) -> Refusal | None:
    """Refuse whatever could change something: the studio only reads."""
    if method in ("GET", "HEAD"):
        return None
    return Refusal(405, "The studio only reads; GET and HEAD are all it answers.")


def refused_by_origin(headers: Headers) -> Refusal | None:
    """Refuse a host that isn't this machine (DNS rebinding), and pages of another origin."""
    host = headers.get("host", "")
    name, _, port = host.partition(":")
    if name not in HOSTS or not (port == "" or port.isdecimal()):
        return Refusal(403, "The studio answers on 127.0.0.1 and localhost only.")
    origin = headers.get("origin")
    site = headers.get("sec-fetch-site", "none")
    if (origin is not None and origin != f"http://{host}") or site not in ("none", "same-origin"):
        return Refusal(403, "Asked for by another site; paste the address into the address bar instead.")
    return None


def _cookie(headers: Headers, name: str) -> str:
    for line in headers.getlist("cookie"):
        try:
            morsel = SimpleCookie(line).get(name)
        except CookieError:
            continue
        if morsel is not None:
            return morsel.value
    return ""
