"""ChatRequest: what is asked of a model, in the form that every provider gets."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

from pydantic import BaseModel, ConfigDict, Field

from afnio.runtime._limits import RateLimits
from afnio.runtime.events import Usage

Message = dict[str, Any]

_LATER: Final = {
    "stream": "a graph needs whole replies",
    "audio": "only text is supported",
    "modalities": "only text is supported",
}


@final
@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One chat completion: messages, model and the sampling parameters that the provider understands.

    >>> request = ChatRequest.build([{"role": "user", "content": "Hi"}], model="gpt-5", temperature=0)
    >>> request.body["temperature"]
    0
    """

    model: str
    messages: Sequence[Message]
    params: Mapping[str, Any] = field(default_factory=dict)
    _encoded: list[bytes] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def build(cls, messages: Sequence[Message], *, model: str, **params: Any) -> ChatRequest:
        """Return a request, refusing what Afnio can't carry.

        Raises:
            ValueError: for `n` above 1, streaming, audio, images.
            TypeError: for a model that is no name, messages that are no list of dicts.
        """
        check_completion_args(model=model, **params)
        if not isinstance(messages, list | tuple) or not messages:
            raise TypeError(f"messages must be a list of at least one message (got {messages!r})")
        for message in messages:
            _check_message(message)
        if "response_format" in params:
            params["response_format"] = response_format(params["response_format"])
        given = {name: value for name, value in params.items() if value is not None}
        return cls(model, tuple(messages), given)

    @property
    def body(self) -> dict[str, Any]:
        """The request's JSON body."""
        return {"model": self.model, "messages": list(self.messages), **self.params}

    @property
    def max_output(self) -> int | None:
        """The tokens that the reply may have at most, where the request says."""
        most = self.params.get("max_completion_tokens") or self.params.get("max_tokens")
        return most if isinstance(most, int) and most > 0 else None

    @property
    def encoded(self) -> bytes:
        """The body as JSON, made once, for the key and for the wire.

        Parameters and the fields of a message are sorted, so that their order makes no other request. What a
        parameter holds is left as it is: a model writes the fields of a schema in the schema's order.
        """
        if not self._encoded:
            messages = [dict(sorted(message.items())) for message in self.messages]
            body = dict(sorted({**self.body, "messages": messages}.items()))
            self._encoded.append(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
        return self._encoded[0]

    def key(self, url: str, variant: str = "") -> str:
        """Return a digest of everything that can change the reply of the endpoint at `url`.

        Args:
            variant: what the client adds to the request.
        """
        digest = hashlib.sha256(url.encode())
        digest.update(b"\0")
        digest.update(self.encoded)
        if variant:
            digest.update(b"\0")
            digest.update(variant.encode())
        return digest.hexdigest()


def check_completion_args(**params: Any) -> None:
    """Raise for completion arguments that Afnio can't carry, at the line that gives them."""
    model = params.get("model")
    if not isinstance(model, str) or not model:
        raise TypeError(f'a call needs a model name (got {model!r}); pass model="…" with the other arguments')
    n = params.get("n")
    if n is not None and n != 1:
        raise ValueError(f"n={n} replies to one request are not supported; give a batch of {n} equal inputs")
    for name, reason in _LATER.items():
        if params.get(name) and params[name] != ["text"]:
            raise ValueError(f"{name}={params[name]!r} is not supported, as {reason}; leave it out")


def response_format(value: Any) -> dict[str, Any] | None:
    """Return the JSON form of a response format: a dict as it is, a pydantic model as a strict schema.

    >>> class Answer(BaseModel):
    ...     text: str
    >>> response_format(Answer)["json_schema"]["name"]
    'Answer'
    """
    if value is None or isinstance(value, dict):
        return value
    if isinstance(value, type) and issubclass(value, BaseModel):
        schema = _strict(value.model_json_schema())
        return {
            "type": "json_schema",
            "json_schema": {"name": value.__name__, "strict": True, "schema": schema},
        }
    raise TypeError(f"response_format must be a dict or a pydantic model class (got {value!r})")


def _strict(schema: Any) -> Any:
    """Return `schema` as OpenAI's strict mode wants it: no other properties, every property required."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {
        keyword: {name: _strict(inner) for name, inner in value.items()}
        if keyword in ("properties", "$defs") and isinstance(value, dict)
        else _strict(value)
        for keyword, value in schema.items()
        if keyword != "default"
    }
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        strict["additionalProperties"] = False
        strict["required"] = list(schema["properties"])
    return strict


def _check_message(message: Any) -> None:
    if not isinstance(message, Mapping) or "role" not in message:
        raise TypeError(f"a message is a dict with 'role' and 'content' (got {message!r})")
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text":
                raise ValueError(f"message parts of type {kind!r} are not supported; only text is")


# ChatResponse: what a model replied.


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

    Attributes:
        limits: what the provider reported about the account's limits along with this reply, or None. The engine
            paces later calls by it. It belongs to the moment, not to the reply: it isn't compared, journals
            don't keep it, and a replayed reply has None.

    >>> str(ChatResponse(content="Hello"))
    'Hello'
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    content: str | None
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    model: str = ""
    usage: Usage = Usage()
    limits: RateLimits | None = Field(default=None, exclude=True, repr=False)

    @property
    def complete(self) -> bool:
        """Whether it is all of a reply: not cut off by a limit, not filtered, not refused."""
        return self.finish_reason not in ("length", "content_filter")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._reply() == other._reply()

    def __hash__(self) -> int:
        return hash(self._reply())

    def _reply(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in type(self).model_fields if name != "limits")

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

    def response(self, limits: RateLimits | None = None) -> ChatResponse:
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
            limits=limits,
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
