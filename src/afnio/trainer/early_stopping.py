"""Early stopping: end the training once a metric has stopped improving."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, final

from afnio.trainer.callback import Callback

if TYPE_CHECKING:
    from afnio.cognitive._module import Module
    from afnio.trainer.trainer import Trainer


@final
class EarlyStopping(Callback):
    """Stop after `patience` validation passes in a row without a better value.

    Only when the next pass could be the last one does the training wait for it.

    Args:
        monitor: the metric, such as "val_accuracy"; by default the Trainer's.
        patience: passes without improvement that end the training, at least 1.
        min_delta: what an improvement must exceed.
        mode: "max" or "min"; by default the Trainer's.
        stopping_threshold: a value that is good enough to stop at.

    >>> EarlyStopping("val_accuracy", patience=2).needs_validation
    False
    """

    def __init__(
        self,
        monitor: str | None = None,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] | None = None,
        stopping_threshold: float | None = None,
    ) -> None:
        if not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be a number of validation passes, 1 or more (got {patience!r})")
        if mode not in (None, "min", "max"):
            raise ValueError(f"mode must be 'max' or 'min' (got {mode!r})")
        self.monitor = monitor
        self.patience = patience
        self.min_delta = abs(min_delta)
        self.mode = mode
        self.stopping_threshold = stopping_threshold
        self.best: float | None = None
        self.waited = 0

    @property
    def needs_validation(self) -> bool:  # type: ignore[override]
        """Whether the next pass may end the training."""
        return self.stopping_threshold is not None or (
            self.best is not None and self.waited >= self.patience - 1
        )

    def on_validation_end(self, trainer: Trainer, agent: Module) -> None:
        if trainer.stage != "fit":  # a pass on its own decides nothing
            return
        monitor, mode = self.monitor or trainer.monitor, self.mode or trainer.mode
        value = trainer.metrics.get(monitor)
        if value is None or math.isnan(value):
            known = ", ".join(sorted(trainer.metrics))
            raise ValueError(f"EarlyStopping finds no metric {monitor!r} (there are: {known})")
        sign = 1 if mode == "max" else -1
        if self.best is None or sign * (value - self.best) > self.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        self._decide(trainer, value)

    def on_fit_start(self, trainer: Trainer, agent: Module) -> None:
        """End at once what had ended: a training that is taken up again after its last pass."""
        if self.best is not None:
            self._decide(trainer, self.best)

    def _decide(self, trainer: Trainer, value: float) -> None:
        monitor, good = self.monitor or trainer.monitor, self.stopping_threshold
        sign = 1 if (self.mode or trainer.mode) == "max" else -1
        if good is not None and sign * (value - good) >= 0:
            trainer.stop(f"{monitor} has reached {value:g}, and {good:g} was asked for")
        elif self.waited >= self.patience:
            trainer.stop(f"{monitor} has not improved on {self.best:g} in {self.waited} validation passes")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
