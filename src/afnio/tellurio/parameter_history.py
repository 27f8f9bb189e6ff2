"""Parameter history: which parameter a change is about, and each value that it had."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Final

INSERT: Final = "INSERT INTO parameters (run_id, number, step, role, value) VALUES (?, ?, ?, ?, ?)"


@dataclass(slots=True)
class _Known:
    number: int
    role: str
    value: str


class ParameterHistory:
    """Numbers a run's parameters in order of appearance and writes their values, in the writing thread.

    A step says which role and which value it changed, so a parameter is known again by both; where the
    program has assigned another value since, by its role.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._known: list[_Known] = []
        self._left: list[_Known] = []

    def begin_step(self) -> None:
        """Begin a step, which changes each parameter at most once."""
        self._left = list(self._known)

    def note(self, connection: sqlite3.Connection, step: int, role: str, before: str, after: str) -> int:
        """Write the values that are new, and return the parameter's number."""
        known = self._find(role, before)
        if known is None:
            known = _Known(len(self._known), role, before)
            self._known.append(known)
            connection.execute(INSERT, (self._run_id, known.number, 0, role, before))
        else:
            self._left.remove(known)
            if known.value != before:
                connection.execute(INSERT, (self._run_id, known.number, step - 1, role, before))
        if after != before:
            connection.execute(INSERT, (self._run_id, known.number, step, role, after))
        known.value = after
        return known.number

    def _find(self, role: str, before: str) -> _Known | None:
        named = [known for known in self._left if known.role == role]
        return next((known for known in named if known.value == before), named[0] if named else None)
