"""Transcripts: what the critic reads of the calls that one lane of an agent made.

A trace has requests and replies in the JSON of four APIs: chat completions, Responses, Anthropic's messages and
Gemini's `generateContent`. Four steps make a text of them that a critic can read:

1. `read_call` turns each call into plain messages (`Said`), by the dialect of its API. A tool call becomes a line of
   JSON, a tool's result a message of the role "tool", an image a placeholder.
2. `seen_in` finds the calls that a variable stands in.
3. `unrepeated` leaves out what an earlier call has shown. Each call of a tool loop repeats its whole history: 20 calls
   with results of 8 kB are 1.6 MB, of which 160 kB are new.
4. `fitted` cuts the rest to a number of tokens: the longest messages first, each in its middle. The texts that are
   criticised stay whole, and so do the last two messages.

Everything that a server or an agent sent is foreign: any JSON must come through, and nothing in it may raise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import Any, Final, NamedTuple, final

from afnio.models._apis import dialect_named
from afnio.models._dialect import Dialect, dicts, mapping, text_of
from afnio.models._trace import TracedCall

# Tokens of a trace that one critic reads.
MOST_TOKENS: Final = 16_000
# Tokens that a cut message keeps at least. Calls in the middle are left out before messages get shorter.
_FEWEST: Final = 24
# One part in so many of the tokens is for the declarations of tools.
_FOR_TOOLS: Final = 4
_PER_CALL: Final = 20
# Tokens of the tags around a call and a message.
_PER_MESSAGE: Final = 12
# Levels of a tool's declaration that are read.
_DEEP: Final = 8
# Characters from which a message counts as a repetition. Shorter ones, such as "go on", may really be said
# twice.
_REPEATED: Final = 40


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
        declared: their declarations as JSON, by name; `unrepeated` leaves those that an earlier call has.
        described: the texts in their declarations and in `form`; a prompt may stand there.
        form: the format that the reply had to have, or None.
        begins_like, shared: the number of an earlier call (from 1), and how many of its messages, the reply
            included, this call begins with; 0 if there is none.
        number: its own, from 1.
    """

    model: str
    messages: list[Said]
    reply: list[Said]
    tools: list[str] = field(default_factory=list)
    declared: list[Said] = field(default_factory=list)
    described: str = ""
    form: Any = None
    begins_like: int = 0
    shared: int = 0
    number: int = 0


@final
@dataclass(slots=True)
class Transcript:
    """The part of a trace that is shown.

    Attributes:
        calls: without repetitions, and cut.
        skipped: the numbers of the calls that are left out.
        seen_in: for each text that is criticised the numbers of the calls that it stands in.
        texts: of all messages, in full.
    """

    calls: Sequence[ReadCall]
    skipped: Sequence[int]
    seen_in: Mapping[str, Sequence[int]]
    texts: Sequence[str]

    @classmethod
    def of(
        cls, calls: Sequence[TracedCall], values: Sequence[str], count: Callable[[str], int]
    ) -> Transcript:
        """Return the transcript of a trace.

        Args:
            values: the texts that are criticised.
            count: returns the tokens of a text.
        """
        whole = [read_call(call) for call in calls]
        short = unrepeated(whole)
        seen = {value: seen_in(whole, value) for value in values}
        texts = list(dict.fromkeys(said.text for call in whole for said in call.messages))
        return cls(*fitted(short, values, count), seen, texts)

    def has(self, text: str) -> bool:
        """Return True if a message contains `text`."""
        return any(text in shown for shown in self.texts)


# 1. Four APIs, one form.


def read_call(call: TracedCall) -> ReadCall:
    """Return a call in plain form.

    >>> found = read_call(TracedCall("messages", {"system": "Be brief.", "messages": []}, "claude", "chat"))
    >>> found.messages
    [Said(role='system', text='Be brief.')]
    """
    dialect = dialect_named(call.path)
    messages = [said for message in dialect.messages(call.request) for said in _said(message)]
    offered = _listed(call.request.get("tools"))
    declared = [said for tool in offered for said in _declared(tool)]
    tools = [said.role for said in declared]
    form = dialect.schema(call.request)
    described = "\n".join(text for part in (*offered, form) for text in _texts_in(part))
    reply = [] if call.reply is None else list(_replied(dialect, call.reply))
    return ReadCall(call.model, messages, reply, tools, declared, described, form)


def _replied(dialect: Dialect, reply: Mapping[str, Any]) -> Iterator[Said]:
    error = reply.get("error")
    if error:
        yield Said("assistant", f"[error: {_clean(_text(error))}]")
        return
    response = dialect.response(reply)
    if response.content:
        yield Said("assistant", _clean(response.content))
    for call in response.tool_calls:
        yield Said("assistant", _tool_call(call.name, call.arguments))


def _said(message: Mapping[str, Any]) -> Iterator[Said]:
    """Yield the text of a chat completion's message, and each of its tool calls.

    Apart, because APIs group them in different ways: a reply must be found again in the history of the next call.
    """
    role = _clean(_text(message.get("role")))
    role = {"developer": "system", "function": "tool"}.get(role, role)
    calls = [call.get("function") or call.get("custom") for call in dicts(message.get("tool_calls"))]
    content = message.get("content")
    text = text_of(content)
    if text or not calls:
        yield Said(role, _clean(text if text is not None else _text(content) if content else ""))
    for called in map(mapping, calls):
        yield Said(role, _tool_call(called.get("name"), called.get("arguments", called.get("input"))))


def _tool_call(name: Any, arguments: Any) -> str:
    """Return a tool call as a line of JSON, in the form in which the critic of a native call is shown it."""
    if isinstance(arguments, str):
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)  # frameworks write it anew, with other spaces and escapes
    return _clean(_text({"tool": name, "arguments": _text(arguments)}))


def _declared(tool: Any) -> Iterator[Said]:
    """Yield the name and the JSON of each tool that an entry of a request's list declares."""
    if not isinstance(tool, Mapping):
        return
    declared = _listed(tool.get("functionDeclarations") or tool.get("function_declarations"))
    for one in declared:
        if isinstance(one, Mapping):
            yield from _declared({**one, "type": ""})
    if declared:
        return
    function = tool.get("function")
    own = function if isinstance(function, Mapping) else tool
    name = own.get("name") or own.get("type")
    if isinstance(name, str):
        rest = {key: own[key] for key in own if key not in ("name", "type")}
        yield Said(_clean(name), _clean(_text(rest)) if rest else "")


def _texts_in(value: Any, level: int = 0) -> Iterator[str]:
    """Yield the texts in the declaration of a tool."""
    if level > _DEEP:
        return
    for inner in value.values() if isinstance(value, Mapping) else _listed(value):
        if isinstance(inner, str):
            yield inner
        else:
            yield from _texts_in(inner, level + 1)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _clean(text: str) -> str:
    """Return `text` without lone surrogates, which JSON can hold and UTF-8 can't."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


# 2. Where a variable stands.


_HOLE: Final = re.compile(r"\{[^{}\n]*\}")
# Characters that a literal piece of a template has at least, to be looked for.
_LITERAL: Final = 8


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
    """Return the numbers of the calls that were sent the text `value`: in a message, a tool, or the reply's schema."""
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
    offered: dict[str, str] = {}
    squeezed: dict[str, str] = {}

    def likeness(said: Said) -> tuple[str, str]:
        # Frameworks may lay out a message anew. A trace has each text once, so most of these are known.
        if said.text not in squeezed:
            squeezed[said.text] = "".join(said.text.split())
        return said.role, squeezed[said.text]

    short = []
    for number, call in enumerate(calls, start=1):
        call.number = number
        keys = [likeness(said) for said in call.messages]
        shared, begins_like = max(
            ((_shared(keys, earlier), -other) for other, earlier in enumerate(whole, start=1)), default=(0, 0)
        )
        new = list(zip(keys, call.messages, strict=True))[shared:]
        changed = [said for said in call.declared if offered.get(said.role) != said.text]
        offered.update(changed)
        short.append(
            ReadCall(
                call.model, _collapsed(new, shown), call.reply, call.tools, changed, call.described, call.form,
                -begins_like if shared else 0, shared, number,
            )
        )  # fmt: skip
        whole.append([*keys, *(likeness(said) for said in call.reply)])
        shown.update(whole[-1])
    return short


def _shared(keys: Sequence[Any], earlier: Sequence[Any]) -> int:
    pairs = zip(keys, earlier, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _collapsed(new: Sequence[tuple[tuple[str, str], Said]], shown: set[tuple[str, str]]) -> list[Said]:
    """Replace each run of messages that were shown before by one line."""
    shorter: list[Said] = []
    for repeated, run in groupby(new, lambda one: one[0] in shown and len(one[1].text) >= _REPEATED):
        messages = [said for _, said in run]
        shorter += (
            [Said("history", f"({len(messages)} messages that earlier calls show)")] if repeated else messages
        )
    return shorter


# 4. Within the tokens.


@final
@dataclass(slots=True)
class _Shown:
    """A part of a message that is cut, or kept, as a whole."""

    text: str
    kept: bool
    tokens: int = 0


def fitted(
    calls: Sequence[ReadCall], values: Sequence[str], count: Callable[[str], int], most: int = MOST_TOKENS
) -> tuple[list[ReadCall], list[int]]:
    """Cut `calls` to about `most` tokens; return what is left of them, and the numbers of those left out.

    Messages are cut in the middle, the longest first: what short ones don't need goes to the long ones. Never cut are
    the places where one of `values` stands. The last two messages are cut only if they alone are too long. Before all
    that, the tools' declarations are cut to a part of the tokens: fifty of them would leave no room for messages.

    Args:
        values: the texts that are criticised.
        count: returns the tokens of a text.
    """
    most -= _fit_declared(calls, count, most // _FOR_TOOLS)
    pieces = [[_pieces(said, values) for said in (*call.messages, *call.reply)] for call in calls]
    flat = [message for parts in pieces for message in parts]
    for part in (part for message in flat for part in message):
        part.tokens = count(part.text)
    for part in (part for message in flat[-2:] for part in message):
        part.kept = part.kept or sum(p.tokens for message in flat[-2:] for p in message) <= most
    left, skipped = list(range(len(calls))), []
    while True:
        parts = [part for number in left for message in pieces[number] for part in message]
        tags = sum(_PER_CALL + _PER_MESSAGE * len(pieces[number]) for number in left)
        room = most - tags - sum(part.tokens for part in parts if part.kept)
        cap = level([part.tokens for part in parts if not part.kept], room)
        if cap >= _FEWEST or len(left) < 4:
            break
        middle, some = len(left) // 2, max(1, len(left) // 20)
        skipped += left[middle : middle + some]
        del left[middle : middle + some]
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


def _fit_declared(calls: Sequence[ReadCall], count: Callable[[str], int], most: int) -> int:
    """Cut the declarations of tools to about `most` tokens. Return how many they have."""
    tokens = [[count(said.text) for said in call.declared] for call in calls]
    flat = [number for numbers in tokens for number in numbers]
    cap = level(flat, most - _PER_MESSAGE * len(flat)) if flat else 0
    for call, numbers in zip(calls, tokens, strict=True):
        call.declared = [
            Said(said.role, _cut(said.text, number, max(cap, 1)))
            for said, number in zip(call.declared, numbers, strict=True)
        ]
    return sum(min(number, cap) + _PER_MESSAGE for number in flat)


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


def _pieces(said: Said, values: Sequence[str]) -> list[_Shown]:
    """Split a message at the places where one of `values` stands."""
    spans = sorted(span for value in values for span in places(said.text, value))
    pieces, end = [], 0
    for start, stop in spans:
        if start >= end:
            pieces += [_Shown(said.text[end:start], False), _Shown(said.text[start:stop], True)]
        elif stop > end:
            pieces.append(_Shown(said.text[end:stop], True))
        end = max(end, stop)
    return [piece for piece in [*pieces, _Shown(said.text[end:], False)] if piece.text] or [_Shown("", True)]
