"""Template: messages whose texts hold `{name}` for the inputs of a sample.

Only a name that is among the inputs is filled, in one pass, so an input's own braces stay as they are;
every other brace is literal. What looks like a forgotten input is an error, but not in a `Parameter`,
which an optimizer may rewrite to anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from afnio.autodiff._variable import Variable
from afnio.cognitive.parameter import Parameter
from afnio.errors import TemplateError
from afnio.runtime._kernel import PENDING

ROLES: Final = ("system", "developer", "user", "assistant")
_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")

Messages = Sequence[Mapping[str, Any]]


def fill(text: str, values: Mapping[str, Any]) -> str:
    """Return `text` with `{name}` replaced for each name in `values`; everything else stays.

    >>> fill('{"a": {a}} {b}', {"a": 1})
    '{"a": 1} {b}'
    """
    return _PLACEHOLDER.sub(lambda match: str(values[match[1]]) if match[1] in values else match[0], text)


def check_messages(messages: Any) -> None:
    """Raise for messages that are not a list of `{"role": str, "content": [Variable, …]}`."""
    if not isinstance(messages, list | tuple) or not messages:
        raise TypeError(f"messages must be a list of at least one message (got {messages!r})")
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise TypeError(f"message {number} must be a dict with 'role' and 'content' (got {message!r})")
        if "role" not in message or "content" not in message:
            raise ValueError(f"message {number} needs 'role' and 'content' (got {sorted(message)})")
        if message["role"] not in ROLES:
            raise ValueError(f"message {number} has role {message['role']!r}; use one of {', '.join(ROLES)}")
        content = message["content"]
        if not isinstance(content, list | tuple) or not content:
            raise TypeError(f"message {number} needs a list of Variables as 'content' (got {content!r})")
        for part in content:
            if not isinstance(part, Variable):
                raise TypeError(
                    f"message {number} holds {part!r}, which is no Variable; wrap it: "
                    "afnio.Variable(text, role=…)"
                )


def check_inputs(messages: Messages, names: Sequence[str]) -> None:
    """Raise at the launch line for inputs and placeholders that don't fit, as far as the texts are known.

    Raises:
        TemplateError: for an input that no message uses, or a placeholder that no input fills.
    """
    used: set[str] = set()
    complete = True
    for number, message in enumerate(messages):
        for part in message["content"]:
            slots, _ = part.cell()
            texts = [slot.outcome for slot in slots if slot.outcome is not PENDING]
            complete = complete and len(texts) == len(slots)
            for text in texts:
                if not isinstance(text, str):
                    if text is None or not isinstance(text, list):
                        continue
                    raise TypeError(_list_in_message(number, text))
                found = _PLACEHOLDER.findall(text)
                used.update(found)
                missing = [name for name in found if name not in names]
                if missing and not isinstance(part, Parameter):
                    raise TemplateError(
                        f"message {number} ({message['role']}) has the placeholder {{{missing[0]}}}, which "
                        f"no input fills (inputs: {', '.join(names) or 'none'}); add it to inputs"
                    )
    unused = [name for name in names if name not in used]
    if unused and complete:
        raise TemplateError(
            f"input {unused[0]!r} is used by no message (placeholders: {', '.join(sorted(used)) or 'none'}); "
            f"write {{{unused[0]}}} where it belongs"
        )


def rendered(messages: Sequence[Mapping[str, Any]], values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return messages as they are sent for one sample: one text, or a part for each of several.

    Args:
        messages: with plain values in the places of Variables.
        values: the sample's inputs by name.
    """
    sent: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        for part in message["content"]:
            if isinstance(part, list):
                raise TypeError(_list_in_message(number, part))
        texts = [fill(str(part), values) for part in message["content"]]
        content: Any = texts[0] if len(texts) == 1 else [{"type": "text", "text": t} for t in texts]
        sent.append({"role": message["role"], "content": content})
    return sent


def as_text(content: Any) -> str:
    """Return a sent message's content as one text."""
    if isinstance(content, list):
        return "\n\n".join(part["text"] for part in content)
    return str(content)


def _list_in_message(number: int, value: list[Any]) -> str:
    return (
        f"message {number} would hold a list ({value!r:.60}), and a model reads text; join it first, with "
        "variable.map"
    )
