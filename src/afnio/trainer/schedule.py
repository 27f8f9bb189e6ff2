"""Schedule: when a fit validates and when it ends, by its options, its loaders and counts."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any, final

from afnio.trainer.counters import Counters
from afnio.trainer.feed import length, limited, sample_count
from afnio.trainer.options import Options


@final
class Schedule:
    """When a fit validates and when it ends.

    Attributes:
        batches, samples: of an epoch; None where the loader doesn't say.
        val_batches, val_samples: of a validation pass; None without one too.
        validates: whether there is anything to validate on.
    """

    def __init__(self, options: Options, train_loader: Any, val_loader: Any) -> None:
        self._options = options
        self.batches = limited(length(train_loader), options.limit("train"), "limit_train_batches")
        self.samples = sample_count(train_loader, self.batches)
        self.val_batches = None
        if val_loader is not None:
            self.val_batches = limited(length(val_loader), options.limit("val"), "limit_val_batches")
        self.val_samples = sample_count(val_loader, self.val_batches)
        self.validates = val_loader is not None and self.val_batches != 0
        self._interval = None if val_loader is None else self._validation_interval()

    def _validation_interval(self) -> int | None:
        """Return after how many batches of an epoch validation is due within it."""
        interval = self._options.val_check_interval
        if not isinstance(interval, float):
            return interval
        if interval == 1.0:
            return None
        if self.batches is None:
            raise ValueError(
                f"val_check_interval={interval} is a fraction, and the loader has no length; "
                "give a number of batches"
            )
        return max(1, math.floor(self.batches * interval))

    def is_validation_due(self, counters: Counters, batches: int) -> bool:
        """Whether validation is due within the epoch, after a step on so many batches."""
        if self._interval is None or not self.validates:
            return False
        return counters.batch // self._interval > (counters.batch - batches) // self._interval

    def may_have_more_epochs(self, counters: Counters) -> bool:
        """Whether another epoch may follow the one that is ending."""
        epochs, steps = self._options.epochs, self._options.max_steps
        if epochs is not None and counters.epoch + 1 >= epochs:
            return False
        return steps is None or counters.step < steps

    def end(self, counters: Counters, seconds: float, spent: Decimal, asked: str | None) -> str | None:
        """Return why the training ends here, None if it goes on.

        Args:
            seconds: since it started.
            spent: dollars, as far as they are known.
            asked: why somebody has asked for the end, None if nobody has.
        """
        options = self._options
        if options.epochs is not None and counters.epoch >= options.epochs:
            return f"max_epochs={options.epochs} reached"
        if options.max_steps is not None and counters.step >= options.max_steps:
            return f"max_steps={options.max_steps} reached"
        if options.max_time is not None and seconds >= options.max_time:
            return f"max_time={options.max_time:g} s reached"
        if options.max_cost is not None and spent >= options.max_cost:
            return f"max_cost=${options.max_cost:g} reached (${spent:f} spent)"
        early = counters.epoch < (options.min_epochs or 0) or counters.step < (options.min_steps or 0)
        return None if early else asked
