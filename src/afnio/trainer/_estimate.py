"""Estimate: what a training will ask for, found by rehearsing one batch with made-up replies.

`rehearse` carries out one step and one validation batch. The clients answer with made-up replies and note each call:
its purpose, its model, its tokens, and the sample it was for. `_items` extrapolates these calls to the whole training,
whose size `_Workload` reads from the loaders and the Trainer's limits.

The answers decide how much a training costs: feedback is written for wrong answers only. So an `Estimate` has two
bounds, one for a training in which every answer is right and one in which every answer is wrong.
"""

from __future__ import annotations

import io
import math
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence, Sized
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final, NamedTuple, final

import anyio.to_thread
from rich import box
from rich.console import Console
from rich.table import Table

from afnio.autodiff._graph import no_grad
from afnio.cognitive._members import mode
from afnio.cognitive._module import Module
from afnio.models._prices import price_of
from afnio.models._trace import Rehearsed, rehearsing, stage
from afnio.optim._optimizer import Optimizer
from afnio.runtime._batch_api import current_plan
from afnio.runtime._callables import tolerate
from afnio.runtime._limits import Account, given_limits
from afnio.runtime._settings import seed_source
from afnio.runtime._spending import BATCH, Price, at_tier, cost
from afnio.runtime._waiting import scope
from afnio.runtime.events import Usage
from afnio.trainer._feed import Fetched
from afnio.trainer._loop import Schedule
from afnio.trainer._options import TrainerOptions, batch_size, read, taken_apart
from afnio.trainer._progress import clock, money
from afnio.trainer._steps import StepEnd, call_step, settled, train_step
from afnio.utils.data import DataLoader

# The stage and the purpose of an optimizer's own calls.
_STEP: Final = "step"
# The quorum of a rehearsal. Made-up replies may be useless to most samples.
_QUORUM: Final = 1e-9


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """The calls of a training. Nothing was called to find out. `str()` of it is a table.

    The low bound is for a training in which every answer is right, so that nothing is improved; the high one is for a
    training in which every answer is wrong. Neither includes retries, the reasoning of models that reason, or prompts
    that grow. Clients count the tokens of prompts (`ChatClient.count_tokens`); those of replies are typical lengths.

    Attributes:
        items: the calls by phase, purpose and model.
        epochs, steps: epochs, and optimizer steps over all of them.
        chain: how many calls have to wait for each other, from the first step to the last one; low and high.
        seconds_per_call: the seconds that a call is assumed to take.
        note: what couldn't be rehearsed and why, or None.
        rounds: in a block of `afnio.batch_api`, how many batches have to wait for each other, low and high; else None.
            An optimizer's few calls are sent at once.
    """

    items: Sequence[EstimateItem]
    epochs: int
    steps: int
    chain: tuple[int, int]
    seconds_per_call: float
    note: str | None = None
    rounds: tuple[int, int] | None = None

    @property
    def calls(self) -> tuple[int, int]:
        """Low and high."""
        return sum(item.low for item in self.items), sum(item.high for item in self.items)

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens in and out together, low and high."""
        low, high = self._usage
        return low.total_tokens, high.total_tokens

    @property
    def cost(self) -> tuple[Decimal, Decimal] | None:
        """Dollars, low and high, or None if the price of a model is unknown."""
        return self._cost(self.items)

    @property
    def batch_cost(self) -> tuple[Decimal, Decimal] | None:
        """The same if the samples' calls go by batch APIs."""
        return self._cost([item if item.batch_price is None else item.by_batch() for item in self.items])

    def _cost(self, items: Sequence[EstimateItem]) -> tuple[Decimal, Decimal] | None:
        costs = [(item.cost(item.low), item.cost(item.high)) for item in items]
        priced = [(low, high) for low, high in costs if low is not None and high is not None]
        if len(priced) < len(costs):
            return None
        return sum((low for low, _ in priced), Decimal(0)), sum((high for _, high in priced), Decimal(0))

    @property
    def seconds(self) -> tuple[float, float]:
        """Low and high: the time of the calls that wait for each other, or that of the slowest limit."""
        low, high = [length * self.seconds_per_call for length in self.chain]
        for account in {item.account for item in self.items}:
            items = [item for item in self.items if item.account == account]
            low = max(low, self._limited_seconds(account, [(item, item.low) for item in items]))
            high = max(high, self._limited_seconds(account, [(item, item.high) for item in items]))
        return low, high

    def _limited_seconds(self, account: Account, calls: Sequence[tuple[EstimateItem, int]]) -> float:
        """Return the seconds that calls of an account take because of its limits."""
        limits, number = given_limits(account), sum(number for _, number in calls)
        seconds = 0.0
        if limits is None:
            return seconds
        if limits.max_in_flight is not None:
            seconds = math.ceil(number / limits.max_in_flight) * self.seconds_per_call
        if limits.requests_per_minute is not None:
            seconds = max(seconds, 60 * number / limits.requests_per_minute)
        if limits.tokens_per_minute is not None:
            tokens = sum(item.usage(number).total_tokens for item, number in calls)
            seconds = max(seconds, 60 * tokens / limits.tokens_per_minute)
        return seconds

    @property
    def _usage(self) -> tuple[Usage, Usage]:
        low = sum((item.usage(item.low) for item in self.items), Usage())
        return low, sum((item.usage(item.high) for item in self.items), Usage())

    def table(self) -> Table:
        """Return the numbers as a rich table."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in ("phase", "model"):
            table.add_column(name, overflow="fold")
        for name in ("calls", "tokens in", "tokens out", "cost"):
            table.add_column(name, justify="right", overflow="fold")

        def add(
            phase: str, model: str, calls: tuple[int, int], usage: tuple[Usage, Usage],
            dollars: tuple[Decimal | None, Decimal | None], style: str = "",
        ) -> None:  # fmt: skip
            low, high = usage
            tokens_in, tokens_out = (
                (low.prompt_tokens, high.prompt_tokens),
                (low.completion_tokens, high.completion_tokens),
            )
            table.add_row(
                phase,
                model,
                _span(*calls),
                _span(*tokens_in),
                _span(*tokens_out),
                _dollars(*dollars),
                style=style,
            )

        for item in self.items:
            usage = item.usage(item.low), item.usage(item.high)
            dollars = item.cost(item.low), item.cost(item.high)
            add(f"{item.phase} {item.purpose}", item.model, (item.low, item.high), usage, dollars)
        add("all", "", self.calls, self._usage, self.cost or (None, None), "bold")
        return table

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=110, color_system=None, highlight=False).print(self.table())
        low, high = map(clock, self.seconds)
        time = low if low == high else f"{low} to {high}"
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs:,} epochs"
        lines = [
            *(line.rstrip() for line in text.getvalue().splitlines()),
            f"{epochs}, {self.steps:,} steps, {time} at {self.seconds_per_call:g} s a call.",
            "Low: every answer is right. High: every answer is wrong. Retries and reasoning come on top.",
        ]
        if self.rounds is not None:
            times = [clock(self.rounds[1] * seconds) for seconds in (900, 3600)]
            dollars = _dollars(*(self.batch_cost or (None, None))), _dollars(*(self.cost or (None, None)))
            lines.append(
                f"By batch: {_span(*self.rounds)} batches one after the other, up to {times[0]} at 15 minutes each and "
                f"{times[1]} at an hour; {dollars[0]}, instead of {dollars[1]}."
            )
        return "\n".join(lines if self.note is None else [*lines, self.note])


@final
@dataclass(frozen=True, slots=True)
class EstimateItem:
    """The calls for the same purpose to the same model of the same account.

    Attributes:
        phase: "train" or "val".
        low, high: calls of the whole training, if every answer is right and if every one is wrong.
        prompt_tokens, output_tokens: of one call, on average.
        price: None if it is unknown.
        batch_price: by a batch API, or None if it is unknown or the calls are sent at once.
    """

    phase: str
    purpose: str
    model: str
    account: Account
    low: int
    high: int
    prompt_tokens: float
    output_tokens: float
    price: Price | None
    batch_price: Price | None = None

    def by_batch(self) -> EstimateItem:
        """Return the same calls at the price of a batch API."""
        return replace(self, price=self.batch_price)

    def usage(self, calls: int) -> Usage:
        """Return the tokens of `calls` of these calls."""
        return Usage(round(calls * self.prompt_tokens), round(calls * self.output_tokens))

    def cost(self, calls: int) -> Decimal | None:
        """Return the dollars of `calls` of these calls, or None if the price is unknown."""
        return None if self.price is None else cost(self.price, self.usage(calls), max(calls, 1))


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _dollars(low: Decimal | None, high: Decimal | None) -> str:
    if low is None or high is None:
        return "unknown"
    return money(low) if low == high else f"{money(low)} to {money(high)}"


# The rehearsal


async def rehearse(
    agent: Module,
    configure: Callable[[Module], Sequence[Optimizer]],
    options: TrainerOptions,
    train: Any,
    val: Any,
    seconds_per_call: float,
) -> Estimate:
    """Return what a training asks for, from the calls of one training batch and one validation batch.

    The steps of `agent` run with made-up replies. Its parameters have their values and feedback back afterwards.

    Args:
        configure: makes the agent's optimizers.
        train, val: the loaders; `val` is None without validation.

    Raises:
        TypeError: for a loader that can be iterated over only once.
        ValueError: for a loader without a length, if no option limits it, and for an empty one.
    """
    work = _Workload.of(options, train, val)
    # Load in a thread: a dataset may read files.
    batch = await anyio.to_thread.run_sync(_first_batch, train)
    val_batch = await anyio.to_thread.run_sync(_first_batch, val) if work.val_samples else None
    notes: list[str] = []
    async with _restored(agent):
        # Draw no seeds from the user's generators: the training would differ from one without an estimate.
        with seed_source.override(lambda _: 0):
            calls, size = await _train(agent, configure(agent), batch, notes)
    val_calls, val_size = await _validate(agent, val_batch, notes) if work.val_samples else ([], 1)
    own = {call.purpose for call in calls if call.stage == _STEP}
    if any(_is_repair(purpose) for purpose in own):
        notes.append("The optimizer refused made-up values; calls that weigh a value are not counted.")
    if any(not _is_repair(purpose) and purpose not in (_STEP, "reduce") for purpose in own):
        notes.append("Made-up values are all alike: weighing real ones may take more calls.")
    items = [
        *await _items("train", calls, size, work.samples, work.steps),
        *await _items("val", val_calls, val_size, work.val_samples, 0),
    ]
    forward, backward, step = _chain(calls)
    last = _chain(val_calls)[0]
    chain = work.steps * forward + last, work.steps * (forward + backward + step) + last
    by_batch = work.steps * forward + last, work.steps * (forward + backward) + last
    rounds = None if current_plan.get() is None else by_batch
    return Estimate(items, work.epochs, work.steps, chain, seconds_per_call, " ".join(notes) or None, rounds)


@asynccontextmanager
async def _restored(agent: Module) -> AsyncIterator[None]:
    """Restore the parameters' values and feedback after the block."""
    await settled(agent)
    before = [(p, p.own_slots, list(p.pending_gradients)) for p in agent.parameters()]
    try:
        yield
    finally:
        await settled(agent)
        for parameter, slots, segments in before:
            if not parameter.batch:  # optimizers don't accept batches, so a batch hasn't changed
                parameter.advance(slots[0])
            parameter.clear_grad()
            parameter.pending_gradients.extend(segments)


async def _train(
    agent: Module, optimizers: Sequence[Optimizer], batch: Any, notes: list[str]
) -> tuple[list[Rehearsed], int]:
    """Return the calls of one step, and the samples of its batch."""
    size = max(1, batch_size(batch))
    object.__setattr__(agent, "_optimizers", list(optimizers))
    try:
        with rehearsing() as rehearsed, tolerate(_QUORUM):
            async with scope("estimate", rooted=True):
                staged: Any = [_Staged(one) for one in optimizers]
                await train_step(agent, staged, [Fetched(0, batch, size, None)], StepEnd(), "the step")
    except Exception as error:  # a user's step may fail in any way on made-up replies
        notes.append(_note("training_step", error))
    finally:
        agent.__dict__.pop("_optimizers", None)
    return rehearsed.calls, size


async def _validate(agent: Module, batch: Any, notes: list[str]) -> tuple[list[Rehearsed], int]:
    """Return the calls of one validation batch, and its samples."""
    size = max(1, batch_size(batch))
    with rehearsing() as rehearsed, tolerate(_QUORUM), mode(False), no_grad():
        try:
            async with scope("estimate val", rooted=True):
                output, logged = await call_step(agent.validation_step, batch, 0)
                await read(taken_apart(output, logged, "validation_step"), size)
        except Exception as error:
            notes.append(_note("validation_step", error))
    return rehearsed.calls, size


class _Staged:
    """An optimizer that marks the calls of its step. Otherwise its evaluations would count as the samples' calls."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.clear_grad = optimizer.clear_grad
        self._step = optimizer.step

    def step(self) -> Any:
        token = stage.set(_STEP)
        try:
            return self._step()
        finally:
            stage.reset(token)


def _note(step: str, error: Exception) -> str:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    text = " ".join(str(error).split())
    return (
        f"{step} could not be rehearsed to its end, because made-up replies are no use to it "
        f"({type(error).__name__}: {text[:120]}); calls after that point are not counted."
    )


# From the calls of a batch to those of a training


async def _items(
    phase: str, calls: Sequence[Rehearsed], size: int, samples: int, steps: int
) -> list[EstimateItem]:
    """Group calls by purpose and model, and extrapolate from `size` rehearsed samples to `samples` and `steps`."""
    kinds: dict[tuple[str, str, Account], list[Rehearsed]] = defaultdict(list)
    for call in calls:
        if not _is_repair(call.purpose):  # made-up replies need more repairs than real ones
            own = call.stage == _STEP != call.purpose
            kinds[f"{_STEP} {call.purpose}" if own else call.purpose, call.model, call.account].append(call)
    items = []
    for (purpose, model, account), group in kinds.items():
        # A right answer gets no feedback, so it makes no backward calls; a step without feedback makes none at all.
        if group[0].stage == _STEP:
            low, high = 0, steps * len(group)
        elif group[0].purpose == "backward":
            # Count the calls of the sample with the most: some made-up answers may be right by chance.
            low, high = 0, samples * _longest(group)
        else:
            low = high = math.ceil(samples * len(group) / size)
        prompt = sum(call.prompt_tokens for call in group) / len(group)
        output = sum(call.output_tokens for call in group) / len(group)
        # Look up in a thread: the first look-up reads a file or imports a package.
        price = await anyio.to_thread.run_sync(price_of, model, account.url)
        at_once = group[0].stage == _STEP
        by_batch = (
            None if at_once else await anyio.to_thread.run_sync(price_of, model, at_tier(account.url, BATCH))
        )
        items.append(EstimateItem(phase, purpose, model, account, low, high, prompt, output, price, by_batch))
    return items


def _chain(calls: Sequence[Rehearsed]) -> tuple[int, int, int]:
    """Return how many calls of a batch wait for each other: forward, backward, and in the step.

    Calls of one sample are assumed to wait for each other, and those of a step if their purposes differ.
    """
    real = [call for call in calls if not _is_repair(call.purpose)]
    samples = [call for call in real if call.stage != _STEP]
    return (
        _longest([call for call in samples if call.purpose != "backward"]),
        _longest([call for call in samples if call.purpose == "backward"]),
        len({call.purpose for call in real if call.stage == _STEP}),
    )


def _longest(calls: Sequence[Rehearsed]) -> int:
    """Return the most calls that one sample made."""
    return max(Counter(call.lane for call in calls).values(), default=0)


def _is_repair(purpose: str) -> bool:
    return purpose.endswith("repair")


class _Workload(NamedTuple):
    """How much a training has to do: samples and steps over all epochs, samples over all validation passes."""

    epochs: int
    steps: int
    samples: int
    val_samples: int

    @classmethod
    def of(cls, options: TrainerOptions, train: Any, val: Any) -> _Workload:
        """Return what a fit has to do; one epoch, if neither epochs nor steps are limited."""
        schedule = Schedule(options, train, val)
        batches, val_batches = schedule.batches, schedule.val_batches
        if batches is None or (val is not None and val_batches is None):
            phase = "train" if batches is None else "val"
            raise ValueError(
                f"the {phase} loader must have a length (it has no __len__); add one, or limit_{phase}_batches=…"
            )
        steps = math.ceil(batches / options.accumulate_grad_batches)
        epochs, most = options.epochs, options.max_steps
        if epochs is None:
            epochs = 1 if most is None else math.ceil(most / max(steps, 1))
        taken = epochs * steps if most is None else min(most, epochs * steps)
        epochs = min(epochs, math.ceil(taken / max(steps, 1)))
        samples = batches if schedule.samples is None else schedule.samples
        val_samples = (val_batches or 0) if schedule.val_samples is None else schedule.val_samples
        passes = epochs * max(1, math.ceil(batches / (schedule.interval or batches or 1)))
        return cls(epochs, taken, math.ceil(samples * taken / max(steps, 1)), passes * val_samples)


def _first_batch(loader: Any) -> Any:
    """Return a batch as the loader would give it, and leave the loader as it was."""
    if isinstance(loader, Iterator):
        raise TypeError(
            f"an estimate needs a loader that can be iterated over twice (got {type(loader).__name__}); pass one, such "
            "as a DataLoader"
        )
    if isinstance(loader, DataLoader):
        dataset: Any = loader.dataset
        if isinstance(dataset, Sized) and hasattr(dataset, "__getitem__") and len(dataset):
            # Take samples from the whole dataset: the first ones may be unusually short or long.
            size = min(loader.batch_size or 1, len(dataset))
            return loader.collate_fn([dataset[number * len(dataset) // size] for number in range(size)])
    state = loader.state_dict() if hasattr(loader, "state_dict") else None
    for batch in loader:
        if state is not None:
            loader.load_state_dict(state)
        return batch
    raise ValueError(
        "an estimate needs a batch to look at (the loader gave none); pass a loader that isn't empty"
    )
