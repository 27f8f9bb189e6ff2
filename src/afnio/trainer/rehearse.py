"""Rehearse: one batch of a training without a call, and what the whole training comes to by it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import anyio.to_thread

from afnio.autodiff._variable import no_grad
from afnio.cognitive._module import Module, mode
from afnio.models._client import Rehearsed, rehearsing, stage
from afnio.models._prices import price_of
from afnio.optim._optimizer import Optimizer
from afnio.runtime._callables import tolerate
from afnio.runtime._limits import Account
from afnio.runtime._settings import seed_source
from afnio.runtime._waiting import scope
from afnio.trainer.estimate import Estimate, Item
from afnio.trainer.feed import Fetched
from afnio.trainer.options import Options
from afnio.trainer.step import StepEnd, call_step, settled, train_step
from afnio.trainer.step_output import batch_size, read, taken_apart
from afnio.trainer.workload import Workload, first_batch

STEP: Final = "step"
FEW: Final = 1e-9
"""The quorum of a rehearsal: made-up replies may be no use to many samples."""


class _Staged:
    """An optimizer whose step's calls can be told from those of the samples: evaluations of its own, say."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.clear_grad = optimizer.clear_grad
        self._step = optimizer.step

    def step(self) -> Any:
        token = stage.set(STEP)
        try:
            return self._step()
        finally:
            stage.reset(token)


class _Kind(NamedTuple):
    phase: str
    purpose: str
    model: str
    account: Account


async def rehearse(
    agent: Module,
    configure: Callable[[Module], Sequence[Optimizer]],
    options: Options,
    train: Any,
    val: Any,
    seconds_per_call: float,
) -> Estimate:
    """Return what a training comes to, by the calls of one batch and of one validation batch.

    The steps of `agent` are carried out, with made-up replies; the parameters are afterwards as before.

    Args:
        configure: makes the agent's optimizers.
        train, val: the loaders, None without validation.
    """
    work = Workload.of(options, train, val)
    # In a thread, as a dataset may read files.
    batch = await anyio.to_thread.run_sync(first_batch, train)
    val_batch = await anyio.to_thread.run_sync(first_batch, val) if work.val_passes else None
    notes: list[str] = []
    async with _as_before(agent):
        with seed_source.override(lambda: 0):
            calls, size = await _train(agent, configure(agent), batch, notes)
    val_calls, val_size = await _validation(agent, val_batch, notes) if work.val_passes else ([], 1)
    if any(call.stage == STEP and _is_repair(call) for call in calls):
        notes.append("The optimizer refused made-up values; calls that weigh a value are not counted.")
    if any(call.stage == STEP and call.purpose not in (STEP, "reduce") for call in calls):
        notes.append("Made-up values are all alike: weighing real ones may take more calls.")
    items = [
        *await _items("train", calls, size, work.samples, work.steps),
        *await _items("val", val_calls, val_size, work.val_samples, 0),
    ]
    forward, backward, step = _chain(calls)
    last = _chain(val_calls)[0]
    chain = work.steps * forward + last, work.steps * (forward + backward + step) + last
    return Estimate(items, work.epochs, work.steps, chain, seconds_per_call, " ".join(notes) or None)


@asynccontextmanager
async def _as_before(agent: Module) -> AsyncIterator[None]:
    """Have the parameters hold their values and feedback after the block as before it."""
    await settled(agent)
    before = [(parameter, parameter.own_slots, list(parameter.segments)) for parameter in agent.parameters()]
    try:
        yield
    finally:
        await settled(agent)
        for parameter, slots, segments in before:
            if not parameter.batch:  # no optimizer takes a batch
                parameter.advance(slots[0])
            parameter.clear_grad()
            parameter.segments.extend(segments)


async def _train(
    agent: Module, optimizers: Sequence[Optimizer], batch: Any, notes: list[str]
) -> tuple[list[Rehearsed], int]:
    size = max(1, batch_size(batch))
    object.__setattr__(agent, "_optimizers", list(optimizers))
    try:
        with rehearsing() as found, tolerate(FEW):
            async with scope("estimate", rooted=True):
                staged: Any = [_Staged(one) for one in optimizers]
                await train_step(agent, staged, [Fetched(0, batch, size, None)], StepEnd(), "the step")
    except Exception as error:  # whatever a step makes of made-up replies
        notes.append(_note("training_step", error))
    finally:
        agent.__dict__.pop("_optimizers", None)
    return found.calls, size


async def _validation(agent: Module, batch: Any, notes: list[str]) -> tuple[list[Rehearsed], int]:
    size = max(1, batch_size(batch))
    with rehearsing() as found, tolerate(FEW), mode(False), no_grad():
        try:
            async with scope("estimate val", rooted=True):
                output, logged = await call_step(agent.validation_step, batch, 0)
                await read(taken_apart(output, logged, "validation_step"), size)
        except Exception as error:
            notes.append(_note("validation_step", error))
    return found.calls, size


def _note(step: str, error: Exception) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split())
    return (
        f"{step} could not be rehearsed to its end, as made-up replies are no use to it "
        f"({type(error).__name__}: {text[:120]}); calls after that point are not counted."
    )


async def _items(phase: str, calls: Sequence[Rehearsed], size: int, samples: int, steps: int) -> list[Item]:
    """Return the kinds of calls, counted up from `size` rehearsed samples."""
    kinds: dict[_Kind, list[Rehearsed]] = defaultdict(list)
    for call in calls:
        if not _is_repair(call):  # made-up replies need more of these than real ones
            kinds[_Kind(phase, _label(call), call.model, call.account)].append(call)
    items = []
    for kind, of_kind in kinds.items():
        low, high = _calls(of_kind, size, samples, steps)
        prompt = sum(call.prompt_tokens for call in of_kind) / len(of_kind)
        output = sum(call.output_tokens for call in of_kind) / len(of_kind)
        # In a thread, as the first question reads a file or imports a package.
        price = await anyio.to_thread.run_sync(price_of, kind.model, kind.account.url)
        items.append(Item(*kind, low, high, prompt, output, price))
    return items


def _is_repair(call: Rehearsed) -> bool:
    return call.purpose.endswith("repair")


def _label(call: Rehearsed) -> str:
    return f"{STEP} {call.purpose}" if call.stage == STEP != call.purpose else call.purpose


def _calls(calls: Sequence[Rehearsed], size: int, samples: int, steps: int) -> tuple[int, int]:
    """Return the calls of the whole training, low and high.

    A sample that is answered rightly has no feedback, so it makes none of the calls backward, and a step
    without feedback none at all.
    """
    if calls[0].stage == STEP:
        return 0, steps * len(calls)
    if calls[0].purpose == "backward":
        # A made-up reply may be right by chance: that of the others says how many a wrong one makes.
        return 0, samples * max(_by_lane(calls).values())
    number = math.ceil(samples * len(calls) / size)
    return number, number


def _chain(calls: Sequence[Rehearsed]) -> tuple[int, int, int]:
    """Return how many calls wait for each other in a batch: forward, backward, in the step.

    Those of one sample are taken to wait for each other, and those of a step if their purposes differ.
    """
    real = [call for call in calls if not _is_repair(call)]
    batch = [call for call in real if call.stage != STEP]
    forward = [call for call in batch if call.purpose != "backward"]
    backward = [call for call in batch if call.purpose == "backward"]
    step = {call.purpose for call in real if call.stage == STEP}
    return _longest(forward), _longest(backward), len(step)


def _longest(calls: Sequence[Rehearsed]) -> int:
    return max(_by_lane(calls).values(), default=0)


def _by_lane(calls: Sequence[Rehearsed]) -> dict[int | None, int]:
    lanes: dict[int | None, int] = defaultdict(int)
    for call in calls:
        lanes[call.lane] += 1
    return lanes
