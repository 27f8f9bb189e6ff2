"""Dialect: what the engine must know about an API whose raw requests and replies pass through it.

The bridge and the gateway carry bodies without changing them. The engine needs to know a few things about them all the
same: which model and how many tokens a request asks for, whether it streams, what a reply used, and for a stream, which
events carry content, which one is an error, and which one is the last. A `Dialect` reads that from the JSON. It also
puts the events of a stream together into the reply that isn't streamed (for traces), shows requests and replies as chat
messages (for events and the studio), and makes up replies (for rehearsals).

Everything is read with suspicion: bodies come from servers and from other people's code. A field of the wrong type
counts as missing. The functions below the class read JSON that way.
"""

from __future__ import annotations

import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

from afnio.models._messages import ChatResponse, ToolCall
from afnio.runtime.events import Usage

Json = Mapping[str, Any]
Events = Iterable[dict[str, Any]]

# Counted for an image or a file inside a request. By its bytes one of 1 MB would count as 350,000 tokens.
IMAGE_TOKENS: Final = 1_000
_PER_MESSAGE: Final = 4
# A long text of these characters alone is base64.
_ENCODED: Final = re.compile(r"[A-Za-z0-9+/_=-]{1000,}")


class Dialect(ABC):
    """One API.

    Attributes:
        name: its path, as traces show it.
        prompt: the fields of a request that hold text for the model.
        main: the fields of a reply of which it has at least one, unless it is an error.
    """

    name: ClassVar[str]
    prompt: ClassVar[tuple[str, ...]] = ("messages", "tools")
    main: ClassVar[tuple[str, ...]] = ()

    # Requests

    def model(self, path: str, body: Json) -> str:
        """Return the model's name, "" if there is none."""
        return text(body.get("model"))

    def streams(self, path: str, body: Json) -> bool:
        return body.get("stream") is True

    def prompt_tokens(self, body: Json) -> int:
        """Return an estimate: a token for four bytes of text, and a flat sum for each image or file."""
        return sum(count_tokens(body.get(name)) for name in self.prompt)

    @abstractmethod
    def max_output(self, body: Json) -> int | None:
        """Return the most tokens of all the replies that the request asks for, or None without a limit."""

    @abstractmethod
    def messages(self, body: Json) -> list[dict[str, Any]]:
        """Return the request's messages in the form of a chat completion."""

    def params(self, body: Json) -> dict[str, Any]:
        """Return the other parameters."""
        return {name: value for name, value in body.items() if name not in (*self.prompt, "model")}

    def schema(self, body: Json) -> Json | None:
        """Return the JSON schema that the reply must have, or None."""
        return None

    # Replies

    @abstractmethod
    def usage(self, reply: Json) -> Usage | None:
        """Return the tokens that a reply counts, or None if it counts none."""

    def service_tier(self, reply: Json) -> str:
        """Return the service tier that a reply came at, or "" if it names none."""
        return text(reply.get("service_tier"))

    @abstractmethod
    def response(self, reply: Json) -> ChatResponse:
        """Return a reply in the form of a chat completion."""

    def is_complete(self, reply: Json) -> bool:
        """Return False if the reply was cut off by a limit or filtered."""
        return self.response(reply).complete

    def is_reply(self, parsed: Any) -> bool:
        return isinstance(parsed, Mapping) and (
            not self.main or any(parsed.get(name) is not None for name in self.main)
        )

    @abstractmethod
    def made_up(self, response: ChatResponse) -> dict[str, Any]:
        """Return a reply's JSON body with the text and the usage of `response`."""

    def made_up_events(self, response: ChatResponse) -> list[tuple[str, Any]]:
        """Return the events of a stream with the text of `response`: each its name, or "", and its data."""
        return [("", self.made_up(response))]

    # Streams

    def error_in(self, event: Json) -> Json | None:
        """Return the error that an event of a stream reports, or None."""
        error = event.get("error")
        return error if isinstance(error, Mapping) else None

    def has_content(self, event: Json) -> bool:
        """Return True if an event carries a part of the answer. From the first one on, the call isn't retried."""
        return True

    def written(self, event: Json) -> int:
        """Return how many characters of the answer an event carries."""
        return size_of(event.get("delta"))

    def is_last(self, event: Json) -> bool:
        """Return True if no content can follow the event."""
        return False

    @abstractmethod
    def joined(self, events: Events) -> dict[str, Any]:
        """Return the reply that the events of a stream make up, also of one that was cut off."""


# JSON from elsewhere


def text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def mapping(value: Any) -> Json:
    return value if isinstance(value, Mapping) else {}


def dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def whole(value: Any) -> int:
    """Return a count as an int, rounded up; 0 if it isn't a number of 0 or more."""
    if type(value) is int:
        return max(0, value)
    try:
        return max(0, math.ceil(float(value)))
    except (TypeError, ValueError, OverflowError):
        return 0


def text_of(content: Any) -> str | None:
    """Return the text of a message's content: a string, or parts with text. An image is a placeholder."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, list):
        return None
    parts = [part if isinstance(part, str) else mapping(part) for part in content]
    return "".join(part if isinstance(part, str) else part_text(part) for part in parts)


def part_text(part: Json) -> str:
    if isinstance(part.get("text"), str):
        return str(part["text"])
    if isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    data = mapping(part.get("inlineData") or part.get("inline_data") or part.get("fileData"))
    kind = f"{text(part.get('type'))} {text(data.get('mimeType') or data.get('mime_type'))}"
    medium = next((name for name in _MEDIA if name in kind), "file" if data else "")
    return f"[{medium}]" if medium else ""


_MEDIA: Final = ("image", "audio", "video", "document", "file")


def tool_call(identifier: Any, name: Any, arguments: Any) -> ToolCall:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return ToolCall(id=text(identifier), name=text(name), arguments=written)


def count_tokens(value: Any) -> int:
    """Return an estimate of the tokens of JSON: those of its texts, and a flat sum for a picture or a file.

    >>> count_tokens([{"role": "user", "content": "Good morning"}])
    7
    >>> count_tokens({"url": "data:image/png;base64," + 400_000 * "A"})
    1000
    """
    tokens, left = 0, [value]
    while left:  # not by recursion: JSON may have more levels than Python's stack
        part = left.pop()
        if isinstance(part, str):
            tokens += _text_tokens(part)
        elif isinstance(part, Mapping):
            tokens += _PER_MESSAGE if "role" in part else 0
            left += [entry for name, entry in part.items() if name not in _NO_TEXT]
        elif isinstance(part, list):
            if part and type(part[0]) is int:  # a text that is given as tokens
                tokens += len(part)
            else:
                left += part
    return tokens


def _text_tokens(value: str) -> int:
    if value.startswith("data:") or (len(value) >= 1000 and _ENCODED.fullmatch(value)):
        return IMAGE_TOKENS
    size = len(value) if value.isascii() else len(value.encode("utf-8", "replace"))
    return -(-size // 4)


def size_of(value: Any) -> int:
    """Return the number of characters of the texts of JSON."""
    size, left = 0, [value]
    while left:
        part = left.pop()
        if isinstance(part, str):
            size += len(part)
        elif isinstance(part, Mapping):
            left += [entry for name, entry in part.items() if name not in _NO_TEXT]
        elif isinstance(part, list):
            left += part
    return size


_NO_TEXT: Final = frozenset({"role", "type", "id", "tool_call_id", "call_id", "tool_use_id", "cache_control"})


def json_or(written: str) -> Any:
    try:
        return json.loads(written)
    except ValueError:
        return written
