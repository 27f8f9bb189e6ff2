"""ChatRequest: what is asked of a model, in the form that every provider gets."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, final

from pydantic import BaseModel

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
