"""Parameter: a text that a Module learns."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from afnio.autodiff._variable import Variable

Validator = Callable[[str], Any] | re.Pattern[str] | Mapping[str, Any] | type[BaseModel]
"""What a value must pass.

A callable, `def` or `async def`, returns None or True for a value that passes; False, or a text that says why
not, for one that doesn't; or it raises ValueError. A compiled pattern must be found in the value. A pydantic model or
a JSON schema (a dict; needs the extra `schema`) must fit the value, which is JSON then.
"""


class Parameter(Variable):
    """A Variable that belongs to a Module and is learned: a prompt, a template, an instruction.

    Args:
        data: the text.
        role: what it is for, in words; the optimizer reads it.
        max_tokens: how long an optimizer may make it, as the optimizer's client counts; None for any length.
        validators: what an optimizer's proposals must pass, in order. They say what can be checked;
            what can only be said belongs to the optimizer's `constraints`.

    What a proposal must pass belongs to the program, not to the state: copies and pickles have it, state dicts
    and saved files don't, and loading one keeps it. Assigning `data` checks nothing.

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
        raise TypeError(f"validators is a list (got {validators!r}); write [...]")
    for validator in validators:
        if not (callable(validator) or isinstance(validator, re.Pattern | Mapping)):
            raise TypeError(
                f"a validator is a callable, a compiled pattern, a JSON schema or a pydantic model (got {validator!r})"
            )
    return tuple(validators)
