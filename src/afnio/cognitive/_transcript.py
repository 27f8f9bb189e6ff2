"""Transcripts: what the critic reads of the calls that one lane of an agent made.

A trace has requests and replies in the JSON of four APIs: chat completions, Responses, Anthropic's messages and
Gemini's `generateContent`. Four steps make a text of them that a critic can read:

1. `read_call` turns each call into plain messages (`Said`), whatever its API. A tool call becomes a line of JSON, a
   tool's result a message of the role "tool", an image a placeholder.
2. `seen_in` finds the calls that a variable stands in.
3. `unrepeated` leaves out what an earlier call has shown. Each call of a tool loop repeats its whole history: 20 calls
   with results of 8 kB are 1.6 MB, of which 160 kB are new.
4. `fitted` cuts the rest to a number of tokens: the longest messages first, each in its middle. The texts that are
   criticised stay whole, and so do the last two messages.

What a server or an agent sent is foreign: any JSON must come through, and nothing in it may raise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import Any, Final, NamedTuple, final

from afnio.models._trace import TracedCall

MOST_TOKENS: Final = 16_000
"""Tokens of a trace that one critic reads."""
_FEWEST: Final = 24
"""Tokens that a cut message keeps at least. Calls in the middle are left out before messages get shorter."""
_DEEP: Final = 8
"""Levels of content in content that are read."""
_REPEATED: Final = 40
"""Characters from which a message counts as a repetition. Shorter ones, such as "go on", may really be said twice."""


class Said(NamedTuple):
    """One message: its role (system, user, assistant or tool) and its text."""

    role: str
    text: str


@final
@dataclass(slots=True)
class ReadCall:
    """A call in plain form.

    Attributes:
        model: the model's name.
        messages, reply: what was sent, in full, and what came back; no reply if the call failed.
        tools: the names of the tools on offer.
        described: the texts that describe them; a prompt may stand there.
        form: the format that the reply had to have, or None.
        begins_like, shared: the number of an earlier call (from 1), and how many of its messages, the reply
            included, this call begins with; 0 if there is none.
        number: its own, from 1.
    """

    model: str
    messages: list[Said]
    reply: list[Said]
    tools: list[str] = field(default_factory=list)
    described: str = ""
    form: Any = None
    begins_like: int = 0
    shared: int = 0
    number: int = 0


# 1. Four APIs, one form.


def read_call(call: TracedCall) -> ReadCall:
    """Return a call in plain form.

    It goes by the shape of request and reply and not by the path, because a path may be one that a user registered.

    >>> found = read_call(TracedCall("messages", {"system": "Be brief.", "messages": []}, "claude", "chat"))
    >>> found.messages
    [Said(role='system', text='Be brief.')]
    """
    asked: Mapping[str, Any] = call.request
    system = asked.get("system") or asked.get("instructions")
    system = system or asked.get("systemInstruction") or asked.get("system_instruction")
    messages = list(_said("system", system)) if system else []
    known = next((asked[key] for key in ("messages", "contents", "input") if key in asked), None)
    if known is None and not messages:
        known = _json(asked)  # a path that a user registered
    for item in known if isinstance(known, list) else [known]:
        messages += _said("user", item)
    offered = _listed(asked.get("tools"))
    tools = [name for tool in offered for name in _tool_names(tool)]
    described = "\n".join(text for tool in offered for text in _texts_in(tool))
    return ReadCall(call.model, messages, _read_reply(call.reply), tools, described, _form_of(asked))


def _read_reply(reply: Any) -> list[Said]:
    if not isinstance(reply, Mapping):
        return []
    if "choices" in reply:
        found = [choice.get("message") for choice in _listed(reply["choices"]) if isinstance(choice, Mapping)]
    elif "candidates" in reply:
        found = [one.get("content") for one in _listed(reply["candidates"]) if isinstance(one, Mapping)]
    elif "output" in reply:
        found = _listed(reply["output"])
    else:
        found = [reply if "content" in reply else _json(reply)]
    return [said for item in found for said in _said("assistant", item)]


def _said(role: str, item: Any, level: int = 0) -> Iterator[Said]:
    """Yield the messages in one item of a request or a reply. A result of a tool is a message of its own."""
    if item is None or level > _DEEP:
        return
    if isinstance(item, list):
        for part in item:
            yield from _said(role, part, level + 1)
        return
    if not isinstance(item, Mapping):
        yield Said(role, _clean(item if isinstance(item, str) else _json(item)))
        return
    named = item.get("role")
    if isinstance(named, str):
        role = {"model": "assistant", "function": "tool", "developer": "system"}.get(named, named)
    if role == "tool" or item.get("type") == "function_call_output":
        yield Said("tool", _clean(_flat(_body(item), level)))
        return
    body = _body(item) if _is_message(item) else [item]
    spoken: list[str] = []
    for part in body if isinstance(body, list) else [body]:
        result = _result_in(part)
        if result is not None:
            if spoken:
                yield Said(role, "\n".join(spoken))
                spoken = []
            yield Said("tool", _clean(_flat(result, level)))
        elif text := _flat(part, level):
            spoken.append(_clean(text))
    spoken += [_clean(_tool_call(one)) for one in _listed(item.get("tool_calls"))]
    if isinstance(item.get("function_call"), Mapping):
        spoken.append(_clean(_tool_call(item["function_call"])))
    if spoken:
        yield Said(_tool_caller(role, item), "\n".join(spoken))


def _is_message(item: Mapping[str, Any]) -> bool:
    return "content" in item or "parts" in item or "role" in item


def _body(item: Mapping[str, Any]) -> Any:
    return next((item[key] for key in ("content", "parts", "output", "refusal") if item.get(key)), None)


def _tool_caller(role: str, item: Mapping[str, Any]) -> str:
    """Return the role of an item. In the Responses API the input has tool calls without a role: the model made them."""
    return "assistant" if str(item.get("type", "")).endswith("_call") else role


def _flat(content: Any, level: int = 0) -> str:
    """Return content, in all its parts, as one text."""
    if content is None or level > _DEEP:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(text for part in content if (text := _flat(part, level + 1)))
    if not isinstance(content, Mapping):
        return _json(content)
    for key in ("text", "refusal"):
        if isinstance(content.get(key), str):
            return "" if content.get("thought") else str(content[key])
    kind = str(content.get("type", ""))
    if kind in ("thinking", "redacted_thinking", "reasoning"):
        return ""  # how the model got there, which isn't sent to anyone
    if kind in ("tool_use", "function_call", "server_tool_use") or "functionCall" in content:
        return _tool_call(content.get("functionCall", content))
    if "content" in content:
        return _flat(content["content"], level + 1)
    for medium in ("image", "audio", "video", "file", "document"):
        if medium in kind:
            return f"[{medium}]"
    data = content.get("inlineData") or content.get("inline_data") or content.get("fileData")
    if isinstance(data, Mapping):
        named = data.get("mimeType") or data.get("mime_type") or "file"
        return f"[{str(named).partition('/')[0]}]"
    return f"[{kind}]" if kind else _json(content)


def _result_in(part: Any) -> Any:
    """Return the result of a tool that a part of a message brings, or None."""
    if not isinstance(part, Mapping):
        return None
    if str(part.get("type", "")).endswith("tool_result"):
        return part.get("content") or "(nothing)"
    answer = part.get("functionResponse") or part.get("function_response")
    if isinstance(answer, Mapping):
        return _json(answer.get("response"))
    return None


def _tool_call(call: Any) -> str:
    """Return a tool call as a line of JSON, in the form in which native replies are shown."""
    if not isinstance(call, Mapping):
        return _json(call)
    inner = call.get("function") or call.get("custom")
    called = inner if isinstance(inner, Mapping) else call
    arguments = next((called[key] for key in ("arguments", "input", "args") if key in called), "")
    return _json(
        {
            "tool": called.get("name"),
            "arguments": arguments if isinstance(arguments, str) else _json(arguments),
        }
    )


def _tool_names(tool: Any) -> list[str]:
    if not isinstance(tool, Mapping):
        return []
    declared = _listed(tool.get("functionDeclarations") or tool.get("function_declarations"))
    if declared:
        return [name for one in declared for name in _tool_names(one)]
    function = tool.get("function")
    name = function.get("name") if isinstance(function, Mapping) else tool.get("name") or tool.get("type")
    return [_clean(name)] if isinstance(name, str) else []


def _texts_in(value: Any, level: int = 0) -> Iterator[str]:
    """Yield the descriptions in the declaration of a tool."""
    if level > _DEEP:
        return
    for inner in value.values() if isinstance(value, Mapping) else _listed(value):
        if isinstance(inner, str):
            yield inner
        else:
            yield from _texts_in(inner, level + 1)


def _form_of(asked: Mapping[str, Any]) -> Any:
    """Return the format that a request asks for, None without one."""
    if isinstance(asked.get("response_format"), Mapping):
        return asked["response_format"]
    for holder, key in (
        ("text", "format"),
        ("generationConfig", "responseSchema"),
        ("generationConfig", "responseJsonSchema"),
        ("output_config", "format"),
    ):
        inner = asked.get(holder)
        if isinstance(inner, Mapping) and isinstance(inner.get(key), Mapping):
            return inner[key]
    return asked.get("output_format")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _clean(text: str) -> str:
    """Return `text` without lone surrogates, which JSON can hold and UTF-8 can't."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


# 2. Where a variable stands.


_HOLE: Final = re.compile(r"\{[^{}\n]*\}")
_LITERAL: Final = 8
"""Characters that a literal piece of a template has at least, to be looked for."""


def places(text: str, value: str) -> list[tuple[int, int]]:
    """Return where the variable `value` stands in a message: one place, or those of a filled template's pieces.

    >>> places("You are Ann. Answer in Italian, please.", "You are {name}. Answer in Italian")
    [(0, 8), (11, 30)]
    """
    value = value.strip()
    if not value:
        return []
    start = text.find(value)
    if start >= 0:
        return [(start, start + len(value))]
    pieces = _HOLE.split(value)
    if len(pieces) < 2 or not any(len(piece.strip()) >= _LITERAL for piece in pieces):
        return []
    found, position = [], 0
    for piece in pieces:
        if not piece.strip():
            continue
        start = text.find(piece, position)
        if start < 0:
            return []
        position = start + len(piece)
        found.append((start, position))
    return found


def seen_in(calls: Sequence[ReadCall], value: str) -> list[int]:
    """Return the numbers of the calls that were sent the text `value`, in a message or in a tool's description."""
    return [
        call.number
        for call in calls
        if places(call.described, value) or any(places(said.text, value) for said in call.messages)
    ]


# 3. Each message once.


def unrepeated(calls: Sequence[ReadCall]) -> list[ReadCall]:
    """Number the calls, and return them without the messages that an earlier one has shown.

    A call that begins like an earlier one says so (`begins_like`, `shared`). Other repetitions, as in a window that
    slides over the history, are replaced by their number.
    """
    whole: list[list[tuple[str, str]]] = []
    shown: set[tuple[str, str]] = set()
    short = []
    for number, call in enumerate(calls, start=1):
        call.number = number
        keys = [_likeness(said) for said in call.messages]
        shared, begins_like = max(
            ((_shared(keys, earlier), -other) for other, earlier in enumerate(whole, start=1)), default=(0, 0)
        )
        new = list(zip(keys, call.messages, strict=True))[shared:]
        short.append(
            ReadCall(
                call.model, _collapsed(new, shown), call.reply, call.tools, call.described, call.form,
                -begins_like if shared else 0, shared, number,
            )
        )  # fmt: skip
        whole.append([*keys, *(_likeness(said) for said in call.reply)])
        shown.update(whole[-1])
    return short


def _likeness(said: Said) -> tuple[str, str]:
    # Frameworks write the JSON of a tool call anew, with other spaces.
    return said.role, "".join(said.text.split())


def _shared(keys: Sequence[Any], earlier: Sequence[Any]) -> int:
    pairs = zip(keys, earlier, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _collapsed(new: Sequence[tuple[tuple[str, str], Said]], shown: set[tuple[str, str]]) -> list[Said]:
    """Replace each run of messages that were shown before by one line."""
    found: list[Said] = []
    for repeated, run in groupby(new, lambda one: one[0] in shown and len(one[1].text) >= _REPEATED):
        messages = [said for _, said in run]
        found += (
            [Said("history", f"({len(messages)} messages that earlier calls show)")] if repeated else messages
        )
    return found


# 4. Within the tokens.


@final
@dataclass(slots=True)
class _Piece:
    """A part of a message that is cut, or kept, as a whole."""

    text: str
    kept: bool
    tokens: int = 0


def fitted(
    calls: Sequence[ReadCall], values: Sequence[str], count: Callable[[str], int], most: int = MOST_TOKENS
) -> tuple[list[ReadCall], list[int]]:
    """Cut `calls` to about `most` tokens; return what is left of them, and the numbers of those left out.

    Messages are cut in the middle, the longest first: what short ones don't need goes to the long ones. Never cut are
    the places where one of `values` stands. The last two messages are cut only if they alone are too long.

    Args:
        values: the texts that are criticised.
        count: returns the tokens of a text.
    """
    pieces = [[_pieces(said, values) for said in (*call.messages, *call.reply)] for call in calls]
    flat = [message for parts in pieces for message in parts]
    for part in (part for message in flat for part in message):
        part.tokens = count(part.text)
    for part in (part for message in flat[-2:] for part in message):
        part.kept = part.kept or sum(p.tokens for message in flat[-2:] for p in message) <= most
    left, skipped = list(range(len(calls))), []
    while True:
        parts = [part for number in left for message in pieces[number] for part in message]
        room = most - sum(part.tokens for part in parts if part.kept)
        cap = level([part.tokens for part in parts if not part.kept], room)
        if cap >= _FEWEST or len(left) < 4:
            break
        skipped.append(left.pop(len(left) // 2))
    cap = max(cap, _FEWEST)
    short = []
    for number in left:
        call = calls[number]
        said = [
            Said(
                old.role,
                "".join(part.text if part.kept else _cut(part.text, part.tokens, cap) for part in message),
            )
            for old, message in zip((*call.messages, *call.reply), pieces[number], strict=True)
        ]
        call.messages, call.reply = said[: len(call.messages)], said[len(call.messages) :]
        short.append(call)
    return short, sorted(calls[number].number for number in skipped)


def level(tokens: Sequence[int], room: int) -> int:
    """Return the most tokens that each text may have, so that all of them together have at most `room`.

    >>> level([10, 20, 500, 900], 230)
    100
    """
    left, rest = max(room, 0), len(tokens)
    for size in sorted(tokens):
        if size * rest > left:
            return left // rest
        left -= size
        rest -= 1
    return max(tokens, default=room)


def shortened(text: str, most: int, count: Callable[[str], int]) -> str:
    """Return a text cut in its middle to about `most` tokens."""
    return _cut(text, count(text), most)


def _cut(text: str, tokens: int, most: int) -> str:
    if tokens <= most:
        return text
    half = max(len(text) * most // tokens // 2, 1)
    left_out = len(text) - 2 * half
    if left_out <= 0:
        return text
    return f"{text[:half]}\n[… {left_out} characters are left out …]\n{text[-half:]}"


def _pieces(said: Said, values: Sequence[str]) -> list[_Piece]:
    """Split a message at the places where one of `values` stands."""
    spans = sorted(span for value in values for span in places(said.text, value))
    pieces, end = [], 0
    for start, stop in spans:
        if start >= end:
            pieces += [_Piece(said.text[end:start], False), _Piece(said.text[start:stop], True)]
        elif stop > end:
            pieces.append(_Piece(said.text[end:stop], True))
        end = max(end, stop)
    return [piece for piece in [*pieces, _Piece(said.text[end:], False)] if piece.text] or [_Piece("", True)]
