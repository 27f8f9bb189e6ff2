"""Tolerance: how many of a node's samples may fail before a batch does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Final

from afnio.errors import BatchError, ScoreError
from afnio.likeness import likeness, reason
from afnio.runtime.setting import Setting
from afnio.runtime.slot import Failure

_ROUNDING: Final = 1e-9
"""What a product of floats may be too large by."""
MAX_REASONS: Final = 3
"""Different errors that a message tells of."""

_quorum: Final[Setting[float | None]] = Setting("quorum", None)


class tolerate(AbstractContextManager[None], AbstractAsyncContextManager[None]):  # noqa: N801
    """Let samples fail in the block, as long as `quorum` of a node's non-missing samples succeed.

    Failed samples read as None, are left out of scores and gradients, and are listed in `errors`.

    Args:
        quorum: the fraction that must succeed, above 0 and at most 1.

    >>> with tolerate(quorum=0.9):
    ...     pass
    """

    def __init__(self, quorum: float = 0.9) -> None:
        if not 0 < quorum <= 1:
            raise ValueError(f"quorum must be above 0 and at most 1 (got {quorum}); 0.9 lets a tenth fail")
        self._value = quorum
        self._entered: list[AbstractContextManager[float | None]] = []

    def __enter__(self) -> None:
        override = _quorum.override(self._value)
        override.__enter__()
        self._entered.append(override)

    def __exit__(self, *exc: object) -> None:
        self._entered.pop().__exit__(None, None, None)

    async def __aenter__(self) -> None:
        self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.__exit__()


def current_quorum() -> float | None:
    """Return the quorum that holds here, None where no sample may fail."""
    return _quorum.get()


def quorum_holds(succeeded: int, present: int, quorum: float) -> bool:
    """Whether `succeeded` of `present` are at least the fraction `quorum` of them.

    >>> quorum_holds(55, 100, 0.55)  # where 0.55 * 100 is 55.00000000000001
    True
    """
    return succeeded >= quorum * present - _ROUNDING


def batch_failure(
    outcomes: Sequence[Any], name: str, quorum: float | None, lanes: Sequence[int] | None = None
) -> BatchError | ScoreError | None:
    """Return the error of a node whose failed samples are too many; None if they may fail, noting that.

    A `ScoreError` stands for its launch, whatever the quorum; so does an error that was a batch's already.

    Args:
        outcomes: one for each lane.
        name: what to call the node in the message, if the samples failed in it.
        quorum: the fraction of the non-missing lanes that must succeed; None for all.
        lanes: the lanes' sample indices, where they aren't 0, 1, 2, ….
    """
    numbers = range(len(outcomes)) if lanes is None else lanes
    failed = {
        number: outcome
        for number, outcome in zip(numbers, outcomes, strict=True)
        if isinstance(outcome, Failure)
    }
    if not failed:
        return None
    errors = [failure.error for failure in failed.values()]
    present = sum(outcome is not None for outcome in outcomes)
    masked = quorum is not None and quorum_holds(present - len(failed), present, quorum)
    whole = _of_all(errors, masked=masked)
    if whole is not None or masked:
        for failure in failed.values():
            failure.mark_read()
        return whole
    places = {failure.place or name for failure in failed.values()}
    place = places.pop() if len(places) == 1 else name
    need = "" if quorum is None else f", and quorum={quorum} allows fewer"
    error = BatchError(
        f"{len(failed)} of {present} samples of {place} failed{_reasons(failed, place, need)}",
        [_exception(error) for error in errors],
        list(failed),
    )
    if len(failed) < present and quorum is None:
        error.add_note("`with afnio.tolerate(quorum=…):` leaves failed samples out")
    error.failures = tuple(failed.values())
    return error


def _of_all(errors: Sequence[BaseException], *, masked: bool) -> BatchError | ScoreError | None:
    """Return an error that stands for the whole batch: a wrong argument, or what all samples failed with at once."""
    for error in errors:
        if isinstance(error, ScoreError):
            return error
    first = errors[0]
    if isinstance(first, BatchError) and not masked and all(error is first for error in errors):
        return first
    return None


def _reasons(failed: Mapping[int, Failure], place: str, need: str) -> str:
    """Return why the samples failed: each different reason with its samples, the most frequent ones first."""
    alike: dict[object, list[int]] = {}
    for number, failure in failed.items():
        alike.setdefault((failure.place or place, likeness(failure.error)), []).append(number)
    told = []
    for samples in sorted(alike.values(), key=len, reverse=True)[:MAX_REASONS]:
        failure = failed[samples[0]]
        elsewhere = "" if failure.place in (None, place) else f" of {failure.place}"
        listed = ", ".join(map(str, samples[:10])) + (", …" if len(samples) > 10 else "")
        if len(alike) == 1:
            return f" (sample {listed}){need}: {reason(failure.error)}"
        told.append(f"{reason(failure.error)} (sample {listed}{elsewhere})")
    if len(alike) > MAX_REASONS:
        told.append(f"{len(alike) - MAX_REASONS} other errors")
    return f"{need}: {'; '.join(told)}"


def _exception(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
