"""Every exception that Afnio raises for its users.

AfnioError
├── BlockingReadError      a read that would block an event loop or deadlock the runtime
├── RuntimeClosedError     the value's runtime is gone
│   └── ForkedError        the value was pending when the process forked
├── LaunchCancelledError   the launch behind a value was cancelled
├── TooManyPendingError    `scope(max_pending=)` is full
├── GraphError             backward through a leaf, a freed graph, without a seed
├── TemplateError          placeholders and inputs that don't match
├── ReplyError             a model's reply that an op can't use
├── ScoreError             a score above `max_score`; no quorum masks it
├── JournalError           a journal that can't be opened, read or written
│   ├── JournalFormatError     the file is foreign, corrupt or newer
│   ├── JournalLockedError     another process uses it
│   ├── JournalClosedError     it was used after its block
│   └── JournalForkedError     it belongs to the parent process
├── CheckpointError        a checkpoint, or its folder, that can't be used
├── BudgetExceeded         `budget(…)` leaves no room for another attempt
├── UnknownPriceError      a budget in dollars, and a model without a price
├── ModelError             a language model call that failed for good
│   ├── TransientModelError    worth another attempt (kept when attempts ran out)
│   │   ├── RateLimitedError   the account is over a limit
│   │   └── UnreachableError   no connection to the provider
│   └── FinalModelError        another attempt would fail the same way
│       └── ProviderDownError  the provider was never reached, or failed for ten minutes
├── LockHeldError          another process holds a lock file
├── KeyStoreError          there is no keyring to keep a key in
├── StoreProblemError      a run store that can't be read
├── StoreVersionError      a run store of a newer Afnio
├── ChoiceError            a name that means no run, or several
├── StudioError            the studio can't start
└── DownloadError          no source has a dataset's file
BatchError (ExceptionGroup)  the failed samples of one batch

Wrong arguments raise TypeError and ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

if TYPE_CHECKING:
    from afnio.runtime._limits import RateLimits

E = TypeVar("E", bound=BaseException)

MAX_REASON: Final = 300
"""Characters of an error's text in the message of another one."""


class AfnioError(Exception):
    """Base of the errors that are Afnio's own."""


class BlockingReadError(AfnioError, RuntimeError):
    """A pending value was read where waiting for it would block an event loop."""


class RuntimeClosedError(AfnioError, RuntimeError):
    """The runtime that was to fill a value has been closed."""


class ForkedError(RuntimeClosedError):
    """The value was pending when this process was forked off; only the parent will get it."""


class LaunchCancelledError(AfnioError):
    """The launch behind a value was cancelled before it finished."""


class TooManyPendingError(AfnioError, RuntimeError):
    """A scope with `max_pending` already has that many launches under way."""


class GraphError(AfnioError, RuntimeError):
    """The graph can't be walked as asked: a leaf, a freed graph, no seed."""


class TemplateError(AfnioError, ValueError):
    """A message template and its inputs don't fit."""


class ReplyError(AfnioError, ValueError):
    """A model replied, and the op that asked can't use the reply."""


class ScoreError(AfnioError, ValueError):
    """A score above its evaluator's `max_score`: the argument is wrong, so the launch fails whatever the quorum."""


class JournalError(AfnioError):
    """A journal can't be opened, read or written; the subclasses are in `runtime.journal`."""


class JournalFormatError(JournalError, ValueError):
    """The file is foreign, corrupt or of a newer Afnio; it has been left as it is."""


class JournalLockedError(JournalError, RuntimeError):
    """Another journal object, most often of another process, holds the file.

    Attributes:
        pid: the process that holds it, or None where it has not said so yet.
    """

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


class JournalClosedError(JournalError, RuntimeError):
    """The journal was used after it had been closed."""


class JournalForkedError(JournalError, RuntimeError):
    """The journal was opened by the parent process, to which its thread and its lock belong."""


class CheckpointError(AfnioError, ValueError):
    """A checkpoint that can't be read (missing, damaged, newer, foreign), or a folder that takes none."""


class BudgetExceeded(AfnioError):  # noqa: N818 - an end that was asked for, not a fault
    """A budget leaves no room for another attempt, so nothing new is sent.

    Calls under way finish, unless it is the time that is over: then they are cut off.

    Attributes:
        limit: which one: "max_calls", "max_tokens", "max_cost" or "max_seconds".
        value: of that limit, in calls, tokens, dollars or seconds.
        spent: of the same unit, earlier runs that were charged among it.
        reserved: of the same unit, for attempts under way.
        ledger: a `Ledger`: what was spent, for each phase, client and model.
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


class UnknownPriceError(AfnioError, LookupError):
    """Dollars are limited, and nothing says what this model costs."""


class ModelError(AfnioError):
    """A language model call failed.

    Attributes:
        retry_after: seconds that the provider asked to wait, or None.
        status: HTTP status, or None where there was no response.
        limits: what the response's headers reported about the account's limits, or None. A refusal's
            headers teach the engine the limits as well as a reply's do.
    """

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
    """The attempt failed in a way that another attempt may not."""


class RateLimitedError(TransientModelError):
    """The provider refused the attempt because the account is over a limit."""


class UnreachableError(TransientModelError):
    """The provider can't be reached: the connection is refused, or the host's name is unknown.

    Attributes:
        first_contact: whether it has never been reached; then it is not tried for long.
    """

    first_contact = False


class FinalModelError(ModelError):
    """Another attempt would fail the same way."""


class ProviderDownError(FinalModelError):
    """The provider was given up, for all calls of the account: it was never reached, or failed for ten minutes."""


class LockHeldError(AfnioError):
    """Somebody else holds a lock file.

    Attributes:
        holder: its process, None between locking and writing the number.
    """

    def __init__(self, path: Path, holder: int | None) -> None:
        super().__init__(f"{path} is held by {'another process' if holder is None else f'process {holder}'}")
        self.holder = holder


class KeyStoreError(AfnioError):
    """There is no keyring that could keep a key."""


class StoreProblemError(AfnioError):
    """A store can't be read; the one sentence says why and what helps.

    Attributes:
        passing: whether the same may work in a moment.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class StoreVersionError(AfnioError, RuntimeError):
    """The file was written by a newer Afnio."""


class ChoiceError(AfnioError):
    """No run, or several, are meant."""


class StudioError(AfnioError):
    """The studio can't start; the message says why and what to do."""


class DownloadError(AfnioError, RuntimeError):
    """No source had the file."""


class BatchError(ExceptionGroup[Exception]):
    """Some samples of a batch failed.

    Of errors that are equal, `exceptions` has the first one alone.

    Attributes:
        samples: the indices of the failed samples.
        errors: the error of each of them, by index, where each has one of its own.
    """

    samples: tuple[int, ...]
    errors: dict[int, Exception]
    failures: tuple[Any, ...] = ()
    """The engine's records of the samples' failures: who reads this error has read them."""

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
        return self.message  # without a count of `exceptions`, which is none of samples


# Which errors say the same, so that a message lists each once.


def distinct(errors: Iterable[E]) -> list[E]:
    """Return the first of each kind of equal errors."""
    found: dict[object, E] = {}
    for error in errors:
        found.setdefault(likeness(error), error)
    return list(found.values())


def likeness(error: BaseException) -> object:
    """Return what errors that tell the same have in common: the type, the text, the line that raised them."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    line = None if last is None else (last.tb_frame.f_code.co_filename, last.tb_lineno)
    return type(error), text_of(error), line


def text_of(error: BaseException) -> str:
    """Return what `error` says; a class of the user's may fail to."""
    try:
        return str(error)
    except Exception:
        return ""


def reason(error: BaseException) -> str:
    """Return an error's type and the first line of its text, for the message of another one."""
    text = text_of(error).strip().partition("\n")[0]
    text = text if len(text) <= MAX_REASON else f"{text[: MAX_REASON - 1]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
