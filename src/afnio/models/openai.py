"""Clients of OpenAI, Azure OpenAI, and every endpoint that is compatible with their chat completions.

The OpenAI SDK reads the options and the environment: keys, base URLs, headers. Its own transport is slow with many
calls in flight, so requests go through `AiohttpTransport`, unless an option needs the SDK's (`http_client`, a key that
is a function, …). Its retries are off: the engine makes them. Errors of the provider have the SDK's error as their
cause.

The SDK is slow to import, so this is the only module that imports it, and only when the first client is made.

A key must not leave this module in a text. Replies and errors are masked, the account has a digest of the key, and
`repr` shows the URL only.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal
from urllib.parse import quote, urlencode, urlsplit, urlunsplit
from zlib import crc32

from afnio.errors import FinalModelError, ModelError, TransientModelError
from afnio.models._accounts import account_of, basic_credentials, find_key, is_credential, is_harmless
from afnio.models._apis import CHAT
from afnio.models._batch_apis import OpenAIBatches
from afnio.models._client import ChatClient
from afnio.models._masking import mask, names_secret, secrets_in_headers, secrets_in_url
from afnio.models._messages import ChatRequest, ChatResponse
from afnio.models._replies import read_reply, send_at_tier, status_error
from afnio.models._transport import (
    MAX_REPLY,
    RAW,
    AiohttpTransport,
    Answer,
    ReplyReader,
    Silence,
    bound_bodies,
    http_library,
    prepared,
    unreachable,
)
from afnio.runtime._admission import current_replica
from afnio.runtime._batch_api import Batched, ParcelPlan
from afnio.runtime._call import ATTEMPT_DEADLINE, attempt_deadline
from afnio.runtime._callables import is_async, look_up
from afnio.runtime._limits import Account, Limits, give_replicas
from afnio.runtime._spending import BATCH

if TYPE_CHECKING:
    from afnio.runtime._journal import Journal

PATH: Final = "chat/completions"
DEFAULT_URL: Final = "https://api.openai.com/v1"
# Bytes of a request by which replicas are chosen: about what a system prompt has in common with the next
# one's.
PREFIX: Final = 2_000
# Options with which only the SDK's own transport can send a request.
_BY_SDK: Final = ("default_query", "provider", "workload_identity")


class AsyncOpenAI(ChatClient):
    """A client of OpenAI or a compatible endpoint: vLLM, llama.cpp, Ollama, LM Studio, ….

    Its calls run on Afnio's runtime, so it works in scripts and on asyncio and trio.

    Args:
        api_key: default: OPENAI_API_KEY, then the keyring. Servers without keys take any string.
        base_url: default: OPENAI_BASE_URL, then OpenAI's own. A list has replicas: servers of the same models, such as
            vLLM on several GPUs. A call goes to one with few calls in flight that can be reached.
        name: of the replicas. It takes the place of the URL in journals, so that a run may continue on other machines.
        limits: the account's limits; those of each replica, if there are several.
        timeout: the longest duration of one attempt, in seconds. The default is 900 at the service tier "flex".
        service_tier: of requests that name none, such as "flex".
        fallback: what to do while the tier has no room: "wait", for an hour at most, or ask at the "standard" tier.
        max_reply_bytes: the limit of a reply in bytes, after decompression. A longer one is a `FinalModelError`.
        http_client: an httpx2.AsyncClient (httpx.AsyncClient with openai 2). Calls then go through the SDK's own
            transport, as they do if `api_key` is a function.
        **options: any other argument of `openai.AsyncOpenAI`, except `max_retries`.

    Raises:
        ValueError: for a bad `base_url`, `fallback`, `max_reply_bytes` or `max_retries`, and for two lists of replicas
            with one name.
        FinalModelError: if there is no key.

    >>> AsyncOpenAI(api_key="any", base_url="http://127.0.0.1:8000/v1")
    AsyncOpenAI('http://127.0.0.1:8000/v1')
    """

    _sdk_name: ClassVar[str] = "AsyncOpenAI"
    _no_key: ClassVar[str] = (
        "no API key was given; pass api_key=… or set OPENAI_API_KEY (a server without keys takes any string)"
    )

    def __init__(
        self,
        *,
        api_key: str | Callable[[], Awaitable[str]] | None = None,
        base_url: str | Sequence[str] | None = None,
        name: str | None = None,
        limits: Limits | None = None,
        timeout: float = ATTEMPT_DEADLINE,
        service_tier: str | None = None,
        fallback: Literal["wait", "standard"] = "wait",
        max_reply_bytes: int = MAX_REPLY,
        http_client: Any = None,
        **options: Any,
    ) -> None:
        if fallback not in ("wait", "standard"):
            raise ValueError(f'fallback must be "wait" or "standard" (got {fallback!r}); choose one')
        self._service_tier = service_tier
        self._fallback = fallback
        self._replicas: dict[Account, AsyncOpenAI] = {}
        self._batch_apis: dict[str, OpenAIBatches] = {}
        self._served: set[str] = set()  # the models that a replica has answered as
        if base_url is not None and not isinstance(base_url, str):
            shared = {"api_key": api_key, "timeout": timeout, "http_client": http_client, **options}
            for url in _replica_urls(base_url):
                one = AsyncOpenAI(base_url=url, limits=limits, max_reply_bytes=max_reply_bytes, **shared)
                self._replicas[one.account] = one
            base_url = next(iter(self._replicas.values())).base_url
        elif name is not None:
            raise ValueError(
                f"name must come with a list of base URLs (got {name!r} and one URL); leave it out"
            )
        if isinstance(max_reply_bytes, bool) or not isinstance(max_reply_bytes, int) or max_reply_bytes < 1:
            raise ValueError(
                f"max_reply_bytes must be a whole number above 0 (got {max_reply_bytes!r}), in bytes"
            )
        self._max_reply = max_reply_bytes
        if options.pop("max_retries", 0):
            raise ValueError(
                "max_retries isn't supported because the engine retries, within the account's limits; leave it out"
            )
        self._sdk = self._sdk_client(
            api_key=api_key, base_url=base_url, http_client=http_client, timeout=timeout, **options
        )
        self._by_sdk = (
            http_client is not None or callable(api_key) or any(options.get(name) for name in _BY_SDK)
        )
        if self._by_sdk:
            bound_bodies(self._sdk._client)
        basic = basic_credentials(str(self._sdk.base_url))  # as in the SDK, they override the key
        self._authorization = {"Authorization": f"Basic {basic}"} if basic else {}
        self._made_headers: Mapping[str, str] | None = None
        headers = options.get("default_headers") or {}
        self._beside_key = (
            *secrets_in_url(str(self._sdk.base_url)),
            *secrets_in_headers({**headers, **(options.get("default_query") or {})}),
        )
        account = self._account()
        if self._replicas:
            # The members' keys and URLs don't count: a run may continue on other machines.
            account = Account(f"replicas://{name or ''}", "")
            give_replicas(account, tuple(self._replicas), self)
            limits = None  # its replicas have them
        super().__init__(account, limits=limits, timeout=timeout)
        self.variant = _variant(self._sdk, headers)

    @property
    def base_url(self) -> str:
        """The endpoint, without credentials."""
        return self.account.url

    async def list_models(self) -> list[str]:
        """Return the names of the endpoint's models. It runs on the caller's asyncio loop.

        Of replicas, those that can be reached are asked.

        Raises:
            ModelError: if the endpoint can't be reached or refuses, for instance because of the key; if replicas have
                different models.
        """
        if not self._replicas:
            return (await self.listed_models())[0]
        models: dict[str, list[str]] = {}
        for account, replica in self._replicas.items():
            try:
                models[account.url] = await replica.list_models()
            except ModelError as error:
                unreached = error
        if not models:
            raise unreached
        check_same_models(models)
        return [
            name for name in next(iter(models.values())) if all(name in names for names in models.values())
        ]

    async def listed_models(self) -> tuple[list[str], Mapping[str, str]]:
        """Return the names of the endpoint's models, and the headers of its reply. See `list_models`."""
        import openai

        try:
            # Not the SDK client's own connections: they belong to another event loop.
            own = openai.DefaultAsyncHttpxClient(follow_redirects=False)
            async with self._sdk.copy(http_client=own) as sdk:
                reply = await sdk.models.with_raw_response.list()
                return [model.id async for model in reply.parse()], reply.headers
        except openai.APIStatusError as error:
            if error.response.is_redirect:
                headers = error.response.headers
                refused = status_error(error.status_code, headers, None, b"", self.account.url)
                raise self._without_secrets(refused) from None
            answer = self._without_key(Answer(error.response.status_code, {}, str(error).encode()))
            text = f"{self.account.url} refused to name its models ({answer.body.decode()})"
            raise FinalModelError(text, status=answer.status) from None
        except openai.APIConnectionError as error:
            text = f"can't reach {self.account.url} ({error}); check base_url and that the server runs"
            raise FinalModelError(text) from error

    @property
    def replicas(self) -> list[str]:
        """The base URLs of its replicas, or [] if there is one endpoint."""
        return [account.url for account in self._replicas]

    @property
    def price_url(self) -> str:
        return next(iter(self._replicas), self.account).url

    def prefix(self, request: ChatRequest) -> int:
        return crc32(request.encoded[:PREFIX]) if self._replicas else 0

    def with_defaults(self, request: ChatRequest) -> ChatRequest:
        return request if self._service_tier is None else _at_tier(request, self._service_tier)

    async def send(self, request: ChatRequest) -> ChatResponse:
        return await send_at_tier(self._send, request, None if self._fallback == "wait" else _at_standard)

    async def _send(self, request: ChatRequest) -> ChatResponse:
        if self._replicas:
            return await self._send_to_replica(request)
        try:
            with Silence.of(self.account, request.model):
                answer = await (self._send_by_sdk(request) if self._by_sdk else self._post(request))
            return self._read(self._without_key(answer))
        except ModelError as error:
            self._without_secrets(error)
            raise

    def batched(
        self, request: ChatRequest, plan: ParcelPlan, journal: Journal
    ) -> Batched[ChatResponse] | None:
        if self._replicas or self._by_sdk or self._sdk_name != "AsyncOpenAI":
            return None
        api = self._batch_apis.get(request.model)
        if api is None:
            api = self._batch_apis[request.model] = self.batch_api(f"/v1/{PATH}", request.model)
        return Batched(api, plan, journal, request.encode, self._read_line)

    def batch_api(self, endpoint: str, model: str) -> OpenAIBatches:
        """Return the batch API of its account for a model's calls of an endpoint."""
        secrets = (*self._secrets(), *self._beside_key)
        return OpenAIBatches(self.account, endpoint, model, self._headers, secrets, CHAT)

    def _read_line(self, status: int, body: bytes) -> ChatResponse:
        """Return the reply in a line of a batch."""
        return replace(self._read(Answer(status, {}, body)), service_tier=BATCH)

    async def _send_to_replica(self, request: ChatRequest) -> ChatResponse:
        account = current_replica.get()
        assert account is not None
        try:
            response = await self._replicas[account].send(request)
        except FinalModelError as error:
            if error.status != 404:
                raise
            if request.model not in self._served:
                note = f"{account.url} is one of {len(self._replicas)} replicas, which must serve the same models"
                error.add_note(note)
                raise
            raise FinalModelError(
                f"replicas must serve the same models (got {error}, and replies as {request.model!r} from another "
                f"one); start {account.url} with that model, or leave it out",
                status=404,
            ) from error
        self._served.add(request.model)
        return response

    def _read(self, answer: Answer) -> ChatResponse:
        try:
            return read_reply(answer.status, answer.headers, answer.body, self.account.url)
        except ModelError as error:
            if error.status is not None and error.status >= 400 and error.__cause__ is None:
                raise error from _sdk_error(error, answer)
            raise

    async def _post(self, request: ChatRequest) -> Answer:
        headers = await self._headers()
        transport = AiohttpTransport.shared(self.account)
        return await transport.post(self._url(request), headers, request.encoded, self._max_reply)

    def _url(self, request: ChatRequest) -> str:
        return f"{self.account.url}/{PATH}"

    async def _headers(self) -> Mapping[str, str]:
        """Return the headers of a request. They are made once: the SDK takes 20 µs for them."""
        if self._made_headers is None:
            self._made_headers = prepared(self._plain_headers())
        return self._made_headers

    def _plain_headers(self) -> dict[str, str]:
        # Before openai 3, Azure's clients have a Bearer token among their defaults, in addition to their key.
        of_sdk = self._sdk.auth_headers.items()
        defaults = {
            name: value
            for name, value in self._sdk.default_headers.items()
            if isinstance(value, str) and (name, value) not in of_sdk
        }
        return {**defaults, **self._auth_headers()}

    def _account(self) -> Account:
        headers = {name.lower(): value for name, value in self._plain_headers().items()}
        secrets = [str(value) for name, value in self._sdk.default_query.items() if names_secret(name)]
        url = _without_credentials(str(self._sdk.base_url))
        return account_of(url, headers, secrets=secrets, azure=self._has_tokens())

    def _has_tokens(self) -> bool:
        """Return True if it sends Microsoft Entra's tokens instead of a key."""
        return False

    def _auth_headers(self) -> dict[str, str]:
        return {**self._sdk.auth_headers, **self._authorization}

    def _secrets(self) -> list[str]:
        """Return the keys. Accounts are distinguished by them."""
        return [str(self._sdk.api_key or "")]

    async def _send_by_sdk(self, request: ChatRequest) -> Answer:
        import openai

        deadline = attempt_deadline(self.timeout, request.params.get("service_tier"))
        options: Any = {"follow_redirects": False, "headers": {RAW: "stream"}, "timeout": deadline}
        url = self.account.url
        try:
            response = await self._sdk.post(
                f"/{PATH}", body=request.body, cast_to=_http().Response, options=options
            )
            async with aclosing(response):
                pieces = response.aiter_bytes()
                body = await ReplyReader.shared(self.account).read(
                    lambda: anext(pieces, b""), response.status_code, self._max_reply, url
                )
            return Answer(response.status_code, response.headers, body)
        except openai.APIStatusError as error:
            return Answer(error.response.status_code, error.response.headers, error.response.content)
        except _http_errors() as error:
            cause = error.__cause__ or error
            if type(cause).__name__ in ("ConnectError", "ConnectTimeout"):
                raise unreachable(url, str(cause) or type(cause).__name__) from error
            raise TransientModelError(
                f"the connection to {url} ended early ({str(cause) or type(cause).__name__})"
            ) from error

    def _without_key(self, answer: Answer) -> Answer:
        """Return `answer` with secrets masked: providers quote keys in errors, and errors end up in logs."""
        return answer._replace(body=self._masked(answer.body))

    def _without_secrets(self, error: ModelError) -> ModelError:
        # An error may quote more than the body, such as the target of a redirect.
        error.args = (self._masked(str(error).encode("utf-8", "replace")).decode(),)
        return error

    def _masked(self, text: bytes) -> bytes:
        return mask(text, (*self._secrets(), *self._beside_key))

    def _sdk_client(self, **options: Any) -> Any:
        import openai

        passed = {name: value for name, value in options.items() if value is not None}
        if (
            "api_key" not in passed
            and self._sdk_name == "AsyncOpenAI"
            and not os.environ.get("OPENAI_API_KEY")
        ):
            kept = find_key(endpoint_url(passed.get("base_url")))
            passed |= {} if kept is None else {"api_key": kept}
        try:
            return getattr(openai, self._sdk_name)(**passed, max_retries=0)
        except _http().InvalidURL:  # its text may contain a part of a password
            raise _bad_url(str(passed.get("base_url") or passed.get("azure_endpoint"))) from None
        except openai.OpenAIError as error:
            if "credentials" in str(error).lower() or "api_key" in str(error):
                raise FinalModelError(self._no_key) from None
            raise


def _at_tier(request: ChatRequest, tier: str) -> ChatRequest:
    return replace(request, params={"service_tier": tier, **request.params})


def _at_standard(request: ChatRequest) -> ChatRequest:
    return replace(request, params={**request.params, "service_tier": "default"})


class AsyncAzureOpenAI(AsyncOpenAI):
    """A client of Azure OpenAI. A call's `model` is the name of a deployment.

    Args:
        azure_endpoint: `https://<resource>.openai.azure.com`. Default: AZURE_OPENAI_ENDPOINT.
        azure_deployment: the deployment for all calls, regardless of their `model`.
        api_version: default: OPENAI_API_VERSION.
        api_key: default: AZURE_OPENAI_API_KEY.
        azure_ad_token: a Microsoft Entra token instead of a key. Default: AZURE_OPENAI_AD_TOKEN.
        azure_ad_token_provider: a function that returns such a token, called before each attempt. A `def` runs in a
            worker thread, an `async def` on the runtime's loop.
        **options: as for `AsyncOpenAI`.

    Raises:
        ValueError: for more than one credential, and as `AsyncOpenAI`.
        FinalModelError: if there are no credentials.

    Source: https://learn.microsoft.com/azure/ai-foundry/openai/reference

    >>> AsyncAzureOpenAI(azure_endpoint="https://me.openai.azure.com", api_version="2024-10-21", api_key="any")
    AsyncAzureOpenAI('https://me.openai.azure.com/openai')
    """

    _sdk_name = "AsyncAzureOpenAI"
    _no_key = (
        "no credentials were given for Azure; pass api_key=…, azure_ad_token=… or azure_ad_token_provider=…, or "
        "set AZURE_OPENAI_API_KEY"
    )

    def __init__(
        self,
        *,
        azure_endpoint: str | None = None,
        azure_deployment: str | None = None,
        api_version: str | None = None,
        api_key: str | Callable[[], Awaitable[str]] | None = None,
        azure_ad_token: str | None = None,
        azure_ad_token_provider: Callable[[], str | Awaitable[str]] | None = None,
        base_url: str | None = None,
        limits: Limits | None = None,
        timeout: float = ATTEMPT_DEADLINE,
        max_reply_bytes: int = MAX_REPLY,
        http_client: Any = None,
        **options: Any,
    ) -> None:
        credentials = {
            "api_key": api_key,
            "azure_ad_token": azure_ad_token,
            "azure_ad_token_provider": azure_ad_token_provider,
        }
        named = [name for name, value in credentials.items() if value is not None]
        if len(named) > 1:
            raise ValueError(
                f"Azure must have only one credential (got {' and '.join(named)}); pass the one to use"
            )
        # Like the SDK, prefer any given credential to those of the environment.
        self._token = azure_ad_token if named else os.environ.get("AZURE_OPENAI_AD_TOKEN")
        self._token_provider = azure_ad_token_provider
        super().__init__(
            azure_endpoint=azure_endpoint,
            azure_deployment=azure_deployment,
            api_version=api_version,
            api_key=api_key,
            azure_ad_token=azure_ad_token,
            azure_ad_token_provider=azure_ad_token_provider,
            base_url=base_url,
            limits=limits,
            timeout=timeout,
            max_reply_bytes=max_reply_bytes,
            http_client=http_client,
            **options,
        )
        query = {name: str(value) for name, value in self._sdk.default_query.items()}
        self._query = f"?{urlencode(query)}" if query else ""

    def _url(self, request: ChatRequest) -> str:
        url = self.account.url
        if "/deployments" not in urlsplit(url).path:
            url = f"{url}/deployments/{quote(request.model, safe='')}"
        return f"{url}/{PATH}{self._query}"

    async def _headers(self) -> Mapping[str, str]:
        if self._token_provider is not None:
            token = await _token_from(self._token_provider)
            if token != self._token:
                self._token, self._made_headers = token, None
        return await super()._headers()

    def _auth_headers(self) -> dict[str, str]:
        if self._token is not None:
            return {"Authorization": f"Bearer {self._token}"}
        return {} if self._has_tokens() else {"api-key": str(self._sdk.api_key)}

    def _has_tokens(self) -> bool:
        return self._token is not None or self._token_provider is not None

    def _secrets(self) -> list[str]:
        return [*super()._secrets(), *([self._token] if self._token else [])]


async def _token_from(provider: Callable[[], str | Awaitable[str]]) -> str:
    """Return a token provider's token. In a thread if it is a `def`: it blocks when it fetches a new token."""
    token: Any = provider() if is_async(provider) else await look_up(provider)
    if inspect.isawaitable(token):
        token = await token
    if not isinstance(token, str) or not token:
        raise FinalModelError(
            f"azure_ad_token_provider must return a token (got {type(token).__name__}); return a str"
        )
    return token


def _http() -> Any:
    return import_module(http_library())


def _http_errors() -> tuple[type[Exception], ...]:
    """Return the errors of a failed connection: the SDK's, its library's, and httpx's if it has been imported."""
    import openai

    libraries = {_http(), sys.modules.get("httpx", _http())}
    return (openai.APIConnectionError, *(library.HTTPError for library in libraries))


def check_same_models(by_replica: Mapping[str, Sequence[str]]) -> None:
    """Check that replicas have a model in common.

    Args:
        found: for each URL, the names of its models.

    Raises:
        FinalModelError: if there is none.

    >>> check_same_models({"http://a/v1": ["m", "n"], "http://b/v1": ["m"]})
    """
    if set.intersection(*map(set, by_replica.values())):
        return
    served = ", ".join(
        f"{', '.join(models[:3]) or 'nothing'} from {url}" for url, models in by_replica.items()
    )
    raise FinalModelError(
        f"replicas must serve the same models (got {served}); start them with one name, such as vLLM's "
        "--served-model-name"
    )


def _replica_urls(wanted: Sequence[str]) -> list[str]:
    urls = list(wanted)
    if not urls or not all(isinstance(url, str) for url in urls):
        raise ValueError(
            f"base_url must be a URL or a list of at least one (got {urls!r}); pass the replicas' URLs"
        )
    normal = [endpoint_url(url) for url in urls]
    twice = [url for url in normal if normal.count(url) > 1]
    if twice:
        raise ValueError(
            f"base_url must have each replica once (got {twice[0]} twice); leave one of them out"
        )
    return urls


def endpoint_url(base_url: str | None) -> str:
    """Return the endpoint of a client with this `base_url`, without credentials.

    >>> endpoint_url("https://user:secret@example.org/v1/")
    'https://example.org/v1'
    """
    return _without_credentials(base_url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL)


def key_source(base_url: str | None) -> str:
    """Return a name for the place where a client without `api_key` finds its key."""
    if os.environ.get("OPENAI_API_KEY"):
        return "OPENAI_API_KEY"
    return "the keyring" if find_key(endpoint_url(base_url)) is not None else "nowhere"


def _variant(sdk: Any, headers: Mapping[str, Any]) -> str:
    """Return a digest of everything that a client adds to its requests and that may change replies, or "".

    Without credentials: they may differ from run to run, and a journal must still recognize the request.
    """
    added = {
        "headers": sorted(
            (name.lower(), str(value))
            for name, value in headers.items()
            if not is_harmless(name.lower()) and not is_credential(name.lower())
        ),
        "query": sorted((name, str(value)) for name, value in sdk.default_query.items()),
        "organization": sdk.organization,
        "project": sdk.project,
    }
    if not any(added.values()):
        return ""
    return hashlib.sha256(json.dumps(added).encode()).hexdigest()


def _without_credentials(url: str) -> str:
    try:
        parts = urlsplit(url.rstrip("/"))
        host = parts.netloc.rpartition("@")[2]
        shown = urlunsplit((parts.scheme, host, parts.path, "", ""))
        parts.port  # noqa: B018 - raises if it isn't a number
        named = ":" in (parts.hostname or "") or (parts.hostname or "").encode("idna")
    except ValueError:
        raise _bad_url(url) from None
    if parts.scheme not in ("http", "https") or not named:
        raise ValueError(f"base_url must start with http:// or https:// and name a host (got {shown!r})")
    if parts.query or parts.fragment:
        raise ValueError(
            f"base_url must have no query (got one after {shown!r}); pass it as default_query={{…}}"
        )
    return shown


def _bad_url(url: str) -> ValueError:
    shown = url.rpartition("@")[2].partition("?")[0].rstrip("/")
    return ValueError(f"base_url must be a URL with a valid host and port (got {shown!r}); correct it")


def _sdk_error(error: ModelError, answer: Answer) -> BaseException:
    """Return the SDK's error for `answer`. As the cause of ours it lets users look at the SDK's attributes."""
    import openai

    status = error.status or 500
    classes: Mapping[int, Any] = {
        400: openai.BadRequestError,
        401: openai.AuthenticationError,
        403: openai.PermissionDeniedError,
        404: openai.NotFoundError,
        409: openai.ConflictError,
        422: openai.UnprocessableEntityError,
        429: openai.RateLimitError,
    }
    made = classes.get(status, openai.InternalServerError if status >= 500 else openai.APIStatusError)
    # Not the real request: its headers have the key.
    library = _http()
    request = library.Request("POST", f"https://{PATH}")
    response = library.Response(status, content=answer.body, request=request)
    sdk_error: BaseException = made(str(error), response=response, body=None)
    return sdk_error
