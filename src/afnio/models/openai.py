"""OpenAI and every endpoint that speaks its chat completions. The SDK is imported here alone, lazily.

The SDK client is the source of key, base URL, headers and error classes; it retries nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit, urlunsplit

from afnio.errors import FinalModelError, ModelError, TransientModelError
from afnio.models.classify import read_reply
from afnio.models.client import ChatClient
from afnio.models.rate_headers import hear_headers
from afnio.models.request import ChatRequest
from afnio.models.response import ChatResponse
from afnio.models.transport import AiohttpTransport, Answer
from afnio.runtime import Account, Limits
from afnio.runtime.call import ATTEMPT_DEADLINE

PATH: Final = "chat/completions"
_BY_SDK: Final = ("default_query", "provider", "workload_identity")
"""Options that change a request in ways which only the SDK's own transport knows."""
_SECRET: Final = 8
"""A key of fewer characters is none that has to be kept out of error texts."""


class AsyncOpenAI(ChatClient):
    """A client of OpenAI or of an endpoint compatible with it: vLLM, llama.cpp, Ollama, LM Studio, ….

    Its calls run on Afnio's runtime, so it serves scripts, asyncio and trio alike.

    Args:
        api_key: by default from OPENAI_API_KEY; servers without keys take any string.
        base_url: by default from OPENAI_BASE_URL, else OpenAI's own.
        limits: limits of the account.
        timeout: seconds that one attempt may take.
        http_client: an httpx2.AsyncClient of yours; calls then go through the SDK's own transport.
            So they do where the key is a function or the options ask for more than headers.
        **options: anything else that `openai.AsyncOpenAI` takes, but for `max_retries`.

    >>> AsyncOpenAI(api_key="any", base_url="http://127.0.0.1:8000/v1")
    AsyncOpenAI('http://127.0.0.1:8000/v1')
    """

    def __init__(
        self,
        *,
        api_key: str | Callable[[], Awaitable[str]] | None = None,
        base_url: str | None = None,
        limits: Limits | None = None,
        timeout: float = ATTEMPT_DEADLINE,
        http_client: Any = None,
        **options: Any,
    ) -> None:
        if options.pop("max_retries", 0):
            raise ValueError(
                "max_retries is the engine's: it retries each call in one place, with the account's limits; "
                "leave it out"
            )
        self._sdk = _sdk_client(
            api_key=api_key, base_url=base_url, http_client=http_client, timeout=timeout, **options
        )
        self._by_sdk = (
            http_client is not None or callable(api_key) or any(options.get(name) for name in _BY_SDK)
        )
        self._authorization = _basic_authorization(self._sdk)
        super().__init__(_account(self._sdk), limits=limits, timeout=timeout)

    @property
    def base_url(self) -> str:
        """The endpoint, without credentials."""
        return self.account.url

    async def send(self, request: ChatRequest) -> ChatResponse:
        answer = await (self._send_by_sdk(request) if self._by_sdk else self._post(request))
        answer = self._without_key(answer)
        hear_headers(answer.headers)
        try:
            return read_reply(answer.status, answer.headers, answer.body, self.account.url)
        except ModelError as error:
            if error.status is not None and error.status >= 400 and error.__cause__ is None:
                raise error from _sdk_error(error, answer)
            raise

    async def _post(self, request: ChatRequest) -> Answer:
        headers = {
            name: value
            for name, value in {
                **self._sdk.default_headers,
                **self._sdk.auth_headers,
                **self._authorization,
            }.items()
            if isinstance(value, str)
        }
        return await AiohttpTransport.shared(self.account).post(
            f"{self.account.url}/{PATH}", headers, request.encoded
        )

    async def _send_by_sdk(self, request: ChatRequest) -> Answer:
        import httpx2
        import openai

        try:
            response = await self._sdk.post(f"/{PATH}", body=request.body, cast_to=httpx2.Response)
        except openai.APIStatusError as error:
            response = error.response
        except openai.APIConnectionError as error:
            raise TransientModelError(f"can't reach {self.account.url} ({error})") from error
        return Answer(response.status_code, response.headers, response.content)

    def _without_key(self, answer: Answer) -> Answer:
        """Return `answer` without the key that it may repeat: error bodies end up in logs."""
        key = str(self._sdk.api_key or "").encode()
        if len(key) < _SECRET or key not in answer.body:
            return answer
        return answer._replace(body=answer.body.replace(key, b"<api key>"))


class OpenAI(AsyncOpenAI):
    """The same client under the name that synchronous programs import; `chat` waits, `achat` is awaited."""


def _sdk_client(**options: Any) -> Any:
    import openai

    given = {name: value for name, value in options.items() if value is not None}
    try:
        return openai.AsyncOpenAI(**given, max_retries=0)
    except openai.OpenAIError as error:
        if "credentials" in str(error).lower() or "api_key" in str(error):
            raise FinalModelError(
                "no API key was given; pass api_key=… or set OPENAI_API_KEY (a server without keys takes any "
                "string)"
            ) from error
        raise


def _basic_authorization(sdk: Any) -> dict[str, str]:
    """Return the header for the credentials in the base URL, which win over the key as in the SDK."""
    parts = urlsplit(str(sdk.base_url))
    if parts.username is None:
        return {}
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}


def _account(sdk: Any) -> Account:
    parts = urlsplit(str(sdk.base_url).rstrip("/"))
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        raise ValueError(f"base_url must start with http:// or https:// and name a host (got {shown!r})")
    host = parts.netloc.rpartition("@")[2]
    secret = hashlib.sha256(f"{sdk.api_key}\0{parts.netloc}\0{sdk.organization}\0{sdk.project}".encode())
    return Account(urlunsplit((parts.scheme, host, parts.path, "", "")), secret.hexdigest()[:16])


def _sdk_error(error: ModelError, answer: Answer) -> BaseException:
    """Return the SDK's own error for `answer`, so that `except` clauses on its classes can look at it."""
    import httpx2
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
    # Without the request's own headers, which carry the key.
    request = httpx2.Request("POST", f"https://{PATH}")
    response = httpx2.Response(status, content=answer.body, request=request)
    sdk_error: BaseException = made(str(error), response=response, body=None)
    return sdk_error
