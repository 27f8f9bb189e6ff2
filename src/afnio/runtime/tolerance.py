"""Tolerance: how many of a node's samples may fail before a batch does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Final

from afnio.errors import BatchError
from afnio.runtime.setting import Setting
from afnio.runtime.slot import Failure

_ROUNDING: Final = 1e-9
"""What a product of floats may be too large by."""

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
) -> BatchError | None:
    """Return the error of a node whose failed samples are too many; None if they may fail, noting that.

    Args:
        outcomes: one for each lane.
        name: what to call the node in the message.
        quorum: the fraction of the non-missing lanes that must succeed; None for all.
        lanes: the lanes' sample indices, where they aren't 0, 1, 2, ….
    """
    numbers = range(len(outcomes)) if lanes is None else lanes
    failed = [
        (number, outcome)
        for number, outcome in zip(numbers, outcomes, strict=True)
        if isinstance(outcome, Failure)
    ]
    if not failed:
        return None
    present = sum(outcome is not None for outcome in outcomes)
    if quorum is not None and quorum_holds(present - len(failed), present, quorum):
        for _, failure in failed:
            failure.mark_read()
        return None
    samples = [number for number, _ in failed]
    shown = ", ".join(map(str, samples[:10])) + (", …" if len(samples) > 10 else "")
    need = "" if quorum is None else f", and quorum={quorum} allows fewer"
    error = BatchError(
        f"{len(failed)} of {present} samples of {name} failed (sample {shown}){need}; "
        "afnio.tolerate(quorum=…) masks failed samples",
        [_exception(failure.error) for _, failure in failed],
        samples,
    )
    error.failures = tuple(failure for _, failure in failed)
    return error


def _exception(error: BaseException) -> Exception:
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return wrapped
