"""A run: one execution of a program, recorded in its project's file.

`init` starts a run, or continues one that was killed. As a `with` block the run is the active one of the block:
its `observe` is the block's recorder of engine events, its journal answers the block's calls, and its seed feeds
everything that draws at random without a seed. Called plainly, it becomes the default of the whole process.

Three things live and end with a run:

* the **store** (`_store`), which writes metrics and events in its own thread and never raises for the disk;
* the **journal**, with which a killed program is continued: it is started again, repeats what it did, and its
  paid calls are answered from the file. `_program` recognizes the program;
* the **lease**, a lock file by which other processes see that this run is alive. It is taken before the run's
  row is written and released after the row has its end, so a RUNNING row without a lease is a killed run.

Sinks get the same events as the store, from a thread of `RunSinks`, so that a slow one doesn't slow the program down.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import secrets
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, overload

from afnio.errors import JournalError, JournalLockedError, LockHeldError, RunStoppedError
from afnio.runtime._budget import Ceiling, run_ceiling
from afnio.runtime._control import RunGate, run_gate
from afnio.runtime._files import LockFile
from afnio.runtime._journal import Journal
from afnio.runtime._kernel import current_runtime
from afnio.runtime._limits import Limits
from afnio.runtime._settings import Seeds, seed_source
from afnio.runtime._spending import Item, Ledger, Spent
from afnio.runtime._waiting import active_journal, scope
from afnio.runtime.events import (
    CallEnded,
    MetricLogged,
    NodeLaunched,
    RunEnded,
    RunStarted,
    StepEnded,
    TableLogged,
    TextLogged,
    Usage,
    run_recorder,
)
from afnio.tellurio._control import InForce, Order
from afnio.tellurio._program import program_identity
from afnio.tellurio._redaction import Redact, Redaction, as_text, encode
from afnio.tellurio._store import NewRun, Store, lease_path, store_path, take_lease
from afnio.tellurio.sinks._sink import RunSinks, SinkFunction

_MISSING: Final[Any] = object()

# Seconds that the interpreter waits for the disk at its exit.
_EXIT_TIMEOUT: Final = 10.0

# Seconds that a run waits for its sinks at its end.
_SINK_TIMEOUT: Final = 30.0


class RunStatus(StrEnum):
    """The state of a run."""

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CRASHED = "CRASHED"

    @classmethod
    def after(cls, exception: BaseException | None) -> RunStatus:
        """Return the status of a run whose program ended with this exception, or without one."""
        if exception is None:
            return cls.COMPLETED
        # A stop ends one call, or each call of a batch. Like Ctrl-C it leaves a program that can be continued.
        if BaseExceptionGroup("", [exception]).split(RunStoppedError)[1] is None:
            return cls.CRASHED
        return cls.FAILED if isinstance(exception, Exception) else cls.CRASHED


class Run:
    """A run that `init` has started; records into its project's file.

    As a context manager it is the active run of the block. It owns everything launched there, as `afnio.scope`
    does, and ends with the block: COMPLETED, FAILED after an exception, CRASHED after a stop, an interrupt or an exit.
    Calls, samples, steps and the feedback behind them are recorded there. Recording doesn't wait for the disk;
    `flush` does.

    While the block of a `process_wide` run is open, it is also the run of code outside any run's block, such as
    a server's requests. It records what they launch, but doesn't own it.

    Attributes:
        id: unique, and the argument of `init(resume=…)`.
        status: see `RunStatus`.
        seed: all seeds of the run are derived from it.
        journal: the file that answers calls when the run is continued; None if it couldn't be opened.
        continued_by: the line that continues the run if it fails.
        date_created: of the first start, in UTC.
        date_updated: of the last record, in UTC.
    """

    def __init__(
        self,
        store: Store,
        row: NewRun,
        journal: Journal | None,
        *,
        lease: LockFile | None,
        sinks: RunSinks | None,
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
        self.continued_by = f'te.init("{self.namespace}", "{self.project}", resume="{self.id}")'
        self._store = store
        self._lease = lease
        self._sinks = sinks
        self._pid = os.getpid()
        self._token: Token[Run | None] | None = None
        self._scope = scope(name="run", rooted=True)
        self._context = ExitStack()
        self._seeds = Seeds(self.seed)
        self._gate, self._ceiling = RunGate(), Ceiling()
        self._orders: list[Order] = []
        self._spent = Spent()
        if continued:
            self._orders, (attempts, tokens_in, tokens_out, dollars) = store.earlier(self.id)
            usage = Usage(tokens_in, tokens_out)
            self._spent = Spent(0, attempts, 0, usage, known_cost=Decimal(str(dollars)))
            state = InForce.after(self._orders)
            if str(state):
                self._tell(f"earlier orders hold on ({state}); `afnio runs resume` and `limit` change them")
                current_runtime().post(self._keep_to, state)
        store.begin(self.id, self._hear)
        about = (self.namespace, self.project, self.description, self.config)
        self._send(RunStarted(self.id, self.name, *about, row.date, continued))
        atexit.register(self._end_with_process)

    def __repr__(self) -> str:
        return f"<Run {self.name} of {self.namespace}/{self.project}, {self.status}>"

    @overload
    def log(self, name: str, value: Any, step: int | None = None) -> None: ...
    @overload
    def log(self, name: Mapping[str, Any], *, step: int | None = None) -> None: ...
    def log(self, name: str | Mapping[str, Any], value: Any = _MISSING, step: int | None = None) -> None:
        """Record a metric's value, or several at one step. Without a step, each metric counts its own.

        Raises:
            TypeError: JSON can't express the value.
            ValueError: the run has ended.
        """
        self._check_running()
        _check_step(step)
        pairs = _pairs(name, value)
        redacted = self._store.redaction.value
        metrics = {metric: encode(f"metric {metric!r}", redacted(part)) for metric, part in pairs}
        date = self._touch()
        for metric, part in metrics.items():
            self._store.add_logged("metrics", self.id, metric, step, {"value": part}, date)
        for metric, part in pairs:
            self._send(MetricLogged(metric, part, step))

    def log_text(self, name: str, text: str, step: int | None = None) -> None:
        """Record a text, such as a prompt or a reply worth keeping. Without a step, each name counts its own."""
        self._check_running()
        _check_step(step)
        _check_text("text's name", name)
        _check_text(f"text {name!r}", text)
        values = {"text": as_text(self._store.redaction.text(text))}
        self._store.add_logged("texts", self.id, name, step, values, self._touch())
        self._send(TextLogged(name, text, step))

    def log_table(
        self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], step: int | None = None
    ) -> None:
        """Record a table of JSON values. Without a step, each name counts its own.

        Raises:
            ValueError: a row doesn't have as many values as there are columns.
        """
        self._check_running()
        _check_step(step)
        _check_text("table's name", name)
        names, lines = list(columns), [list(row) for row in rows]
        for column in names:
            _check_text(f"name of a column of table {name!r}", column)
        for number, line in enumerate(lines):
            if len(line) != len(names):
                raise ValueError(
                    f"row {number} of the table {name!r} must have {len(names)} values, one a column (got {len(line)})"
                )
        redacted = self._store.redaction.value
        values = {
            "columns": encode(f"table {name!r}", names),
            "rows": encode(f"table {name!r}", redacted(lines)),
        }
        self._store.add_logged("tables", self.id, name, step, values, self._touch())
        self._send(TableLogged(name, names, lines, step))

    def _check_running(self) -> None:
        if self.status is not RunStatus.RUNNING:
            raise ValueError(
                f"the run {self.name} must be running (it ended as {self.status}); start another with te.init"
            )

    def record(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Record an event as JSON. After the run's end it is dropped."""
        _check_text("event's kind", kind)
        if self.status is RunStatus.RUNNING:
            text = encode(f"event {kind!r}", self._store.redaction.value(dict(payload)))
            self._store.add_event(self.id, kind, text, self._touch())

    def flush(self) -> None:
        """Wait until readers of the file see everything recorded so far."""
        if self.status is RunStatus.RUNNING:
            self._store.update_run(self.id, self.status, self.date_updated.timestamp())
            self._store.flush()

    def stop(self, *, now: bool = False) -> None:
        """Stop the run after its current step, as the first Ctrl-C does; or at once.

        After the step a Trainer's fit and `afnio.optimize` go on with what follows the training. Other programs get a
        `RunStoppedError` from the next call that would be paid for. A run that is stopped at once cuts its calls off.
        The same program continues either, and the journal answers what was paid for.
        """
        self._order(Order("stop now" if now else "stop", "code"))

    def pause(self) -> None:
        """Send nothing more until `resume`, also if the program is started again. Calls in flight end.

        Budgets don't count the time, so no `max_seconds` runs out. Timeouts of SDKs whose requests go through the
        bridge are their own: they run on.
        """
        self._order(Order("pause", "code"))

    def resume(self) -> None:
        """Go on after `pause`."""
        self._order(Order("resume", "code"))

    def limit(self, **limits: float | None) -> None:
        """Limit all calls of the run together, on top of what the program limits; None lifts a limit again.

        Args:
            limits: `requests_per_minute`, `tokens_per_minute` and `max_in_flight` slow the run down. `max_calls`
                (attempts), `max_tokens` and `max_cost` (dollars) end it as a budget does; they count what the run has
                spent so far.

        Raises:
            ValueError: for another name or a number that can't be a limit.
        """
        self._order(Order("limit", "code", limits))

    def _order(self, order: Order) -> None:
        self._check_running()
        self._store.add_order(self.id, order, self._touch())
        current_runtime().post(self._obey, order)

    def _hear(self, order: Order) -> None:
        """Obey an order of another process."""
        current_runtime().post(self._obey, order)
        self._tell(str(order))

    def _tell(self, text: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # standard error is closed or missing
            sys.stderr.write(f"afnio: run {self.name}: {text}\n")

    def _obey(self, order: Order) -> None:
        """Do what an order says; on the runtime's thread."""
        self._orders.append(order)
        if order.command in ("stop", "stop now"):
            reason = f"the run {self.name} was stopped by {order.giver}; {self.continued_by} continues it"
            if order.command == "stop":
                self._gate.stop_gently(reason)
            else:
                self._gate.stop(reason, at_once=True)
        else:
            self._keep_to(InForce.after(self._orders))

    def _keep_to(self, state: InForce) -> None:
        if (self._gate.limits or Limits()) != state.rates:
            self._gate.limit(state.rates)
        if any(cap is not None for cap in state.caps) or self._ceiling.budget is not None:
            spent = Ledger({Item("", "", ""): self._spent})
            self._ceiling.limit(state.caps, spent, self._gate.calls)
        (self._gate.pause if state.paused else self._gate.resume)()

    def finish(self, status: RunStatus | str = RunStatus.COMPLETED) -> None:
        """End the run. Its status never changes after that.

        In a forked child this only writes what the child recorded: the run continues in the parent.
        """
        status = RunStatus(status)
        if status is RunStatus.RUNNING:
            raise ValueError("status must be COMPLETED, FAILED or CRASHED (got RUNNING)")
        self._end(status)

    def _end(self, status: RunStatus, timeout: float | None = None) -> None:
        _remove(self)
        atexit.unregister(self._end_with_process)
        if self.journal is not None and os.getpid() == self._pid:
            self.journal.close()
        if self.status is RunStatus.RUNNING:
            self.status = status
            date = self._touch()
            if os.getpid() == self._pid:
                self._store.update_run(self.id, status, date)
                self._send(RunEnded(str(status)))
        self._store.close(timeout)
        if self._sinks is not None:
            self._sinks.close(_SINK_TIMEOUT if timeout is None else timeout)
        # Last: to other processes, a row without an end and without a lease is a killed run.
        if self._lease is not None:
            self._lease.release()

    def _end_with_process(self) -> None:
        # For a script, `last_value` is the exception that ended it. At a prompt it is just the last one that
        # was printed.
        at_prompt = hasattr(sys, "ps1")
        exception = None if at_prompt else getattr(sys, "last_value", None)
        self._end(RunStatus.after(exception), _EXIT_TIMEOUT)

    def _touch(self) -> float:
        self.date_updated = datetime.now(UTC)
        return self.date_updated.timestamp()

    def __enter__(self) -> Self:
        if self._token is not None or self.status is not RunStatus.RUNNING:
            raise RuntimeError(f"the run {self.name} can't be entered again; start another with te.init")
        if not self.process_wide:
            _remove(self)
        self._token = _enter(self)
        self._context.enter_context(run_recorder.override(self.observe))
        self._context.enter_context(seed_source.override(self._seeds))
        self._context.enter_context(active_journal.override(self.journal))
        self._context.enter_context(run_gate.override(self._gate))
        self._context.enter_context(run_ceiling.override(self._ceiling))
        # The run owns everything launched in its block, and its addresses start with "run".
        self._scope.__enter__()
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        status = RunStatus.after(exception)
        try:
            self._scope.__exit__(exception_type, exception, traceback)
        except BaseException as error:
            status = RunStatus.after(error)
            raise
        finally:
            self._leave()
            self.finish(status)
            self._print_how_to_continue()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        from anyio import CancelScope, to_thread

        status = RunStatus.after(exception)
        try:
            await self._scope.__aexit__(exception_type, exception, traceback)
        except BaseException as error:
            status = RunStatus.after(error)
            raise
        finally:
            self._leave()
            # Shielded: the run must also end if the program was cancelled.
            with CancelScope(shield=True):
                await to_thread.run_sync(self.finish, status)
            self._print_how_to_continue()

    def _leave(self) -> None:
        assert self._token is not None
        self._context.close()
        _leave(self._token)

    def _print_how_to_continue(self) -> None:
        if self.status is RunStatus.FAILED and self.journal is not None:
            sys.stderr.write(
                f"afnio: run {self.name} failed; {self.continued_by} continues it and pays for no reply again\n"
            )

    def _send(self, event: Any) -> None:
        if self._sinks is not None:
            self._sinks(event)

    def observe(self, event: Any) -> None:
        """Record an event of the engine; called on the runtime's thread, so it doesn't wait."""
        if self.status is RunStatus.RUNNING:
            self._store.record(event, time.time())
            self._send(event)
            if isinstance(event, CallEnded):
                cost = event.cost or Decimal(0)
                unpriced = int(event.cost is None and event.reply is not None)
                self._spent += Spent(0, event.attempts, 0, event.usage, known_cost=cost, unpriced=unpriced)
            elif isinstance(event, StepEnded):
                self._gate.step_ended()
            elif isinstance(event, NodeLaunched) and event.kind == "backward":
                self._gate.steps = True


def _check_text(what: str, value: str) -> None:
    """Raise TypeError if the value isn't a string."""
    if not isinstance(value, str):
        raise TypeError(f"the {what} must be a string (got {value!r})")


def _check_step(step: int | None) -> None:
    if step is None:
        return
    if not isinstance(step, int) or isinstance(step, bool):
        raise TypeError(f"the step must be a whole number or None (got {step!r})")
    if not 0 <= step < 2**63:
        raise ValueError(f"the step must be from 0 to 2**63 - 1 (got {step})")


def _pairs(name: str | Mapping[str, Any], value: Any) -> list[tuple[str, Any]]:
    if isinstance(name, str):
        if value is _MISSING:
            raise TypeError(f"the metric {name!r} must have a value; write log({name!r}, value)")
        return [(name, value)]
    if value is not _MISSING:
        raise TypeError("a mapping of metrics must be given without a value; write log({...}, step=...)")
    for metric in name:
        _check_text("metric's name", metric)
    return list(name.items())


# --- Starting and continuing a run ---

_ADJECTIVES: Final = ("amber", "brisk", "calm", "gentle", "keen", "patient", "quiet", "swift")
_ANIMALS: Final = ("badger", "crane", "falcon", "heron", "lynx", "otter", "raven", "tern")


def init(
    namespace: str,
    project: str,
    name: str | None = None,
    description: str | None = None,
    config: Mapping[str, Any] | None = None,
    sinks: Sequence[SinkFunction] | None = None,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 (the usual name among trackers)
    resume: bool | str | None = None,
    redact: Redact | None = None,
    process_wide: bool = False,
) -> Run:
    """Start a run, or continue one that was killed. It is recorded in `.afnio/<namespace>/<project>.db`.

    Called plainly, the run is the process's until `finish` or the interpreter's exit. With `with` or
    `async with` it is the block's, unless it is `process_wide`. A name that is taken gets a numeric suffix. A
    folder that can't be written costs one warning.

    A run keeps a journal of its calls. A program that was killed or interrupted and is started again in the
    same folder with the same arguments continues its run: it repeats what it did, and the journal answers the
    calls that were paid for. A run whose block has ended is over: a program that is killed after that starts a
    new one, unless `resume` names the old one.

    Seeds that the program doesn't set, such as a sampler's, come from the run, and are the same when it is
    continued. AFNIO_SEED sets the seed of a new run.

    Prompts and replies are stored in clear text, in files that only this user may read (mode 0600).

    Args:
        config: any JSON object, such as the program's options.
        sinks: functions that get every event of the run (`afnio.runtime.events`), in one thread and in order.
            A failing sink is reported once.
        dir: the folder in place of `.afnio`; default: the environment variable AFNIO_HOME.
        resume: False always starts a new run; a run's id continues that one.
        redact: a function that returns the text that may be written, or a list of patterns whose matches are
            masked. Applied to all texts for the store and the sinks. Not applied to the journal, because a run
            can only be continued from whole replies.
        process_wide: for a server's lifespan. Requests don't run in the block, so until its end the run is the
            whole process's. It is a new run unless `resume` names one, and its journal keeps only the block's
            own launches: requests can't be repeated.

    Raises:
        StoreVersionError: another version of Afnio wrote the project's file.
        JournalLockedError: the run named by `resume` is running in another process.
        ValueError: `resume` names no run, or a name has no letter or digit.

    >>> import tempfile
    >>> import afnio.tellurio as te
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with te.init("me", "emails", name="first", dir=folder) as run:
    ...         te.log("accuracy", 0.5)
    ...     print(run)
    <Run first of me/emails, COMPLETED>
    """
    if resume is True:
        raise ValueError(
            "resume must be False or the id of a run (got True); leave it out to continue the last run"
        )
    if name is not None:
        _check_text("name", name)
    _check_text("description", description or "")
    settings = encode("config", dict(config or {}))
    redaction = Redaction(redact)
    store = Store(store_path(namespace, project, dir), redaction)
    senders = RunSinks(sinks, redaction) if sinks else None
    lease: LockFile | None = None
    try:
        store.open()
        identity = program_identity(redaction)
        unfinished = _continued(store, identity, False if process_wide and resume is None else resume)
        if unfinished is not None:
            row, journal, lease = unfinished
        else:
            row = NewRun(
                str(uuid.uuid4()),
                name or f"{secrets.choice(_ADJECTIVES)}-{secrets.choice(_ANIMALS)}",
                description,
                namespace,
                project,
                RunStatus.RUNNING,
                settings,
                identity or "",
                _new_seed(),
                datetime.now(UTC).timestamp(),
            )
            # Take the lease before writing the row: a row without one counts as a killed run.
            lease = take_lease(lease_path(store.path, row.id))
            row = row._replace(name=store.add_run(row))
            journal = _new_journal(store, row)
        run = Run(
            store,
            row,
            journal,
            lease=lease,
            sinks=senders,
            continued=unfinished is not None,
            process_wide=process_wide,
        )
    except BaseException:
        store.close()
        if senders is not None:
            senders.close()
        if lease is not None:
            lease.release()
        raise
    _start(run)
    return run


def _new_seed() -> int:
    text = os.environ.get("AFNIO_SEED")
    if text is None:
        return secrets.randbits(62)
    if not text.isdecimal():
        raise ValueError(f"AFNIO_SEED must be a whole number, 0 or more (got {text!r})")
    return int(text)


def _continued(
    store: Store, identity: str | None, resume: bool | str | None
) -> tuple[NewRun, Journal | None, LockFile | None] | None:
    """Return the run to continue, its journal and its lease; None to start a new one."""
    if resume is False or (resume is None and identity is None):
        return None
    wanted = resume if isinstance(resume, str) else None
    rows = store.find_runs(identity or "", wanted)
    if wanted is not None and not rows:
        raise ValueError(f"there is no run {wanted!r} in {store.path}; leave resume out to start one")
    for row in rows:
        try:
            lease = take_lease(lease_path(store.path, row.id))
        except LockHeldError as error:
            if wanted is not None:
                raise _in_use(row, error.holder) from error
            continue  # it is running, or just ending
        try:
            journal = _continue(store, identity, row, wanted)
        except BaseException:
            if lease is not None:
                lease.release()
            raise
        if journal is not None:
            return row, journal, lease
        if lease is not None:
            lease.release()
    return None


def _continue(store: Store, identity: str | None, row: NewRun, wanted: str | None) -> Journal | None:
    """Continue a run whose lease we hold; None if it has ended since it was looked up, or its journal is taken."""
    if row.id not in [one.id for one in store.find_runs(identity or "", wanted)]:
        return None
    try:
        journal = Journal.open(_journal_path(store, row))
    except JournalLockedError:
        if wanted is not None:
            raise
        return None  # its process is alive, but couldn't take a lease
    store.continue_run(row.id, time.time())
    started = datetime.fromtimestamp(row.date, UTC).astimezone()
    replies = Journal.stat(journal.path).records
    anew = "" if wanted else "; te.init(..., resume=False) starts anew"
    sys.stderr.write(
        f"afnio: continuing run {row.name} of {started:%Y-%m-%d %H:%M:%S} with {replies} calls in its journal{anew}\n"
    )
    return journal


def _in_use(row: NewRun, holder: int | None) -> JournalLockedError:
    who = "another process" if holder is None else f"the process {holder}"
    return JournalLockedError(
        f"the run {row.name} is recorded by {who}; wait for its end, or leave resume out to start another",
        holder,
    )


def _new_journal(store: Store, row: NewRun) -> Journal | None:
    try:
        return Journal.open(_journal_path(store, row))
    except JournalError as error:
        logging.getLogger("afnio").warning("the run's calls are not kept for a resume: %s", error)
        return None


def _journal_path(store: Store, row: NewRun) -> Path:
    return store.path.with_suffix("") / f"{row.id}.journal"


@overload
def log(name: str, value: Any, step: int | None = None) -> None: ...
@overload
def log(name: Mapping[str, Any], *, step: int | None = None) -> None: ...
def log(name: Any, value: Any = _MISSING, step: int | None = None) -> None:
    """Record a metric in the active run: `log("accuracy", 0.3)`, or `log({"accuracy": 0.3}, step=5)`."""
    get_active_run().log(name, value, step)


# --- The active run ---

# Runs started by a plain `init` that haven't ended. The last is the process default.
_started: list[Run] = []
_entered: ContextVar[Run | None] = ContextVar("afnio_run", default=None)


def get_active_run() -> Run:
    """Return the run of the innermost `with te.init(...)`, else the last one started plainly.

    Raises:
        ValueError: no run is active.
    """
    run = _entered.get()
    if run is not None:
        return run
    try:
        return _started[-1]
    except IndexError:
        raise ValueError(
            "no run is active here; start one with te.init(namespace, project). In a thread of your own, call log on "
            "the run that te.init returned"
        ) from None


def _start(run: Run) -> None:
    """Make `run` the process default."""
    _started.append(run)
    _use_as_default(run)


def _remove(run: Run) -> None:
    """Withdraw `run` as the process default; the one started before it takes its place."""
    if run in _started:
        _started.remove(run)
        _use_as_default(_started[-1] if _started else None)


def _enter(run: Run) -> Token[Run | None]:
    """Make `run` the active one of this context until `_leave`."""
    return _entered.set(run)


def _leave(token: Token[Run | None]) -> None:
    """Undo an `_enter`."""
    _entered.reset(token)


def _use_as_default(run: Run | None) -> None:
    """Route calls, events and seeds outside any block to this run."""
    run_recorder.default = None if run is None else run.observe
    # Requests arrive in a different order each time, so the journal would answer one with another's reply.
    active_journal.default = None if run is None or run.process_wide else run.journal
    seed_source.default = None if run is None else run._seeds
    # Nor are they held: a server answers on while its own run is paused.
    own = None if run is None or run.process_wide else run
    run_gate.default = None if own is None else own._gate
    run_ceiling.default = None if own is None else own._ceiling


@contextmanager
def suppress_variable_notifications() -> Iterator[None]:
    """Do nothing; kept for programs written for older versions.

    Creating and changing Variables notifies no one here, so there is nothing to suppress.

    >>> with suppress_variable_notifications():
    ...     pass
    """
    yield
