"""ChatResponse: what a model replied."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from afnio.runtime.events import Usage

_TEXT: Final = ("text", "output_text", "refusal")
"""The types of the parts of a message that are what the model said."""


class ToolCall(BaseModel):
    """A tool that the model asks to be called, its arguments as the model wrote them."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    arguments: str


class ChatResponse(BaseModel):
    """One reply; `str()` of it is its text.

    >>> str(ChatResponse(content="Hello"))
    'Hello'
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    content: str | None
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    model: str = ""
    usage: Usage = Usage()

    @property
    def complete(self) -> bool:
        """Whether it is all of a reply: not cut off by a limit, not filtered, not refused."""
        return self.finish_reason not in ("length", "content_filter")

    def __str__(self) -> str:
        return self.content or ""


class _Function(BaseModel):
    name: str
    arguments: Any = ""


class _ToolCall(BaseModel):
    id: Any = ""
    function: _Function


class _Part(BaseModel):
    type: Any = "text"
    text: str | None = None
    refusal: str | None = None


class _Message(BaseModel):
    content: str | list[str | _Part] | _Part | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: Any = None


class ChatBody(BaseModel):
    """The body of a chat completion as OpenAI-compatible servers send it, as far as Afnio reads it.

    What a reply can do without has no type here, so that one odd field doesn't cost the whole reply.
    """

    choices: list[_Choice] | None = None
    model: Any = None
    usage: Any = None
    error: Any = None

    def response(self) -> ChatResponse:
        """Return the first choice; there must be one."""
        assert self.choices
        choice = self.choices[0]
        message, reason = choice.message, choice.finish_reason
        return ChatResponse(
            # A refusal is what the model said; without it a critic would be asked about silence.
            content=message.refusal if message.content is None else _text(message.content),
            tool_calls=tuple(
                ToolCall(id=str(c.id or ""), name=c.function.name, arguments=_arguments(c.function.arguments))
                for c in message.tool_calls or ()
            ),
            finish_reason=reason if isinstance(reason, str) else None,
            model=self.model if isinstance(self.model, str) else "",
            usage=_counted(self.usage),
        )


def _text(content: str | list[str | _Part] | _Part) -> str:
    """Return the text of a message, which Mistral and others send in parts, thoughts among them."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    return "".join(part if isinstance(part, str) else _text_of(part) for part in parts)


def _text_of(part: _Part) -> str:
    return (part.text or part.refusal or "") if part.type in _TEXT else ""


def _arguments(arguments: Any) -> str:
    """Return a tool's arguments as JSON; Ollama and others send the object itself."""
    if isinstance(arguments, str):
        return arguments
    return "" if arguments is None else json.dumps(arguments, ensure_ascii=False)


def _counted(usage: Any) -> Usage:
    if not isinstance(usage, dict):
        return Usage()
    return Usage(
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        _detail(usage.get("prompt_tokens_details"), "cached_tokens"),
        _detail(usage.get("completion_tokens_details"), "reasoning_tokens"),
    )


def _detail(details: Any, name: str) -> int:
    return _count(details.get(name)) if isinstance(details, dict) else 0


def _count(value: Any) -> int:
    """Return a number of tokens as a whole number, however it was sent; 0 where it is none."""
    if value is None or type(value) is int:
        return value or 0
    try:
        return math.ceil(float(value))
    except (TypeError, ValueError, OverflowError):
        return 0
