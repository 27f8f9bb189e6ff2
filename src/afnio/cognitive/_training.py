"""The part of a module that a Trainer calls: its steps, its mode, its log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

step_log: Final[ContextVar[Callable[[str, Any], None] | None]] = ContextVar("afnio_step_log", default=None)
"""Receives the metrics of `self.log()`; set for the context of a Trainer's step."""

_mode: Final[ContextVar[bool | None]] = ContextVar("afnio_mode", default=None)


@contextmanager
def mode(training: bool) -> Iterator[None]:
    """Set the mode of all modules for the block's context; it overrides `train()` and `eval()`.

    The mode can't be an attribute of the agent alone: a validation pass and a training step may run on it at the same
    time.
    """
    token = _mode.set(training)
    try:
        yield
    finally:
        _mode.reset(token)


class Training:
    """The part of a Module that a Trainer calls. Write the steps that you need.

    A step may be a `def`, which runs in a worker thread and may read, or an `async def`. It returns
    `(score, explanation)`, or a dict with that as "score" and further metrics, or None to skip the batch.
    """

    automatic_optimization: bool = True
    """If False, `training_step` clears, runs backward and steps itself, with `self.optimizers()`."""

    @property
    def training(self) -> bool:
        """The mode that `train()` and `eval()` set; a Trainer overrides it while it runs a pass."""
        here = _mode.get()
        return bool(self.__dict__.get("_training", True)) if here is None else here

    @training.setter
    def training(self, training: bool) -> None:
        self.__dict__["_training"] = training

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the score and the explanation of one batch."""
        raise NotImplementedError(_missing(self, "training_step", "fit"))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the score of one batch. No graph is recorded; parameters have the values that the pass began with."""
        raise NotImplementedError(_missing(self, "validation_step", "validate"))

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the score of one batch; no graph is recorded."""
        raise NotImplementedError(_missing(self, "test_step", "test"))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the predictions of one batch for `Trainer.predict`; Variables are awaited."""
        raise NotImplementedError(_missing(self, "predict_step", "predict"))

    def configure_optimizers(self) -> Any:
        """Return the optimizer, or a list of several."""
        raise NotImplementedError(
            f"{type(self).__name__} has no optimizer; write `def configure_optimizers(self)` that returns one"
        )

    def optimizers(self) -> Any:
        """Return the Trainer's optimizer, or the list of several.

        Raises:
            AttributeError: outside of a `fit`.
        """
        found = self.__dict__.get("_optimizers")
        if not found:
            raise AttributeError(f"{type(self).__name__} has optimizers only while Trainer.fit runs")
        return found[0] if len(found) == 1 else list(found)

    def log(self, name: str, value: Any) -> None:
        """Record a metric of the batch, like one that the step returns; does nothing outside of a Trainer.

        Args:
            value: a number is the batch's mean. A score, a batch of numbers or a list of numbers counts for each
                sample. Anything else is logged unchanged.
        """
        if not isinstance(name, str):
            raise TypeError(f"a metric's name must be a string (got {name!r})")
        record = step_log.get()
        if record is not None:
            record(name, value)


def _missing(agent: object, step: str, what: str) -> str:
    return (
        f"{type(agent).__name__} has no {step}, which Trainer.{what} needs; "
        f"write `def {step}(self, batch, batch_idx)`"
    )
