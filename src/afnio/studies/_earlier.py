"""Earlier runs of the same study in the store: to continue, or with a result to return."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import CodeType
from typing import Any, Final, final

from afnio.studies._rows import digest
from afnio.tellurio._queries import StoreReader

RESULT: Final = "OptimizeResult"
"""The kind of the event that holds a run's result."""


@final
@dataclass(frozen=True, slots=True)
class Earlier:
    """What the store has of an earlier call with the same data.

    Attributes:
        run: the id of an unfinished run to continue, or None.
        result: the result of a finished run with the same settings, or None.
        when: when that one ended.
    """

    run: str | None = None
    result: Mapping[str, Any] | None = None
    when: str = ""

    @classmethod
    def find(cls, store: Any, identity: str, settings: Mapping[str, Any]) -> Earlier:
        if not store.exists():
            return cls()
        with StoreReader(store) as reader:
            for run in reader.runs():
                config = run.config if isinstance(run.config, dict) else {}
                if config.get("identity") != identity or run.status == "RUNNING":
                    continue
                kept = [
                    json.loads(row["payload"])
                    for row in reader.rows("events", run.id)
                    if row["kind"] == RESULT
                ]
                when = f"{datetime.fromtimestamp(run.date_updated, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
                if run.status == "COMPLETED":
                    same = config.get("settings") == json.loads(json.dumps(settings))
                    return cls(result=kept[-1], when=when) if same and kept else cls()
                return cls(run.id)
        return cls()


def code_digest(function: Any) -> str:
    """Return a digest of what a function does: its code without names of files and numbers of lines.

    A finished result isn't returned for a function that was changed since. An unfinished run continues with it.
    """
    function = inspect.unwrap(function) if callable(function) else function
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return "" if code is None else digest(_parts(code))


def _parts(code: CodeType) -> list[Any]:
    constants = [_parts(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _constant(value: Any) -> Any:
    # The order of a set of texts differs from process to process.
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)
