"""Every exception class of Afnio.

AfnioError
├── BlockingReadError      a read would block an event loop or deadlock
├── RuntimeClosedError     the value's runtime has been closed
│   └── ForkedError        the value was pending when the process forked
├── LaunchCancelledError   the launch of a value was cancelled
├── TooManyPendingError    `scope(max_pending=)` is full
├── GraphError             backward through a leaf or a freed graph, or without a seed
├── TemplateError          placeholders and inputs don't match
├── ReplyError             an op can't use a model's reply
├── ScoreError             a score is above `max_score`
│   └── MetricError        a metric returned something other than a number
├── JournalError           a journal can't be opened, read or written
│   ├── JournalFormatError     the file is foreign, corrupt or newer
│   ├── JournalLockedError     another process uses it
│   ├── JournalClosedError     it was used after its block
│   └── JournalForkedError     it belongs to the parent process
├── CheckpointError        a checkpoint or its folder can't be used
├── BudgetExceeded         a `budget` is used up
│   └── RunStoppedError    the run was stopped from outside
├── UnknownPriceError      a budget in dollars meets a model without a price
├── ModelError             a language model call failed permanently
│   ├── TransientModelError    another attempt may succeed; raised when there are none left
│   │   ├── RateLimitedError   the account is over a limit
│   │   ├── TierUnavailableError   the service tier that was asked for has no room
│   │   └── UnreachableError   no connection to the provider
│   └── FinalModelError        another attempt would fail the same way
│       └── ProviderDownError  the provider was never reached, or failed for ten minutes
├── ExecutorError          an executor can't run anything: broken, shut down, or its cluster is gone
├── WorkerLostError        a lane ended its worker process, each time
├── RemoteError            a worker's exception can't be unpickled
├── LockHeldError          another process holds a lock file
├── KeyStoreError          there is no keyring for keys
├── StoreProblemError      a run store can't be read
├── StoreVersionError      a newer Afnio wrote the run store
├── ChoiceError            a name matches no run, or several
├── ControlError           a run can't obey an order
├── StudioError            the studio can't start
├── GatewayError           the gateway can't start
└── DownloadError          a dataset's file can't be downloaded
BatchError (ExceptionGroup)  the failed samples of one batch
WorkerTraceback            the cause of errors from a worker: their traceback, as text

Wrong arguments raise TypeError or ValueError.

A message states what is wrong, with the value, and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from afnio.runtime._limits import RateLimits

E = TypeVar("E", bound=BaseException)

MAX_REASON: Final = 300
"""The most characters of an error's text that another error's message quotes."""


class AfnioError(Exception):
    """Base class of Afnio's errors."""


class BlockingReadError(AfnioError, RuntimeError):
    """A pending value was read where waiting for it would block an event loop."""


class RuntimeClosedError(AfnioError, RuntimeError):
    """The runtime was closed before the value was done."""


class ForkedError(RuntimeClosedError):
    """The value was pending when this process was forked. Only the parent process will get it."""


class LaunchCancelledError(AfnioError):
    """The launch of a value was cancelled before it ended."""


class TooManyPendingError(AfnioError, RuntimeError):
    """A scope already has `max_pending` launches pending."""


class GraphError(AfnioError, RuntimeError):
    """Backward isn't possible: from a leaf, through a freed graph, or without a seed."""


class TemplateError(AfnioError, ValueError):
    """The placeholders of a message template and its inputs don't match."""


class ReplyError(AfnioError, ValueError):
    """An op can't use the reply that a model gave it."""


class ScoreError(AfnioError, ValueError):
    """A score is above its evaluator's `max_score`. `max_score` is wrong, so the whole launch fails."""


class MetricError(ScoreError, TypeError):
    """A metric returned something other than a number. Every row would get it, so the whole launch fails."""


class JournalError(AfnioError):
    """A journal can't be opened, read or written."""


class JournalFormatError(JournalError, ValueError):
    """The file is foreign, corrupt or written by a newer Afnio. It has been left unchanged."""


class JournalLockedError(JournalError, RuntimeError):
    """Another journal object, usually of another process, holds the file.

    Attributes:
        pid: the process that holds it, or None if it hasn't written its PID yet.
    """

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class JournalClosedError(JournalError, RuntimeError):
    """The journal was used after it had been closed."""


class JournalForkedError(JournalError, RuntimeError):
    """The journal was opened by the parent process, which has its thread and its lock."""


class CheckpointError(AfnioError, ValueError):
    """A checkpoint can't be read (missing, damaged, newer or foreign), or its folder can't be written."""


class BudgetExceeded(AfnioError):  # noqa: N818 - the user asked for this end; it isn't a fault
    """A budget can't pay for another attempt, so nothing more is sent.

    Calls in flight end normally, except after `max_seconds`: then they are cut off.

    Attributes:
        limit: "max_calls", "max_tokens", "max_cost" or "max_seconds".
        value: the limit's value, in calls, tokens, dollars or seconds.
        spent: in the same unit, including earlier runs of the same journal.
        reserved: in the same unit, for attempts in flight.
        ledger: a `Ledger` of the spending for each phase, client and model.
    """

    def __init__(
        self,
        message: str,
        *,
        limit: str = "",
        value: Any = None,
        spent: Any = None,
        reserved: Any = None,
        ledger: Any = None,
    ) -> None:
        super().__init__(message)
        self.limit = limit
        self.value = value
        self.spent = spent
        self.reserved = reserved
        self.ledger = ledger


class RunStoppedError(BudgetExceeded):
    """The run was stopped, by `afnio runs stop`, its page or `Run.stop`, so nothing more is sent for it.

    It ends work as a budget does: what is on the wire ends, and no sample counts as failed.
    """


class UnknownPriceError(AfnioError, LookupError):
    """A budget limits dollars, and this model's price is unknown."""


class ModelError(AfnioError):
    """A language model call failed.

    Attributes:
        retry_after: seconds that the provider asked to wait, or None.
        status: HTTP status, or None if there was no response.
        limits: what the response's headers reported about the account's limits, or None. A refusal's
            headers teach the engine the limits as well as a reply's do.
        response: what the provider sent, for calls through the bridge or the gateway. They hand it on.
    """

    response: Any = None

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
        limits: RateLimits | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after
        self.limits = limits


class TransientModelError(ModelError):
    """The attempt failed, and another one may succeed."""


class RateLimitedError(TransientModelError):
    """The provider refused the attempt because the account exceeded a limit."""


class TierUnavailableError(TransientModelError):
    """The provider has no room in the service tier that was asked for, such as "flex". It charges nothing.

    It says nothing about the account's limits, so only this call waits.
    """


class UnreachableError(TransientModelError):
    """The provider can't be reached: it refuses connections, or its host's name is unknown.

    Attributes:
        first_contact: True if it has never been reached. Then the address is probably wrong, and the engine soon
            stops trying.
    """

    first_contact = False


class FinalModelError(ModelError):
    """Another attempt would fail the same way."""


class ProviderDownError(FinalModelError):
    """All calls of the account were given up: its provider was never reached, or failed for ten minutes."""


class ExecutorError(AfnioError, RuntimeError):
    """An executor can't run anything: it is broken and can't be replaced, it was shut down, or its cluster is gone."""


class WorkerLostError(AfnioError, RuntimeError):
    """The worker process of a lane ended before the lane did. Executors raise it for one task."""


class RemoteError(AfnioError, RuntimeError):
    """A function failed in a worker process, with an exception that can't be unpickled in this one."""


class WorkerTraceback(Exception):  # noqa: N818 - it is no error, but shows where one was raised
    """The traceback of an exception that was raised in a worker process, as text. It is the exception's cause."""

    def __str__(self) -> str:
        return f"\n\n{self.args[0]}" if self.args else ""


class LockHeldError(AfnioError):
    """The lock is already held.

    Attributes:
        holder: PID of the process that holds it, or None if it hasn't written its PID yet.
    """

    def __init__(self, path: Path, holder: int | None) -> None:
        super().__init__(f"{path} is held by {'another process' if holder is None else f'process {holder}'}")
        self.holder = holder


class KeyStoreError(AfnioError):
    """There is no usable keyring on this machine."""


class StoreProblemError(AfnioError):
    """A run store can't be read.

    Attributes:
        passing: True if a second attempt may succeed shortly, for instance after another process's write.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class StoreVersionError(AfnioError, RuntimeError):
    """The run store was written by a newer Afnio."""


class ChoiceError(AfnioError):
    """A name or an ID matches no run, or several."""


class ControlError(AfnioError):
    """A run isn't running, or the order isn't allowed where it came from; nothing was changed."""


class StudioError(AfnioError):
    """The studio can't start."""


class GatewayError(AfnioError):
    """The gateway can't start."""


class DownloadError(AfnioError, RuntimeError):
    """A dataset's file can't be downloaded from any of its sources."""


class BatchError(ExceptionGroup[Exception]):
    """Some samples of a batch failed.

    `exceptions` has only the first of equal errors, so that a traceback of a thousand failed samples stays short.

    Attributes:
        samples: the indices of the failed samples.
        errors: the error of each failed sample, by index. Empty if the errors aren't known for each sample.
    """

    samples: tuple[int, ...]
    errors: dict[int, Exception]
    failures: tuple[Any, ...] = ()
    """The engine's records of the samples' failures. Reading this error counts as reading them."""

    def __new__(cls, message: str, exceptions: Sequence[Exception], samples: Sequence[int] = ()) -> Self:
        self = super().__new__(cls, message, distinct(exceptions))
        self.samples = tuple(samples)
        self.errors = dict(zip(samples, exceptions, strict=True)) if len(samples) == len(exceptions) else {}
        return self

    def derive(self, excs: Sequence[Exception]) -> BatchError:  # type: ignore[override]
        part = BatchError(self.message, excs)
        kept = {likeness(error) for error in excs}
        part.errors = {sample: error for sample, error in self.errors.items() if likeness(error) in kept}
        part.samples = tuple(part.errors)
        return part

    def __str__(self) -> str:
        # ExceptionGroup would add the number of `exceptions`. That isn't the number of failed samples.
        return self.message


# Equal errors, of which a message lists one


def distinct(errors: Iterable[E]) -> list[E]:
    """Return the first of each kind of equal errors."""
    first: dict[object, E] = {}
    for error in errors:
        first.setdefault(likeness(error), error)
    return list(first.values())


def likeness(error: BaseException) -> object:
    """Return a key by which errors count as equal: the type, the text and the line that raised it."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    line = None if last is None else (last.tb_frame.f_code.co_filename, last.tb_lineno)
    return type(error), text_of(error), line


def text_of(error: BaseException) -> str:
    """Return the text of `error`, or "" if its own `__str__` raises."""
    try:
        return str(error)
    except Exception:
        return ""


def reason(error: BaseException) -> str:
    """Return an error's type and the first line of its text, to quote it in another error's message."""
    text = text_of(error).strip().partition("\n")[0]
    text = text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def hint(error: BaseException) -> str:
    """Return what to try, for errors of others that don't say it; else "".

    >>> hint(AttributeError("'coroutine' object has no attribute 'choices'"))
    'write `await` before the call that returned the coroutine'
    """
    if isinstance(error, AttributeError | TypeError):
        return (
            "write `await` before the call that returned the coroutine"
            if _COROUTINE in text_of(error)
            else ""
        )
    try:
        url = urlsplit(str(error.request.url)) if error.status_code == 404 else None  # type: ignore[attr-defined]
    except Exception:  # most errors have neither, and properties of others' classes may raise
        return ""
    if url is None:
        return ""
    place = f"{url.scheme}://{url.netloc.rpartition('@')[2]}{url.path}"  # without credentials
    return f"the server has no {place}" + (
        "" if "/v1" in place else "; is /v1 missing at the end of base_url?"
    )


_COROUTINE: Final = "'coroutine' object"


# Parts of an error


MOST_CAUSES: Final = 1_000
"""Errors that are looked through. A library may chain them without an end."""


def chain(error: BaseException | None, *, contexts: bool = False) -> Iterator[BaseException]:
    """Yield an error, the errors of a group, and the causes of each: every one once, outer ones first.

    `raise error from error` makes a circle, which a plain walk never leaves.

    Args:
        contexts: whether an error that was raised while another one was handled leads to that one, too.

    >>> error = ValueError("no")
    >>> error.__cause__ = error
    >>> list(chain(error))
    [ValueError('no')]
    """
    seen: set[int] = set()
    open_ = [error]
    while open_ and len(seen) < MOST_CAUSES:
        here = open_.pop()
        if here is None or id(here) in seen:
            continue
        seen.add(id(here))
        yield here
        if isinstance(here, BaseExceptionGroup):
            open_ += reversed(here.exceptions)
        else:
            open_.append(here.__cause__ or (here.__context__ if contexts else None))


def first_of(error: BaseException | None, kind: type[E], *, contexts: bool = False) -> E | None:
    """Return the first error of a kind in `error`, in the groups in it, and among their causes."""
    return next((each for each in chain(error, contexts=contexts) if isinstance(each, kind)), None)


def is_passing(error: BaseException) -> bool:
    """Return True if the next step may succeed: samples failed, a reply was unusable, a provider was away."""
    if type(error) is ExceptionGroup:
        return all(is_passing(each) for each in error.exceptions)
    return isinstance(error, BatchError | ReplyError | TransientModelError)
