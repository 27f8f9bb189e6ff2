"""ChatRequest and ChatResponse: a question to a model and its reply, in one form for all providers.

Clients translate between this form and their provider's. A request also knows its key: a digest by which the journal
and calls in flight recognize equal requests, so it covers everything that can change the reply.

Both are plain dataclasses. pydantic takes longer to import than the rest of `import afnio`, so nothing here imports
it before a program uses one of its models.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeGuard, final

from afnio.runtime._limits import RateLimits
from afnio.runtime.events import Usage

if TYPE_CHECKING:
    from pydantic import BaseModel

Message = dict[str, Any]

_UNSUPPORTED: Final = {
    "stream": "a graph needs whole replies",
    "audio": "only text is supported",
    "modalities": "only text is supported",
}


@final
@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A chat completion to ask for: the messages, the model and the provider's sampling parameters.

    Make it with `build`, which checks it.

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
        """Check the arguments and return the request. Parameters that are None are left out.

        Raises:
            ValueError: for `n` above 1, streaming, audio or images.
            TypeError: if `model` isn't a name, or `messages` isn't a list of dicts.
        """
        check_completion_args(model=model, **params)
        if not isinstance(messages, list | tuple) or not messages:
            raise TypeError(f"messages must be a list of at least one message (got {messages!r})")
        for message in messages:
            _check_message(message)
        if "response_format" in params:
            params["response_format"] = response_format(params["response_format"])
        arguments = {name: value for name, value in params.items() if value is not None}
        return cls(model, tuple(messages), arguments)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body, as OpenAI-compatible endpoints take it."""
        return {"model": self.model, "messages": list(self.messages), **self.params}

    @property
    def max_output(self) -> int | None:
        """The reply's limit in tokens, or None if the request sets none."""
        most = self.params.get("max_completion_tokens") or self.params.get("max_tokens")
        return most if isinstance(most, int) and most > 0 else None

    @property
    def encoded(self) -> bytes:
        """The body as JSON in UTF-8. It is encoded once, for the key and for the wire.

        Parameters and the fields of each message are sorted, so that their order doesn't change the key. The
        value of a parameter isn't: a model fills in a schema's fields in the schema's order.
        """
        if not self._encoded:
            self._encoded.append(self.encode())
        return self._encoded[0]

    def encode(self) -> bytes:
        """Return `encoded`, and keep it no longer: the call may wait for hours."""
        self._encoded.clear()
        pieces: list[bytes] = []
        _write_request({"model": self.model, **self.params, "messages": self.messages}, pieces)
        return b"".join(pieces)

    def key(self, url: str, variant: str = "") -> str:
        """Return a SHA-256 digest, in hex, of everything that can change the reply.

        Args:
            url: the endpoint's base URL.
            variant: the client's additions to the request; see `ChatClient.variant`.
        """
        digest = hashlib.sha256(url.encode())
        digest.update(b"\0")
        digest.update(self.encoded)
        if variant:
            digest.update(b"\0")
            digest.update(variant.encode())
        return digest.hexdigest()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChatResponse:
    """A model's reply. `str()` of it is its text.

    Attributes:
        content: the text, or None if the model only called tools.
        tool_calls: the tools that the model asks for, in its order.
        finish_reason: why the model stopped, in the provider's word: "stop", "length", "tool_calls", ….
        model: the model that replied, by the provider's name for it.
        id: the provider's name for this reply; not compared.
        usage: the tokens that the provider counted.
        service_tier: the provider's name for the service tier that it used, or "". It sets the price; not compared.
        limits: the account's limits as the provider reported them along with this reply, or None. The engine paces
            later calls by them. They belong to the moment, not to the reply: they aren't compared, journals don't
            keep them, and a replayed reply has None.

    Raises:
        TypeError: if the content isn't text.

    >>> str(ChatResponse(content="Hello"))
    'Hello'
    """

    content: str | None
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: str | None = None
    model: str = ""
    id: str = field(default="", compare=False)
    usage: Usage = field(default_factory=Usage)
    service_tier: str = field(default="", repr=False, compare=False)
    limits: RateLimits | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A custom client that returned parsed JSON here would fail much later, in the middle of a graph.
        content: object = self.content
        if not isinstance(content, str | None):
            raise TypeError(f"content must be a str or None (got {content!r}); pass the reply's text")
        object.__setattr__(self, "tool_calls", tuple(self.tool_calls))

    @property
    def complete(self) -> bool:
        """False if the reply was cut off by a limit or filtered."""
        return self.finish_reason not in ("length", "content_filter")

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body of a chat completion with this reply."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in self.tool_calls
            ]
        return {
            "object": "chat.completion",
            "model": self.model,
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
            "usage": {
                "prompt_tokens": self.usage.prompt_tokens,
                "completion_tokens": self.usage.completion_tokens,
                "total_tokens": self.usage.total_tokens,
            },
        }

    def __str__(self) -> str:
        return self.content or ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A call of a tool that the model asks for. `arguments` is JSON, as the model wrote it."""

    id: str
    name: str
    arguments: str


# The canonical JSON
#
# Journals find replies by a digest of these bytes, so they must stay those of `json.dumps` with the fields sorted,
# `ensure_ascii=False` and the shortest separators. They are put together by hand, because texts are nearly all of a
# request, and pydantic_core quotes a text five times as fast as json. It writes only texts here: it has other forms of
# floats.


_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
# Characters from which on a text's JSON is kept for the next request, which may have the same prompt.
LONG: Final = 4_000
# Texts that are kept.
KEPT: Final = 4
# Characters of the longest text that is kept.
LONGEST_KEPT: Final = 1_000_000

# Long texts and their JSON, the last used first. It is replaced as a whole, so any thread may.
_kept: tuple[tuple[str, bytes], ...] = ()


def _write_request(fields: Mapping[str, Any], pieces: list[bytes]) -> None:
    """Append a request's JSON to `pieces`.

    They are joined once, because a copy of a long prompt costs as much as its digest.
    """
    before = b"{"
    for name in sorted(fields):
        pieces += (before, _name(name), b":")
        if name == "messages":
            _write_items([dict(sorted(message.items())) for message in fields[name]], pieces)
        else:
            _write(fields[name], pieces)
        before = b","
    pieces.append(b"}")


def _write(value: Any, pieces: list[bytes]) -> None:
    kind = type(value)
    if kind is str:
        pieces.append(_quoted(value))
    elif kind is dict and value:
        _write_fields(value, pieces)
    elif kind is list and value:  # a message in parts
        _write_items(value, pieces)
    else:
        pieces.append(_ENCODER.encode(value).encode())


def _write_fields(fields: dict[Any, Any], pieces: list[bytes]) -> None:
    before = b"{"
    for name, value in fields.items():
        if type(name) is not str:  # json has rules for other names
            pieces += (before, _ENCODER.encode({name: value})[1:-1].encode())
        elif type(value) is str:
            pieces += (before, _name(name), b":", _quoted(value))
        else:
            pieces += (before, _name(name), b":")
            _write(value, pieces)
        before = b","
    pieces.append(b"}")


def _write_items(items: list[Any], pieces: list[bytes]) -> None:
    before = b"["
    for item in items:
        pieces.append(before)
        _write(item, pieces)
        before = b","
    pieces.append(b"]" if items else b"[]")


def _quoted(text: str) -> bytes:
    """Return a text as JSON."""
    global _kept
    if len(text) < LONG:
        return _quote(text)
    for number, (kept, quoted) in enumerate(_kept):
        if kept is text:  # comparing long texts would cost as much as a digest
            if number:
                _kept = ((kept, quoted), *(pair for pair in _kept if pair[0] is not text))
            return quoted
    quoted = _quote(text)
    if len(text) <= LONGEST_KEPT:
        _kept = ((text, quoted), *_kept[: KEPT - 1])
    return quoted


def _quote(text: str) -> bytes:
    try:
        return _to_json(text)
    except ValueError:  # half a character: let json raise its error
        return _ENCODER.encode(text).encode()


# Names of fields are few, and the same in each request.
_name = lru_cache(maxsize=256)(_quote)


def _first_to_json(text: str) -> bytes:
    """Import pydantic_core, for the first request, and let it do the work from then on."""
    global _to_json
    from pydantic_core import to_json

    _to_json = to_json
    return to_json(text)


_to_json: Callable[[str], bytes] = _first_to_json


# Checks


def check_completion_args(**params: Any) -> None:
    """Raise for completion arguments that Afnio doesn't support.

    Constructors call it, so that the error appears at the line with the mistake and not at the first request.
    """
    model = params.get("model")
    if not isinstance(model, str) or not model:
        raise TypeError(f'a call needs a model name (got {model!r}); pass model="…" with the other arguments')
    n = params.get("n")
    if n is not None and n != 1:
        raise ValueError(f"n={n} replies to one request are not supported; give a batch of {n} equal inputs")
    for name, reason in _UNSUPPORTED.items():
        if params.get(name) and params[name] != ["text"]:
            raise ValueError(f"{name}={params[name]!r} is not supported because {reason}; leave it out")


def response_format(value: Any) -> dict[str, Any] | None:
    """Return a response format as JSON: a pydantic model as a strict schema, a dict or None unchanged.

    Raises:
        TypeError: for anything else.

    >>> from pydantic import BaseModel
    >>> class Answer(BaseModel):
    ...     text: str
    >>> response_format(Answer)["json_schema"]["name"]
    'Answer'
    """
    if value is None or isinstance(value, dict):
        return value
    if is_pydantic_model(value):
        schema = _strict(value.model_json_schema())
        return {
            "type": "json_schema",
            "json_schema": {"name": value.__name__, "strict": True, "schema": schema},
        }
    raise TypeError(f"response_format must be a dict or a pydantic model class (got {value!r})")


def is_pydantic_model(value: Any) -> TypeGuard[type[BaseModel]]:
    """Return True for a subclass of pydantic's BaseModel."""
    # A program with such a class has imported pydantic. Importing it here would cost the others 0.1 s.
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(value, type) and issubclass(value, pydantic.BaseModel)


def _strict(schema: Any) -> Any:
    """Return `schema` for OpenAI's strict mode: no additional properties, every property required.

    Source: https://platform.openai.com/docs/guides/structured-outputs
    """
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
        raise TypeError(f"a message must be a dict with 'role' and 'content' (got {message!r})")
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text":
                raise ValueError(f"message parts of type {kind!r} are not supported; only text is")
