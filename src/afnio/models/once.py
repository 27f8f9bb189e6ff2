"""Once: a client that tries a call one time, for who wants to know rather than to have."""

from __future__ import annotations

from typing import final

from afnio.errors import FinalModelError, TransientModelError
from afnio.models.client import ChatClient
from afnio.models.request import ChatRequest
from afnio.models.response import ChatResponse


@final
class Once(ChatClient):
    """Another client's attempts, of which no call makes a second one; on the same account."""

    def __init__(self, client: ChatClient) -> None:
        super().__init__(client.account, timeout=client.timeout)
        self._client = client

    async def send(self, request: ChatRequest) -> ChatResponse:
        try:
            return await self._client.send(request)
        except TransientModelError as error:
            raise FinalModelError(str(error), status=error.status) from error
