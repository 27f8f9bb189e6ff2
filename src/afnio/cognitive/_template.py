"""Parameters, the texts that are learned, and the messages that they are put into.

A message's content is a list of Variables. Its texts hold `{name}` for the inputs of a sample. Only the names among the
inputs are filled, in one pass, so the braces of an input, of JSON or of code stay. A placeholder that no input fills
is an error, since it is most likely a typo; but not in a `Parameter`, which an optimizer may rewrite to anything.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from afnio.autodiff._variable import Variable
from afnio.errors import TemplateError
from afnio.runtime._kernel import PENDING

if TYPE_CHECKING:
    from pydantic import BaseModel

# A check of proposed values.
#
# A callable, `def` or `async def`, returns None or True for a value that passes. For one that doesn't it
# returns False or a text with the reason, or raises ValueError. A compiled pattern must be found in the
# value. For a pydantic model or a JSON schema (a dict; needs the extra `schema`) the value must be JSON that
# fits it.
Validator: TypeAlias = "Callable[[str], Any] | re.Pattern[str] | Mapping[str, Any] | type[BaseModel]"


class Parameter(Variable):
    """A Variable that belongs to a Module and is learned: a prompt, a template, an instruction.

    Args:
        data: the text.
        role: its purpose, in words; the optimizer reads it.
        max_tokens: the most tokens that an optimizer may give it, counted by the optimizer's client; None for any
            length.
        validators: checks of an optimizer's proposals, in order. Put requirements that code can't check into the
            optimizer's `constraints`.

    The checks belong to the program, not to its state. Copies and pickles have them, state dicts and saved files don't,
    and loading a state keeps them. Assigning `data` checks nothing.

    >>> Parameter("Be brief.", role="system prompt", max_tokens=200).requires_grad
    True
    """

    def __init__(
        self,
        data: Any = None,
        role: str | None = None,
        requires_grad: bool = True,
        *,
        max_tokens: int | None = None,
        validators: Sequence[Validator] = (),
    ) -> None:
        super().__init__(data, "" if role is None else role, requires_grad)
        self.max_tokens = _checked_length(max_tokens)
        self.validators = _checked_validators(validators)

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        clone = Parameter(
            copy.deepcopy(self.data),
            self.role,
            self.requires_grad,
            max_tokens=self.max_tokens,
            validators=self.validators,
        )
        memo[id(self)] = clone
        return clone

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.data, self.role, self.requires_grad, self.max_tokens, self.validators)

    def __repr__(self) -> str:
        return f"Parameter containing: {super().__repr__()}"


def _unpickled(
    data: Any, role: str, requires_grad: bool, max_tokens: int | None, validators: Sequence[Validator]
) -> Parameter:
    return Parameter(data, role, requires_grad, max_tokens=max_tokens, validators=validators)


def _checked_length(tokens: Any) -> int | None:
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1):
        raise ValueError(f"max_tokens must be a number of tokens from 1, or None (got {tokens!r})")
    length: int | None = tokens
    return length


def _checked_validators(validators: Any) -> tuple[Validator, ...]:
    if not isinstance(validators, list | tuple):
        raise TypeError(f"validators must be a list (got {validators!r}); write [...]")
    for validator in validators:
        if not (callable(validator) or isinstance(validator, re.Pattern | Mapping)):
            raise TypeError(
                f"a validator must be a callable, a compiled pattern, a JSON schema or a pydantic model "
                f"(got {validator!r})"
            )
    return tuple(validators)


# Messages.


ROLES: Final = ("system", "developer", "user", "assistant")
_PLACEHOLDER: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")

Messages = Sequence[Mapping[str, Any]]


def fill(text: str, values: Mapping[str, Any]) -> str:
    """Return `text` with `{name}` replaced for each name in `values`; all other braces stay.

    >>> fill('{"a": {a}} {b}', {"a": 1})
    '{"a": 1} {b}'
    """
    if "{" not in text:  # the pattern takes a hundred times as long to find that out
        return text
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
                    f"the content of message {number} must be Variables (got {part!r}); wrap it: "
                    "afnio.Variable(text, role=…)"
                )


def check_inputs(messages: Messages, names: Sequence[str]) -> None:
    """Raise at the launch line for inputs and placeholders that don't fit; pending texts are skipped.

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
                placeholders = _PLACEHOLDER.findall(text)
                used.update(placeholders)
                missing = [name for name in placeholders if name not in names]
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
    """Return the messages to send for one sample: the content is one text, or a part for each of several.

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
    """Return the content of a sent message as one text."""
    if isinstance(content, list):
        return "\n\n".join(part["text"] for part in content)
    return str(content)


def _list_in_message(number: int, value: list[Any]) -> str:
    return f"message {number} must hold texts (got the list {value!r:.60}); join it first, with variable.map"
