"""ChatModel: a client together with the arguments that every call of it gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from afnio.models.client import ChatClient
from afnio.models.request import ChatRequest, Message
from afnio.models.response import ChatResponse
from afnio.runtime._kernel import Job


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

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` is, as the client estimates it; without what a message adds to it."""
        name = str(self.completion_args.get("model"))
        sizes = [
            self.client.count_tokens(ChatRequest(name, ({"role": "user", "content": content},)))
            for content in (text, "")
        ]
        return sizes[0] - sizes[1]

    def get_provider(self) -> str:
        return self.client.provider

    def get_usage(self) -> dict[str, Any]:
        return self.client.get_usage()

    def clear_usage(self) -> None:
        self.client.clear_usage()
