"""optimize: from an agent, rows and a metric to better prompts, and a verdict on whether they are.

It is the engine's front door: everything here is put together from parts that can be used alone. In order:

1. `optimize` checks its arguments at the caller's line. `Optimization` is the rest.
2. The rows are split (`_rows`). The start prompts are scored on eight training rows: an agent that crashes, a metric
   that returns a text, a model without a price and a budget that is too small all show up there, before the first
   critic is paid.
3. `headroom=True` runs the headroom test (`_headroom`) on training rows.
4. `optim.EditTGD` trains: chains of small steps, raced on fresh training rows. Its budget is what the user gives, less
   what the looks at the gate's and the test rows will cost.
5. `optim.Gate` decides once, on rows that nothing else saw, if the result is better than the start prompts.
6. Both are scored on the test rows, side by side, once. `Result` says what came out.

The whole runs inside a run of `te.init` that is recognized by its data (rows, prompts, critic, seed), not by the
program. A process that was killed is started again and continues, because the run's journal has every reply that was
paid for; one that had finished gets its result from the run. What depends on spending is decided by `CallCount`, which
counts a reply from the journal like one from the wire, so that a continued run decides the same.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from types import CodeType
from typing import Any, Final, Literal, cast, final

import anyio
import anyio.to_thread

from afnio import cognitive as cog
from afnio._statistics import Scores, differences
from afnio.autodiff._variable import Variable
from afnio.cognitive._module import mode
from afnio.errors import BudgetExceeded, UnknownPriceError
from afnio.models._backward_model import set_backward_model_client
from afnio.models._client import ChatClient, ChatModel
from afnio.models._prices import earlier_ledger, price_of
from afnio.optim import EditTGD, Gate, Optimizer
from afnio.optim._gate import ENOUGH, FEWEST, SHARE, WIDE_SHARE, GateVerdict
from afnio.optim.search._chain_state import CLEAR
from afnio.optim.search._sizes import SHARE as STEP_SHARE
from afnio.optim.search._sizes import WIDE, SampleCost, Sizes, affordable
from afnio.optim.search._sizes import WIDE_SHARE as WIDE_STEP_SHARE
from afnio.runtime._blocking import run_blocking
from afnio.runtime._budget import Budget
from afnio.runtime._callables import may_fail, tolerate
from afnio.runtime._spending import Amount, Ledger
from afnio.runtime._waiting import active_journal, may_block
from afnio.runtime.events import StepEnded, subscribed
from afnio.studies._headroom import HeadroomTest
from afnio.studies._result import (
    Example,
    Gain,
    Headroom,
    Result,
    from_json,
    score_of,
    to_json,
    untested,
    verdict_of,
)
from afnio.studies._rows import Row, digest, in_words, read_rows, split_rows
from afnio.studies._subject import (
    MOST_CHARACTERS,
    QUORUM,
    CallCount,
    Scored,
    Scoring,
    Subject,
    Unawaited,
    budget_of,
    check_crashes,
    critic_of,
    dearer,
    paired,
    seed_of,
    wanted_by,
)
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._run import Run, init
from afnio.tellurio._store import store_path
from afnio.trainer._callbacks import StopTraining
from afnio.trainer._checkpoints import Plan
from afnio.trainer._progress import Progress
from afnio.trainer._trainer import Trainer
from afnio.utils.data import DataLoader

NAMESPACE: Final = "optimize"
FIRST: Final = 8
"""Rows of the first look, which shows what a row costs."""
SPARE: Final = 1.1
"""Looks are reserved with this factor, because calls are retried and replies vary in length."""
TENTH: Final = 10
"""The headroom test may take one part in so many of the budget."""
_RESULT: Final = "OptimizeResult"


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
    headroom: bool = False,
) -> Result:
    """Improve an agent's prompts on rows of data, and measure by how much.

    In a script, a thread or a notebook it returns when it is done. In an async app, on asyncio or trio, write
    `await afnio.optimize(…)`.

    It trains with `optim.EditTGD`: chains of small steps side by side, raced on fresh rows, with prompts of 1,000
    characters at most, or of their first length if that is more. `optim.Gate` then decides, on rows that nothing else
    saw, if the result replaces the start prompts.

    From 96 rows on half of them train, 20 % are the gate's and 30 % test, at least 32 each of these two. With 20 to 95
    rows half train and half are the gate's; nothing is left to test on, so no gain is claimed. The test rows are used
    once, at the end, for the old and the new prompts side by side.

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
        testset, valset: rows for the test and the gate, in place of parts of `rows`.
        name: of the project in the store; by default the function's or the class's name.
        dir: the folder of the store; `.afnio` by default.
        seed: of the splits and the order of the rows.
        patience: end the training after this number of steps in a row that gained less than two rows in their race.
        perfect: the score that makes a row right. A right row is never criticized.
        headroom: run the headroom test first, on training rows and for at most a tenth of the budget. Its finding is
            `result.headroom`; it is skipped, with a note, where that can't pay for it. The training runs in any case:
            a test as small as that can miss a gain.

    Raises:
        TypeError, ValueError: for arguments that can't work, before the first call, among them too few rows for the
            gate and a budget in calls that can't pay for the looks and one step, with the sum. For one in dollars or
            tokens after the first eight rows. For a metric that returns a text or NaN (`MetricError`), with its row.
        BatchError: if more than a tenth of the rows crash.
        UnknownPriceError: if dollars are limited and a model has no price.

    >>> import afnio, tempfile
    >>> from afnio.testing import ScriptedClient
    >>> client = ScriptedClient({"edits": [{"op": "replace", "block": 1, "text": "Say hi.", "samples": [1]}]})
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
        seed=seed_of(seed),
        patience=patience,
        perfect=perfect,
        headroom=headroom,
    )
    if may_block():
        return run_blocking(task.run, "optimize", gently=task.stop)
    return cast("Result", Unawaited(task.run, "optimize"))


# The optimization


class Learner(cog.Module):
    """The subject in the form that the Trainer trains: a batch is one step of the search, which takes its own rows."""

    automatic_optimization = False

    def __init__(self, training: TrainingRun) -> None:
        super().__init__()
        self.subject = training.subject.module
        object.__setattr__(self, "_run", training)

    async def training_step(self, batch: Any, batch_idx: int) -> Any:
        return await self._run.step()

    def configure_optimizers(self) -> Optimizer:
        return cast("TrainingRun", self._run).optimizer


class Steps:
    """A loader without an end, of nothing: an epoch for each step."""

    def __iter__(self) -> Iterator[None]:
        yield None


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
        headroom: bool,
    ) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be a number of steps, 1 or more (got {patience!r})")
        if not isinstance(headroom, bool):
            raise TypeError(f"headroom must be True or False (got {headroom!r})")
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
        self.with_headroom = headroom
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
            "headroom": headroom,
            "code": [code_digest(subject.function), code_digest(metric)],
        }
        self.asked: str | None = None
        self.notes: list[str] = []
        self.count = CallCount()
        self.needs = Needs(self)
        self.needs.check_calls(1)
        self._gate_looks: dict[tuple[str, ...], Scored] = {}
        self._lowest = 0.0

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
        if self.budget.caps.calls is not None:
            with self.bridge():
                self.needs.check_calls(await self.rehearsed(self.splits.train[0]))
        async with AsyncExitStack() as stack:
            run = await anyio.to_thread.run_sync(self._begin, earlier.run)
            run.continued_by = "the same call of optimize"
            await stack.enter_async_context(run)
            stack.enter_context(
                set_backward_model_client(self.critic.client, completion_args=self.critic.completion_args)
            )
            stack.enter_context(self.bridge())
            stack.enter_context(subscribed(self.count))
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
        measured = await self._first_look()
        size = await anyio.to_thread.run_sync(self.needs.check, measured)
        gate = Gate(
            self._gate_scores, DataLoader(self.splits.gate, collate_fn=list), size=size, seed=self.seed,
            budget=self.needs.calls, quorum=1e-9,
        )  # fmt: skip
        await gate.start(self.subject.parameters.values())
        found = await self._headroom(measured) if self.with_headroom else None
        training = TrainingRun(self, measured, self.needs.looks(measured, size))
        await training.run(time.monotonic() - started)
        verdict: GateVerdict | None = None
        looked: tuple[Scored, ...] = ()
        rows: Sequence[Row] = ()
        try:
            verdict = await self._judged(gate)
            rows, looked = await self._looked(verdict)
        except BudgetExceeded as error:  # a look cost more than was reserved for it
            training.ended = f"the budget ended before the test ({error.limit})"
            if verdict is None:
                self._restore()
        return self._result(run, spending, training, verdict, found, rows, looked, started)

    async def _first_look(self) -> Amount:
        """Score the start prompts on a few training rows. Returns what a row costs."""
        first = self.splits.train[:FIRST]
        await anyio.to_thread.run_sync(
            self._check_price, self.critic.completion_args.get("model"), self.critic.client
        )
        try:
            await self.scored("first", first, self.start)
        except UnknownPriceError as error:
            raise UnknownPriceError(f"{error}; or give budget=afnio.budget(max_calls=…)") from None
        except BudgetExceeded as error:
            raise ValueError(f"budget must pay for more than the first {len(first)} rows ({error})") from None
        return await anyio.to_thread.run_sync(self.count.each, len(first))

    async def _headroom(self, measured: Amount) -> Headroom | None:
        """Do the headroom test with a tenth of the budget, or note why it is skipped."""
        caps, seconds = self.budget.caps, self.budget.max_seconds
        tenth = Budget(
            max_calls=None if caps.calls is None else caps.calls // TENTH,
            max_tokens=None if caps.tokens is None else caps.tokens // TENTH,
            max_cost=None if caps.cost is None else caps.cost / TENTH,
            max_seconds=None if seconds is None else seconds / TENTH,
        )
        tenth.charge(Ledger(), active_journal.get())  # what the run spent before isn't the test's
        try:
            test = HeadroomTest(
                self.subject.copied(), self.metric, rows=self.splits.train, critic=self.critic, budget=tenth,
                perfect=self.perfect, seed=self.seed,
            )  # fmt: skip
            test.design(measured)
            return await test.measured()
        except ValueError as error:
            self.notes.append(
                f"headroom wasn't tested, on {len(self.splits.train)} training rows with a tenth of the budget: {error}"
            )
        except BudgetExceeded as error:
            self.notes.append(f"the headroom test ended with a tenth of the budget ({error.limit})")
        return None

    # The gate and the test

    async def _gate_scores(self, rows: list[Row]) -> list[float | None]:
        """Return the rows' scores with the prompts that are bound: what the gate compares.

        Rows that crash are left out. If more than a tenth crash with the start prompts, that is an error; with others,
        these rows count as the worst, so that prompts which break the agent don't pass.
        """
        with mode(False), tolerate(1e-9):
            scored = await self.read(*await self.evaluated(rows))
        texts = self.subject.texts
        self._gate_looks[tuple(texts.values())] = scored
        if texts == self.start:
            check_crashes(scored.errors, len(rows))
        known = [score for score in scored.scores if score is not None]
        self._lowest = min([self._lowest, *known])
        if len(scored.errors) <= may_fail(len(rows), QUORUM):
            return scored.scores
        return [self._lowest if score is None else score for score in scored.scores]

    async def _judged(self, gate: Gate) -> GateVerdict | None:
        """Return the gate's verdict, or None if the prompts are the old ones. If it fails they are restored."""
        if self.subject.texts == self.start:
            return None
        with shown("validate", 2 * gate.rows):
            return await gate.judge()

    async def _looked(self, verdict: GateVerdict | None) -> tuple[Sequence[Row], tuple[Scored, ...]]:
        """Return the last look: its rows, and the scores of the start prompts and, if others passed, of these.

        Without test rows it is the gate's look, if there was one.
        """
        texts = self.subject.texts
        versions = [self.start] if texts == self.start else [self.start, texts]
        if verdict is not None and not self.splits.test:
            looks = [self._gate_looks[tuple(version.values())] for version in versions]
            return [self.splits.gate[place] for place in verdict.rows], tuple(looks)
        name, rows = ("test", self.splits.test) if self.splits.test else ("gate", self.splits.gate)
        with shown("test", len(versions) * len(rows)):
            return rows, tuple(await self.scored(name, rows, *versions))

    def _restore(self) -> None:
        for name, parameter in self.subject.parameters.items():
            parameter.data = self.start[name]

    def _result(
        self,
        run: Run,
        spending: Budget,
        training: TrainingRun,
        verdict: GateVerdict | None,
        headroom: Headroom | None,
        rows: Sequence[Row],
        looked: tuple[Scored, ...],
        started: float,
    ) -> Result:
        before, after = paired(looked[0], looked[-1]) if looked else ([], [])
        graded = any(score not in (0, 1) for score in (*before, *after))
        first, last = score_of(before, graded=graded), score_of(after, graded=graded)
        gain = None
        texts = self.subject.texts
        changed = len(looked) == 2
        if changed and self.splits.test:
            gain = Gain.of(before, after, graded=graded)
        kept = texts != self.start and (gain is None or gain.difference > 0)
        on = f"{len(before)} {'test' if self.splits.test else 'gate'} rows"
        spent = spending.ledger.total
        return Result(
            verdict=verdict_of(first, last, gain, verdict, changed=changed, kept=kept, on=on)
            if looked
            else untested(kept),
            prompts=texts if kept else dict(self.start),
            start=dict(self.start),
            before=first if looked else None,
            after=last if looked else None,
            gain=gain,
            on=on,
            failed=len(rows) - len(before),
            stopped=training.ended or "",
            steps=training.steps,
            calls=spent.calls,
            tokens=spent.amount.tokens,
            cost=None if spent.cost is None else float(spent.cost),
            minutes=(time.monotonic() - started) / 60,
            run=f"{run.namespace}/{run.project}/{run.name}",
            gate=verdict,
            headroom=headroom,
            notes=tuple(self.notes),
            home=self._home,
            splits={part: len(getattr(self.splits, part)) for part in ("train", "gate", "test")},
            examples=_examples(rows, looked) if looked else (),
            make_agent=self.subject.restored,
        )

    def _check_price(self, model: Any, client: ChatClient) -> None:
        if self.budget.caps.cost is None or price_of(str(model), client.account.url) is not None:
            return
        raise UnknownPriceError(
            f"budget=${self.budget.caps.cost} needs the price of {model!r} at {client.account.url}, which is unknown; "
            "give budget=afnio.budget(max_calls=…), or write the price into ~/.config/afnio/prices.toml"
        )


@final
class TrainingRun:
    """The training of one optimization.

    Args:
        measured: what a row costs.
        looks: what the gate and the test will cost.

    Attributes:
        ended: why it ended.
        steps: optimizer steps.
    """

    def __init__(self, task: Optimization, measured: Amount, looks: Amount) -> None:
        self.subject, self.ended, self.steps = task.subject, cast("str | None", None), 0
        self._task, self._looks = task, looks
        self._calls = task.needs.training_calls(measured, looks, task.count)
        self._begun = task.count.calls
        self._right = 0
        self._waited = 0
        self._trainer = Trainer(
            max_epochs=-1, quorum=QUORUM, enable_checkpointing=False, enable_agent_summary=False
        )
        rows = task.splits.train
        self._sample = task.needs.sample(measured.calls)
        wanted = SIZES._replace(chains=chains_for(self._calls, len(rows)))
        self.optimizer = EditTGD(
            list(self.subject.parameters.values()),
            task.critic.client,
            self._evaluate,
            DataLoader(rows, collate_fn=list),
            lr=wanted.chains,
            **{name: size for name, size in wanted._asdict().items() if name != "chains"},
            max_chars=MOST_CHARACTERS,
            budget=step_budget(wanted, self._sample, self._calls),
            quorum=ENOUGH_ROWS,
            search_seed=task.seed,
            **task.critic.completion_args,
        )

    async def run(self, gone: float) -> None:
        """Train on what the looks leave of the budget.

        Args:
            gone: seconds since the start, which the first look took.
        """
        task = self._task
        if task.asked is not None:
            self.ended = task.asked
            return
        caps, looks, seconds = task.budget.caps, self._looks, task.budget.max_seconds
        if seconds is not None:
            # The looks may take as long as the first one by row if quota is short, but half of what is left at most.
            rows = 2 * (len(task.splits.gate) + len(task.splits.test)) / FIRST
            seconds = max(0.0, seconds - gone - min(rows * gone, (seconds - gone) / 2))
        inner = Budget(
            max_calls=None if caps.calls is None else max(0, caps.calls - looks.calls),
            max_tokens=None if caps.tokens is None else max(0, caps.tokens - looks.tokens),
            max_cost=None if caps.cost is None else max(Decimal(0), caps.cost - looks.cost),
            max_seconds=seconds,
        )
        inner.charge(task.budget.ledger, active_journal.get())
        with inner:
            # The class's name is what the progress shows.
            await self._trainer.afit(type(self.subject.title, (Learner,), {})(self), Steps())
        self.steps = self._trainer.global_step
        self.ended = self.ended or "the budget for training is used up"

    async def _evaluate(self, rows: list[Row]) -> Any:
        evaluation, _ = await self._task.evaluated(rows)
        return evaluation

    async def step(self) -> Any:
        """Take one step. Returns the scores of the text that goes on, in its race."""
        if self._short():
            raise StopTraining("the budget for training is used up")
        ended: list[StepEnded] = []
        with subscribed(lambda event: ended.append(event) if isinstance(event, StepEnded) else None):
            await self.optimizer.step()
        now, before = self._raced(ended)
        self._watch(ended, now, before)
        scores = [score for score in now if score is not None]
        return Variable(scores, "scores in the race") if scores else None

    def _short(self) -> bool:
        """Return True if the rest of the budget doesn't pay for a step: a part of one would be for nothing.

        A rest that pays for fewer chains is used for these.
        """
        left = self._calls - (self._task.count.calls - self._begun)
        cost, sizes = self.optimizer.step_cost, self.optimizer.sizes
        if cost is None or sizes is None or left >= cost:
            return False
        for chains in range(sizes.chains - 1, 0, -1):
            if sizes._replace(chains=chains).cost(self._sample) <= left:
                for group in self.optimizer.param_groups:
                    group["lr"] = chains
                return False
        return True

    def _raced(self, ended: Sequence[StepEnded]) -> tuple[Scores, Scores]:
        """Return the scores of the values of now and of those before, in the step's last race; none without a race."""
        values = tuple(self.subject.texts.values())
        raced = [one for event in ended for one in event.candidates if one.scores]
        now = [one.scores for one in raced if one.values == values]
        before = [one.scores for one in raced if one.name == "incumbent"]
        return (now[-1], before[-1]) if now and before else ((), ())

    def _watch(self, ended: Sequence[StepEnded], now: Scores, before: Scores) -> None:
        """End the training if nothing is left to learn, or nothing has got clearly better for a while."""
        if not any(change.gradients for event in ended for change in event.changes):
            sizes = self.optimizer.sizes
            # A race that is left out for want of edits leaves up to half of the rows unseen.
            rows = len(self._task.splits.train)
            seen = 0 if sizes is None else sizes.chains * max(1, sizes.inner - 1) * sizes.minibatch
            self._right += min(seen, rows - rows // 2)
            if self._right >= min(SURE_ROWS, len(self._task.splits.train)):
                self._end("no mistakes are left to learn from")
        else:
            self._right = 0
        known = [score for score in (*now, *before) if score is not None]
        # In rows: of right and wrong answers, a difference is the number of rows that are won.
        both = min(len(now), len(before))  # a text that is out on the first rows hasn't run the others
        won = math.fsum(differences(now[:both], before[:both])) / (
            (max(known, default=0) - min(known, default=0)) or 1
        )
        self._waited = 0 if won >= CLEAR else self._waited + 1
        if self._waited >= self._task.patience:
            self._end(f"no clear gain in {self._waited} steps")
        if self._task.asked is not None:
            self._end(self._task.asked)

    def _end(self, why: str) -> None:
        self.ended = self.ended or why
        self._trainer.stop(why)


SURE_ROWS: Final = 32
"""Rows in a row without a mistake from which on there is nothing to learn."""
ENOUGH_ROWS: Final = 0.6
"""The share of a small step's rows that must not crash. With a tenth, one row of eight would end it."""


SIZES: Final = Sizes(chains=3, inner=3, minibatch=8, race=24, first=8, keep=2)
"""A step's sizes before a budget lowers them."""


def step_budget(wanted: Sizes, sample: SampleCost, calls: float) -> int | None:
    """Return the budget by which `EditTGD` makes steps that use up `calls` as a whole number of them.

    A part of a step that is left over would be of no use.

    >>> limit = step_budget(SIZES, SampleCost(1, 0, 1), 360)
    >>> affordable(SIZES, SampleCost(1, 0, 1), limit, 0)
    Sizes(chains=2, inner=3, minibatch=8, race=24, first=8, keep=2)
    """
    if math.isinf(calls):
        return None
    # The first step takes more: its chains have no mistakes of a race to begin with. Replies are repaired.
    left = 0.97 * calls - wanted.minibatch * sample.forward
    whole = affordable(wanted, sample, max(int(left), _SMALLEST.cost(sample)), 0).cost(sample)
    steps = max(3, round(left / whole))
    share = STEP_SHARE if wanted.chains <= WIDE else WIDE_STEP_SHARE
    return max(2 * _SMALLEST.cost(sample), math.ceil(left / steps / share))


def chains_for(calls: float, rows: int) -> int:
    """Return how many chains run side by side: as many as the budget pays for and the rows feed, from 3 to 24.

    More of them take no more time. They don't learn more from the same calls, but they end sooner.

    >>> chains_for(600, 1_000), chains_for(4_800, 1_000), chains_for(4_800, 200)
    (3, 12, 4)
    """
    fed = (rows - 24) // 36
    return max(3, int(min(24, calls // 400, fed)))


@final
class Needs:
    """What an optimization needs of its budget, and how much of it goes where."""

    def __init__(self, task: Optimization) -> None:
        self._task, self._caps = task, task.budget.caps
        self._spent = task.budget.ledger.total.amount  # by whatever else the budget is for
        self._dearer = {"calls": 1.0, "tokens": 1.0, "dollars": 1.0}
        self._calls = 1.0  # of a row

    @property
    def calls(self) -> int | None:
        """The calls that the budget has for this run."""
        return None if self._caps.calls is None else max(1, self._caps.calls - self._spent.calls)

    def sample(self, each: float) -> SampleCost:
        """Return what a row takes in the training, if it takes `each` calls: with several prompts a critic too."""
        prompts = len(self._task.subject.parameters)
        return SampleCost(max(1, math.ceil(each)), 0 if prompts == 1 else 1, prompts)

    def check_calls(self, each: float) -> None:
        """Raise if the calls can't pay for the looks and one step at so many calls a row."""
        most = self.calls
        if most is None:
            return
        sizes = {"to begin": FIRST, f"for a gate of {FEWEST} rows": 2 * FEWEST, "to test": self._tests}
        counted = {part: math.ceil(number * each) for part, number in sizes.items() if number}
        step = _SMALLEST.cost(self.sample(each))
        needed, gate = sum(counted.values()) + step, math.ceil(2 * FEWEST * each / SHARE)
        if most < needed:
            parts = ", ".join(f"{number} {part}" for part, number in counted.items())
            raise ValueError(
                f"budget must pay for at least {needed} calls (got {most}): {parts}, and {step} for one "
                "step; give more, or fewer rows"
            )
        if most < gate:
            raise ValueError(
                f"budget must pay for at least {gate} calls (got {most}): a gate of {FEWEST} rows takes "
                f"{math.ceil(2 * FEWEST * each)}, and a third at most may go there; give more"
            )

    def check(self, measured: Amount) -> int:
        """Return the number of rows for the gate, now that it is known what a row costs.

        Raises:
            ValueError: if the budget can't pay for the looks and one step.
        """
        self.check_calls(max(1.0, measured.calls))
        self._calls = max(measured.calls, 0.01)
        prompts = len(self._task.subject.parameters)
        self._dearer["tokens"], self._dearer["dollars"] = dearer(measured, self._task.critic, prompts)
        size = float(len(self._task.splits.gate))
        for unit, left, each in self._limits(measured):
            free = (left - (FIRST + self._tests) * each) / (2 * each)
            size = min(size, max(min(free * SHARE, ENOUGH), free * WIDE_SHARE))
            needed = max(FIRST + 2 * FEWEST + self._tests + self._step(unit), 2 * FEWEST / SHARE) * each
            if unit != "calls" and left < needed:
                raise ValueError(
                    f"budget must be at least {_in(unit, needed)} (got {_in(unit, left)}): a row takes "
                    f"{_in(unit, each, 6)}, and a gate of {FEWEST} rows, the test and one step take as much as "
                    f"{math.ceil(needed / each)} rows; give more, or fewer rows"
                )
        return max(FEWEST, int(size))

    def _step(self, unit: str) -> float:
        """Return how many of the agent's rows the smallest step costs as much as."""
        return _SMALLEST.cost(self.sample(self._calls)) * self._dearer[unit] / self._calls

    def _limits(self, measured: Amount) -> Iterator[tuple[str, float, float]]:
        """Yield each unit that is limited, with what is left of it and what a row takes."""
        caps, spent = self._caps, self._spent
        if caps.calls is not None:
            yield "calls", caps.calls - spent.calls, max(1.0, measured.calls)
        if caps.tokens is not None and measured.tokens:
            yield "tokens", caps.tokens - spent.tokens, measured.tokens
        if caps.cost is not None and measured.cost:
            yield "dollars", float(caps.cost - spent.cost), float(measured.cost)

    def looks(self, measured: Amount, gate: int) -> Amount:
        """Return what is reserved for the looks at the gate's and the test rows: more than they take, if possible."""
        rows = 2 * gate + self._tests
        # The new prompts may be longer than the old ones that were measured, in each call.
        limits, start = self._task.subject.limits, self._task.start
        longer = sum(limits[name] - len(text) for name, text in start.items()) / 4
        growth = 1 + max(0.0, longer) * measured.calls / max(1, measured.tokens) / 2
        most = {unit: left - (FIRST + self._step(unit)) * each for unit, left, each in self._limits(measured)}
        return Amount(
            int(min(rows * measured.calls * SPARE + 1, most.get("calls", math.inf))),
            int(min(rows * measured.tokens * SPARE * growth + 1, most.get("tokens", math.inf))),
            Decimal(min(rows * float(measured.cost) * SPARE * growth, most.get("dollars", math.inf))),
        )

    def training_calls(self, measured: Amount, looks: Amount, spent: CallCount) -> float:
        """Return about how many calls the training may take; infinite if only time is limited."""
        used = {
            "calls": float(looks.calls + spent.calls),
            "tokens": looks.tokens + spent.tokens,
            "dollars": float(looks.cost + (spent.cost or 0)),
        }
        found = [math.inf]
        for unit, left, each in self._limits(measured):
            rest = left - used[unit]
            found.append(rest if unit == "calls" else rest / each * self._calls / self._dearer[unit])
        return max(0.0, min(found))

    @property
    def _tests(self) -> int:
        return 2 * len(self._task.splits.test)


_SMALLEST: Final = Sizes(chains=1, inner=1, minibatch=3, race=6, first=3, keep=2)
"""The smallest step of the search."""


def _in(unit: str, amount: float, digits: int = 4) -> str:
    return f"${amount:.{digits}f}" if unit == "dollars" else f"{amount:,.0f} {unit}"


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
