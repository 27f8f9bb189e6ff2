"""A run: one execution of a program, with its metrics and events."""

from __future__ import annotations

import atexit
import getpass
import hashlib
import itertools
import json
import logging
import os
import random
import secrets
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar, Token
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias, overload

from afnio.errors import JournalError, JournalLockedError, LockHeldError
from afnio.models._masking import mask_arguments
from afnio.runtime._journal import Journal
from afnio.runtime._settings import seed_source
from afnio.runtime._waiting import active_journal, scope
from afnio.runtime.events import recorder
from afnio.tellurio._recording import (
    MetricLogged,
    Redact,
    Redaction,
    RunEnded,
    RunStarted,
    TableLogged,
    TextLogged,
    as_text,
    encode,
)
from afnio.tellurio._store import NewRun, Store, lease_path, store_path, take_lease

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from contextvars import Token
    from pathlib import Path
    from types import TracebackType

    from afnio.runtime._files import LockFile


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
        row: NewRun,
        journal: Journal | None,
        *,
        lease: LockFile | None,
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
        remove(self)
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
        if self._lease is not None:
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
            remove(self)
        self._token = enter(self)
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
        leave(self._token)

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


# The entry points of tracking: start a run, log into the active one.


ADJECTIVES: Final = ("amber", "brisk", "calm", "gentle", "keen", "patient", "quiet", "swift")
ANIMALS: Final = ("badger", "crane", "falcon", "heron", "lynx", "otter", "raven", "tern")


def init(
    namespace: str,
    project: str,
    name: str | None = None,
    description: str | None = None,
    config: Mapping[str, Any] | None = None,
    sinks: Sequence[Sink] | None = None,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 (the usual name among trackers)
    resume: bool | str | None = None,
    redact: Redact | None = None,
    process_wide: bool = False,
) -> Run:
    """Start a run, recorded in `.afnio/<namespace>/<project>.db` of the working folder, or continue one.

    AFNIO_HOME names another folder in place of `.afnio`, and `dir` overrides both. Called plainly,
    the run is the process's until `finish` or the interpreter's exit; with `with` or `async with`
    it is the block's, unless it is `process_wide`. A name that is taken gets a numeric suffix. A folder
    that can't be written costs one warning; a file of a newer Afnio is refused.

    A run keeps a journal of its calls. A program that was killed or interrupted and is started again,
    in the same folder with the same arguments, continues its run: it repeats what it did, and the
    journal answers the calls that were paid for. A run whose block has ended is over: a program that is
    killed after that starts a new one, unless `resume` names the old one.

    Seeds that nobody gives, such as a sampler's, come from the run and are the same when it is
    continued. AFNIO_SEED sets where a new run's seeds start.

    Prompts and replies are kept in clear, in files that only this user may read (mode 0600).

    Args:
        sinks: functions that get every event of the run, as in `afnio.runtime.events` and
            `afnio.tellurio._recording`, in one thread and in order; one that fails is reported once.
        redact: a function of a text that returns what may be written of it, or a list of patterns whose
            matches are masked. It is applied to every text that the store and the sinks get; not to the
            journal, whose replies have to be whole for a run to be continued.
        resume: False starts a new run in any case; a run's id continues that one.
        process_wide: for a server's lifespan: as a block, the run is the whole process's until the block's end,
            as requests don't run in that block. It starts anew unless `resume` names one, and its journal
            keeps what the block launches alone: requests can't be repeated.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with init("me", "emails", name="first", dir=folder) as run:
    ...         log("accuracy", 0.5)
    ...     print(run)
    <Run first of me/emails, COMPLETED>
    """
    if resume is True:
        raise ValueError(
            "resume is False, or the id of the run to continue; leave it out to continue the last"
        )
    if name is not None:
        check_text("name", name)
    check_text("description", description or "")
    settings = encode("config", dict(config or {}))
    redaction = Redaction(redact)
    store = Store(store_path(namespace, project, dir), redaction)
    senders = SinkThread(sinks or (), redaction)
    lease: LockFile | None = None
    try:
        store.open()
        identity = program_identity(redaction)
        found = _continued(store, identity, False if process_wide and resume is None else resume)
        if found is not None:
            row, journal, lease = found
        else:
            row = NewRun(
                str(uuid.uuid4()),
                name or f"{secrets.choice(ADJECTIVES)}-{secrets.choice(ANIMALS)}",
                description,
                namespace,
                project,
                RunStatus.RUNNING,
                settings,
                identity or "",
                _new_seed(),
                datetime.now(UTC).timestamp(),
            )
            # The lease comes before the row: a row without one is a run that was killed.
            lease = take_lease(lease_path(store.path, row.id))
            row = row._replace(name=store.add_run(row))
            journal = _new_journal(store, row)
        run = Run(
            store,
            row,
            journal,
            lease=lease,
            sinks=senders,
            continued=found is not None,
            process_wide=process_wide,
        )
    except BaseException:
        store.close()
        senders.close()
        if lease is not None:
            lease.release()
        raise
    start(run)
    return run


def _new_seed() -> int:
    given = os.environ.get("AFNIO_SEED")
    if given is None:
        return secrets.randbits(62)
    if not given.isdecimal():
        raise ValueError(f"AFNIO_SEED must be a whole number, 0 or more (got {given!r})")
    return int(given)


def _continued(
    store: Store, identity: str | None, resume: bool | str | None
) -> tuple[NewRun, Journal | None, LockFile | None] | None:
    """Return the run to continue, its journal and its lease; None where a new one is to start."""
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
            continue  # it is under way, or just ending
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
    """Set a run going whose lease we hold; None if it has ended since it was looked up, or is another's."""
    if row.id not in [found.id for found in store.find_runs(identity or "", wanted)]:
        return None
    try:
        journal = Journal.open(_journal_path(store, row))
    except JournalLockedError:
        if wanted is not None:
            raise
        return None  # a process has it that could take no lease
    store.continue_run(row.id, time.time())
    started = datetime.fromtimestamp(row.date, UTC).astimezone()
    replies = Journal.stat(journal.path).records
    sys.stderr.write(
        f"afnio: continuing run {row.name} of {started:%Y-%m-%d %H:%M:%S} with {replies} calls in its "
        "journal; te.init(..., resume=False) starts anew\n"
    )
    return journal


def _in_use(row: NewRun, holder: int | None) -> JournalLockedError:
    who = "another process" if holder is None else f"the process [{holder}]"
    return JournalLockedError(
        f"The run [{row.name}] is under way in {who}; wait for its end, or leave resume out to start another.",
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
def log(name: Any, value: Any = MISSING, step: int | None = None) -> None:
    """Record a metric in the active run: `log("loss", 0.3)`, or `log({"loss": 0.3}, step=5)`."""
    get_active_run().log(name, value, step)


def login(api_key: str | None = None, relogin: bool = False) -> dict[str, str]:
    """Return the local user; there is nothing to log in to, for runs are kept in local files.

    The arguments are there for programs that pass them; nothing is read from, kept or sent.
    """
    logging.getLogger("afnio").info(
        "There is nothing to log in to: runs are kept in local files, and no key is needed."
    )
    try:
        username = getpass.getuser()
    except (ImportError, KeyError, OSError):
        # A container's user may have no name.
        username = "local"
    return {"username": username}


# Which run is the active one: the block's, else the process's.


# The runs started by a plain `init` that haven't ended; the last is the process default.
_started: list[Run] = []
_entered: ContextVar[Run | None] = ContextVar("afnio_run", default=None)


def get_active_run() -> Run:
    """The run of the innermost `with te.init(...)`, else the last one started plainly."""
    run = _entered.get()
    if run is not None:
        return run
    try:
        return _started[-1]
    except IndexError:
        raise ValueError(
            "No run is active here; start one with te.init(namespace, project). In a thread of "
            "your own, call log on the run that te.init returned."
        ) from None


def start(run: Run) -> None:
    """Make `run` the process default."""
    _started.append(run)
    _use_as_default(run)


def remove(run: Run) -> None:
    """Make `run` no process default any more; the one started before it takes its place."""
    if run in _started:
        _started.remove(run)
        _use_as_default(_started[-1] if _started else None)


def enter(run: Run) -> Token[Run | None]:
    """Make `run` the active one of this context, until `leave`."""
    return _entered.set(run)


def leave(token: Token[Run | None]) -> None:
    """Undo an `enter`."""
    _entered.reset(token)


def _use_as_default(run: Run | None) -> None:
    """Have the calls, the events and the seeds of the process, outside of any block, go to this run."""
    recorder.default = None if run is None else run.observe
    # Requests come in another order each time: a journal could only answer one from another's past.
    active_journal.default = None if run is None or run.process_wide else run.journal
    seed_source.default = None if run is None else run.draw_seed


# Sink thread: hands a run's events to the user's sinks, in order, off the event loop.


Sink: TypeAlias = Callable[[Any], object]
"""Gets every event of a run. If it has a `close()`, that is called after the last one; if it has an
`at(time, event)`, that is called instead, with nanoseconds since 1970."""

ROOM: Final = 20_000
"""Events that may wait for slow sinks; what comes then is left out for them, but for the run's end."""


class SinkThread:
    """Calls each sink with each event, one after the other, in one thread.

    A sink that fails is reported once and goes on being called; it stops neither the others nor the run.

    >>> seen = []
    >>> thread = SinkThread([seen.append], Redaction(None))
    >>> thread.put("event")
    >>> thread.close()
    >>> seen
    ['event']
    """

    def __init__(self, sinks: Sequence[Sink], redaction: Redaction) -> None:
        for sink in sinks:
            if not callable(sink):
                raise TypeError(f"a sink is a function of an event (got {sink!r})")
        self._sinks = list(sinks)
        self._redaction = redaction
        self._failed: set[int] = set()
        self._dropped = False
        self._pid = os.getpid()
        self._queue: SimpleQueue[tuple[int, Any] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if self._sinks:
            self._thread = threading.Thread(target=self._run, name="afnio-sinks", daemon=True)
            self._thread.start()

    def put(self, event: Any) -> None:
        """Have the sinks called soon; never waits. In a forked child they aren't."""
        if self._thread is None or self._pid != os.getpid():
            return
        # How the run ended is told in any case, or a sink would take it for completed.
        if self._queue.qsize() < ROOM or isinstance(event, RunEnded):
            self._queue.put((time.time_ns(), event))
        elif not self._dropped:
            self._dropped = True
            logging.getLogger("afnio").warning(
                "The sinks of a run are too slow; events are left out for them."
            )

    def close(self, timeout: float | None = None) -> None:
        """Wait until the sinks had everything, and close them."""
        if self._thread is not None and self._pid == os.getpid():
            thread, self._thread = self._thread, None
            self._queue.put(None)
            thread.join(timeout)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            moment, event = item[0], self._redaction.value(item[1])
            for number, sink in enumerate(self._sinks):
                timed = getattr(sink, "at", None)
                self._call(number, partial(timed, moment, event) if callable(timed) else partial(sink, event))
        for number, sink in enumerate(self._sinks):
            close = getattr(sink, "close", None)
            if callable(close):
                self._call(number, close)

    def _call(self, number: int, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception:
            if number not in self._failed:
                self._failed.add(number)
                logging.getLogger("afnio").exception(
                    "the sink %r failed; it goes on being called, and this is said once", self._sinks[number]
                )


@contextmanager
def suppress_variable_notifications() -> Iterator[None]:
    """Do nothing; kept for programs written for older versions.

    Creating and changing Variables notifies no one here, so there is nothing to suppress.

    >>> with suppress_variable_notifications():
    ...     pass
    """
    yield


# Identity: which program this is, so that it can continue the run that it had not finished.


ROUNDS: Final = 200_000
"""About 50 ms, so that a short password can't be found by trying many against a digest."""


def program_identity(redaction: Redaction) -> str | None:
    """Return folder, script and arguments of this program as JSON; None where a person types it in.

    Arguments that are keys are masked, and `redaction` is applied; a digest still tells programs with other
    arguments apart. A prompt's or a notebook's commands are no program that could be repeated from its start.
    """
    main = sys.modules.get("__main__")
    script = getattr(main, "__file__", None)
    ipython = sys.modules.get("IPython")
    if script is None or hasattr(sys, "ps1") or (ipython is not None and ipython.get_ipython() is not None):
        return None
    program = [os.getcwd(), os.path.abspath(script), sys.argv[1:]]
    shown = redaction.value([*program[:2], mask_arguments(sys.argv[1:])])
    return json.dumps(shown if shown == program else [*shown, _digest(json.dumps(program))])


def _digest(program: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", program.encode(), b"afnio", ROUNDS).hex()
