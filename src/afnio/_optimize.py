"""optimize: from an agent, rows and a metric to better prompts, and a verdict on whether they are.

It is the engine's front door: everything here is put together from parts that can be used alone. In order:

1. `optimize` checks its arguments at the caller's line. `Optimization` is the rest.
2. The rows are split (`_rows`). The start prompts are scored on the watched rows, eight rows first: an agent that
   crashes, a metric that returns a text, a model without a price and a budget that is too small all show up there,
   before the first critic is paid.
3. The Trainer trains with `optimizer_for`, round after round. Its budget is what the user gives, less what the looks
   at the gate's and the test rows will cost. After each round the watched rows are scored: that is when it stops, and
   which round's prompts are kept.
4. `beats` decides once, on the gate's rows, if these are better than the start prompts.
5. Both are scored on the test rows, side by side, once. `Result` says what came out.

The whole runs inside a run of `te.init` that is recognized by its data (rows, prompts, critic, seed), not by the
program. A process that was killed is started again and continues, because the run's journal has every reply that was
paid for; one that had finished gets its result from the run.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from types import CodeType
from typing import Any, Final, Literal, cast, final

import anyio
import anyio.to_thread

from afnio import cognitive as cog
from afnio._result import Example, Gain, Result, from_json, score_of, to_json, untested, verdict_of
from afnio._rows import LEAST, Row, digest, in_words, read_rows, split_rows
from afnio._subject import (
    QUORUM,
    Scored,
    Scoring,
    Subject,
    paired,
    wanted_by,
)
from afnio.errors import (
    BudgetExceeded,
    UnknownPriceError,
)
from afnio.models._backward_model import chat_model, set_backward_model_client
from afnio.models._client import ChatClient, ChatModel
from afnio.models._prices import earlier_ledger, price_of
from afnio.optim import TGD, Optimizer
from afnio.optim.search._races import p_value
from afnio.runtime._budget import Budget
from afnio.runtime._spending import Amount
from afnio.runtime._waiting import active_journal, may_block
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._run import Run, init
from afnio.tellurio._store import store_path
from afnio.trainer._callbacks import Callback
from afnio.trainer._checkpoints import Plan
from afnio.trainer._progress import Progress
from afnio.trainer._steps import run_blocking
from afnio.trainer._trainer import Trainer
from afnio.utils.data import DataLoader
from afnio.utils.data._sampler import RandomSampler

NAMESPACE: Final = "optimize"
BATCH: Final = 8
"""Rows of a step. Small steps win at equal calls: a proposer that sees many mistakes writes about all of them."""
ROUND: Final = 64
"""Rows between two looks at the watched rows."""
SPARE: Final = 1.1
"""Looks are reserved with this factor, because calls are retried and replies vary in length."""
GATE_LEVEL: Final = 0.25
FEW_LEVEL: Final = 0.5
"""The gate's level with at least `LEAST` rows, and below that. A strict gate refuses good prompts on few rows."""
_RESULT: Final = "OptimizeResult"
FIRST: Final = "run/first"
"""The address of the first look at eight rows, by which the cost of a row is measured."""


def optimize(
    agent: Callable[..., Any] | cog.Module,
    rows: Sequence[Any],
    metric: Callable[..., Any],
    *,
    prompts: Mapping[str, str] | None = None,
    critic: str | tuple[ChatClient, Any] | ChatModel,
    budget: float | Budget,
    testset: Sequence[Any] | None = None,
    valset: Sequence[Any] | None = None,
    name: str | None = None,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 (as in te.init)
    seed: int | None = None,
    patience: int = 3,
    perfect: float = 1.0,
) -> Result:
    """Improve an agent's prompts on rows of data, and measure by how much.

    In a script, a thread or a notebook it returns when it is done. In an async app, on asyncio or trio, write
    `await afnio.optimize(…)`.

    From 96 rows on 40 % train, 30 % choose and 30 % test, at least 32 each. With 20 to 95 rows half train and half
    choose; nothing is left to test on, so no gain is claimed. The test rows are used once, at the end, for the old and
    the new prompts side by side.

    The first Ctrl-C ends the training: what was learned so far is tested and returned. The second one stops at once.
    A process that was stopped or killed continues if the same call is made again, and pays for no reply twice. If that
    call had finished, its result is returned from the run. Rows, prompts, critic, seed and `name` say which call is
    the same; to start anew, give another `seed` or `name`.

    Args:
        agent: a function, `def` or `async def`, that is called once a row with the row's inputs and, by name, the
            prompts. Or a Module, called once a batch; its Parameters are the prompts. It isn't changed:
            `result.agent` is the better one.
        rows: `(inputs, expected)` each, or dicts with "inputs" and "expected" (MLflow's "expectations" will do), or
            dicts of inputs with the key "expected". Inputs are one value, or a dict of arguments by name.
        metric: `metric(output, expected)`; if it has parameters of these names it also gets the row's `inputs`, and
            `trace`, the list of the model calls behind the output. Returns True or False, a number, or
            `(score, feedback)` with a sentence for the critic; larger is better. `def` or `async def`.
        prompts: the function's prompts by name.
        critic: the model that reads mistakes and rewrites prompts: "openai/gpt-5", or `(client, model)`.
        budget: the most to spend: dollars, or `afnio.budget(max_calls=…)` and so on. It pays for everything, the test
            included.
        testset, valset: rows for the test and the choice, in place of parts of `rows`.
        name: of the project in the store; by default the function's or the class's name.
        dir: the folder of the store; `.afnio` by default.
        seed: of the splits and the order of the rows.
        patience: end the training after this number of rounds (64 rows) without a better score on the watched rows.
        perfect: the score that makes a row right. A right row is never criticized.

    Raises:
        TypeError, ValueError: for arguments that can't work, before the first call; for a metric that returns a text or
            NaN (`MetricError`), with its row; for a budget that can't pay for the looks and one step, with the sum.
        BatchError: if more than a tenth of the rows crash.
        UnknownPriceError: if dollars are limited and a model has no price.

    >>> import afnio, tempfile
    >>> from afnio.testing import ScriptedClient
    >>> client = ScriptedClient({"value": "Say hi.", "feedback": [{"variable": "v1", "text": "Say hi."}]})
    >>> async def greet(name, system):
    ...     return "hi" if system == "Say hi." else "hello"
    >>> rows = [(f"Ann {number}", "hi") for number in range(96)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = optimize(greet, rows, lambda output, expected: output == expected, prompts={"system": "Greet."},
    ...                       critic=(client, "any"), budget=afnio.budget(max_calls=500), dir=folder)
    >>> result.prompts, result.verdict
    ({'system': 'Say hi.'}, 'Better: +100.0 points (95 %: 82.8 to 100.0) on 32 test rows.')
    """
    task = Optimization(
        Subject.of(agent, prompts, wanted_by(metric)),
        metric,
        rows=rows,
        valset=valset,
        testset=testset,
        critic=critic_of(critic),
        budget=budget_of(budget),
        name=name,
        folder=dir,
        seed=0 if seed is None else seed,
        patience=patience,
        perfect=perfect,
    )
    if may_block():
        return run_blocking(task.run, "optimize", gently=task.stop)
    return cast("Result", Unawaited(task.run, "optimize"))


@final
class Unawaited:
    """What `optimize` and `headroom` return on a running event loop: await it."""

    def __init__(self, run: Callable[[], Any], function: str) -> None:
        self._run = run
        self._function = function

    def __await__(self) -> Generator[Any, None, Any]:
        return cast("Generator[Any, None, Any]", self._run().__await__())

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"afnio.{self._function}(…) must be awaited on an event loop before .{name} can be read; write "
            f"`result = await afnio.{self._function}(…)`"
        )


def critic_of(given: Any) -> ChatModel:
    if isinstance(given, ChatModel):
        return given
    client, arguments = given, None
    if isinstance(given, tuple):
        if len(given) != 2 or not isinstance(given[0], ChatClient):
            raise TypeError(f'critic must be "provider/model" or (client, model) (got {given!r})')
        client, arguments = given
        arguments = {"model": arguments} if isinstance(arguments, str) else dict(arguments)
    return chat_model(client, {}, arguments or {})


def budget_of(given: Any) -> Budget:
    if isinstance(given, Budget):
        return given
    if isinstance(given, bool) or not isinstance(given, int | float | Decimal) or not given > 0:
        raise TypeError(
            f"budget must be dollars above 0 or afnio.budget(max_calls=…) and so on (got {given!r})"
        )
    return Budget(max_cost=given)


# The optimizer: one function to replace


def optimizer_for(subject: Subject, critic: ChatModel) -> Optimizer:
    """Return the optimizer of `subject`'s prompts: small steps, limited in length."""
    groups = [
        {
            "params": [parameter],
            "constraints": [f"Use at most {subject.limits[name]} characters."],
        }
        for name, parameter in subject.parameters.items()
    ]
    return TGD(groups, model_client=critic.client, **critic.completion_args)


def beats(before: Sequence[float], after: Sequence[float]) -> bool:
    """Return True if `after` is better than `before`, by a one-sided sign-flip test on the gate's rows.

    It is the only test that decides about the result, so nothing has to be corrected for the candidates tried before.
    """
    pairs = [new - old for old, new in zip(before, after, strict=True)]
    level = GATE_LEVEL if len(pairs) >= LEAST else FEW_LEVEL
    return sum(pairs) > 0 and p_value(pairs) <= level


# The optimization


class Learner(cog.Module):
    """The subject in the form that the Trainer trains."""

    def __init__(self, task: Optimization) -> None:
        super().__init__()
        self.subject = task.subject.module
        object.__setattr__(self, "_task", task)

    async def training_step(self, batch: list[Row], batch_idx: int) -> Any:
        evaluation, _ = await self._task.evaluated(batch)
        return evaluation

    validation_step = training_step

    def configure_optimizers(self) -> Optimizer:
        return optimizer_for(self._task.subject, self._task.critic)


@final
class Optimization(Scoring):
    """One optimization. `run` it once; `stop` ends the training early, from any thread."""

    def __init__(
        self,
        subject: Subject,
        metric: Callable[..., Any],
        *,
        rows: Any,
        valset: Any,
        testset: Any,
        critic: ChatModel,
        budget: Budget,
        name: str | None,
        folder: str | os.PathLike[str] | None,
        seed: int,
        patience: int,
        perfect: float,
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed must be a whole number (got {seed!r})")
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be a number of rounds, 1 or more (got {patience!r})")
        super().__init__(subject, metric, perfect)
        data, chosen, tested = (
            read_rows(one or (), part)
            for one, part in ((rows, "rows"), (valset, "valset"), (testset, "testset"))
        )
        given = (data, chosen, tested)
        for part in given:
            if part:
                subject.check(part[0])
        self.critic, self.budget = critic, budget
        self.patience, self.seed, self.folder = patience, seed, folder
        self.splits = split_rows(data, chosen, tested, seed)
        self.start = subject.texts
        self.project = name or subject.title
        self.store = store_path(NAMESPACE, self.project, folder)
        self.identity = digest(
            [[(row.args, row.kwargs, row.expected) for row in part] for part in given],
            self.start,
            [critic.client.account.url, critic.completion_args],
            seed,
        )
        caps = budget.caps
        self.settings = {
            "budget": [
                caps.calls,
                caps.tokens,
                None if caps.cost is None else str(caps.cost),
                budget.max_seconds,
            ],
            "patience": patience,
            "perfect": perfect,
            "code": [code_digest(subject.function), code_digest(metric)],
        }
        self.asked: str | None = None
        self.spent_before = budget.ledger.total.amount  # by whatever else the budget is for
        self._check_minimum(1)

    def stop(self) -> None:
        """End the training after the current step."""
        if self.asked is None:
            self.asked = "Ctrl-C"
            with suppress(OSError, ValueError, AttributeError):  # standard error is closed or missing
                sys.stderr.write(
                    "afnio: the training ends after this step, then the test follows; Ctrl-C again stops\n"
                )

    # The run

    async def run(self) -> Result:
        """Optimize, or continue or return what an earlier call of the same did."""
        earlier = await anyio.to_thread.run_sync(Earlier.find, self.store, self.identity, self.settings)
        if earlier.result is not None:
            sys.stderr.write(
                f"afnio: optimize returns the result of {earlier.when}; another seed or name starts anew\n"
            )
            return from_json(earlier.result, home=self._home, make_agent=self.subject.restored)
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            run = await anyio.to_thread.run_sync(self._begin, earlier.run)
            run.continued_by = "the same call of optimize"
            await stack.enter_async_context(run)
            stack.enter_context(
                set_backward_model_client(self.critic.client, completion_args=self.critic.completion_args)
            )
            stack.enter_context(self.bridge())
            spending = stack.enter_context(Budget())
            stack.enter_context(self.budget)
            if run.journal is not None:
                ledger = await anyio.to_thread.run_sync(earlier_ledger, run.journal)
                for budget in (spending, self.budget):
                    if not budget.has_charged(run.journal):
                        budget.charge(ledger, run.journal)
            result = await self._optimized(run, spending, started)
            await anyio.to_thread.run_sync(self._keep, run, result)
        return result

    @property
    def _home(self) -> str:
        return str(self.store.parent.parent)

    def _begin(self, run_id: str | None) -> Run:
        about = {"identity": self.identity, "settings": self.settings, "agent": self.subject.title}
        return init(NAMESPACE, self.project, config=about, dir=self.folder, resume=run_id or False)

    def _keep(self, run: Run, result: Result) -> None:
        run.record(_RESULT, to_json(result))
        run.flush()

    # The story

    async def _optimized(self, run: Run, spending: Budget, started: float) -> Result:
        watched, measured = await self._first_look(run)
        rounds = Rounds(self, watched.mean)
        await self._train(rounds, measured, time.monotonic() - started)
        chosen = self.start
        gate: tuple[Scored, ...] = ()
        looked: tuple[Scored, ...] = ()
        try:
            chosen, gate = await self._gated(rounds)
            looked = await self._looked(chosen, gate)
        except BudgetExceeded as error:  # a look cost more than was reserved for it
            rounds.ended = f"the budget ended before the test ({error.limit})"
        return self._result(run, spending, rounds, chosen, looked, started)

    async def _first_look(self, run: Run) -> tuple[Scored, Amount]:
        """Score the start prompts on the watched rows, a batch first. Returns also what a row costs."""
        watch, first = self.splits.watch, self.splits.watch[:BATCH]
        await anyio.to_thread.run_sync(
            self._check_price, self.critic.completion_args.get("model"), self.critic.client
        )
        try:
            scores = (await self.scored("first", first, self.start))[0]
        except UnknownPriceError as error:
            raise UnknownPriceError(f"{error}; or give budget=afnio.budget(max_calls=…)") from None
        except BudgetExceeded as error:
            raise ValueError(f"budget must pay for more than the first {len(first)} rows ({error})") from None
        measured = await anyio.to_thread.run_sync(self._measured, run, len(first))
        self._check_budget(measured)
        rest = (await self.scored("start", watch[BATCH:], self.start))[0] if watch[BATCH:] else Scored()
        return Scored([*scores.scores, *rest.scores], [*scores.outputs, *rest.outputs]), measured

    def _measured(self, run: Run, rows: int) -> Amount:
        """Return what one of the first `rows` rows cost. Its parts may be fractions.

        It is read from the run's store, because the budgets of a continued run also count what the earlier processes
        spent on the training.
        """
        run.flush()
        with StoreReader(self.store) as reader:
            calls = reader.calls(run.id, node=FIRST, limit=1_000_000)
        tokens = sum(call.prompt_tokens + call.completion_tokens for call in calls)
        cost = sum((Decimal(str(call.cost or 0)) for call in calls), Decimal(0))
        return Amount(sum(call.attempts for call in calls) / rows, tokens / rows, cost / rows)  # type: ignore[arg-type]

    async def _train(self, rounds: Rounds, measured: Amount, gone: float) -> None:
        """Train on what the looks leave of the budget.

        Args:
            gone: seconds since the start, which the first look took.
        """
        if self.asked is not None:
            rounds.ended = self.asked
            return
        caps, looks, seconds = self.budget.caps, self._reserve(measured), self.budget.max_seconds
        if seconds is not None:
            # The looks may take as long as the first one by row if quota is short, but half of what is left at most.
            rows = 2 * (len(self.splits.gate) + len(self.splits.test)) / len(self.splits.watch)
            seconds = max(0.0, seconds - gone - min(rows * gone, (seconds - gone) / 2))
        inner = Budget(
            max_calls=None if caps.calls is None else max(0, caps.calls - looks.calls),
            max_tokens=None if caps.tokens is None else max(0, caps.tokens - looks.tokens),
            max_cost=None if caps.cost is None else max(Decimal(0), caps.cost - looks.cost),
            max_seconds=seconds,
        )
        inner.charge(self.budget.ledger, active_journal.get())
        train = self.splits.train
        trainer = Trainer(
            max_epochs=-1,
            quorum=QUORUM,
            enable_checkpointing=False,
            enable_agent_summary=False,
            callbacks=rounds,
        )
        sampler = RandomSampler(train, num_samples=min(ROUND, len(train)), seed=self.seed)
        with inner:
            await trainer.afit(
                type(self.subject.title, (Learner,), {})(self),  # the name that the progress shows
                DataLoader(train, sampler=sampler, batch_size=BATCH, collate_fn=list),
                DataLoader(self.splits.watch, batch_size=len(self.splits.watch), collate_fn=list),
            )
        rounds.steps = trainer.global_step
        rounds.ended = rounds.ended or "the budget for training is used up"
        rounds.take(self.subject.texts)

    async def _gated(self, rounds: Rounds) -> tuple[dict[str, str], tuple[Scored, ...]]:
        """Return the prompts to test, and the scores of both on the gate's rows if they were compared."""
        candidate = rounds.candidate
        if candidate is None or candidate == self.start:
            return self.start, ()
        with shown("validate", 2 * len(self.splits.gate)):
            old, new = await self.scored("gate", self.splits.gate, self.start, candidate)
        before, after = paired(old, new)
        return (candidate if beats(before, after) else self.start), (old, new)

    async def _looked(self, chosen: Mapping[str, str], gate: tuple[Scored, ...]) -> tuple[Scored, ...]:
        """Return the scores of the last look: of the start prompts, and of the chosen ones if they are others."""
        versions = [self.start] if chosen == self.start else [self.start, chosen]
        if gate and not self.splits.test:
            return gate[: len(versions)]
        name, rows = ("test", self.splits.test) if self.splits.test else ("gate", self.splits.gate)
        with shown("test", len(versions) * len(rows)):
            return tuple(await self.scored(name, rows, *versions))

    def _result(
        self,
        run: Run,
        spending: Budget,
        rounds: Rounds,
        chosen: Mapping[str, str],
        looked: tuple[Scored, ...],
        started: float,
    ) -> Result:
        rows = self.splits.test or self.splits.gate
        before, after = paired(looked[0], looked[-1]) if looked else ([], [])
        graded = any(score not in (0, 1) for score in (*before, *after))
        first, last = score_of(before, graded=graded), score_of(after, graded=graded)
        gain = None
        changed = len(looked) == 2
        if changed and self.splits.test:
            gain = Gain.of(before, after, graded=graded)
        kept = dict(chosen) != self.start and (gain is None or gain.difference > 0)
        on = f"{len(before)} {'test' if self.splits.test else 'validation'} rows"
        spent = spending.ledger.total
        return Result(
            verdict=verdict_of(first, last, gain, changed=changed, kept=kept, on=on)
            if looked
            else untested(kept),
            prompts=dict(chosen) if kept else dict(self.start),
            start=dict(self.start),
            before=first if looked else None,
            after=last if looked else None,
            gain=gain,
            on=on,
            failed=len(rows) - len(before) if looked else 0,
            stopped=rounds.ended or "",
            steps=rounds.steps,
            calls=spent.calls,
            tokens=spent.amount.tokens,
            cost=None if spent.cost is None else float(spent.cost),
            minutes=(time.monotonic() - started) / 60,
            run=f"{run.namespace}/{run.project}/{run.name}",
            home=self._home,
            splits={part: len(getattr(self.splits, part)) for part in ("train", "watch", "gate", "test")},
            examples=_examples(rows, looked) if looked else (),
            make_agent=self.subject.restored,
        )

    # Money

    def _sizes(self) -> dict[str, int]:
        """Return how many rows are scored, by what for, if everything is done once."""
        return {
            "to watch": 2 * len(self.splits.watch),
            "to choose": 2 * len(self.splits.gate),
            "to test": 2 * len(self.splits.test),
        }

    def _check_minimum(self, calls: float) -> None:
        """Raise if the budget's calls can't pay for the looks and one step at so many calls a row."""
        most = self.budget.caps.calls
        if most is not None:
            most -= self.spent_before.calls
        sizes = {part: math.ceil(number * calls) for part, number in self._sizes().items() if number}
        step = math.ceil(BATCH * calls) + BATCH + len(self.subject.parameters)
        needed = sum(sizes.values()) + step
        if most is not None and most < needed:
            parts = ", ".join(f"{number} {part}" for part, number in sizes.items())
            raise ValueError(
                f"budget must pay for at least {needed} calls (got {most}): {parts}, and {step} for one "
                "step; give more, or fewer rows"
            )

    def _check_budget(self, measured: Amount) -> None:
        """Raise if the budget can't pay for the looks and one step, now that it is known what a row costs."""
        self._check_minimum(max(1.0, measured.calls))
        caps, before = self.budget.caps, self.spent_before
        rows = sum(self._sizes().values()) + 2 * BATCH
        tokens, cost = before.tokens + math.ceil(rows * measured.tokens), before.cost + rows * measured.cost
        if caps.tokens is not None and caps.tokens < tokens:
            raise ValueError(
                f"budget must pay for at least {tokens:,} tokens (got max_tokens={caps.tokens:,}): a row takes "
                f"{measured.tokens:,.0f}, and {rows} are needed to watch, choose, test and make one step; give "
                "more, or fewer rows"
            )
        if caps.cost is not None and caps.cost < cost:
            raise ValueError(
                f"budget must be at least ${cost:.4f} (got ${caps.cost:.4f}): a row costs ${measured.cost:.6f}, and "
                f"{rows} are needed to watch, choose, test and make one step; give more, or fewer rows"
            )

    def _reserve(self, measured: Amount) -> Amount:
        """Return what the looks at the gate's and the test rows may cost."""
        rows = 2 * (len(self.splits.gate) + len(self.splits.test))
        # The new prompts may be longer than the old ones that were measured, in each call.
        longer = sum(self.subject.limits[name] - len(text) for name, text in self.start.items()) / 4
        growth = 1 + max(0.0, longer) * measured.calls / max(1, measured.tokens) / 2
        return Amount(
            math.ceil(rows * measured.calls * SPARE),
            math.ceil(rows * measured.tokens * SPARE * growth),
            rows * measured.cost * Decimal(SPARE * growth),
        )

    def _check_price(self, model: Any, client: ChatClient) -> None:
        if self.budget.caps.cost is None or price_of(str(model), client.account.url) is not None:
            return
        raise UnknownPriceError(
            f"budget=${self.budget.caps.cost} needs the price of {model!r} at {client.account.url}, which is unknown; "
            "give budget=afnio.budget(max_calls=…), or write the price into ~/.config/afnio/prices.toml"
        )


@final
class Rounds(Callback):
    """Keeps the prompts of the round that did best on the watched rows, and ends the training after too many others.

    Attributes:
        candidate: the prompts to bring before the gate, or None if no round reached the start prompts' score.
        ended: why the training ended.
        steps: optimizer steps.
    """

    needs_validation = True
    critical = True

    def __init__(self, task: Optimization, score: float) -> None:
        self.candidate: dict[str, str] | None = None
        self.ended: str | None = None
        self.steps = 0
        self._task = task
        self._best = score
        self._waited = 0

    def on_train_batch_end(
        self, trainer: Trainer, agent: Any, metrics: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._task.asked is not None:
            self._end(trainer, self._task.asked)

    def on_validation_end(self, trainer: Trainer, agent: Any) -> None:
        score = trainer.metrics.get("val_loss", -math.inf)
        if score > self._best or (score == self._best and self.candidate is None):
            self._waited = 0 if score > self._best else self._waited + 1
            self._best, self.candidate = score, self._task.subject.texts
        else:
            self._waited += 1
        if self._waited >= self._task.patience:
            self._end(trainer, f"no gain in {self._waited} rounds")
        if min(score, trainer.metrics.get("train_loss", -math.inf)) >= self._task.perfect:
            self._end(trainer, "no mistakes are left to learn from")
        if self._task.asked is not None:
            self._end(trainer, self._task.asked)

    def take(self, texts: dict[str, str]) -> None:
        """Take the last prompts if the training ended before the first round did."""
        if self.candidate is None and self._waited == 0:
            self.candidate = texts

    def _end(self, trainer: Trainer, why: str) -> None:
        self.ended = self.ended or why
        trainer.stop(why)


@contextmanager
def shown(stage: Literal["validate", "test"], samples: int) -> Iterator[None]:
    """Show the progress of a look, as the Trainer's is shown."""
    progress = Progress()
    progress.start(Plan(stage, "old and new prompts", samples=samples))
    try:
        yield
    finally:
        progress.stop()


def _examples(rows: Sequence[Row], looked: tuple[Scored, ...]) -> list[Example]:
    old, new = looked[0], looked[1] if len(looked) == 2 else None
    return [
        Example(
            row.number,
            row.text,
            in_words(row.expected),
            (old.outputs[place], None if new is None else new.outputs[place]),
            (old.scores[place], None if new is None else new.scores[place]),
        )
        for place, row in enumerate(rows)
    ]


# Earlier runs of the same


@final
@dataclass(frozen=True, slots=True)
class Earlier:
    """What the store has of an earlier call with the same data.

    Attributes:
        run: the id of an unfinished run to continue, or None.
        result: the result of a finished run with the same settings, or None.
        when: when that one ended.
    """

    run: str | None = None
    result: Mapping[str, Any] | None = None
    when: str = ""

    @classmethod
    def find(cls, store: Any, identity: str, settings: Mapping[str, Any]) -> Earlier:
        if not store.exists():
            return cls()
        with StoreReader(store) as reader:
            for run in reader.runs():
                config = run.config if isinstance(run.config, dict) else {}
                if config.get("identity") != identity or run.status == "RUNNING":
                    continue
                kept = [
                    json.loads(row["payload"])
                    for row in reader.rows("events", run.id)
                    if row["kind"] == _RESULT
                ]
                when = f"{datetime.fromtimestamp(run.date_updated, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
                if run.status == "COMPLETED":
                    same = config.get("settings") == json.loads(json.dumps(settings))
                    return cls(result=kept[-1], when=when) if same and kept else cls()
                return cls(run.id)
        return cls()


def code_digest(function: Any) -> str:
    """Return a digest of what a function does: its code without names of files and numbers of lines.

    A finished result isn't returned for a function that was changed since. An unfinished run continues with it.
    """
    function = inspect.unwrap(function) if callable(function) else function
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    return "" if code is None else digest(_parts(code))


def _parts(code: CodeType) -> list[Any]:
    constants = [_parts(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _constant(value: Any) -> Any:
    # The order of a set of texts differs from process to process.
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)
