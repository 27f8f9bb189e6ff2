"""Dialects: which API a raw request is for.

Chat         OpenAI's chat completions, and everything compatible (`_apis_of_openai.py`)
Completions  OpenAI's completions, the API before chats
Embeddings   OpenAI's embeddings
Responses    OpenAI's Responses API
Anthropic    Anthropic's messages (`_apis_of_others.py`)
Gemini       Google's generateContent and streamGenerateContent
Registered   another path, with the user's function for its usage
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final, final

from afnio.models._apis_of_openai import Chat, Completions, Embeddings, Responses
from afnio.models._apis_of_others import Anthropic, Gemini
from afnio.models._dialect import Dialect, Events, Json, size_of, whole
from afnio.models._messages import ChatResponse
from afnio.runtime.events import Usage

CHAT: Final = Chat()
COMPLETIONS: Final = Completions()
EMBEDDINGS: Final = Embeddings()
RESPONSES: Final = Responses()
ANTHROPIC: Final = Anthropic()
GEMINI: Final = Gemini()
_BY_NAME: Final[dict[str, Dialect]] = {
    dialect.name: dialect for dialect in (CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, ANTHROPIC, GEMINI)
}
_registered: Final[dict[str, Registered]] = {}


# Paths of users


@final
class Registered(Chat):
    """A path that a user registered.

    Args:
        path: the end of its URLs.
        usage: returns the tokens of a reply's JSON.
    """

    prompt = ("system", "prompt", "messages", "input", "inputs", "instructions", "contents", "tools")
    main = ()

    def __init__(self, path: str, usage: Callable[[dict[str, Any]], Any]) -> None:
        self.name = path  # type: ignore[misc]
        self._usage = usage

    def messages(self, body: Json) -> list[dict[str, Any]]:
        if isinstance(body.get("messages"), list):
            return super().messages(body)
        given = next((body[name] for name in self.prompt if body.get(name)), "")
        return [
            {"role": "user", "content": given if isinstance(given, str) else json.dumps(given, default=str)}
        ]

    def usage(self, reply: Json) -> Usage | None:
        counted = self._usage(dict(reply))
        if counted is None or isinstance(counted, Usage):
            return counted
        prompt, output = counted
        return Usage(whole(prompt), whole(output))

    def response(self, reply: Json) -> ChatResponse:
        if reply.get("choices"):
            return super().response(reply)
        return ChatResponse(content=json.dumps(reply, ensure_ascii=False, default=str), finish_reason="stop")

    def has_content(self, event: Json) -> bool:
        return True

    def written(self, event: Json) -> int:
        return size_of(event)

    def joined(self, events: Events) -> dict[str, Any]:
        found = list(events)
        if any(event.get("choices") for event in found):
            return super().joined(found)
        return {**(found[-1] if found else {}), "events": found}


# Lookup


def register(path: str, usage: Callable[[dict[str, Any]], Any]) -> None:
    _registered[path] = Registered(path, usage)


def may_be_known(path: str) -> bool:
    """Return True if a request to `path` may be one for a model. Cheap: the bridge asks it for every request."""
    path = path.rstrip("/")
    return path.endswith(_ENDINGS) or any(path.endswith(f"/{known}") for known in _registered)


_ENDINGS: Final = (
    "/completions",
    "/responses",
    "/embeddings",
    "/messages",
    ":generateContent",
    ":streamGenerateContent",
)


def dialect_of(path: str, headers: Mapping[str, str], body: Json) -> tuple[Dialect, str] | None:
    """Return the dialect of a request, and the part of its path that belongs to the account. None if it has none.

    Other services have paths such as `/messages`, too. A request must look like one for a model: it names one, and
    Anthropic's has the header that its API demands.

    >>> dialect, base = dialect_of("/v1/chat/completions", {}, {"model": "m"})
    >>> dialect.name, base
    ('chat/completions', '/v1')
    """
    path = path.rstrip("/")
    for known, registered in _registered.items():
        if path.endswith(f"/{known}"):
            return registered, path.removesuffix(f"/{known}")
    head, _, last = path.rpartition("/")
    if last.endswith((":generateContent", ":streamGenerateContent")):
        return (GEMINI, head.removesuffix("/models")) if "contents" in body else None
    named = isinstance(body.get("model"), str) or "/deployments/" in path
    if not named:
        return None
    if last == "completions":
        return (CHAT, head.removesuffix("/chat")) if head.endswith("/chat") else (COMPLETIONS, head)
    if last == "messages" and "anthropic-version" in headers:
        return ANTHROPIC, head
    found = {"embeddings": EMBEDDINGS, "responses": RESPONSES}.get(last)
    return None if found is None else (found, head)


def dialect_named(name: str) -> Dialect:
    """Return the dialect of a trace's call."""
    return _registered.get(name) or _BY_NAME.get(name, CHAT)
