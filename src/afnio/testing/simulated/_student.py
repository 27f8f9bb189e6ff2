"""The student: does the task by the cues and skills in its instructions, and naively without any.

* `answer` picks the task: one with an exact answer (`solve`), a JSON value that matches a schema (`fill`), a label
  (`classify`), or an echo of the message.
* An uninstructed student takes courtesy at face value (`__read_naively`), so a complaint in polite words counts as
  good mood. Cues in the prompt correct that, and this is what an optimizer can learn.
* `Attention` limits how many instructions a student follows and how much feedback a critic or proposer uses, as real
  models are limited. The rules and their sources are in docs/simulated-lm.md; the constants were fixed before
  anything was measured with them.
* `draw` gives all random numbers of the simulated LM and of the provider's faults. They depend on the request and its
  attempt. Concurrent requests arrive in a different order in every run, so a shared generator would give each request
  another number each time; a hash of the seed, the request and the attempt gives the same number always.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final, Self, final

from afnio.testing.simulated._language import (
    COMPLAINTS,
    COURTESY,
    instructions_in,
    normalize,
    read_cues,
    task_of,
    told_skills,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from afnio.testing.simulated._language import Conversation


# Models whose name starts with this have limited attention. All others notice everything.
LIMITED: Final = "simulated-limited"
# Number of feedback texts in one prompt beyond which more of them teach less.
WALL: Final = 50
# Number of instructions in one prompt of which 1/e are followed.
DENSITY: Final = 250.0
# Share of a critic's comments that have nothing to do with the mistake.
BESIDE_THE_POINT: Final = 0.25
# Models whose name starts with this criticize beside the point always.
ASTRAY: Final = "simulated-limited-astray"


@final
@dataclass(frozen=True, slots=True)
class Attention:
    """How much of one request an LM notices. The default notices everything.

    Chances are drawn from the request and the attempt. At temperature 0 the attempt doesn't count, so the same request
    always gets the same reply.
    """

    limited: bool = False
    request: str = ""
    attempt: int = 1
    seed: int = 0
    astray: float = BESIDE_THE_POINT

    @classmethod
    def of(cls, request: dict[str, Any], attempt: int = 1, seed: int = 0) -> Self:
        """Return the attention of the request's model."""
        model = str(request.get("model", ""))
        if not model.startswith(LIMITED):
            return cls()
        asked = json.dumps(request, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
        greedy = request.get("temperature", 1.0) == 0
        astray = 1.0 if model.startswith(ASTRAY) else BESIDE_THE_POINT
        return cls(True, request_digest(asked), 1 if greedy else attempt, seed, astray)

    def uses(self, what: str, among: float) -> bool:
        """Return True if a proposer or reducer uses one feedback out of `among`."""
        return not self.limited or self._chance(f"use {what}") < 1 / (1 + (among / WALL) ** 2)

    def follows(self, what: str, among: float) -> bool:
        """Return True if a student follows one instruction out of `among`."""
        return not self.limited or self._chance(f"follow {what}") < math.exp(-among / DENSITY)

    def strays(self, what: str) -> bool:
        """Return True if a critic's comment on `what` misses the point."""
        return self.limited and self._chance(f"stray {what}") < self.astray

    def repeats(self, what: str) -> bool:
        """Return True if a proposer repeats a claim of a rejected value, which it does half of the time."""
        return not self.limited or self._chance(f"repeat {what}") < 0.5

    def pick(self, what: str, options: int) -> int:
        """Return a number from 0 to `options` - 1; with perfect attention 0."""
        return int(self._chance(f"pick {what}") * options) if self.limited else 0

    def _chance(self, purpose: str) -> float:
        return draw(self.seed, purpose, self.request, self.attempt)


PERFECT: Final = Attention()
SENTIMENTS: Final = ("positive", "neutral", "negative")
_ANY_OBJECT: Final = {"type": "object"}
_CLASSIFIES: Final = re.compile(r"\b(?:sentiment|classif\w+)\b", re.IGNORECASE)
_CAPITALS: Final = re.compile(r"\b(?:capital letters|upper ?case|all caps)\b", re.IGNORECASE)
# Number of courteous words from which on an uninstructed student sees a good mood.
_COURTEOUS: Final = 6
_SCHEMA_DEPTH: Final = 8


def answer(conversation: Conversation, schema: dict[str, Any] | None, reader: Attention = PERFECT) -> str:
    """Return the student's reply: JSON if there is a schema, else an exact answer, a label or an echo."""
    message, instructions = conversation.message, conversation.instructions
    if schema is None and (solved := solve(message, instructions, reader)) is not None:
        return solved
    if schema is not None and schema != _ANY_OBJECT:
        flags = _flags(schema)
        value = fill(
            schema,
            message,
            lambda labels: classify(message, instructions, labels, reader),
            holds=lambda name: _holds(message, instructions, name, flags, reader),
        )
        return json.dumps(value, ensure_ascii=False)
    classifies = _CLASSIFIES.search(instructions) is not None
    naming = classifies and classify(message, instructions, SENTIMENTS, reader)
    text = naming or _echo(message, instructions)
    if schema is None:
        return text.upper() if _CAPITALS.search(instructions) else text
    return json.dumps({"sentiment" if classifies else "reply": text}, ensure_ascii=False)


def solve(message: str, instructions: str, reader: Attention = PERFECT) -> str | None:
    """Return the answer to a task with an exact one, by the skills in the instructions; None for other messages."""
    task = task_of(message)
    if task is None:
        return None
    among = instructions_in(instructions, ())
    told = [name for name in told_skills(task, instructions) if reader.follows(name, among)]
    return task.solve(message, told)


def classify(message: str, instructions: str, labels: tuple[str, ...], reader: Attention = PERFECT) -> str:
    """Return the label with the most cues in the message.

    A tie goes to the naive reading if it is among the tied labels, else to the first of them.

    >>> classify("We ask about prices.", 'Words like "prices" mean neutral.', SENTIMENTS)
    'neutral'
    """
    words = normalize(message)
    naive = _read_naively(words, labels)
    cues = _cues_in(words, instructions, labels, reader)
    counts = {label: len(cues[label]) for label in labels}
    most = max(counts.values())
    best = [label for label in labels if counts[label] == most]
    return naive if naive in best else best[0]


def _cues_in(
    words: str, instructions: str, labels: tuple[str, ...], reader: Attention = PERFECT
) -> dict[str, list[str]]:
    """Return each label's cues that occur in `words`, without those that the student overlooks."""
    cues, among = read_cues(instructions, labels), instructions_in(instructions, labels)
    return {
        label: [c for c in cues.get(label, ()) if c in words and reader.follows(f"{label}/{c}", among)]
        for label in labels
    }


def _holds(
    message: str, instructions: str, name: str, flags: tuple[str, ...], reader: Attention = PERFECT
) -> bool:
    """Return True if a message is of the kind `name`: it contains the name or one of its cues."""
    words = normalize(message)
    return normalize(name) in words or bool(_cues_in(words, instructions, flags, reader).get(name))


def _flags(schema: dict[str, Any]) -> tuple[str, ...]:
    """Return the names of all booleans in the schema."""
    flags: list[str] = []

    def visit(node: Any, name: str, depth: int) -> None:
        if isinstance(node, dict) and depth:
            if node.get("type") == "boolean":
                flags.append(name)
            properties = node.get("properties")
            for key, child in properties.items() if isinstance(properties, dict) else ():
                visit(child, key, depth - 1)

    visit(schema, "", _SCHEMA_DEPTH)
    return tuple(dict.fromkeys(flags))


def _read_naively(words: str, labels: tuple[str, ...]) -> str:
    """Return the label of a student that takes courtesy at face value.

    If the labels aren't sentiments: the first one that occurs in the message, else the first one.
    """
    if not set(SENTIMENTS) <= set(labels):
        return next((label for label in labels if normalize(label) in words), labels[0])
    said = words.split()
    if any(word in COMPLAINTS for word in said):
        return "negative"
    courtesy = sum(word in COURTESY for word in said)
    return "positive" if courtesy >= _COURTEOUS else "neutral"


def _echo(message: str, instructions: str) -> str:
    """Return the message: shortened, translated (in name only) or in capitals if the instructions ask for it."""
    text = " ".join(message.split()) or "(nothing was said)"
    wish = instructions.lower()
    if re.search(r"\b(?:short\w*|brief\w*|concise\w*)\b", wish):
        text = re.split(r"(?<=[.!?]) ", text)[0][:80]
    if language := re.search(r"\bin (italian|french|german|spanish)\b", wish):
        text = f"({language.group(1).capitalize()}) {text}"
    return text.upper() if _CAPITALS.search(wish) else text


# Values that match a JSON schema, filled from the message where a rule can do it.


_NUMBER: Final = re.compile(r"-?\d+(?:\.\d+)?")
_DEPTH: Final = 32


def fill(
    schema: dict[str, Any],
    message: str,
    choose: Callable[[tuple[str, ...]], str],
    name: str = "",
    holds: Callable[[str], bool] | None = None,
) -> Any:
    """Return a value that matches `schema`.

    Args:
        choose: picks one of the strings of an enum.
        holds: returns the value of the boolean of that name; by default True if the name occurs in the message.

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
        # A schema may refer to itself: below the depth fill only the required properties.
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
        match = _NUMBER.search(self._message)
        number = float(match.group()) if match else 0.0
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


# Random numbers that depend on a request and its attempt, and not on the order of arrival.


# Number of different draws. With more, the float closest to 1 would be rounded to 1.
_STEPS: Final = 2**52


def request_digest(body: bytes) -> str:
    """Return the key of the request with this body in `stats()["attempts"]`.

    >>> request_digest(b"{}") == request_digest(b"{}")
    True
    """
    return blake2b(body, digest_size=8).hexdigest()


def draw(seed: int, purpose: str, request: str, attempt: int) -> float:
    """Return a number between 0 and 1, both excluded; always the same for the same arguments.

    Args:
        purpose: makes draws for different uses independent: a slow reply isn't always a faulty one too.
        request: the request's `request_digest`.
        attempt: the number of the attempt, from 1.

    >>> 0 < draw(7, "latency", request_digest(b"{}"), 1) < 1
    True
    """
    key = f"{seed}/{purpose}/{request}/{attempt}".encode()
    number = int.from_bytes(blake2b(key, digest_size=8).digest(), "big") >> 12
    return (number + 0.5) / _STEPS
