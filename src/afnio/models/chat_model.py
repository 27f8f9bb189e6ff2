"""ChatModel: a client together with the arguments that every call of it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from afnio.models.client import ChatClient
from afnio.models.request import ChatRequest, Message
from afnio.models.response import ChatResponse
from afnio.runtime import Job


@final
@dataclass(frozen=True, slots=True)
class ChatModel:
    """A client and the arguments of its calls, the model's name among them."""

    client: ChatClient
    completion_args: Mapping[str, Any]

    async def complete(
        self, job: Job, messages: Sequence[Message], purpose: str, **defaults: Any
    ) -> ChatResponse:
        """Carry out one call for a lane's job; `defaults` are arguments that the model's own override."""
        request = ChatRequest.build(messages, **{**defaults, **self.completion_args})
        return await self.client.complete(job, request, purpose)

    def get_provider(self) -> str:
        return self.client.provider

    def get_usage(self) -> dict[str, Any]:
        return self.client.get_usage()

    def clear_usage(self) -> None:
        self.client.clear_usage()
