"""The entry points of tracking: start a run, log into the active one."""

from __future__ import annotations

import getpass
import logging
import os
import secrets
import sys
import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, overload

from afnio.errors import JournalError
from afnio.runtime._files import LockHeldError
from afnio.runtime._journal import Journal
from afnio.runtime._journal_file import JournalLockedError
from afnio.tellurio import active
from afnio.tellurio.identity import program_identity
from afnio.tellurio.json_value import encode
from afnio.tellurio.lease import Lease, lease_path
from afnio.tellurio.redaction import Redact, Redaction
from afnio.tellurio.run import MISSING, Run, RunStatus, check_text
from afnio.tellurio.sink_thread import Sink, SinkThread
from afnio.tellurio.store import RunRow, Store, store_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

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
            `afnio.tellurio.run_events`, in one thread and in order; one that fails is reported once.
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
    lease: Lease | None = None
    try:
        store.open()
        identity = program_identity(redaction)
        found = _continued(store, identity, False if process_wide and resume is None else resume)
        if found is not None:
            row, journal, lease = found
        else:
            row = RunRow(
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
            lease = Lease(lease_path(store.path, row.id))
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
    active.start(run)
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
) -> tuple[RunRow, Journal | None, Lease] | None:
    """Return the run to continue, its journal and its lease; None where a new one is to start."""
    if resume is False or (resume is None and identity is None):
        return None
    wanted = resume if isinstance(resume, str) else None
    rows = store.find_runs(identity or "", wanted)
    if wanted is not None and not rows:
        raise ValueError(f"there is no run {wanted!r} in {store.path}; leave resume out to start one")
    for row in rows:
        try:
            lease = Lease(lease_path(store.path, row.id))
        except LockHeldError as error:
            if wanted is not None:
                raise _in_use(row, error.holder) from error
            continue  # it is under way, or just ending
        try:
            journal = _continue(store, identity, row, wanted)
        except BaseException:
            lease.release()
            raise
        if journal is not None:
            return row, journal, lease
        lease.release()
    return None


def _continue(store: Store, identity: str | None, row: RunRow, wanted: str | None) -> Journal | None:
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


def _in_use(row: RunRow, holder: int | None) -> JournalLockedError:
    who = "another process" if holder is None else f"the process [{holder}]"
    return JournalLockedError(
        f"The run [{row.name}] is under way in {who}; wait for its end, or leave resume out to start another.",
        holder,
    )


def _new_journal(store: Store, row: RunRow) -> Journal | None:
    try:
        return Journal.open(_journal_path(store, row))
    except JournalError as error:
        logging.getLogger("afnio").warning("the run's calls are not kept for a resume: %s", error)
        return None


def _journal_path(store: Store, row: RunRow) -> Path:
    return store.path.with_suffix("") / f"{row.id}.journal"


@overload
def log(name: str, value: Any, step: int | None = None) -> None: ...
@overload
def log(name: Mapping[str, Any], *, step: int | None = None) -> None: ...
def log(name: Any, value: Any = MISSING, step: int | None = None) -> None:
    """Record a metric in the active run: `log("loss", 0.3)`, or `log({"loss": 0.3}, step=5)`."""
    active.get_active_run().log(name, value, step)


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
