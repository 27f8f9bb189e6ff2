"""Options: what a Trainer was told, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, final

Share: TypeAlias = int | float
"""A number of batches, or a fraction of them, 1.0 for all."""
DEFAULT_EPOCHS: Final = 10
"""Epochs of a fit that no limit ends otherwise."""


@final
@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of a Trainer; see there."""

    max_epochs: int | None
    min_epochs: int | None
    max_steps: int | None
    min_steps: int | None
    max_time: float | None
    max_cost: float | None
    limit_train_batches: Share | None
    limit_val_batches: Share | None
    limit_test_batches: Share | None
    limit_predict_batches: Share | None
    val_check_interval: Share
    accumulate_grad_batches: int
    quorum: float | None
    seed: int | None
    enable_checkpointing: bool
    enable_progress_bar: bool
    enable_agent_summary: bool
    root: Path
    fast_dev_run: bool
    monitor: str | None
    mode: Literal["min", "max"]
    save_top_k: int

    @property
    def epochs(self) -> int | None:
        """Epochs at most; None where only steps, time or money end the training."""
        if self.fast_dev_run:
            return 1
        others = (self.max_steps, self.max_time, self.max_cost)
        return DEFAULT_EPOCHS if self.max_epochs is None and others == (None,) * 3 else self.max_epochs

    @property
    def checkpointing(self) -> bool:
        return self.enable_checkpointing and not self.fast_dev_run

    def limit(self, phase: str) -> Share | None:
        """Return the limit of the batches of a phase."""
        if self.fast_dev_run:
            return 1
        limit: Share | None = getattr(self, f"limit_{phase}_batches")
        return limit


def checked(options: Options) -> Options:
    """Return `options`, or raise for a value that can't work, at the line that gives it."""
    for name in ("max_epochs", "max_steps", "accumulate_grad_batches"):
        _check_count(name, getattr(options, name), 1)
    for name in ("min_epochs", "min_steps"):
        _check_count(name, getattr(options, name), 0)
    for name in ("max_time", "max_cost"):
        value = getattr(options, name)
        if value is not None and (isinstance(value, bool) or not math.isfinite(value) or value < 0):
            raise ValueError(f"{name} must be a number of 0 or more (got {value!r}); omit it for no limit")
    for name in ("limit_train_batches", "limit_val_batches", "limit_test_batches", "limit_predict_batches"):
        _check_share(name, getattr(options, name), 0)
    _check_share("val_check_interval", options.val_check_interval, 1)
    if options.quorum is not None and not 0 < options.quorum <= 1:
        raise ValueError(
            f"quorum must be above 0 and at most 1 (got {options.quorum}); None lets no sample fail"
        )
    if options.seed is not None and (isinstance(options.seed, bool) or not isinstance(options.seed, int)):
        raise TypeError(f"seed must be a whole number (got {options.seed!r}); omit it for another each time")
    if options.mode not in ("min", "max"):
        raise ValueError(
            f'mode must be "max" or "min" (got {options.mode!r}); "max" where a larger value is better'
        )
    if (options.min_epochs or 0) > (options.epochs or math.inf):
        raise ValueError(f"min_epochs={options.min_epochs} is more than max_epochs={options.epochs}")
    if (options.min_steps or 0) > (options.max_steps or math.inf):
        raise ValueError(f"min_steps={options.min_steps} is more than max_steps={options.max_steps}")
    return options


def seconds_of(max_time: Any) -> float | None:
    """Return a time limit in seconds: of a number, a timedelta, a dict of its arguments, or "DD:HH:MM:SS".

    >>> seconds_of("00:01:30:00"), seconds_of({"minutes": 2}), seconds_of(5)
    (5400.0, 120.0, 5.0)
    """
    if max_time is None:
        return None
    if isinstance(max_time, timedelta):
        return max_time.total_seconds()
    if isinstance(max_time, dict):
        return timedelta(**max_time).total_seconds()
    if isinstance(max_time, str):
        parts = max_time.split(":")
        if len(parts) != 4 or not all(part.isdecimal() for part in parts):
            raise ValueError(f'max_time as a text has the form "DD:HH:MM:SS" (got {max_time!r})')
        days, hours, minutes, seconds = map(int, parts)
        return timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    if isinstance(max_time, bool) or not isinstance(max_time, Share):
        raise TypeError(
            f"max_time must be a number of seconds, a timedelta, a dict or a text (got {max_time!r})"
        )
    return float(max_time)


def _check_count(name: str, value: Any, least: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise ValueError(f"{name} must be a whole number, {least} or more (got {value!r})")


def _check_share(name: str, value: Any, least: int) -> None:
    if value is None:
        return
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= least
    if not whole and not (isinstance(value, float) and 0 < value <= 1):
        raise ValueError(
            f"{name} must be a number of batches, {least} or more, or a fraction up to 1.0 (got {value!r})"
        )
