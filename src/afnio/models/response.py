"""ChatResponse: what a model replied."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from afnio.runtime.events import Usage


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
    arguments: str = ""


class _ToolCall(BaseModel):
    id: str = ""
    function: _Function


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Details(BaseModel):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


class ChatBody(BaseModel):
    """The body of a chat completion as OpenAI-compatible servers send it, as far as Afnio reads it."""

    choices: list[_Choice] | None = None
    model: str | None = None
    usage: _Usage | None = None
    error: Any = None

    def response(self) -> ChatResponse:
        """Return the first choice; there must be one."""
        assert self.choices
        choice = self.choices[0]
        calls = choice.message.tool_calls or ()
        return ChatResponse(
            # A refusal is what the model said; without it a critic would be asked about silence.
            content=choice.message.refusal if choice.message.content is None else choice.message.content,
            tool_calls=tuple(
                ToolCall(id=c.id, name=c.function.name, arguments=c.function.arguments) for c in calls
            ),
            finish_reason=choice.finish_reason,
            model=self.model or "",
            usage=_counted(self.usage),
        )


def _counted(usage: _Usage | None) -> Usage:
    if usage is None:
        return Usage()
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return Usage(
        usage.prompt_tokens or 0,
        usage.completion_tokens or 0,
        (prompt.cached_tokens or 0) if prompt else 0,
        (completion.reasoning_tokens or 0) if completion else 0,
    )
