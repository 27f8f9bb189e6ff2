"""Clients for single replies: one that reads a made-up body, and one that makes a single attempt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import openai

from afnio.errors import FinalModelError, TransientModelError
from afnio.models import ChatClient, ChatRequest, ChatResponse
from afnio.models.openai import AsyncOpenAI

http: Any = import_module("httpx" if openai.__version__.startswith("2.") else "httpx2")
"""The HTTP library of the SDK: tests run with openai 3 and 2."""
HELLO = ({"role": "user", "content": "hi"},)


async def read(
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None, url: str = "http://host/v1"
) -> ChatResponse:
    """Return what a client makes of a reply of the endpoint at `url`.

    Args:
        body: as bytes, or anything that JSON can hold.
    """
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    def handle(request: Any) -> Any:
        return http.Response(status, headers=dict(headers or {}), content=content)

    async with http.AsyncClient(transport=http.MockTransport(handle)) as http_client:
        client = AsyncOpenAI(api_key="any-key", base_url=url, http_client=http_client)
        return await client.send(ChatRequest.build(HELLO, model="m"))


class OneAttempt(ChatClient):
    """A client's attempts, without the engine's retries. The first error is the cause of the one that is raised."""

    def __init__(self, client: ChatClient) -> None:
        super().__init__(client.account, timeout=client.timeout)
        self._client = client

    async def send(self, request: ChatRequest) -> ChatResponse:
        try:
            return await self._client.send(request)
        except TransientModelError as error:
            raise FinalModelError(str(error), status=error.status) from error
