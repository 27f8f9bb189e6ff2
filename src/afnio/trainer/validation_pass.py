"""Validation pass: a validation beside the training, of the parameters as they were when it began."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, final

import anyio

from afnio.autodiff._variable import bind
from afnio.errors import BudgetExceeded
from afnio.runtime._settings import priority
from afnio.runtime._waiting import scope
from afnio.trainer.checkpoint import Checkpoint
from afnio.trainer.counters import Counters
from afnio.trainer.evaluation import Evaluation
from afnio.trainer.metric import Outcome
from afnio.trainer.quorum import is_passing


@final
class ValidationPass:
    """A pass over the validation batches, with the parameters of the moment at which it began.

    Args:
        counters: of that moment.
        place: where in the history its result belongs.
        checkpoint: of that moment.

    Attributes:
        epoch: the one that it belongs to, from 1.
        ends_epoch: whether an epoch had ended then.
        outcome: what it came to; None while it is under way, and if money or time did not suffice (`budget`).
        error: why it was cut short, None if it wasn't; then its outcome has no score.
        batches: how many have ended.
        drained: whether the loader itself ended it, not a limit.
        done: set at its end, whichever it is.
    """

    def __init__(self, counters: Counters, place: int, checkpoint: Checkpoint) -> None:
        self.ends_epoch = counters.batch == 0
        self.epoch = counters.epoch + (counters.batch > 0)
        self.step = counters.step
        self.place = place
        self.checkpoint = checkpoint
        self.outcome: Outcome | None = None
        self.error: Exception | None = None
        self.batches = 0
        self.drained = True
        self.budget: BudgetExceeded | None = None
        self.done = anyio.Event()
        self._name = f"{counters.scope}/val step {counters.step}"

    async def run(self, evaluation: Evaluation, values: Any) -> None:
        """Carry it out, with `values` in the place of the parameters."""
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(bind(values))
                stack.enter_context(priority("validation"))
                await stack.enter_async_context(scope(name=self._name, rooted=True))
                self.outcome = await evaluation.run()
                self.drained = evaluation.drained
        except BudgetExceeded as error:
            self.budget = error
        except Exception as error:
            if not is_passing(error):
                raise
            self.error, self.outcome = error, evaluation.so_far
        finally:
            self.done.set()

    def kept(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Return the metrics that still hold: without those of the pass before, if this one was cut short."""
        return {name: metrics[name] for name in metrics if self.error is None or not name.startswith("val_")}

    def completed(
        self,
        history: Sequence[Mapping[str, Any]],
        metrics: Mapping[str, float],
        loader: Mapping[str, Any] | None,
        callbacks: dict[str, Any],
    ) -> Checkpoint:
        """Return the checkpoint of its beginning with its result in it, as if it had taken no time.

        Args:
            history: of the training, its result in place.
            metrics: what it found.
            loader, callbacks: their states after it.
        """
        checkpoint = self.checkpoint
        checkpoint.history = list(history[: self.place + 1])
        checkpoint.metrics = {**self.kept(checkpoint.metrics), **metrics}
        checkpoint.counters = {**checkpoint.counters, "validating": False}
        checkpoint.sampler = {**(checkpoint.sampler or {}), "val": loader}
        checkpoint.callbacks = callbacks
        return checkpoint
