"""Recording: what the engine says of a run, as rows; in the writing thread."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any, Final

from afnio.runtime.events import (
    CallEnded,
    CallReplayed,
    CallRetried,
    NodeLaunched,
    SampleScored,
    ScopeEnded,
    StepEnded,
)
from afnio.tellurio.call_rows import CallRows
from afnio.tellurio.json_value import encodable, lenient
from afnio.tellurio.parameter_history import ParameterHistory
from afnio.tellurio.phase import phase_of
from afnio.tellurio.redaction import Redaction
from afnio.tellurio.sample_keys import SampleKeys

if TYPE_CHECKING:
    from afnio.optim._optimizer import Change

INSERT_NODE: Final = """
INSERT INTO nodes (run_id, address, name, line, kind, lanes, parents, phase, time)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"""
INSERT_SAMPLE: Final = """
INSERT INTO samples (
    run_id, node, lane, phase, key, prediction, target, score, note, explanation, success, time
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
INSERT_STEP: Final = """
INSERT INTO steps (run_id, number, address, optimizer, error, time) VALUES (?, ?, ?, ?, ?, ?)"""
INSERT_CHANGE: Final = """
INSERT INTO changes (run_id, step_id, parameter, role, before, after, gradients, rejected)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)"""
INSERT_EVIDENCE: Final = """
INSERT INTO evidence (run_id, change_id, number, text, samples) VALUES (?, ?, ?, ?, ?)"""
INSERT_CANDIDATE: Final = """
INSERT INTO candidates (run_id, step_id, number, parents, vals, scores, verdict)
VALUES (?, ?, ?, ?, ?, ?, ?)"""
INSERT_EVENT: Final = "INSERT INTO events (run_id, kind, payload, time) VALUES (?, ?, ?, ?)"

LOST: Final = (sqlite3.OperationalError, sqlite3.InternalError)
"""Errors of the file, after which nothing more can be written; others are about one event."""


class Recording:
    """Writes a run's events into its tables, in the order in which they came.

    An event that can't be written, such as one with a value that SQLite doesn't take, costs one warning.
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
            ScopeEnded: lambda connection, event, time: None,  # its launches say what it was
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
                    "An event [%s] is not recorded (%s: %s); others of its kind are left out without a word.",
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
        row = (
            self._run_id,
            event.node,
            event.lane,
            phase_of(event.node),
            self._keys.key(event.node, event.lane),
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
        told = [(change.role, self._text(change.after) or "") for change in event.changes]
        for role, value in event.values:
            known = role, self._text(value) or ""
            if known in told:
                told.remove(known)
            else:
                self._parameters.note(connection, self._steps, role, known[1], known[1])
        for candidate in event.candidates:
            row = (
                candidate.number,
                lenient(candidate.parents),
                self._json(candidate.values),
                lenient(candidate.scores),
                self._text(candidate.verdict),
            )
            connection.execute(INSERT_CANDIDATE, (self._run_id, step_id, *row))

    def _change(self, connection: sqlite3.Connection, step_id: int | None, change: Change) -> None:
        before, after = self._text(change.before) or "", self._text(change.after) or ""
        number = self._parameters.note(connection, self._steps, change.role, before, after)
        about = (number, change.role, before, after, change.gradients, self._text(change.rejected))
        change_id = connection.execute(INSERT_CHANGE, (self._run_id, step_id, *about)).lastrowid
        rows = [
            (self._run_id, change_id, place, self._text(evidence.text), self._json(evidence.trail))
            for place, evidence in enumerate(change.evidence)
        ]
        connection.executemany(INSERT_EVIDENCE, rows)

    def _other(self, connection: sqlite3.Connection, event: Any, time: float) -> None:
        payload = asdict(event) if is_dataclass(event) and not isinstance(event, type) else event
        connection.execute(INSERT_EVENT, (self._run_id, type(event).__name__, self._json(payload), time))

    def _text(self, value: Any) -> str | None:
        if value is None:
            return None
        return encodable(self._redaction.text(value)) if isinstance(value, str) else self._json(value)

    def _json(self, value: Any) -> str:
        return self._redaction.json(value)
