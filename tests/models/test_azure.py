"""The Azure clients against a provider on Azure's paths."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from aiohttp import web
from kit.wire import http

import afnio
from afnio.errors import FinalModelError
from afnio.models import get_backward_model_client
from afnio.models.openai import AsyncAzureOpenAI, AsyncOpenAI
from afnio.testing import Provider

KEY = "azure-secret-0123456789"
TOKEN = "entra-token-0123456789"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_VERSION", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("ENDPOINT", "API_KEY", "AD_TOKEN"):
        monkeypatch.delenv(f"AZURE_OPENAI_{name}", raising=False)


class Watched(Provider):
    """Notes the paths and the credentials that it is sent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(lm=lambda request: "hi", **options)
        self.seen: list[tuple[str, str | None, str | None]] = []

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        headers = request.headers
        self.seen.append((request.raw_path, headers.get("api-key"), headers.get("authorization")))
        return await super()._chat(request)


def client(provider: Provider, **options: Any) -> AsyncAzureOpenAI:
    endpoint = provider.base_url.removesuffix("/v1")
    return AsyncAzureOpenAI(azure_endpoint=endpoint, **{"api_version": "2024-10-21", **options})


async def ask(lm: AsyncOpenAI, model: str = "my deployment") -> str:
    return str(await lm.achat(messages=HELLO, model=model))


async def test_the_model_names_the_deployment() -> None:
    """In the path, with the version, the key in Azure's header; limits and usage are the account's."""
    async with Watched(api_key=KEY) as provider:
        lm = client(provider, api_key=KEY)
        assert await ask(lm) == "hi"
        path = "/openai/deployments/my%20deployment/chat/completions?api-version=2024-10-21"
        assert provider.seen == [(path, KEY, None)]
        assert lm.get_usage()["calls"] == 1
        assert lm.base_url.endswith("/openai")


async def test_a_deployment_of_the_client_holds_for_all_models() -> None:
    """And a base URL, which is taken as it is."""
    async with Watched() as provider:
        await ask(client(provider, api_key=KEY, azure_deployment="d"), "m")
        base = provider.base_url.replace("/v1", "/openai/deployments/e")
        await ask(AsyncAzureOpenAI(base_url=base, api_key=KEY, api_version="v"), "m")
        assert [path for path, _, _ in provider.seen] == [
            "/openai/deployments/d/chat/completions?api-version=2024-10-21",
            "/openai/deployments/e/chat/completions?api-version=v",
        ]


async def test_entra_tokens() -> None:
    """Given, or from a function asked for each attempt: a `def` in a worker thread, or an `async def`."""
    threads = []

    def in_thread() -> str:
        threads.append(threading.current_thread().name)
        return TOKEN

    async def on_loop() -> str:
        threads.append(threading.current_thread().name)
        return TOKEN

    async with Watched() as provider:
        await ask(client(provider, azure_ad_token=TOKEN))
        for function in (in_thread, on_loop):
            await ask(client(provider, azure_ad_token_provider=function))
        assert [(key, token) for _, key, token in provider.seen] == [(None, f"Bearer {TOKEN}")] * 3
        assert threads[0] != "afnio-runtime" == threads[1]
        with pytest.raises(FinalModelError, match=r"must return a token \(got int\)"):
            await ask(client(provider, azure_ad_token_provider=lambda: 3))


async def test_the_environment_is_the_sdks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Endpoint, key, version and token from the variables that its users know."""
    async with Watched() as provider:
        monkeypatch.setenv("AZURE_OPENAI_ENDPOINT", provider.base_url.removesuffix("/v1"))
        monkeypatch.setenv("OPENAI_API_VERSION", "v1")
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", KEY)
        await ask(AsyncAzureOpenAI(), "d")
        monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", TOKEN)
        await ask(AsyncAzureOpenAI(), "d")
        path = "/openai/deployments/d/chat/completions?api-version=v1"
        assert provider.seen == [(path, KEY, None), (path, None, f"Bearer {TOKEN}")]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"azure_ad_token": TOKEN}, "api_key and azure_ad_token"),
        ({"azure_ad_token_provider": lambda: TOKEN}, "api_key and azure_ad_token_provider"),
    ],
)
def test_two_credentials_are_refused(given: dict[str, Any], names: str) -> None:
    """In one sentence that names them and shows none."""
    with pytest.raises(
        ValueError, match=rf"must have only one credential \(got {names}\); pass the one to use"
    ) as caught:
        AsyncAzureOpenAI(azure_endpoint="https://host", api_version="v", api_key=KEY, **given)
    assert KEY not in str(caught.value)


async def test_a_key_that_is_given_goes_before_a_token_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in the SDK."""
    monkeypatch.setenv("AZURE_OPENAI_AD_TOKEN", TOKEN)
    async with Watched() as provider:
        await ask(client(provider, api_key=KEY))
        assert [(key, token) for _, key, token in provider.seen] == [(KEY, None)]


def test_an_endpoint_with_a_query_is_refused() -> None:
    """Which would be lost."""
    with pytest.raises(ValueError, match="must have no query"):
        AsyncAzureOpenAI(azure_endpoint="https://host/?k=v", api_version="v", api_key=KEY)


async def test_credentials_are_in_no_error() -> None:
    """Neither key nor token; without any of them the sentence says what to pass."""
    async with Provider(api_key="other") as provider:
        for given in ({"api_key": KEY}, {"azure_ad_token": TOKEN}):
            with pytest.raises(FinalModelError) as caught:
                await ask(client(provider, **given))
            assert caught.value.status == 401
            assert not any(
                secret in repr(caught.value.__dict__) + str(caught.value) for secret in (KEY, TOKEN)
            )
            assert KEY not in repr(client(provider, **given))
        with pytest.raises(FinalModelError, match="azure_ad_token_provider=…"):
            client(provider)


async def test_without_a_version_azure_finds_nothing() -> None:
    """The SDK asks for one before; a plain client on Azure's path gets the 404."""
    with pytest.raises(ValueError, match="api_version"):
        AsyncAzureOpenAI(azure_endpoint="https://me.openai.azure.com", api_key="k")
    async with Provider() as provider:
        base = provider.base_url.replace("/v1", "/openai/deployments/d")
        with pytest.raises(FinalModelError, match="api-version"):
            await ask(AsyncOpenAI(base_url=base, api_key="k"))


async def test_through_the_sdks_own_transport() -> None:
    """Where the user brings an http client, paths and headers are the same."""
    async with Watched() as provider, http.AsyncClient() as own:
        assert await ask(client(provider, api_key=KEY, http_client=own), "d") == "hi"
        assert [seen[:2] for seen in provider.seen] == [
            ("/openai/deployments/d/chat/completions?api-version=2024-10-21", KEY)
        ]


async def test_as_the_backward_model_and_under_the_synchronous_name() -> None:
    """`azure/<deployment>`, with the arguments of the client."""
    async with Watched() as provider:
        args = {"azure_endpoint": provider.base_url.removesuffix("/v1"), "api_key": KEY, "api_version": "v"}
        with afnio.set_backward_model_client("azure/d", client_args=args):
            assert isinstance(get_backward_model_client().client, AsyncAzureOpenAI)
        reply = await afnio.to_thread(lambda: AsyncAzureOpenAI(**args).chat(messages=HELLO, model="d"))
        assert str(reply) == "hi"
