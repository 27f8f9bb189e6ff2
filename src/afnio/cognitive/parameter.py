"""Parameter: a text that a Module learns."""

from __future__ import annotations

import copy
from typing import Any

from afnio.autodiff import Variable


class Parameter(Variable):
    """A Variable that belongs to a Module and is learned: a prompt, a template, an instruction.

    >>> Parameter("Be brief.", role="system prompt").requires_grad
    True
    """

    def __init__(self, data: Any = None, role: str | None = None, requires_grad: bool = True) -> None:
        super().__init__(data, "" if role is None else role, requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        clone = Parameter(copy.deepcopy(self.data), self.role, self.requires_grad)
        memo[id(self)] = clone
        return clone

    def __reduce__(self) -> tuple[Any, ...]:
        return Parameter, (self.data, self.role, self.requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing: {super().__repr__()}"
