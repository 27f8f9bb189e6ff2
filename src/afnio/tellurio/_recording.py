"""Recording: events of the engine become rows of the store.

`Recording.write` runs in the store's writing thread, inside a transaction. It does everything that would slow the
program down: JSON, digests, compression, prices, and the user's `redact`. One class each writes

* calls, with their messages and replies (`CallRows`, `Bodies`). Prompts are long and repeat, so each message is
  stored once in a run and found by its digest;
* parameters (`ParameterHistory`). Events name a parameter by its role and value, which two may share;
* samples (`SampleKeys`). The key of a sample is a digest of its own inputs, carried along the graph, so that the
  same sample is recognized in every epoch and in another run, whatever the prompt was.

An event that can't be written is dropped, with one warning. Only an error of the file ends the recording.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import sqlite3
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from afnio.models._prices import price_of
from afnio.runtime._spending import Price, cost
from afnio.runtime.events import (
    CallEnded,
    CallReplayed,
    CallRetried,
    NodeLaunched,
    SampleScored,
    ScopeEnded,
    StepEnded,
    Usage,
)
from afnio.tellurio._redaction import Redaction, as_text, encodable, lenient
from afnio.tellurio._schema import phase_of

if TYPE_CHECKING:
    from afnio.optim._optimizer import Change


INSERT_NODE: Final = """
INSERT INTO nodes (run_id, address, name, line, kind, lanes, parents, phase, time)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
INSERT_SAMPLE: Final = """
INSERT INTO samples (
    run_id, node, lane, phase, key, prediction, target, score, note, explanation, success, time
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
INSERT_INPUT: Final = "INSERT OR IGNORE INTO inputs (run_id, key, text) VALUES (?, ?, ?)"
INSERT_STEP: Final = """
INSERT INTO steps (run_id, number, address, optimizer, error, time) VALUES (?, ?, ?, ?, ?, ?)"""
INSERT_CHANGE: Final = """
INSERT INTO changes (run_id, step_id, parameter, role, before, after, gradients, rejected, dropped)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
INSERT_EVIDENCE: Final = """
INSERT INTO evidence (run_id, change_id, number, text, samples) VALUES (?, ?, ?, ?, ?)"""
INSERT_BLOCK: Final = """
INSERT INTO blocks (
    run_id, change_id, number, text, step, samples, replaces, races, wins, losses, ties, effect, low, high
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
INSERT_CANDIDATE: Final = """
INSERT INTO candidates (run_id, step_id, number, parents, vals, scores, verdict, name, samples)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
# The candidate with these values, preferably one that parameters held.
NUMBER_OF: Final = """
SELECT number, parents FROM candidates WHERE run_id = ? AND vals = ?
ORDER BY verdict LIKE 'accepted%' DESC, name = 'incumbent' DESC, id DESC LIMIT 1"""
NEXT_NUMBER: Final = "SELECT coalesce(max(number) + 1, 0) FROM candidates WHERE run_id = ?"
INSERT_EVENT: Final = "INSERT INTO events (run_id, kind, payload, time) VALUES (?, ?, ?, ?)"

# Errors of the file. All others concern one event only.
LOST: Final = (sqlite3.OperationalError, sqlite3.InternalError)


class Recording:
    """Writes a run's events into its tables, in the order in which they came.

    An event that can't be written, such as one with an integer beyond 64 bits, costs one warning.
    """

    def __init__(self, run_id: str, redaction: Redaction) -> None:
        self._run_id = run_id
        self._redaction = redaction
        self._calls = CallRows(run_id, redaction)
        self._keys = SampleKeys()
        self._parameters = ParameterHistory(run_id)
        self._steps = 0
        self._failed = False
        self._writes: dict[type, Callable[[sqlite3.Connection, Any, float], None]] = {
            CallEnded: self._calls.end,
            CallReplayed: self._calls.replay,
            CallRetried: self._calls.retry,
            NodeLaunched: self._node,
            SampleScored: self._sample,
            StepEnded: self._step,
            ScopeEnded: lambda connection, event, time: None,  # the launches in it are recorded
        }

    def write(self, connection: sqlite3.Connection, event: Any, time: float) -> None:
        """Write one event that came at `time`."""
        write = self._writes.get(type(event), self._other)
        try:
            write(connection, event, time)
        except LOST:
            raise
        except Exception as error:
            if not self._failed:
                self._failed = True
                logging.getLogger("afnio").warning(
                    "an event %s is not recorded (%s: %s); there is no warning for later ones",
                    type(event).__name__,
                    type(error).__name__,
                    error,
                )

    def _node(self, connection: sqlite3.Connection, event: NodeLaunched, time: float) -> None:
        self._keys.add(event)
        line = f"{event.line.file}:{event.line.number}" if hasattr(event.line, "file") else str(event.line)
        parents = lenient([entry.producer for entry in event.inputs])
        about = (event.address, event.name, line, event.kind, event.lanes)
        connection.execute(INSERT_NODE, (self._run_id, *about, parents, phase_of(event.address), time))

    def _sample(self, connection: sqlite3.Connection, event: SampleScored, time: float) -> None:
        number = event.score if isinstance(event.score, int | float) else None
        key, inputs = self._keys.of(event.node, event.lane)
        if inputs:
            connection.execute(INSERT_INPUT, (self._run_id, key, self._text(inputs)))
        row = (
            self._run_id,
            event.node,
            event.lane,
            phase_of(event.node),
            key,
            self._text(event.prediction),
            self._text(event.target),
            number,
            None if number is not None else self._json(event.score),
            self._text(event.explanation),
            int(event.success),
            time,
        )
        connection.execute(INSERT_SAMPLE, row)

    def _step(self, connection: sqlite3.Connection, event: StepEnded, time: float) -> None:
        self._steps += 1
        error = self._text(event.error)
        step = (self._run_id, self._steps, event.address, event.optimizer, error, time)
        step_id = connection.execute(INSERT_STEP, step).lastrowid
        self._parameters.begin_step()
        for change in event.changes:
            self._change(connection, step_id, change)
        changed = [(change.role, self._text(change.after) or "") for change in event.changes]
        for role, value in event.values:
            key = role, self._text(value) or ""
            if key in changed:
                changed.remove(key)
            else:
                self._parameters.note(connection, self._steps, role, key[1], key[1])
        first: int | None = None
        for candidate in event.candidates:
            values = self._json(candidate.values)
            number, parents = candidate.number, lenient(candidate.parents)
            if number is None:
                number, parents = self._numbered(connection, values, first)
            first = number if first is None else first
            row = (
                number,
                parents,
                values,
                lenient(candidate.scores),
                self._text(candidate.verdict),
                self._text(candidate.name),
                lenient(candidate.samples),
            )
            connection.execute(INSERT_CANDIDATE, (self._run_id, step_id, *row))

    def _numbered(self, connection: sqlite3.Connection, values: str, first: int | None) -> tuple[int, str]:
        """Return number and parents of values that the step didn't make: those that they have, or new ones."""
        row = connection.execute(NUMBER_OF, (self._run_id, values)).fetchone()
        if row is not None:
            return row[0], row[1]
        (number,) = connection.execute(NEXT_NUMBER, (self._run_id,)).fetchone()
        return number, lenient([] if first is None else [first])

    def _change(self, connection: sqlite3.Connection, step_id: int | None, change: Change) -> None:
        before, after = self._text(change.before) or "", self._text(change.after) or ""
        number = self._parameters.note(connection, self._steps, change.role, before, after)
        why = (self._text(change.rejected), self._json(change.dropped))
        about = (number, change.role, before, after, change.gradients, *why)
        change_id = connection.execute(INSERT_CHANGE, (self._run_id, step_id, *about)).lastrowid
        rows = [
            (self._run_id, change_id, place, self._text(evidence.text), self._json(evidence.trail))
            for place, evidence in enumerate(change.evidence)
        ]
        connection.executemany(INSERT_EVIDENCE, rows)
        blocks = [
            (
                *(self._run_id, change_id, place, self._text(one.text), one.step, lenient(one.samples)),
                *(self._text(one.replaces), one.races, one.wins, one.losses, one.ties),
                *(one.effect, one.low, one.high),
            )
            for place, one in enumerate(change.lineage)
        ]
        connection.executemany(INSERT_BLOCK, blocks)

    def _other(self, connection: sqlite3.Connection, event: Any, time: float) -> None:
        payload = asdict(event) if is_dataclass(event) and not isinstance(event, type) else event
        connection.execute(INSERT_EVENT, (self._run_id, type(event).__name__, self._json(payload), time))

    def _text(self, value: Any) -> str | None:
        if value is None:
            return None
        return encodable(self._redaction.text(value)) if isinstance(value, str) else self._json(value)

    def _json(self, value: Any) -> str:
        return self._redaction.json(value)


# --- Calls ---

# A call that failed may be made again at the same address when its run is continued. Tokens and cost add up.
INSERT_CALL: Final = """
INSERT INTO calls (
    run_id, address, node, lane, phase, purpose, account, model, status, replayed, attempts, seconds, waited,
    started, ended, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, cost, error, params,
    messages, reply
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run_id, address) DO UPDATE SET
    model = excluded.model, account = excluded.account, status = excluded.status,
    attempts = attempts + excluded.attempts, seconds = seconds + excluded.seconds,
    waited = waited + excluded.waited, started = excluded.started, ended = excluded.ended,
    prompt_tokens = prompt_tokens + excluded.prompt_tokens,
    completion_tokens = completion_tokens + excluded.completion_tokens,
    cached_tokens = cached_tokens + excluded.cached_tokens,
    reasoning_tokens = reasoning_tokens + excluded.reasoning_tokens,
    cost = coalesce(cost + excluded.cost, cost, excluded.cost), error = excluded.error,
    params = excluded.params, messages = excluded.messages, reply = excluded.reply"""
REPLAY: Final = """
UPDATE calls SET replayed = replayed + 1
WHERE run_id = ? AND address = ? AND status NOT IN ('failed', 'cancelled')"""
INSERT_RETRY: Final = """
INSERT INTO retries (run_id, address, attempt, error, wait, time) VALUES (?, ?, ?, ?, ?, ?)"""

# Exceptions of asyncio and trio in a cancelled task.
CANCELLED: Final = ("CancelledError", "Cancelled")

# Messages and replies that are remembered by their texts.
RECENT: Final = 1_000


class CallRows:
    """Writes the calls of one run."""

    def __init__(self, run_id: str, redaction: Redaction) -> None:
        self._run_id = run_id
        self._redaction = redaction
        self._bodies = Bodies(run_id)
        self._recent: dict[tuple[Any, ...], int] = {}

    def end(self, connection: sqlite3.Connection, event: CallEnded, time: float) -> None:
        """Write a call that has ended."""
        status, error_text = outcome(event.error)
        dollars = float(event.cost) if event.cost is not None else _cost(event, event.usage)
        error = None if error_text is None else encodable(self._redaction.text(error_text))
        effort = (event.attempts, event.seconds, event.waited, time - event.seconds - event.waited, time)
        self._insert(connection, event, (status, 0), effort, event.usage, dollars, error)

    def replay(self, connection: sqlite3.Connection, event: CallReplayed, time: float) -> None:
        """Count an answer of the journal. Its call has a row, unless the process was killed before writing it."""
        if connection.execute(REPLAY, (self._run_id, event.address)).rowcount == 0:
            usage = event.reply.usage if event.reply is not None else Usage()
            is_own = Path(event.journal).name == f"{self._run_id}.journal"
            dollars = _cost(event, usage) if is_own else 0.0
            self._insert(connection, event, ("replayed", 1), (0, 0.0, 0.0, time, time), usage, dollars, None)

    def retry(self, connection: sqlite3.Connection, event: CallRetried, time: float) -> None:
        """Write an attempt that failed."""
        error = encodable(self._redaction.text(event.error))
        row = (self._run_id, event.address, event.attempt, error, event.wait, time)
        connection.execute(INSERT_RETRY, row)

    def _insert(
        self,
        connection: sqlite3.Connection,
        event: CallEnded | CallReplayed,
        status: tuple[str, int],
        effort: tuple[Any, ...],
        usage: Usage,
        dollars: float | None,
        error: str | None,
    ) -> None:
        request, reply = event.request, event.reply
        messages = () if request is None else [self._body(connection, part) for part in request.messages]
        row = (
            self._run_id,
            event.address,
            event.node or event.address,
            event.lane,
            phase_of(event.node or event.address),
            event.purpose,
            event.account,
            event.model,
            *status,
            *effort,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
            dollars,
            error,
            None if request is None or not request.params else self._body(connection, request.params),
            ",".join(map(str, messages)),
            None if reply is None else self._body(connection, _shown(reply)),
        )
        connection.execute(INSERT_CALL, row)

    def _body(self, connection: sqlite3.Connection, value: Any) -> int:
        # The messages of a batch are mostly the same. Comparing texts is cheaper than making JSON and a digest.
        content = value.get("content") if len(value) == 2 else None
        parts = tuple(value.items()) if isinstance(content, str) else None
        try:
            number = None if parts is None else self._recent.get(parts)
        except TypeError:  # a part that isn't hashable
            parts = number = None
        if number is None:
            number = self._bodies.number(connection, self._redaction.json(value))
            if parts is not None:
                if len(self._recent) >= RECENT:
                    self._recent.clear()
                self._recent[parts] = number
        return number


# In the ids of the replies of `afnio provider`, which no model wrote.
SIMULATED: Final = "-simulated-"


def outcome(error: str | None) -> tuple[str, str | None]:
    """Return a call's status and its error; a call that was cancelled didn't fail.

    >>> outcome("CancelledError: "), outcome("ModelError: no")
    (('cancelled', None), ('failed', 'ModelError: no'))
    """
    if error is None:
        return "ok", None
    kind, _, reason = error.partition(": ")
    return ("cancelled", reason or None) if kind in CANCELLED else ("failed", error)


def _shown(reply: Any) -> dict[str, Any]:
    """Return a reply as JSON types, without its usage, because that has its own columns."""
    if not hasattr(reply, "content"):
        return {"content": str(reply)}
    shown: dict[str, Any] = {"content": reply.content, "finish_reason": reply.finish_reason}
    if reply.tool_calls:
        shown["tool_calls"] = [dataclasses.asdict(call) for call in reply.tool_calls]
    if SIMULATED in reply.id:
        shown["simulated"] = True
    return shown


def _cost(event: CallEnded | CallReplayed, usage: Usage) -> float | None:
    """Return dollars by the user's or the known prices; None if the price is unknown."""
    if event.reply is None:
        return None
    price = _price(event.model, event.account)
    return None if price is None else float(cost(price, usage))


@lru_cache(maxsize=256)
def _price(model: str, account: str) -> Price | None:
    try:
        return price_of(model, account)
    except (OSError, ValueError) as error:
        logging.getLogger("afnio").warning("the costs of %s are not recorded: %s", model, error)
        return None


# --- Messages and replies ---

# Bytes from which a body is compressed.
PACKED_FROM: Final = 256
# Bodies whose row numbers are remembered. Others are looked up in the file.
KEPT_BODIES: Final = 20_000

FIND: Final = "SELECT id FROM bodies WHERE run_id = ? AND digest = ?"
INSERT_BODY: Final = "INSERT OR IGNORE INTO bodies (run_id, digest, packed, body) VALUES (?, ?, ?, ?)"


class Bodies:
    """The messages and replies of one run."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._numbers: OrderedDict[bytes, int] = OrderedDict()

    def number(self, connection: sqlite3.Connection, text: str) -> int:
        """Return the number of the row that holds `text`; insert it if there is none."""
        body = text.encode()
        digest = hashlib.blake2b(body, digest_size=16).digest()
        written = self._numbers.get(digest)
        if written is not None:
            self._numbers.move_to_end(digest)
            return written
        packed = len(body) >= PACKED_FROM
        stored = zlib.compress(body, 1) if packed else body
        made = connection.execute(INSERT_BODY, (self._run_id, digest, packed, stored))
        if made.rowcount:
            number = made.lastrowid or 0
        else:
            (number,) = connection.execute(FIND, (self._run_id, digest)).fetchone()
        self._numbers[digest] = number
        if len(self._numbers) > KEPT_BODIES:
            self._numbers.popitem(last=False)
        return number


def unpacked(packed: int, body: bytes) -> str:
    """Return the JSON of a row of `bodies`.

    >>> unpacked(1, zlib.compress(b'"hello"'))
    '"hello"'
    """
    return (zlib.decompress(body) if packed else body).decode()


# --- Parameters ---

INSERT_VERSION: Final = """
INSERT INTO parameters (run_id, number, step, role, value, made) VALUES (?, ?, ?, ?, ?, ?)"""


@dataclass(slots=True)
class _Known:
    """A parameter, its value, and the step that made each of the values that it had, by the value's digest."""

    number: int
    role: str
    value: str
    made: dict[bytes, int]


class ParameterHistory:
    """Numbers a run's parameters in order of appearance and writes their values.

    An event has the role of a parameter and the value before the change, so a parameter is recognized by both. If
    the program has assigned another value since, it is recognized by its role alone.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._known: list[_Known] = []
        self._left: list[_Known] = []

    def begin_step(self) -> None:
        """Begin a step. A step changes each parameter at most once."""
        self._left = list(self._known)

    def note(self, connection: sqlite3.Connection, step: int, role: str, before: str, after: str) -> int:
        """Write the values that are new and return the parameter's number."""
        parameter = self._find(role, before)
        if parameter is None:
            parameter = _Known(len(self._known), role, before, {})
            self._known.append(parameter)
            self._write(connection, parameter, 0, before)
        else:
            self._left.remove(parameter)
            if parameter.value != before:
                self._write(connection, parameter, step - 1, before)
        if after != before:
            self._write(connection, parameter, step, after)
        parameter.value = after
        return parameter.number

    def _write(self, connection: sqlite3.Connection, parameter: _Known, step: int, value: str) -> None:
        # A checkpoint or a gate may restore a value; then an earlier step made it.
        made = parameter.made.setdefault(hashlib.blake2b(value.encode(), digest_size=8).digest(), step)
        connection.execute(
            INSERT_VERSION, (self._run_id, parameter.number, step, parameter.role, value, made)
        )

    def _find(self, role: str, before: str) -> _Known | None:
        named = [one for one in self._left if one.role == role]
        return next((one for one in named if one.value == before), named[0] if named else None)


# --- Samples ---

# Lanes that are remembered. No launch needs older ones.
KEPT_KEYS: Final = 200_000
# Characters of a sample's inputs that are recorded.
LONGEST: Final = 20_000

# The inputs of a lane: texts by their digests. The text of a target is empty, as it is no input.
Leaves = dict[bytes, str]


class SampleKeys:
    """For each launch and lane the sample's own leaves: its inputs and its target.

    Parameters and values that a batch shares, such as a prompt, aren't included. So a sample has the same key
    with any prompt and any number of ops in between.
    """

    def __init__(self) -> None:
        self._leaves: OrderedDict[str, list[Leaves]] = OrderedDict()
        self._kept = 0
        self._written: set[str] = set()

    def add(self, event: NodeLaunched) -> None:
        """Remember the leaves of a launch's inputs."""
        if event.kind == "backward":
            return
        lanes: list[Leaves] = [{}] * (1 if event.lanes is None else event.lanes)
        for entry in event.inputs:
            leaves: Sequence[Leaves] | None = None
            if entry.values is not None:
                leaves = [_leaf(value, hidden=event.kind == "evaluator") for value in entry.values]
            elif entry.producer is not None:
                leaves = self._leaves.get(entry.producer)
            # One value for many lanes is shared, so it doesn't identify a sample.
            if leaves is not None and len(leaves) == len(lanes):
                lanes = [{**theirs, **mine} for mine, theirs in zip(lanes, leaves, strict=True)]
        self._leaves[event.address] = lanes
        self._kept += len(lanes)
        while self._kept > KEPT_KEYS and len(self._leaves) > 1:
            self._kept -= len(self._leaves.popitem(last=False)[1])

    def of(self, node: str, lane: int | None) -> tuple[str | None, str]:
        """Return the key of a launch's lane, and its inputs if they weren't returned before.

        The key is None if the lane had no leaves, or is forgotten.
        """
        lanes = self._leaves.get(node)
        leaves = None if lanes is None else lanes[lane or 0]
        if not leaves:
            return None, ""
        key = hashlib.blake2b(b"".join(sorted(leaves)), digest_size=8).hexdigest()
        if key in self._written:
            return key, ""
        if len(self._written) >= KEPT_KEYS:
            self._written.clear()
        self._written.add(key)
        return key, "\n".join(text for text in leaves.values() if text)[:LONGEST]


def _leaf(value: object, *, hidden: bool) -> Leaves:
    if value is None:
        return {}
    text = as_text(value)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return {digest: "" if hidden else text[:LONGEST]}
