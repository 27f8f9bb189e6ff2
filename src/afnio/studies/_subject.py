"""Subject: what `afnio.optimize` and `afnio.headroom` are about, and how its rows are scored.

A `Subject` is the user's function or module in one form: called with rows, it launches one lane for each. `Scorer` is
the user's metric for the rows of a batch, and `RowMetric` the evaluator around it, which gives feedback on wrong rows.
`Scored` is the outcome of a pass. A row that crashes has no score there: counted as wrong it would make an agent with
a flaky tool look like one with a bad prompt.

`CallCount` says what rows cost. At the end are the arguments that both functions take, in their checked form.
"""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, cast, final

from afnio import cognitive as cog
from afnio.autodiff._function import Arguments, Context
from afnio.autodiff._graph import no_grad
from afnio.autodiff._variable import Variable, bind
from afnio.cognitive._agent import traced_within
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
    first_of,
    reason,
)
from afnio.models._backward_model import chat_model
from afnio.models._client import ChatClient, ChatModel, rehearsing
from afnio.models._prices import price_of
from afnio.models._trace import Trace
from afnio.runtime._blocking import task_group
from afnio.runtime._budget import Budget
from afnio.runtime._callables import call_in_node, is_async, may_fail, tolerate
from afnio.runtime._kernel import Failure, Job, Outcomes
from afnio.runtime._spending import Amount, cost
from afnio.runtime._waiting import scope, wait_async
from afnio.runtime.events import CallEnded, CallReplayed, Usage
from afnio.studies._rows import Row, in_words

MOST_CHARACTERS: Final = 1_000
"""A prompt may grow to this, or to its first length if that is more. Longer ones didn't score better."""
QUORUM: Final = 0.9
"""The share of rows that must not crash."""


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
        return cls(module, module.extra_repr(), functools.partial(with_prompts, module), agent)

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
        if isinstance(self.module, cog.Agent):
            self.module.arranged(row.args, row.kwargs)
            return
        try:
            inspect.signature(self.module.forward).bind(*row.args, **row.kwargs)
        except TypeError as error:
            given = " ".join([*row.kwargs]) or "one value"
            raise TypeError(
                f"{self.title} can't be called with a row's inputs ({given}): {error}; keep clients and settings in "
                "the module (self.client = …), or pass a function that has them"
            ) from None

    def __call__(self, rows: Sequence[Row]) -> Any:
        """Launch the agent on rows; returns its output, or a coroutine of it."""
        args = [_lanes([row.args[0] for row in rows])] if rows[0].args else []
        return self.module(
            *args, **{key: _lanes([row.kwargs[key] for row in rows]) for key in rows[0].kwargs}
        )


def with_prompts(agent: cog.Agent, texts: Mapping[str, str]) -> Callable[..., Any]:
    """Return an agent's function with prompts filled in. Inputs are passed as before, wherever the prompts stand."""
    function = agent.fn

    @functools.wraps(function)
    async def awaited(*inputs: Any, **named: Any) -> Any:
        args, kwargs = agent.arranged(inputs, named)
        return await function(*args, **kwargs, **texts)

    @functools.wraps(function)
    def called(*inputs: Any, **named: Any) -> Any:
        args, kwargs = agent.arranged(inputs, named)
        return function(*args, **kwargs, **texts)

    return awaited if is_async(function) else called


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


# The scores of a pass


@final
@dataclass(slots=True)
class Scored:
    """A pass over rows with one set of prompts: scores, outputs in words, errors; by row."""

    scores: list[float | None] = field(default_factory=list)
    outputs: list[str | None] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)

    @property
    def mean(self) -> float:
        known = [score for score in self.scores if score is not None]
        return sum(known) / len(known) if known else -math.inf


def paired(old: Scored, new: Scored) -> tuple[list[float], list[float]]:
    """Return the scores of the rows that have both."""
    both = [(a, b) for a, b in zip(old.scores, new.scores, strict=True) if a is not None and b is not None]
    return [a for a, _ in both], [b for _, b in both]


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
        fatal = first_of(error, kind)
        if fatal is not None:
            raise fatal


class Scoring:
    """Scores rows with an agent and a metric: what every part that looks at rows shares."""

    def __init__(self, subject: Subject, metric: Callable[..., Any], perfect: float) -> None:
        if isinstance(perfect, bool) or not isinstance(perfect, int | float) or math.isnan(perfect):
            raise TypeError(f"perfect must be a number, the score of a right row (got {perfect!r})")
        wanted_by(metric)
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
    ) -> list[Scored]:
        """Score rows with each version of the prompts, side by side.

        Args:
            tolerant: rows may crash.

        Raises:
            BatchError: if more than a tenth of the rows crashed.
        """
        results = [Scored() for _ in versions]

        async def one(number: int, texts: Mapping[str, str]) -> None:
            parameters = self.subject.parameters
            values: dict[Variable, Any] = {
                parameters[key]: Variable(text, parameters[key].role) for key, text in texts.items()
            }
            async with scope(name=f"{name} {number + 1}"):
                with bind(values):
                    results[number] = await self.read(*await self.evaluated(rows))

        async with scope(name=name):
            with no_grad(), mode(False), tolerate(1e-9):
                async with task_group() as tasks:
                    for number, texts in enumerate(versions):
                        tasks.start_soon(one, number, texts)
        for result in results if not tolerant else ():
            check_crashes(result.errors, len(rows))
        return results

    async def read(self, evaluation: Evaluation, scorer: Scorer) -> Scored:
        """Wait for the scores of an evaluation."""
        slots = evaluation.score.sample_slots
        await wait_async(slots)
        result = Scored()
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

    async def rehearsed(self, row: Row) -> int:
        """Return how many calls a row takes. It is run with made-up replies, which sends nothing."""
        with rehearsing() as found:
            try:
                await self.scored("rehearsal", [row], self.subject.texts, tolerant=True)
            except Exception:  # made-up replies may be of no use to the agent or the metric
                logging.getLogger("afnio").debug("a row could not be rehearsed", exc_info=True)
        return max(1, len(found.calls))

    @contextmanager
    def bridge(self) -> Iterator[None]:
        """Take in the calls that a function makes with an SDK of its own."""
        if self.subject.function is None:
            yield
            return
        from afnio import bridge

        with bridge.installed():
            yield


# What rows cost


@final
@dataclass(slots=True)
class CallCount:
    """Adds up the calls that it hears of, as a subscriber to events.

    A call that a journal answers counts like one that was sent. So a run that is continued counts as it did before,
    and decides the same. A budget doesn't: replays are free, and all that was spent before counts from the start.

    Attributes:
        calls: that got a reply.
        usage: their tokens, by model and account.
    """

    calls: int = 0
    usage: dict[tuple[str, str], Usage] = field(default_factory=dict)

    def __call__(self, event: Any) -> None:
        if isinstance(event, CallEnded | CallReplayed) and event.reply is not None:
            key = event.model, event.account
            self.calls += 1
            self.usage[key] = self.usage.get(key, Usage()) + event.reply.usage

    @property
    def tokens(self) -> int:
        return sum(usage.total_tokens for usage in self.usage.values())

    @property
    def cost(self) -> Decimal | None:
        """Dollars, or None if a price is unknown. Reads prices from files, so not for the runtime's loop."""
        prices = {key: price_of(*key) for key in self.usage}
        if None in prices.values():
            return None
        return sum((cost(prices[key], usage) for key, usage in self.usage.items()), Decimal(0))  # type: ignore[arg-type]

    def each(self, rows: int) -> Amount:
        """Return what one of `rows` rows cost, an unknown price as 0. Its parts may be fractions."""
        return Amount(self.calls / rows, self.tokens / rows, (self.cost or Decimal(0)) / rows)  # type: ignore[arg-type]


def dearer(measured: Amount, critic: ChatModel, prompts: int) -> tuple[float, float]:
    """Return how many times the tokens and the dollars of an agent's call one of a training takes, on average.

    About one call in twelve is the proposer's, which reads eight mistakes. With several prompts three in ten are
    critics', which read a row each. Prompts get longer. Reads prices from files, so not for the runtime's loop.

    Args:
        measured: what a row of the agent takes.
    """
    calls = max(float(measured.calls), 0.01)
    tokens, dollars = max(1.0, measured.tokens / calls), float(measured.cost) / calls
    others = [(0.08, 8 * tokens + 500, 400)]
    others += [(0.3, 2 * tokens + 500, 100)] if prompts > 1 else []
    own = 1.2 * (1 - sum(share for share, _, _ in others))
    in_tokens = own + sum(share * (read + written) for share, read, written in others) / tokens
    price = price_of(str(critic.completion_args.get("model")), critic.client.account.url)
    if price is None or not dollars:
        return in_tokens, in_tokens
    bills = [
        share * (read * float(price.input) + written * float(price.output)) / 1e6
        for share, read, written in others
    ]
    return in_tokens, own + sum(bills) / dollars


# Arguments of `optimize` and `headroom`


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
    """Return the critic that a user names.

    Raises:
        TypeError, ValueError: if it is none.
    """
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
    """Return the budget that a user gives, as dollars or as an `afnio.budget`.

    Raises:
        TypeError: if it is neither.
    """
    if isinstance(given, Budget):
        return given
    if isinstance(given, bool) or not isinstance(given, int | float | Decimal) or not given > 0:
        raise TypeError(
            f"budget must be dollars above 0 or afnio.budget(max_calls=…) and so on (got {given!r})"
        )
    return Budget(max_cost=given)


def seed_of(given: Any) -> int:
    """Return a user's seed; 0 by default.

    Raises:
        TypeError: if it isn't a whole number.
    """
    if isinstance(given, bool) or not isinstance(given, int | None):
        raise TypeError(f"seed must be a whole number (got {given!r})")
    return given or 0
