"""Training: what a Trainer asks of an agent: its steps, its optimizers, what it logs, its mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

recorder: Final[ContextVar[Callable[[str, Any], None] | None]] = ContextVar("afnio_recorder", default=None)
"""Takes what `self.log()` says in a step; set for the context of that step."""

_mode: Final[ContextVar[bool | None]] = ContextVar("afnio_mode", default=None)


@contextmanager
def mode(training: bool) -> Iterator[None]:
    """Have modules be in training mode, or not, in the block's context, whatever `train()` and `eval()` set.

    A validation pass and a training step may run on one agent at once.
    """
    token = _mode.set(training)
    try:
        yield
    finally:
        _mode.reset(token)


class Training:
    """The part of a Module that a Trainer talks to. Write the steps that you need.

    A step may be a `def`, which runs in a worker thread and may read, or an `async def`. It returns
    `(score, explanation)`, or a dict with that as "loss" and further metrics, or None to skip the batch.
    """

    automatic_optimization: bool = True
    """False: `training_step` itself clears, goes backward and steps, with `self.optimizers()`."""

    @property
    def training(self) -> bool:
        """Whether this is training mode, as `train()` and `eval()` set it."""
        here = _mode.get()
        return bool(self.__dict__.get("_training", True)) if here is None else here

    @training.setter
    def training(self, training: bool) -> None:
        self.__dict__["_training"] = training

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the score and the explanation of one batch."""
        raise NotImplementedError(_missing(self, "training_step", "fit"))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the score of one batch; without gradients, of the parameters that the pass began with."""
        raise NotImplementedError(_missing(self, "validation_step", "validate"))

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the score of one batch; without gradients."""
        raise NotImplementedError(_missing(self, "test_step", "test"))

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        """Return what `Trainer.predict` is to give for one batch; Variables are awaited."""
        raise NotImplementedError(_missing(self, "predict_step", "predict"))

    def configure_optimizers(self) -> Any:
        """Return the optimizer, or a list of several."""
        raise NotImplementedError(
            f"{type(self).__name__} has no optimizer; write `def configure_optimizers(self)` that returns one"
        )

    def optimizers(self) -> Any:
        """Return the optimizer, or the list of them, that the Trainer trains with.

        Raises:
            AttributeError: outside of a `fit`.
        """
        found = self.__dict__.get("_optimizers")
        if not found:
            raise AttributeError(f"{type(self).__name__} has optimizers only while Trainer.fit runs")
        return found[0] if len(found) == 1 else list(found)

    def log(self, name: str, value: Any) -> None:
        """Record a metric of the batch, as if the step had returned it; outside of a Trainer it does nothing.

        Args:
            value: a number is the batch's mean; a score, a batch of numbers or a list of them counts for each
                sample; anything else is logged as it is.
        """
        if not isinstance(name, str):
            raise TypeError(f"a metric's name must be a string (got {name!r})")
        record = recorder.get()
        if record is not None:
            record(name, value)


def _missing(agent: object, step: str, what: str) -> str:
    return (
        f"{type(agent).__name__} has no {step}, which Trainer.{what} needs; "
        f"write `def {step}(self, batch, batch_idx)`"
    )
