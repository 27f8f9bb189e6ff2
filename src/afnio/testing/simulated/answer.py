"""Values that satisfy a JSON schema, filled with what a message says where a rule can tell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from afnio.testing.simulated.lexicon import normalize

if TYPE_CHECKING:
    from collections.abc import Callable

_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")
_DEPTH: Final = 32


def fill(
    schema: dict[str, Any],
    message: str,
    choose: Callable[[tuple[str, ...]], str],
    name: str = "",
    holds: Callable[[str], bool] | None = None,
) -> Any:
    """Return a value of `schema`; `choose` picks among the strings of an enum.

    Args:
        holds: whether the boolean of that name is true; by default if the message has its words.

    >>> schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    >>> fill(schema, "I have 3 apples", lambda labels: labels[0])
    {'n': 3}
    """
    return _Filler(schema, message, choose, holds).value(schema, name, _DEPTH)


class _Filler:
    def __init__(
        self,
        root: dict[str, Any],
        message: str,
        choose: Callable[[tuple[str, ...]], str],
        holds: Callable[[str], bool] | None,
    ) -> None:
        self._root = root
        self._holds = holds or (lambda name: normalize(name) in normalize(message))
        self._message = message
        self._choose = choose

    def value(self, schema: Any, name: str, depth: int) -> Any:
        schema = self._resolve(schema)
        if "const" in schema:
            return schema["const"]
        if isinstance(options := schema.get("enum"), list) and options:
            labels = tuple(option for option in options if isinstance(option, str))
            return self._choose(labels) if labels else options[0]
        for branch in ("anyOf", "oneOf", "allOf"):
            if isinstance(options := schema.get(branch), list) and options:
                return self.value(options[0], name, depth)
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = kind[0] if kind else "string"
        if kind == "object" or (kind is None and "properties" in schema):
            return self._object(schema, depth)
        if kind == "array":
            count = schema.get("minItems", 0) if depth > 0 else 0
            return [self.value(schema.get("items"), name, depth - 1) for _ in range(count)]
        return self._scalar(kind, schema, name)

    def _resolve(self, schema: Any) -> dict[str, Any]:
        for _ in range(_DEPTH):
            if not isinstance(schema, dict):
                return {}
            reference = schema.get("$ref")
            if not isinstance(reference, str):
                return schema
            schema = self._root
            for step in reference.removeprefix("#").strip("/").split("/"):
                if step:
                    schema = schema.get(step) if isinstance(schema, dict) else None
        return {}

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = schema.get("properties") or {}
        required = schema.get("required") or []
        # Past the depth only what is required: a schema may refer to itself.
        names = list(properties) if depth > 0 else [n for n in properties if n in required]
        names += [n for n in required if n not in properties]
        if depth < -_DEPTH:
            return {}
        return {name: self.value(properties.get(name), name, depth - 1) for name in names}

    def _scalar(self, kind: Any, schema: dict[str, Any], name: str) -> Any:
        if kind == "null":
            return None
        if kind == "boolean":
            return self._holds(name)
        if kind in ("integer", "number"):
            return self._number(kind, schema)
        return self._string(schema)

    def _number(self, kind: str, schema: dict[str, Any]) -> int | float:
        found = _NUMBER.search(self._message)
        number = float(found.group()) if found else 0.0
        step = 1 if kind == "integer" else 1e-6
        low, high = schema.get("minimum"), schema.get("maximum")
        if (bound := schema.get("exclusiveMinimum")) is not None:
            low = bound + step
        if (bound := schema.get("exclusiveMaximum")) is not None:
            high = bound - step
        if high is not None:
            number = min(number, high)
        if low is not None:
            number = max(number, low)
        return int(number) if kind == "integer" or number == int(number) else number

    def _string(self, schema: dict[str, Any]) -> str:
        text = " ".join(self._message.split())
        text = text[: schema.get("maxLength", 200)]
        return text.ljust(schema.get("minLength", 0), ".")
