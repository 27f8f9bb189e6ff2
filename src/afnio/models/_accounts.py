"""Accounts and callers: whose limits a request counts against, and who may share its reply.

There are two digests. An *account* is a base URL and credentials, whichever header they come in: its limits and budgets
hold for all clients with that key. A *caller* is everything in the headers that may tell two tenants apart: keys, and
also cookies, subscriptions, or a header such as `x-tenant`. A reply goes to nobody else. Nobody can list the headers
that identify a tenant, so all of them count, except those that are known to be harmless.

Keys of endpoints can be kept in the operating system's keyring (`afnio[keyring]`), where `afnio login` stores them. A
key that is passed to a client or in the environment has precedence.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from afnio.errors import KeyStoreError
from afnio.models._masking import names_secret, secrets_in_url
from afnio.runtime._limits import Account

# Headers that neither change a reply nor say who asks: of connections, of programs, and of tracing.
_HARMLESS: Final = frozenset(
    {
        "accept", "accept-charset", "accept-encoding", "accept-language", "amz-sdk-request", "b3", "baggage",
        "cache-control", "connection", "content-length", "content-type", "date", "dnt", "expect", "forwarded", "host",
        "idempotency-key", "keep-alive", "newrelic", "origin", "pragma", "priority", "proxy-authorization",
        "proxy-connection", "referer", "te", "traceparent", "tracestate", "trailer", "transfer-encoding", "upgrade",
        "user-agent", "via", "x-amz-content-sha256", "x-amz-date", "x-cloud-trace-context", "x-forwarded-for",
        "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-goog-api-client", "x-ms-useragent",
        "x-real-ip",
    }
)  # fmt: skip
_HARMLESS_BEGINNINGS: Final = ("sec-", "x-afnio-", "x-b3-", "x-datadog-", "x-stainless-")
_HARMLESS_ENDINGS: Final = (
    "correlation-id", "invocation-id", "request-id", "trace-id", "-trace", "-traceparent",
)  # fmt: skip
# Headers that say whose quota a key uses.
_QUOTA: Final = ("openai-organization", "openai-project", "x-goog-user-project")
_AWS_KEY: Final = re.compile(r"AWS4-\S+ Credential=([^/,\s]+)")


@lru_cache(maxsize=4096)
def is_harmless(header: str) -> bool:
    """Return True for a header, in lower case, that neither changes a reply nor says who asks."""
    return (
        header in _HARMLESS or header.startswith(_HARMLESS_BEGINNINGS) or header.endswith(_HARMLESS_ENDINGS)
    )


@lru_cache(maxsize=4096)
def is_credential(header: str) -> bool:
    """Return True for a header, in lower case, that says who asks and doesn't change the reply.

    >>> [is_credential(name) for name in ("cf-aig-authorization", "cookie", "x-tenant", "idempotency-key")]
    [True, True, False, False]
    """
    return names_secret(header) and not is_harmless(header)


def account_of(
    url: str, headers: Mapping[str, str], *, secrets: Iterable[str] = (), azure: bool = False
) -> Account:
    """Return the account of requests to `url`.

    Args:
        url: the base URL, without credentials.
        headers: of the request, with names in lower case.
        secrets: credentials in the URL.
        azure: True to leave out the token in `authorization`. Microsoft Entra's tokens change by the hour, and the
            limits are those of the resource, which the URL names.
    """
    identity = {
        _credential(value)
        for name, value in headers.items()
        if value and is_credential(name) and not (azure and name == "authorization")
    }
    identity.update(secrets)
    quota = (f"{name}: {headers[name]}" for name in _QUOTA if name in headers)
    digest = hashlib.sha256("\0".join([*sorted(identity), *quota]).encode("utf-8", "surrogateescape"))
    return Account(url, digest.hexdigest()[:16])


def _credential(value: str) -> str:
    """Return what identifies the account in a header's value."""
    signed = _AWS_KEY.match(value)  # a signature changes with each request, and the key's name doesn't
    if signed is not None:
        return signed[1]
    scheme, _, rest = value.partition(" ")
    return rest if scheme.lower() in ("bearer", "basic") else value


class Headers(NamedTuple):
    """A request's headers, sorted out for digests.

    Attributes:
        of_reply: those that may change the reply, as a text.
        of_caller: the credentials, as a text.
    """

    of_reply: str
    of_caller: str


def sorted_out(headers: Mapping[str, str]) -> Headers:
    """Sort headers, with names in lower case."""
    # Without the harmless ones the requests of a client have the same headers. Their lengths differ.
    return _sorted_out(tuple((name, value) for name, value in headers.items() if not is_harmless(name)))


@lru_cache(maxsize=256)
def _sorted_out(headers: tuple[tuple[str, str], ...]) -> Headers:
    lines = {True: "", False: ""}
    for name, value in sorted(headers):
        lines[is_credential(name)] += f"{name}:{value}\0"
    return Headers(lines[False], lines[True])


class UrlParts(NamedTuple):
    """A URL taken apart.

    Attributes:
        shown: the URL without credentials.
        root: its scheme and host.
        path: its path.
        secrets: the credentials in it, as they are masked.
        credentials: the same, as they identify an account.
    """

    shown: str
    root: str
    path: str
    secrets: tuple[str, ...]
    credentials: tuple[str, ...]


@lru_cache(maxsize=256)
def parts_of(url: str) -> UrlParts:
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    query = parse_qsl(parts.query, keep_blank_values=True)
    shown_query = urlencode([(name, value) for name, value in query if not names_secret(name)])
    of_query = tuple(value for name, value in query if names_secret(name))
    basic = basic_credentials(url)
    return UrlParts(
        shown=urlunsplit((parts.scheme, host, parts.path, shown_query, "")),
        root=f"{parts.scheme}://{host}",
        path=parts.path,
        secrets=(*secrets_in_url(url), *of_query),
        credentials=(*([basic] if basic else []), *of_query),
    )


def basic_credentials(url: str) -> str:
    """Return a URL's user and password, as a basic authorization header has them, or ""."""
    parts = urlsplit(url)
    if parts.username is None:
        return ""
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return base64.b64encode(user.encode()).decode()


# The keyring


# The service name of all keys in the keyring. The user name is the endpoint's base URL.
SERVICE: Final = "afnio"


def keep_key(url: str, key: str) -> None:
    """Store the key of the endpoint at `url`.

    Raises:
        KeyStoreError: if there is no keyring, or it refuses.
    """
    _ask("set_password", url, key)


def forget_key(url: str) -> bool:
    """Delete the key of the endpoint at `url`. Returns False if there was none."""
    if _ask("get_password", url) is None:
        return False
    _ask("delete_password", url)
    return True


def find_key(url: str) -> str | None:
    """Return the key of the endpoint at `url`, or None if there is no key or no keyring."""
    try:
        key: str | None = _ask("get_password", url)
    except KeyStoreError:
        return None
    return key


def _ask(what: str, *args: str) -> Any:
    try:
        import keyring
        from keyring.errors import NoKeyringError
    except ImportError as error:
        raise KeyStoreError(
            "the keyring package is not installed; run pip install 'afnio[keyring]'"
        ) from error
    try:
        return getattr(keyring, what)(SERVICE, *args)
    except NoKeyringError as error:
        raise KeyStoreError(
            "this machine has no keyring (containers and servers rarely do); set OPENAI_API_KEY in the environment "
            "instead"
        ) from error
    except Exception as error:  # each backend raises its own; leave out its text, which we don't control
        raise KeyStoreError(
            f"the keyring refused ({type(error).__name__}); unlock it, or set OPENAI_API_KEY"
        ) from None
