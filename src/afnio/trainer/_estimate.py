"""Estimate: what a training will ask for, found by rehearsing one batch with made-up replies."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence, Sized
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple, final

import anyio.to_thread
from rich import box
from rich.console import Console
from rich.table import Table

from afnio.autodiff._variable import no_grad
from afnio.cognitive._module import Module, mode
from afnio.models._client import Rehearsed, rehearsing, stage
from afnio.models._prices import price_of
from afnio.optim._optimizer import Optimizer
from afnio.runtime._callables import tolerate
from afnio.runtime._limits import Account, given_limits
from afnio.runtime._settings import seed_source
from afnio.runtime._spending import Price, cost
from afnio.runtime._waiting import scope
from afnio.runtime.events import Usage
from afnio.trainer._feed import Fetched, length, limited, sample_count
from afnio.trainer._options import TrainerOptions, batch_size, read, taken_apart
from afnio.trainer._progress import clock, money
from afnio.trainer._steps import StepEnd, call_step, settled, train_step
from afnio.utils.data._dataloader import DataLoader

MINUTE = 60.0


@final
@dataclass(frozen=True, slots=True)
class EstimateItem:
    """The calls of one kind: for the same purpose, to the same model of the same account.

    Attributes:
        phase: train, or val.
        low, high: calls of the whole training; low where every answer is right, high where every one is wrong.
        prompt_tokens, output_tokens: of one call, on average.
        price: None where nobody says.
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

    def usage(self, calls: int) -> Usage:
        return Usage(round(calls * self.prompt_tokens), round(calls * self.output_tokens))

    def cost(self, calls: int) -> Decimal | None:
        """Dollars of so many of these calls; None where the price is unknown."""
        return None if self.price is None else cost(self.price, self.usage(calls), max(calls, 1))


@final
@dataclass(frozen=True, slots=True)
class Estimate:
    """What a training asks for; nothing was called to find out. `str()` of it is a table.

    The low bound is that of a training in which every answer is right, so that nothing has to be made better;
    the high one that in which every answer is wrong. Retries come on top, and the thoughts of models that
    reason; a prompt that grows makes calls dearer. Tokens of prompts are counted by the clients
    (`ChatClient.count_tokens`), those of replies are a guess from what is usual.

    Attributes:
        steps: optimizer steps.
        chain: calls that have to wait for each other, from the first step to the last one.
        seconds_per_call: what the time is computed with.
        note: what couldn't be rehearsed, and why.
    """

    items: Sequence[EstimateItem]
    epochs: int
    steps: int
    chain: tuple[int, int]
    seconds_per_call: float
    note: str | None = None

    @property
    def calls(self) -> tuple[int, int]:
        """Low and high."""
        return sum(item.low for item in self.items), sum(item.high for item in self.items)

    @property
    def tokens(self) -> tuple[int, int]:
        """In and out together, low and high."""
        low = sum(item.usage(item.low).total_tokens for item in self.items)
        return low, sum(item.usage(item.high).total_tokens for item in self.items)

    @property
    def cost(self) -> tuple[Decimal, Decimal] | None:
        """Dollars, low and high; None where the price of a model is unknown."""
        low = [item.cost(item.low) for item in self.items]
        high = [item.cost(item.high) for item in self.items]
        known = [amount for amount in (*low, *high) if amount is not None]
        if len(known) < len(low) + len(high):
            return None
        return sum(known[: len(low)], Decimal(0)), sum(known[len(low) :], Decimal(0))

    @property
    def seconds(self) -> tuple[float, float]:
        """Low and high: the calls that wait for each other, or what the accounts' limits let through."""
        low, high = (
            max(
                length * self.seconds_per_call,
                *(self._throttled(account, high=high) for account in self._accounts()),
                0.0,
            )
            for length, high in zip(self.chain, (False, True), strict=True)
        )
        return low, high

    def _accounts(self) -> Iterable[Account]:
        return dict.fromkeys(item.account for item in self.items)

    def _throttled(self, account: Account, *, high: bool) -> float:
        """Return the seconds that an account's calls take because of its limits."""
        limits = given_limits(account)
        if limits is None:
            return 0.0
        calls = tokens = 0
        for item in self.items:
            if item.account == account:
                number = item.high if high else item.low
                calls += number
                tokens += item.usage(number).total_tokens
        times = [0.0]
        if limits.max_in_flight is not None:
            times.append(math.ceil(calls / limits.max_in_flight) * self.seconds_per_call)
        if limits.requests_per_minute is not None:
            times.append(calls / limits.requests_per_minute * MINUTE)
        if limits.tokens_per_minute is not None:
            times.append(tokens / limits.tokens_per_minute * MINUTE)
        return max(times)

    def table(self) -> Table:
        """Return the numbers as a table of rich's."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for name in ("phase", "model"):
            table.add_column(name, overflow="fold")
        for name in ("calls", "tokens in", "tokens out", "cost"):
            table.add_column(name, justify="right", overflow="fold")
        for item in self.items:
            low, high = item.usage(item.low), item.usage(item.high)
            table.add_row(
                f"{item.phase} {item.purpose}",
                item.model,
                _span(item.low, item.high),
                _span(low.prompt_tokens, high.prompt_tokens),
                _span(low.completion_tokens, high.completion_tokens),
                _dollars(item.cost(item.low), item.cost(item.high)),
            )
        total = self.cost
        low, high = (sum((item.usage(n) for item, n in self._numbers(end)), Usage()) for end in (0, 1))
        table.add_row(
            "all",
            "",
            _span(*self.calls),
            _span(low.prompt_tokens, high.prompt_tokens),
            _span(low.completion_tokens, high.completion_tokens),
            "unknown" if total is None else _dollars(*total),
            style="bold",
        )
        return table

    def _numbers(self, end: int) -> list[tuple[EstimateItem, int]]:
        return [(item, (item.low, item.high)[end]) for item in self.items]

    def __str__(self) -> str:
        text = io.StringIO()
        Console(file=text, width=110, color_system=None, highlight=False).print(self.table())
        low, high = map(clock, self.seconds)
        time = low if low == high else f"{low} to {high}"
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs:,} epochs"
        lines = [
            *(line.rstrip() for line in text.getvalue().splitlines()),
            f"{epochs}, {self.steps:,} steps, {time} at {self.seconds_per_call:g} s a call.",
            "Low: every answer is right. High: every answer is wrong. Retries and thoughts come on top.",
            *([] if self.note is None else [self.note]),
        ]
        return "\n".join(lines)


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _dollars(low: Decimal | None, high: Decimal | None) -> str:
    if low is None or high is None:
        return "unknown"
    return money(low) if low == high else f"{money(low)} to {money(high)}"


# Rehearse: one batch of a training without a call, and what the whole training comes to by it.


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
    options: TrainerOptions,
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
    before = [(p, p.own_slots, list(p.pending_gradients)) for p in agent.parameters()]
    try:
        yield
    finally:
        await settled(agent)
        for parameter, slots, segments in before:
            if not parameter.batch:  # no optimizer takes a batch
                parameter.advance(slots[0])
            parameter.clear_grad()
            parameter.pending_gradients.extend(segments)


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


async def _items(
    phase: str, calls: Sequence[Rehearsed], size: int, samples: int, steps: int
) -> list[EstimateItem]:
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
        items.append(EstimateItem(*kind, low, high, prompt, output, price))
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


# Workload: how much a training has to do, as far as its loaders and limits say.


class Workload(NamedTuple):
    """What there is to do.

    Attributes:
        samples: that are trained on, over all epochs.
        val_samples: that are validated on, over all passes.
    """

    epochs: int
    samples: int
    steps: int
    val_samples: int
    val_passes: int

    @classmethod
    def of(cls, options: TrainerOptions, train: Any, val: Any) -> Workload:
        """Return what a fit has to do; without a limit of epochs or steps, in one epoch.

        Raises:
            ValueError: for a loader that doesn't say how much it holds.
        """
        batches, samples = _extent("train", options, train)
        steps = math.ceil(batches / options.accumulate_grad_batches)
        epochs, total = options.epochs, options.max_steps
        if epochs is None:
            epochs = 1 if total is None else math.ceil(total / max(steps, 1))
        whole = epochs * steps
        taken = whole if total is None else min(total, whole)
        epochs = min(epochs, math.ceil(taken / max(steps, 1)))
        trained = math.ceil(samples * taken / max(steps, 1))
        if val is None:
            return cls(epochs, trained, taken, 0, 0)
        _, val_samples = _extent("val", options, val)
        passes = epochs * _passes(options.val_check_interval, batches) if val_samples else 0
        return cls(epochs, trained, taken, passes * val_samples, passes)


def _extent(phase: str, options: TrainerOptions, loader: Any) -> tuple[int, int]:
    """Return the batches and samples of one go through a loader."""
    name = f"limit_{phase}_batches"
    batches = limited(length(loader), options.limit(phase), name)
    if batches is None:
        raise ValueError(
            f"the {phase} loader doesn't say how many batches it has; give it a __len__, or {name}=…"
        )
    samples = sample_count(loader, batches)
    return batches, batches if samples is None else samples


def _passes(interval: float, batches: int) -> int:
    """Return the validation passes of an epoch: one at its end, and those within it."""
    if isinstance(interval, float):
        if interval == 1.0:
            return 1
        interval = max(1, math.floor(batches * interval))
    return max(1, math.ceil(batches / interval))


def first_batch(loader: Any) -> Any:
    """Return a batch as the loader would give it, and leave the loader as it is.

    Raises:
        TypeError: for an iterator, of which what is looked at would be gone.
        ValueError: for a loader without a batch.
    """
    if isinstance(loader, Iterator):
        raise TypeError(
            f"an estimate looks at one batch, which {type(loader).__name__} can give only once; pass a loader "
            "that can be iterated again, such as a DataLoader"
        )
    if isinstance(loader, DataLoader):
        dataset: Any = loader.dataset
        if isinstance(dataset, Sized) and hasattr(dataset, "__getitem__") and len(dataset):
            # From all over it: what comes first may be short or long.
            size = min(loader.batch_size or 1, len(dataset))
            return loader.collate_fn([dataset[number * len(dataset) // size] for number in range(size)])
    state = loader.state_dict() if hasattr(loader, "state_dict") else None
    for batch in loader:
        if state is not None:
            loader.load_state_dict(state)
        return batch
    raise ValueError("the loader gave no batch; an estimate needs one to look at")
