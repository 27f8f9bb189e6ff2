"""A run: one execution of a program, with its metrics and events."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import random
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self, overload

from afnio.runtime._settings import seed_source
from afnio.runtime._waiting import active_journal, scope
from afnio.runtime.events import recorder
from afnio.tellurio import active
from afnio.tellurio.json_value import as_text, encode
from afnio.tellurio.run_events import MetricLogged, RunEnded, RunStarted, TableLogged, TextLogged
from afnio.tellurio.store import RunRow, Store

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from contextvars import Token
    from types import TracebackType

    from afnio.runtime._journal import Journal
    from afnio.tellurio.lease import Lease
    from afnio.tellurio.sink_thread import SinkThread

MISSING: Final[Any] = object()

EXIT_TIMEOUT: Final = 10.0
"""Seconds that the interpreter's exit waits for the disk."""

SINK_TIMEOUT: Final = 30.0
"""Seconds that a run's end waits for its sinks."""


class RunStatus(StrEnum):
    """How a run stands, or how it ended."""

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"

    @classmethod
    def after(cls, exception: type[BaseException] | None) -> RunStatus:
        """The status of a run whose program ended with this exception, or with none."""
        if exception is None:
            return cls.COMPLETED
        return cls.FAILED if issubclass(exception, Exception) else cls.CRASHED


class Run:
    """A run under way, as `init` returns it; records into its project's file.

    As a context manager it is the active run of the block, owns what is launched there as
    `afnio.scope` does, and ends with it: COMPLETED, FAILED after an exception, CRASHED after an
    interrupt or an exit. What the engine does there is recorded: calls, samples, steps and the
    feedback behind them. Recording doesn't wait for the disk; `flush` does.

    One that is `process_wide` is, as long as its block is open, also the run of all that is in no other
    run's block, such as a server's requests. What those launch it records, but doesn't own.
    """

    def __init__(
        self,
        store: Store,
        row: RunRow,
        journal: Journal | None,
        *,
        lease: Lease,
        sinks: SinkThread,
        continued: bool = False,
        process_wide: bool = False,
    ) -> None:
        self.id = row.id
        self.name = row.name
        self.description = row.description
        self.namespace = row.namespace
        self.project = row.project
        self.config = json.loads(row.config)
        self.seed = row.seed
        self.status = RunStatus.RUNNING
        self.date_created = datetime.fromtimestamp(row.date, UTC)
        self.date_updated = datetime.now(UTC)
        self.journal = journal
        self.process_wide = process_wide
        self._store = store
        self._lease = lease
        self._sinks = sinks
        self._pid = os.getpid()
        self._token: Token[Run | None] | None = None
        self._scope = scope(name="run", rooted=True)
        self._context = ExitStack()
        self._seeds = itertools.count()
        store.begin(self.id)
        about = (self.namespace, self.project, self.description, self.config)
        sinks.put(RunStarted(self.id, self.name, *about, row.date, continued))
        atexit.register(self._end_with_process)

    def draw_seed(self) -> int:
        """Return the run's next seed; the n-th is the same whenever the run is continued."""
        return random.Random(f"{self.seed}/{next(self._seeds)}").getrandbits(63)

    def __repr__(self) -> str:
        return f"<Run {self.name} of {self.namespace}/{self.project}, {self.status}>"

    @overload
    def log(self, name: str, value: Any, step: int | None = None) -> None: ...
    @overload
    def log(self, name: Mapping[str, Any], *, step: int | None = None) -> None: ...
    def log(self, name: str | Mapping[str, Any], value: Any = MISSING, step: int | None = None) -> None:
        """Record a metric's value, or several at one step; without a step, at the metric's next."""
        self._check_running()
        _check_step(step)
        pairs = _pairs(name, value)
        redacted = self._store.redaction.value
        metrics = {metric: encode(f"metric [{metric}]", redacted(part)) for metric, part in pairs}
        date = self._touch()
        for metric, part in metrics.items():
            self._store.add_logged("metrics", self.id, metric, step, {"value": part}, date)
        for metric, part in pairs:
            self._sinks.put(MetricLogged(metric, part, step))

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        """Record a text, such as a prompt or a reply worth keeping; without a step, at its name's next."""
        self._check_running()
        _check_step(step)
        check_text("text's name", name)
        check_text(f"text [{name}]", text)
        values = {"text": as_text(self._store.redaction.text(text))}
        self._store.add_logged("texts", self.id, name, step, values, self._touch())
        self._sinks.put(TextLogged(name, text, step))

    def log_table(
        self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], step: int | None = None
    ) -> None:
        """Record a table of any JSON values; without a step, at its name's next.

        Raises:
            ValueError: for a row whose length isn't that of `columns`.
        """
        self._check_running()
        _check_step(step)
        check_text("table's name", name)
        names, lines = list(columns), [list(row) for row in rows]
        for column in names:
            check_text(f"name of a column of table [{name}]", column)
        for number, line in enumerate(lines):
            if len(line) != len(names):
                raise ValueError(
                    f"Row [{number}] of the table [{name}] has {len(line)} values for {len(names)} columns."
                )
        redacted = self._store.redaction.value
        values = {
            "columns": encode(f"table [{name}]", names),
            "rows": encode(f"table [{name}]", redacted(lines)),
        }
        self._store.add_logged("tables", self.id, name, step, values, self._touch())
        self._sinks.put(TableLogged(name, names, lines, step))

    def _check_running(self) -> None:
        if self.status is not RunStatus.RUNNING:
            raise ValueError(
                f"The run [{self.name}] has ended as [{self.status}]; start another with te.init."
            )

    def record(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Record an event; one that arrives after the run's end is dropped."""
        check_text("event's kind", kind)
        if self.status is RunStatus.RUNNING:
            text = encode(f"event [{kind}]", self._store.redaction.value(dict(payload)))
            self._store.add_event(self.id, kind, text, self._touch())

    def flush(self) -> None:
        """Wait until readers of the file see everything recorded so far."""
        if self.status is RunStatus.RUNNING:
            self._store.update_run(self.id, self.status, self.date_updated.timestamp())
            self._store.flush()

    def finish(self, status: RunStatus | str = RunStatus.COMPLETED) -> None:
        """End the run; once it has ended, nothing changes its status.

        In a forked child the run goes on in the parent, so only what the child recorded is
        written.
        """
        status = RunStatus(status)
        if status is RunStatus.RUNNING:
            raise ValueError("A run can't end as [RUNNING]; pass COMPLETED, FAILED or CRASHED.")
        self._end(status)

    def _end(self, status: RunStatus, timeout: float | None = None) -> None:
        active.remove(self)
        atexit.unregister(self._end_with_process)
        if self.journal is not None and os.getpid() == self._pid:
            self.journal.close()
        if self.status is RunStatus.RUNNING:
            self.status = status
            date = self._touch()
            if os.getpid() == self._pid:
                self._store.update_run(self.id, status, date)
                self._sinks.put(RunEnded(str(status)))
        self._store.close(timeout)
        self._sinks.close(SINK_TIMEOUT if timeout is None else timeout)
        # Only now: a run that isn't over on the disk and has no lease was killed.
        self._lease.release()

    def _end_with_process(self) -> None:
        # The interpreter keeps the exception that ended a script; a prompt keeps the last one of
        # the session there, which says nothing about the run.
        at_prompt = hasattr(sys, "ps1")
        exception = None if at_prompt else getattr(sys, "last_type", None)
        self._end(RunStatus.after(exception), EXIT_TIMEOUT)

    def _touch(self) -> float:
        self.date_updated = datetime.now(UTC)
        return self.date_updated.timestamp()

    def __enter__(self) -> Self:
        if self._token is not None or self.status is not RunStatus.RUNNING:
            raise RuntimeError(f"The run [{self.name}] can't be entered again; start another with te.init.")
        if not self.process_wide:
            active.remove(self)
        self._token = active.enter(self)
        self._context.enter_context(recorder.override(self.observe))
        self._context.enter_context(seed_source.override(self.draw_seed))
        self._context.enter_context(active_journal.override(self.journal))
        # The run owns what is launched in its block, and gives it an address of its own.
        self._scope.__enter__()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = RunStatus.after(exception_type)
        try:
            self._scope.__exit__(exception_type, exception, traceback)
        except BaseException as error:
            status = RunStatus.after(type(error))
            raise
        finally:
            self._leave()
            self.finish(status)
            self._tell_how_to_go_on()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        from anyio import CancelScope, to_thread

        status = RunStatus.after(exception_type)
        try:
            await self._scope.__aexit__(exception_type, exception, traceback)
        except BaseException as error:
            status = RunStatus.after(type(error))
            raise
        finally:
            self._leave()
            # Shielded: a cancelled program's run has to end as well.
            with CancelScope(shield=True):
                await to_thread.run_sync(self.finish, status)
            self._tell_how_to_go_on()

    def _leave(self) -> None:
        assert self._token is not None
        self._context.close()
        active.leave(self._token)

    def _tell_how_to_go_on(self) -> None:
        if self.status is RunStatus.FAILED and self.journal is not None:
            line = f'te.init("{self.namespace}", "{self.project}", resume="{self.id}")'
            sys.stderr.write(
                f"afnio: run {self.name} failed; {line} continues it and pays for no reply again\n"
            )

    def observe(self, event: Any) -> None:
        """Record what the engine says; on the runtime's thread, so without waiting."""
        if self.status is RunStatus.RUNNING:
            self._store.record(event, time.time())
            self._sinks.put(event)


def check_text(what: str, value: str) -> None:
    """Raise for a value that is no string."""
    if not isinstance(value, str):
        raise TypeError(f"The {what} is [{value!r}], but has to be a string.")


def _check_step(step: int | None) -> None:
    if step is None:
        return
    if not isinstance(step, int) or isinstance(step, bool):
        raise TypeError(f"The step is [{step!r}], but has to be a whole number or None.")
    if not 0 <= step < 2**63:
        raise ValueError(f"The step is [{step}], but has to be from 0 to 2**63 - 1.")


def _pairs(name: str | Mapping[str, Any], value: Any) -> list[tuple[str, Any]]:
    if isinstance(name, str):
        if value is MISSING:
            raise TypeError(f"The metric [{name}] has no value; write log({name!r}, value).")
        return [(name, value)]
    if value is not MISSING:
        raise TypeError("Several metrics were given, and a value; write log({...}, step=...).")
    for metric in name:
        check_text("metric's name", metric)
    return list(name.items())
