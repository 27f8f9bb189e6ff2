"""Evaluation: one pass over a loader with parameters that stay, as one pool of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

import anyio

from afnio.autodiff._backward import resolve
from afnio.autodiff._variable import no_grad
from afnio.cognitive._module import Module, mode
from afnio.errors import BatchError
from afnio.runtime._callables import current_quorum, is_async, tolerate
from afnio.runtime._waiting import scope
from afnio.trainer.feed import Pass, batches
from afnio.trainer.metric import Outcome, combined
from afnio.trainer.quorum import check_quorum, errors_of, lenient, raise_fatal
from afnio.trainer.state import Phase
from afnio.trainer.step import call_step
from afnio.trainer.step_output import batch_size, read, taken_apart
from afnio.trainer.tasks import task_group

LANES: Final = 4096
"""Samples under way at most, about; a loader is not read further ahead than that."""
THREADED: Final = 16
"""Batches under way whose steps are a `def`, which may hold a worker thread each."""
STEPS: Final = {"val": "validation_step", "test": "test_step", "predict": "predict_step"}
NAMES: Final = {"val": "validation", "test": "test", "predict": "predict"}


@final
class Evaluation:
    """One pass: every batch is launched as soon as it is loaded; results are in the loader's order.

    How many samples may fail is counted over the whole pass, not for each batch.

    Args:
        on_batch: told the pass's outcome so far and how many batches that is, after each batch.
    """

    def __init__(
        self,
        agent: Module,
        phase: Phase,
        loader: Any,
        limit: int | None,
        on_batch: Callable[[Outcome, int], object] = lambda outcome, batches: None,
    ) -> None:
        self._function = getattr(agent, STEPS[phase])
        self._phase = phase
        self._pass = Pass(loader, limit)
        self._on_batch = on_batch
        self._quorum = current_quorum()
        self._outcomes: dict[int, Outcome] = {}
        self._so_far = Outcome()
        self._errors: dict[int, list[BaseException]] = {}
        self.outputs: dict[int, Any] = {}
        self._room: anyio.Semaphore | None = None

    @property
    def so_far(self) -> Outcome:
        """How many samples have ended and failed, without a score: what is left of a pass that was cut short."""
        return Outcome(samples=self._so_far.samples, failed=self._so_far.failed)

    @property
    def drained(self) -> bool:
        """Whether the loader itself ended the pass, not a limit."""
        return self._pass.drained

    async def run(self) -> Outcome:
        """Carry the pass out.

        Raises:
            BatchError: if more of its samples failed than the quorum allows.
        """
        with no_grad(), mode(False), tolerate(lenient(self._quorum)):
            async with task_group() as tasks:
                async for number, batch in batches(iter(self._pass)):
                    size = batch_size(batch)
                    if self._room is None:
                        self._room = anyio.Semaphore(self._window(size))
                    await self._room.acquire()
                    tasks.start_soon(self._one, number, batch, size)
        outcome = combined(self._outcomes[number] for number in sorted(self._outcomes))
        errors = [error for number in sorted(self._errors) for error in self._errors[number]]
        check_quorum(outcome, self._quorum, errors, f"the {NAMES[self._phase]} pass")
        return outcome

    async def _one(self, number: int, batch: Any, size: int) -> None:
        assert self._room is not None
        try:
            async with scope(name=f"batch {number + 1}"):
                self._outcomes[number] = await self._read(number, batch, size)
        except BatchError as error:
            raise_fatal(error)
            if self._quorum is None:
                raise
            self._errors[number] = errors_of(error)
            self._outcomes[number] = Outcome(samples=size, failed=size)
        finally:
            self._room.release()
        self._so_far += self._outcomes[number]
        self._on_batch(self._so_far, len(self._outcomes))

    async def _read(self, number: int, batch: Any, size: int) -> Outcome:
        returned, logged = await call_step(self._function, batch, number)
        if self._phase == "predict":
            self.outputs[number] = await resolve(returned)
            returned = None
        output = taken_apart(returned, logged, STEPS[self._phase])
        outcome = await read(output, size)
        if output.errors:
            self._errors[number] = output.errors
        return outcome

    def _window(self, size: int) -> int:
        window = max(2, LANES // max(1, size))
        return window if is_async(self._function) else min(window, THREADED)
