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

import copy
import functools
import inspect
import json
import math
import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from types import CodeType
from typing import Any, Final, cast, final

import anyio
import anyio.to_thread

from afnio import cognitive as cog
from afnio._result import Example, Gain, Result, from_json, score_of, to_json, verdict_of
from afnio._rows import LEAST, Row, digest, in_words, read_rows, split_rows
from afnio.autodiff._function import Arguments, Context
from afnio.autodiff._variable import Variable, bind, no_grad
from afnio.cognitive._agent import _traced as traced_within
from afnio.cognitive._evaluators import Evaluation, Evaluator, record, succeeded
from afnio.cognitive._module import mode
from afnio.cognitive._prompts import deterministic_feedback
from afnio.errors import (
    BatchError,
    BudgetExceeded,
    JournalError,
    MetricError,
    ScoreError,
    UnknownPriceError,
    reason,
)
from afnio.models._backward_model import chat_model, set_backward_model_client
from afnio.models._client import ChatClient, ChatModel
from afnio.models._prices import earlier_ledger, price_of
from afnio.models._trace import Trace
from afnio.optim import TGD, Optimizer
from afnio.optim.search._races import p_value
from afnio.runtime._budget import Budget
from afnio.runtime._callables import call_in_node, is_async, tolerate
from afnio.runtime._kernel import Failure, Job, Outcomes
from afnio.runtime._spending import Amount
from afnio.runtime._waiting import active_journal, may_block, scope, wait_async
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._run import Run, init
from afnio.tellurio._store import store_path
from afnio.trainer._callbacks import Callback
from afnio.trainer._options import found, may_fail
from afnio.trainer._steps import run_blocking, task_group
from afnio.trainer._trainer import Trainer
from afnio.utils.data import DataLoader
from afnio.utils.data._sampler import RandomSampler

NAMESPACE: Final = "optimize"
BATCH: Final = 8
"""Rows of a step. Small steps win at equal calls: a proposer that sees many mistakes writes about all of them."""
ROUND: Final = 64
"""Rows between two looks at the watched rows."""
MOST_CHARACTERS: Final = 1_000
"""A prompt may grow to this, or to its first length if that is more. Longer ones didn't score better."""
QUORUM: Final = 0.9
"""The share of rows that must not crash."""
SPARE: Final = 1.1
"""Looks are reserved with this factor, because calls are retried and replies vary in length."""
GATE_LEVEL: Final = 0.25
FEW_LEVEL: Final = 0.5
"""The gate's level with at least `LEAST` rows, and below that. A strict gate refuses good prompts on few rows."""
_RESULT: Final = "OptimizeResult"
_MEASURED: Final = "OptimizeMeasured"
_AGAIN: Final = "the same call continues it and pays for no reply again"


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
    ({'system': 'Say hi.'}, 'Better: +100.0 points (95 %: 91.5 to 100.0) on 32 test rows.')
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


# What is optimized


@final
class Subject:
    """The agent, as a module that scores rows and can be trained.

    Attributes:
        module: a copy of the user's module, or a `cog.Agent` around the user's function.
        parameters: the prompts, by the user's names.
        title: the name of the function or class.
        restored: makes the user's own kind of agent with given prompts.
    """

    def __init__(
        self, module: cog.Module, title: str, restored: Callable[[Mapping[str, str]], Any], function: Any
    ) -> None:
        self.module = module
        self.title = title
        self.restored = restored
        self.function = function
        self.parameters = {
            name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad
        }
        for name, parameter in self.parameters.items():
            if not isinstance(parameter.data, str):
                raise TypeError(f"prompt {name!r} must be a text (got {parameter.data!r})")
        self.limits = {
            name: max(MOST_CHARACTERS, len(str(parameter.data)))
            for name, parameter in self.parameters.items()
        }
        for name, parameter in self.parameters.items():
            parameter.validators = (*parameter.validators, functools.partial(_not_longer, self.limits[name]))

    @classmethod
    def of(cls, agent: Any, prompts: Mapping[str, str] | None, wanted: Sequence[str]) -> Subject:
        if isinstance(agent, cog.Module):
            if "trace" in wanted and not isinstance(agent, cog.Agent):
                raise TypeError(
                    "a metric can have the trace of a function's calls only; leave `trace` out for a Module"
                )
            return cls._of_module(agent, prompts)
        if isinstance(agent, type) or not callable(agent):
            raise TypeError(f"agent must be a function or a cognitive.Module (got {agent!r})")
        if not isinstance(prompts, Mapping) or not prompts:
            raise TypeError(
                f"a function needs prompts={{name: text}}, the texts that it takes by name (got {prompts!r})"
            )
        for name, text in prompts.items():
            if not isinstance(name, str) or not isinstance(text, str):
                raise TypeError(f"prompts must be texts by name (got {name!r}: {text!r})")
        module = cog.Agent(traced(agent) if "trace" in wanted else agent, prompts=dict(prompts))
        return cls(module, module.extra_repr(), lambda texts: functools.partial(agent, **texts), agent)

    @classmethod
    def _of_module(cls, agent: cog.Module, prompts: Any) -> Subject:
        if prompts is not None:
            raise TypeError("prompts must be left out for a Module: its own Parameters are the prompts")
        module = copy.deepcopy(agent)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ValueError(
                f"{type(agent).__name__} must have a Parameter with requires_grad=True (got none)"
            )

        def restored(texts: Mapping[str, str]) -> cog.Module:
            copied = copy.deepcopy(agent)
            for name, parameter in copied.named_parameters():
                if name in texts:
                    parameter.data = texts[name]
            return copied

        return cls(module, type(agent).__qualname__, restored, None)

    def copied(self) -> Subject:
        """Return the same agent with prompts of its own."""
        return Subject(copy.deepcopy(self.module), self.title, self.restored, self.function)

    @property
    def texts(self) -> dict[str, str]:
        """The prompts as they are now."""
        return {name: str(parameter.data) for name, parameter in self.parameters.items()}

    def check(self, row: Row) -> None:
        """Raise if the agent can't be called with a row like this one."""
        called = self.module.forward if self.function is None else self.function
        try:
            signature = inspect.signature(called)
        except (TypeError, ValueError):  # a builtin
            return
        others = {} if self.function is None else self.texts
        try:
            signature.bind(*row.args, **row.kwargs, **others)
        except TypeError as error:
            given = " ".join([*row.kwargs]) or "one value"
            extra = ""
            if self.function is None:
                extra = "; keep clients and settings in the module (self.client = …), or pass a function that has them"
            raise TypeError(
                f"{self.title} can't be called with a row's inputs ({given}): {error}{extra}"
            ) from None

    def __call__(self, rows: Sequence[Row]) -> Any:
        """Launch the agent on rows; returns its output, or a coroutine of it."""
        args = [_lanes([row.args[0] for row in rows])] if rows[0].args else []
        return self.module(
            *args, **{key: _lanes([row.kwargs[key] for row in rows]) for key in rows[0].kwargs}
        )


def _lanes(values: list[Any]) -> Any:
    """Return a Variable of a batch's values, or the list if a Variable can't hold them."""
    try:
        return Variable(values, role="input")
    except TypeError:
        return values


@final
class Traced(str):
    """An output as a text that brings the trace of its calls to the metric."""

    __slots__ = ("trace", "value")
    value: Any
    trace: Trace


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with its trace at its output, for a metric that wants it."""

    def joined(output: Any, trace: Trace) -> Any:
        if output is None:
            return None
        text = Traced(in_words(output))
        text.value, text.trace = output, trace
        return text

    @functools.wraps(function)
    async def on_loop(*args: Any, **kwargs: Any) -> Any:
        with traced_within(record=True) as trace:
            output = await function(*args, **kwargs)
        return joined(output, trace)

    @functools.wraps(function)
    def in_thread(*args: Any, **kwargs: Any) -> Any:
        with traced_within(record=True) as trace:
            output = function(*args, **kwargs)
        return joined(output, trace)

    return on_loop if is_async(function) else in_thread


def _not_longer(most: int, text: str) -> str | None:
    return None if len(text) <= most else f"it must have at most {most:,} characters (it has {len(text):,})"


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


# The metric


@final
class Scorer:
    """The user's metric, for the rows of one batch.

    Attributes:
        outputs: the agent's outputs in words, by lane.
    """

    def __init__(self, metric: Callable[..., Any], rows: Sequence[Row], perfect: float) -> None:
        self.rows = rows
        self.outputs: dict[int, str] = {}
        self.perfect = perfect
        self._metric = metric
        self._wants = wanted_by(metric)
        self.name = getattr(metric, "__name__", type(metric).__name__)
        if self.name == "<lambda>":
            self.name = "metric"

    async def __call__(self, job: Job, lane: int, output: Any) -> tuple[Any, str | None]:
        """Return a row's score and the metric's feedback.

        Raises:
            MetricError: for a score that isn't a number.
        """
        row = self.rows[lane]
        value = output.value if isinstance(output, Traced) else output
        self.outputs[lane] = in_words(value)
        others = {"inputs": row.inputs, "trace": output.trace.calls if isinstance(output, Traced) else []}
        given = {name: others[name] for name in self._wants}
        call: Any = functools.partial(self._metric, value, row.expected, **given)
        returned = await call_in_node(job, call)
        feedback = None
        if isinstance(returned, tuple) and len(returned) == 2:
            returned, feedback = returned
        score = (
            returned.item()
            if hasattr(returned, "item") and getattr(returned, "shape", None) == ()
            else returned
        )
        if not isinstance(score, int | float) or math.isnan(score):
            raise MetricError(
                f"the metric must return True, False, a number or (score, feedback) (got {_short(returned)} for row "
                f"{row.number})"
            )
        if feedback is not None and not isinstance(feedback, str):
            raise MetricError(
                f"the metric's feedback must be a text (got {_short(feedback)} for row {row.number})"
            )
        return score, feedback


def wanted_by(metric: Callable[..., Any]) -> list[str]:
    """Return the names that a metric takes beside output and expected.

    Raises:
        TypeError: for one that can't be called so.

    >>> wanted_by(lambda output, expected, inputs: True)
    ['inputs']
    """
    if not callable(metric):
        raise TypeError(f"metric must be a function of output and expected (got {metric!r})")
    try:
        parameters = list(inspect.signature(metric).parameters.values())
    except (TypeError, ValueError):  # a builtin
        return []
    others = parameters[2:]
    names = [
        one.name for one in others if one.name in ("inputs", "trace") and one.kind is not one.POSITIONAL_ONLY
    ]
    needed = [
        one.name
        for one in others
        if one.default is one.empty
        and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
        and one.name not in names
    ]
    variadic = any(one.kind is one.VAR_POSITIONAL for one in parameters)
    if needed or (len(parameters) < 2 and not variadic):
        raise TypeError(
            f"metric must take (output, expected), and by name inputs and trace if it wants them (got "
            f"{inspect.signature(metric)})"
        )
    return names


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


@final
class RowMetric(Evaluator):
    """The evaluator around the user's metric: the score of a lane, and its feedback."""

    @classmethod
    def check(cls, arguments: Arguments) -> None:
        if not isinstance(arguments.args[0], Variable):
            raise TypeError(f"a Module's forward must return a Variable (got {_short(arguments.args[0])})")

    @classmethod
    async def run_forward(
        cls, job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> Outcomes:
        output, scorer = args[0], kwargs["scorer"]
        lane = ctx.lane or 0
        score, feedback = await scorer(job, lane, output)
        expected = in_words(scorer.rows[lane].expected)
        prediction = output if type(output) in (int, float, bool) else scorer.outputs[lane]
        return record(
            ctx,
            prediction=prediction,
            target=expected,
            score=score,
            explanation=feedback or deterministic_feedback(kwargs["purpose"], prediction, expected, score),
            success=await succeeded(job, None, scorer.perfect, score),
        )


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

    async def training_step(self, rows: list[Row], number: int) -> Evaluation:
        evaluation, _ = await self._task.evaluated(rows)
        return evaluation

    validation_step = training_step

    def configure_optimizers(self) -> Optimizer:
        return optimizer_for(self._task.subject, self._task.critic)


@final
@dataclass(slots=True)
class Scores:
    """A pass over rows with one set of prompts: scores, outputs in words, errors; by row."""

    scores: list[float | None] = field(default_factory=list)
    outputs: list[str | None] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    @property
    def mean(self) -> float:
        known = [score for score in self.scores if score is not None]
        return sum(known) / len(known) if known else -math.inf


class Scoring:
    """Scores rows with an agent and a metric: what every part that looks at rows shares."""

    def __init__(self, subject: Subject, metric: Callable[..., Any], perfect: float) -> None:
        wanted_by(metric)
        if isinstance(perfect, bool) or not isinstance(perfect, int | float) or math.isnan(perfect):
            raise TypeError(f"perfect must be a number, the score of a right row (got {perfect!r})")
        self.subject, self.metric, self.perfect = subject, metric, perfect

    async def evaluated(self, rows: Sequence[Row]) -> tuple[Evaluation, Scorer]:
        """Launch the agent and the metric on rows."""
        scorer = Scorer(self.metric, rows, self.perfect)
        output = self.subject(rows)
        if inspect.isawaitable(output) and not isinstance(output, Variable):
            output = await output
        evaluation = RowMetric.apply(
            output,
            scorer=scorer,
            purpose=scorer.name,
            feedback_by="rules",
            reduction_fn=None,
            reduction_fn_purpose=None,
        )
        return evaluation, scorer

    async def scored(
        self, name: str, rows: Sequence[Row], *versions: Mapping[str, str], tolerant: bool = False
    ) -> list[Scores]:
        """Score rows with each version of the prompts, side by side.

        Args:
            tolerant: rows may crash.

        Raises:
            BatchError: if more than a tenth of the rows crashed.
        """
        results = [Scores() for _ in versions]

        async def one(number: int, texts: Mapping[str, str]) -> None:
            parameters = self.subject.parameters
            values = {parameters[key]: Variable(text, parameters[key].role) for key, text in texts.items()}
            async with scope(name=f"{name} {number + 1}"):
                with bind(values):
                    results[number] = await self.read(*await self.evaluated(rows))

        async with scope(name=name):
            with no_grad(), mode(False), tolerate(1e-9):
                async with task_group() as tasks:
                    for number, texts in enumerate(versions):
                        tasks.start_soon(one, number, texts)
        for result in results:
            if not tolerant:
                check_crashes(result.errors, len(rows))
        return results

    async def read(self, evaluation: Evaluation, scorer: Scorer) -> Scores:
        """Wait for the scores of an evaluation."""
        slots = evaluation.score.sample_slots
        await wait_async(slots)
        result = Scores()
        for lane, slot in enumerate(slots):
            outcome = slot.outcome
            if isinstance(outcome, Failure):
                outcome.mark_read()
                result.errors.append(outcome.error)
            failed = isinstance(outcome, Failure) or outcome is None
            result.scores.append(None if failed else float(outcome))
            result.outputs.append(scorer.outputs.get(lane))
        for error in result.errors:
            raise_fatal(error)
        return result

    @contextmanager
    def bridge(self) -> Iterator[None]:
        if self.subject.function is None:
            yield
            return
        try:
            from afnio import bridge
        except ImportError:
            yield
            return
        with bridge.installed():
            yield


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
        given = [
            read_rows(one or (), part)
            for one, part in ((rows, "rows"), (valset, "valset"), (testset, "testset"))
        ]
        for part in given:
            if part:
                subject.check(part[0])
        self.critic, self.budget = critic, budget
        self.patience, self.seed, self.folder = patience, seed, folder
        self.splits = split_rows(*given, seed)
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
        self._check_minimum(1)

    def stop(self) -> None:
        """End the training after the current step."""
        self.asked = self.asked or "Ctrl-C"

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
            result = await self._optimized(run, spending, earlier.measured, started)
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

    async def _optimized(self, run: Run, spending: Budget, measured: Amount | None, started: float) -> Result:
        watched, measured = await self._first_look(run, spending, measured)
        rounds = Rounds(self, watched.mean)
        await self._train(rounds, measured)
        chosen, gate = await self._gated(rounds)
        looked = await self._looked(chosen, gate)
        return self._result(run, spending, rounds, chosen, looked, started)

    async def _first_look(self, run: Run, spending: Budget, measured: Amount | None) -> tuple[Scores, Amount]:
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
        if measured is None:
            measured = _each(spending.ledger.total.amount, len(first))
            run.record(_MEASURED, {"amount": [str(one) for one in measured], "rows": 1})
            await anyio.to_thread.run_sync(run.flush)
        self._check_budget(measured)
        rest = (await self.scored("start", watch[BATCH:], self.start))[0] if watch[BATCH:] else Scores()
        return Scores([*scores.scores, *rest.scores], [*scores.outputs, *rest.outputs]), measured

    async def _train(self, rounds: Rounds, measured: Amount) -> None:
        """Train on what the looks leave of the budget."""
        if self.asked is not None:
            rounds.ended = self.asked
            return
        caps, looks = self.budget.caps, self._reserve(measured)
        inner = Budget(
            max_calls=None if caps.calls is None else max(0, caps.calls - looks.calls),
            max_tokens=None if caps.tokens is None else max(0, caps.tokens - looks.tokens),
            max_cost=None if caps.cost is None else max(Decimal(0), caps.cost - looks.cost),
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

    async def _gated(self, rounds: Rounds) -> tuple[dict[str, str], tuple[Scores, ...]]:
        """Return the prompts to test, and the scores of both on the gate's rows if they were compared."""
        candidate = rounds.candidate
        if candidate is None or candidate == self.start:
            return self.start, ()
        old, new = await self.scored("gate", self.splits.gate, self.start, candidate)
        before, after = paired(old, new)
        return (candidate if beats(before, after) else self.start), (old, new)

    async def _looked(self, chosen: Mapping[str, str], gate: tuple[Scores, ...]) -> tuple[Scores, ...]:
        """Return the scores of the last look: of the start prompts, and of the chosen ones if they are others."""
        versions = [self.start] if chosen == self.start else [self.start, chosen]
        if self.splits.test:
            return tuple(await self.scored("test", self.splits.test, *versions))
        if gate:
            return gate[: len(versions)]
        return tuple(await self.scored("gate", self.splits.gate, *versions))

    def _result(
        self,
        run: Run,
        spending: Budget,
        rounds: Rounds,
        chosen: Mapping[str, str],
        looked: tuple[Scores, ...],
        started: float,
    ) -> Result:
        rows = self.splits.test or self.splits.gate
        old, new = looked[0], looked[-1]
        before, after = paired(old, new)
        graded = any(score not in (0, 1) for score in (*before, *after))
        measured = [score_of(scores, graded=graded) for scores in (before, after)]
        gain = None
        changed = len(looked) == 2
        if changed and self.splits.test:
            gain = Gain.of(before, after, graded=graded)
        kept = changed and (gain is None or gain.difference > 0)
        on = f"{len(before)} {'test' if self.splits.test else 'validation'} rows"
        spent = spending.ledger.total
        return Result(
            verdict=verdict_of(*measured, gain, changed=changed, kept=kept, on=on),
            prompts=dict(chosen) if kept else dict(self.start),
            start=dict(self.start),
            before=measured[0],
            after=measured[1],
            gain=gain,
            on=on,
            failed=len(rows) - len(before),
            stopped=rounds.ended or "",
            steps=rounds.steps,
            calls=spent.calls,
            tokens=spent.amount.tokens,
            cost=None if spent.cost is None else float(spent.cost),
            minutes=(time.monotonic() - started) / 60,
            run=f"{run.namespace}/{run.project}/{run.name}",
            home=self._home,
            splits={part: len(getattr(self.splits, part)) for part in ("train", "watch", "gate", "test")},
            examples=_examples(rows, looked),
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
        sizes = {part: math.ceil(number * calls) for part, number in self._sizes().items() if number}
        step = math.ceil(BATCH * calls) + BATCH + len(self.subject.parameters)
        needed = sum(sizes.values()) + step
        if most is not None and most < needed:
            parts = ", ".join(f"{number} {part}" for part, number in sizes.items())
            raise ValueError(
                f"budget must pay for at least {needed} calls (got max_calls={most}): {parts}, and {step} for one step; "
                "give more, or fewer rows"
            )

    def _check_budget(self, measured: Amount) -> None:
        """Raise if the budget can't pay for the looks and one step, now that it is known what a row costs."""
        self._check_minimum(max(1.0, measured.calls))
        caps = self.budget.caps
        rows = sum(self._sizes().values()) + 2 * BATCH
        tokens, cost = math.ceil(rows * measured.tokens), rows * measured.cost
        if caps.tokens is not None and caps.tokens < tokens:
            raise ValueError(
                f"budget must pay for at least {tokens:,} tokens (got max_tokens={caps.tokens:,}): a row takes "
                f"{measured.tokens:,.0f}, and {rows} are needed to watch, choose, test and make one step; give more, or "
                "fewer rows"
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
        if self._task.asked is not None:
            self._end(trainer, self._task.asked)

    def take(self, texts: dict[str, str]) -> None:
        """Take the last prompts if the training ended before the first round did."""
        if self.candidate is None and self._waited == 0:
            self.candidate = texts

    def _end(self, trainer: Trainer, why: str) -> None:
        self.ended = self.ended or why
        trainer.stop(why)


def paired(old: Scores, new: Scores) -> tuple[list[float], list[float]]:
    """Return the scores of the rows that have both."""
    both = [(a, b) for a, b in zip(old.scores, new.scores, strict=True) if a is not None and b is not None]
    return [a for a, _ in both], [b for _, b in both]


def _each(total: Amount, rows: int) -> Amount:
    """Return the amount of one row. Its parts may be fractions."""
    return Amount(total.calls / rows, total.tokens / rows, total.cost / rows)  # type: ignore[arg-type]


def _examples(rows: Sequence[Row], looked: tuple[Scores, ...]) -> list[Example]:
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


def check_crashes(errors: Sequence[BaseException], rows: int) -> None:
    """Raise if more than a tenth of the rows crashed. One of several may."""
    if len(errors) > may_fail(rows, QUORUM):
        first = errors[0]
        raise BatchError(
            f"{len(errors)} of {rows} rows crashed, and a tenth may; the first with {reason(first)}",
            [error for error in errors if isinstance(error, Exception)] or [RuntimeError(repr(first))],
        ) from first


def raise_fatal(error: BaseException) -> None:
    """Raise what isn't one row's failure: the end of a budget, a broken journal, an unusable score."""
    for kind in (UnknownPriceError, BudgetExceeded, JournalError, ScoreError):
        fatal = found(error, kind)
        if fatal is not None:
            raise fatal


# Earlier runs of the same


@final
@dataclass(frozen=True, slots=True)
class Earlier:
    """What the store has of an earlier call with the same data.

    Attributes:
        run: the id of an unfinished run to continue, or None.
        measured: what a row cost there, if that was known.
        result: the result of a finished run with the same settings, or None.
        when: when that one ended.
    """

    run: str | None = None
    measured: Amount | None = None
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
                kept = {
                    row["kind"]: json.loads(row["payload"])
                    for row in reader.rows("events", run.id)
                    if row["kind"] in (_RESULT, _MEASURED)
                }
                when = f"{datetime.fromtimestamp(run.date_updated, UTC).astimezone():%Y-%m-%d %H:%M:%S}"
                if run.status == "COMPLETED":
                    same = config.get("settings") == json.loads(json.dumps(settings))
                    return cls(result=kept[_RESULT], when=when) if same and _RESULT in kept else cls()
                measured = kept.get(_MEASURED)
                calls, tokens, cost = measured["amount"] if measured else (0, 0, 0)
                amount = Amount(float(calls), float(tokens), Decimal(cost)) if measured else None  # type: ignore[arg-type]
                return cls(run.id, amount)
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
    constants = [_parts(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]
