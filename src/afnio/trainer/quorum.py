"""Quorum: how many samples of a step or a pass may fail, and what is said of more."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

from afnio.errors import (
    BatchError,
    BudgetExceeded,
    JournalError,
    ProviderDownError,
    ReplyError,
    TransientModelError,
)
from afnio.runtime._callables import quorum_holds
from afnio.trainer.metric import Outcome

E = TypeVar("E", bound=BaseException)

FEEDBACK: Final = 0.5
"""The quorum of a backward pass is at most this: feedback says where to go, and half of it says that too."""
_ANY: Final = 1e-9
_SHOWN: Final = 3


def lenient(quorum: float | None) -> float:
    """Return the quorum of a single node, where the samples of a whole step or pass are counted at its end."""
    return 1.0 if quorum is None else _ANY


def may_fail(samples: int, quorum: float) -> int:
    """Return how many of so many samples may fail; below a quorum of 1 it is at least one of several.

    >>> may_fail(100, 0.9), may_fail(4, 0.9), may_fail(1, 0.9), may_fail(4, 1.0)
    (10, 1, 0, 0)
    """
    if quorum_holds(0, samples, quorum):
        return samples
    spare = 1 if quorum < 1 and samples > 1 else 0
    return max(spare, samples - math.ceil(quorum * samples - 1e-9))


def check_quorum(outcome: Outcome, quorum: float | None, errors: Sequence[BaseException], name: str) -> None:
    """Raise a `BatchError` if more samples failed than may; `name` is of the step or pass."""
    allowed = may_fail(outcome.samples, 1.0 if quorum is None else quorum)
    if outcome.failed <= allowed:
        return
    if any(is_outage(error) for error in errors):
        fix = "see whether the model's server is up"
    else:
        fix = "take these samples out of the data, or give a lower Trainer(quorum=…)"
    raise BatchError(
        f"{outcome.failed} of {outcome.samples} samples of {name} failed ({causes(errors)}), and quorum={quorum} "
        f"allows {allowed}; {fix}",
        [error for error in errors if isinstance(error, Exception)] or [RuntimeError("unknown")],
    )


def errors_of(error: BatchError) -> list[BaseException]:
    """Return the error of each sample, equal ones too; the distinct ones if samples have none of their own."""
    return [*(error.errors.values() or error.exceptions)]


def causes(errors: Sequence[BaseException]) -> str:
    """Return the errors' texts, equal ones once with their number.

    >>> causes([ValueError("no"), ValueError("no"), KeyError("a")])
    "2 x ValueError: no; KeyError: 'a'"
    """
    counts = Counter(
        f"{type(leaf).__name__}: {' '.join(str(leaf).split())[:200]}"
        for error in errors
        for leaf in _leaves(error)
    )
    texts = [text if number == 1 else f"{number} x {text}" for text, number in counts.most_common(_SHOWN)]
    return "; ".join([*texts, "…"] if len(counts) > _SHOWN else texts)


def reason(error: BaseException) -> str:
    """Return in one line why a step or a pass was cut short."""
    if not isinstance(error, BaseExceptionGroup):
        return str(error) or type(error).__name__
    why = causes(error.exceptions)
    return error.message if why in error.message else f"{error.message} ({why})"


def is_passing(error: BaseException) -> bool:
    """Whether the next step may do better: samples failed, a reply can't be used, a provider was away."""
    if type(error) is ExceptionGroup:
        return all(is_passing(each) for each in error.exceptions)
    return isinstance(error, BatchError | ReplyError | TransientModelError)


def raise_fatal(error: BatchError) -> None:
    """Raise the error of a budget or a journal in it, which is no failure of a sample."""
    for kind in (BudgetExceeded, JournalError):
        fatal = found(error, kind)
        if fatal is not None:
            raise fatal


def is_outage(error: BaseException) -> bool:
    """Return True if a provider was away: the samples are not to blame."""
    return found(error, TransientModelError) is not None or found(error, ProviderDownError) is not None


def found(error: BaseException, kind: type[E]) -> E | None:
    """Return the first error of a kind in `error` and the groups in it."""
    return next((each for each in _each(error) if isinstance(each, kind)), None)


def _each(error: BaseException) -> Iterator[BaseException]:
    yield error
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _each(part)
    elif error.__cause__ is not None:
        yield from _each(error.__cause__)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _leaves(each)
    else:
        yield error
