"""evaluate: where an agent stands on rows of data, before anything is optimized and after.

Each row is run `draws` times. The unit of the journal is a reply to (input, draw): every such pair is scored in a scope
of its own, whose address is made of the input. So rows can be moved, added and left out, the metric can be another and
draws can be added: what was asked before is answered from the journal. Equal inputs are numbered.

The run of an evaluation is found by the name and the prompts, and it is continued even if it had ended: then its rows
are scored anew from the replies in its journal. `fresh=True` begins a run without any.
"""

from __future__ import annotations

import functools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, cast, final

import anyio.to_thread

from afnio import cognitive as cog
from afnio._figures import counted
from afnio.autodiff._function import Arguments, Context, set_launch_event
from afnio.autodiff._graph import no_grad
from afnio.cognitive._members import mode
from afnio.errors import BudgetExceeded, JournalLockedError, UnknownPriceError, reason
from afnio.models._prices import earlier_ledger, price_of
from afnio.runtime._blocking import stoppable, task_group
from afnio.runtime._budget import Budget
from afnio.runtime._callables import tolerate
from afnio.runtime._kernel import Job, Launch, Outcomes, Scope, Slot, active_scope, current_scope
from afnio.runtime._limits import Limits
from afnio.runtime._spending import cost
from afnio.runtime._tracebacks import Failure, folding
from afnio.runtime._waiting import wait_async
from afnio.runtime.events import (
    CallEnded,
    CallReplayed,
    NodeInput,
    NodeLaunched,
    Usage,
    emit,
    listening,
    subscribed,
)
from afnio.studies._earlier import trained_on
from afnio.studies._evaluated import Draw, EvaluatedRow
from afnio.studies._evaluation import Evaluation
from afnio.studies._needs import FIRST
from afnio.studies._rows import Row, digest, read_rows
from afnio.studies._scoring import (
    RowMetric,
    Scorer,
    Scoring,
    check_crashes,
    check_draws,
    raise_fatal,
    takes_expected,
    wanted_by,
)
from afnio.studies._study import budget_of, job
from afnio.studies._subject import Subject
from afnio.studies._training import shown
from afnio.tellurio._card import CARD
from afnio.tellurio._queries import StoreReader
from afnio.tellurio._run import Run, init
from afnio.tellurio._store import store_path
from afnio.trainer._progress import Progress

NAMESPACE: Final = "evaluate"
# The element of the addresses of the metric's calls. A row's own launches are numbered from 1.
METRIC: Final = 0
# Rows that begin together. If all did, on a busy loop the last one would begin before the first one has a
# score.
AT_ONCE: Final = 250
# The number of a row, and of its draw.
Place = tuple[int, int]


@folding
def evaluate(
    agent: Callable[..., Any] | cog.Module,
    rows: Sequence[Any],
    metric: Callable[..., Any],
    *,
    prompts: Mapping[str, str] | None = None,
    budget: float | Budget | None = None,
    draws: int = 1,
    name: str | None = None,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 (as in te.init)
    perfect: float = 1.0,
    limits: Limits | None = None,
    fresh: bool = False,
) -> Evaluation:
    """Score an agent on rows: its mean with an interval, and every row with its replies, errors and cost.

    Blocks like `afnio.optimize`; on a running event loop, await it. The agent isn't changed.

    The agent is always run, but a request that an earlier evaluation sent for the same input and draw is answered from
    that one's journal. So another metric costs nothing, more rows or draws cost only the new ones, and what was killed
    continues if it is started again. An evaluation is the same if `name` and `prompts` are. To compare two models, give
    each a name, so that each keeps its page in the studio.

    Args:
        agent: a function, `def` or `async def`, that is called with a row's inputs and, by name, the prompts. Or a
            Module.
        rows: as for `afnio.optimize`.
        metric: `metric(output, expected)`, as for `afnio.optimize`.
        prompts: the function's prompts by name, if it takes any.
        budget: the most to spend: dollars, or `afnio.budget(max_calls=…)` and so on. It counts all that was paid for
            this evaluation, earlier starts included. Without one there is no limit.
        draws: how often each row is run. It shows which rows are flaky, and makes comparisons sharper if many are. A
            single score hardly gains by it.
        name: of the project in the store; by default the function's or the class's name.
        dir: the folder of the store; `.afnio` by default.
        perfect: the score of a right row, which no score may exceed.
        limits: `afnio.Limits` of each account that a function's clients use.
        fresh: ask everything anew, to see if a model has changed. Only what was killed is continued.

    Raises:
        TypeError, ValueError: for arguments that can't work, before the first call, and for an agent that returns None
            for all of the first eight rows.
        MetricError: for a metric that returns a text or NaN, after eight rows at the latest if it always does.
        BatchError: if all of the first eight rows crash. Single rows may: they have no score, and `.failed` has them.
        BudgetExceeded: if the budget ends; the same call with a larger one continues.
        UnknownPriceError: if dollars are limited and a model has no price.

    >>> import tempfile
    >>> def shout(text):
    ...     return text.upper()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = evaluate(shout, [("a", "A"), ("b", "B"), ("c", "c")], lambda output, expected: output == expected,
    ...                      dir=folder)
    >>> print(found.score)
    66.7 % (2 of 3 right; 12.5 to 98.2)
    >>> print(found.worst(1))
    row 2: 0  'c' → 'C', expected 'c'
    """
    task = Evaluating(
        Subject.of(agent, prompts, wanted_by(metric), trained=False),
        metric,
        rows=rows,
        budget=budget,
        draws=draws,
        name=name,
        folder=dir,
        perfect=perfect,
        limits=limits,
        fresh=fresh,
    )
    return job(task.run, "evaluate")


@final
@dataclass(slots=True)
class Use:
    """The usage of the calls of one draw of a row. Those that the journal answered count as when they were made."""

    calls: int = 0
    replayed: int = 0
    judged: int = 0
    seconds: float = 0.0
    usage: dict[tuple[str, str], Usage] = field(default_factory=dict)

    def add(self, event: CallEnded | CallReplayed, *, judged: bool) -> None:
        self.replayed += isinstance(event, CallReplayed)
        if judged:
            self.judged += 1
            return
        usage = event.reply.usage if isinstance(event, CallReplayed) else event.usage
        key = event.model, event.account
        self.calls += 1
        self.seconds += event.seconds
        self.usage[key] = self.usage.get(key, Usage()) + usage


@final
class Evaluating(Scoring):
    """One evaluation. `run` it once."""

    def __init__(
        self,
        subject: Subject,
        metric: Callable[..., Any],
        *,
        rows: Any,
        budget: float | Budget | None,
        draws: int,
        name: str | None,
        folder: str | os.PathLike[str] | None,
        perfect: float,
        limits: Limits | None,
        fresh: bool,
    ) -> None:
        super().__init__(subject, metric, perfect)
        check_draws(draws)
        if not isinstance(limits, Limits | None):
            raise TypeError(f"limits must be an afnio.Limits (got {limits!r})")
        self.rows = read_rows(rows, labelled=takes_expected(metric))
        if not self.rows:
            raise ValueError("rows must have at least one row (got none)")
        subject.check(self.rows[0])
        self.budget = None if budget is None else budget_of(budget)
        self.draws, self.limits, self.fresh, self.folder = draws, limits, bool(fresh), folder
        self.project = name or subject.title
        self.store = store_path(NAMESPACE, self.project, folder)
        self.identity = digest(subject.texts)
        # The address of an input begins with a number, so the studio shows a draw as one evaluation.
        seen: Counter[str] = Counter()
        self._keys = [row.key for row in self.rows]
        self._numbers = []
        for key in self._keys:
            self._numbers.append(int(digest(key, seen[key])[:20], 16))
            seen[key] += 1
        self._uses: dict[str, Use] = {}
        self._done: dict[Place, tuple[str | None, float | None, str | None, str | None]] = {}

    @contextmanager
    def bridge(self) -> Iterator[None]:
        if self.subject.function is None:
            yield
            return
        from afnio import bridge

        with bridge.installed(limits=self.limits):
            yield

    async def run(self) -> Evaluation:
        """Score all rows, with the replies of an earlier evaluation of the same."""
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            run = await anyio.to_thread.run_sync(self._begin)
            run.continued_by = "the same call of evaluate"
            await stack.enter_async_context(run)
            stack.enter_context(self.bridge())
            stack.enter_context(subscribed(self._count))
            spending = stack.enter_context(Budget())
            if run.journal is not None:
                run.journal.on_change = lambda notice: None  # another agent or metric isn't a mistake here
            if self.budget is not None:
                stack.enter_context(self.budget)
                if run.journal is not None and not self.budget.has_charged(run.journal):
                    ledger = await anyio.to_thread.run_sync(earlier_ledger, run.journal)
                    self.budget.charge(ledger, run.journal)
            try:
                async with stoppable():
                    await self._scored()
            except UnknownPriceError as error:
                raise UnknownPriceError(f"{error}; or give budget=afnio.budget(max_calls=…)") from None
            except BudgetExceeded as error:
                error.add_note("what was paid for is kept: the same call with a larger budget continues")
                raise
            paid = spending.ledger.total.cost
            minutes = (time.monotonic() - started) / 60
            evaluation = await anyio.to_thread.run_sync(self._evaluation, run, paid, minutes)
            run.log("score", evaluation.score.mean)
            run.record(CARD, evaluation.card.to_json())
            await anyio.to_thread.run_sync(run.flush)
        return evaluation

    def _begin(self) -> Run:
        about = {
            "identity": self.identity,
            "agent": self.subject.title,
            "draws": self.draws,
            "fresh": self.fresh,
        }
        earlier = self._earlier()
        if earlier is not None:
            try:
                return init(NAMESPACE, self.project, dir=self.folder, resume=earlier)
            except JournalLockedError:  # another process continued it in this moment
                pass
        return init(NAMESPACE, self.project, config=about, dir=self.folder, resume=False)

    def _earlier(self) -> str | None:
        """Return the id of this evaluation's newest run. A fresh one continues only a fresh one that was killed."""
        if not self.store.exists():
            return None
        with StoreReader(self.store) as reader:
            for run in reader.runs():
                config = run.config if isinstance(run.config, dict) else {}
                if config.get("identity") == self.identity and run.status != "RUNNING":
                    usable = not self.fresh or (config.get("fresh") and run.status != "COMPLETED")
                    return run.id if usable else None
        return None

    # The rows

    async def _scored(self) -> None:
        """Score all rows: some first, which shows an agent or a metric that can't work."""
        places = [(number, draw) for draw in range(self.draws) for number in range(len(self.rows))]
        first = places[: min(FIRST, len(self.rows))]
        with shown("test", self.subject.title, len(places)) as progress:
            errors = await self._pass(first, progress)
            if all(self._done[place][1] is None for place in first):
                check_crashes(errors, len(first))
                raise ValueError(
                    f"the agent must return a text or another value (got None for all of the first {len(first)} "
                    "rows); return what the metric is to score"
                )
            await self._pass(places[len(first) :], progress)

    async def _pass(self, places: Sequence[Place], shown: Progress) -> list[BaseException]:
        """Run and score rows, each draw at an address of its own; returns the errors of those that crashed."""
        metric = Scorer(self.metric, (), self.perfect, set())
        scorers = {place: metric.of(self.rows[place[0]]) for place in places}
        slots: dict[Place, Slot] = {}
        self._uses.update({self._path(place): Use() for place in places})
        with no_grad(), mode(False), tolerate(1e-9):
            if self.subject.function is not None:
                for start in range(0, len(places), AT_ONCE):
                    await self._launch_function(places[start : start + AT_ONCE], scorers, slots, shown)
            else:
                async with task_group() as tasks:
                    for place, scorer in scorers.items():
                        tasks.start_soon(self._launch_module, place, scorer, slots, shown)
            await wait_async(slots.values())
        errors = {place: slot.outcome for place, slot in slots.items() if isinstance(slot.outcome, Failure)}
        for failure in errors.values():
            failure.mark_read()
        for failure in errors.values():  # all were read before: one that must be raised hides the others
            raise_fatal(failure.error)
        for place, scorer in scorers.items():
            score, error = slots[place].outcome, None
            if place in errors:
                score, error = None, _printable(reason(errors[place].error))
            elif score is None:
                error = "the agent returned None"
            self._done[place] = (scorer.outputs.get(0), score, scorer.feedback.get(0), error)
        return [failure.error for failure in errors.values()]

    async def _launch_function(
        self,
        places: Sequence[Place],
        scorers: Mapping[Place, Scorer],
        slots: dict[Place, Slot],
        shown: Progress,
    ) -> None:
        """Launch a function and the metric on rows; returns once they have begun.

        All are one launch with two jobs a row, because an op for each would take longer than their calls.
        """
        launch, agent = Launch(self.subject.title), cast("cog.Agent", self.subject.module)
        for place in places:
            output = Slot(launch)
            body = functools.partial(self._called, agent, self.rows[place[0]])
            launch.add(body, [], [output], path=self._path(place))
            slots[place] = self._judged(launch, output, scorers[place], place, shown)
        begun = Slot(launch)
        launch.add(lambda job, values: [True], [], [begun])
        launch.start()
        await wait_async([begun])

    async def _launch_module(
        self, place: Place, scorer: Scorer, slots: dict[Place, Slot], shown: Progress
    ) -> None:
        """Launch a Module on a row, and the metric behind it."""
        path, outer = self._path(place), current_scope()
        # It only lends its address: the run's scope owns the launches. This task has a context of its own.
        own = Scope(path, runtime=outer.runtime, owner=outer.owner, matched_in=path)
        own.job = outer.job
        active_scope.set(own)
        output = await self.output(scorer.rows)
        launch = Launch(scorer.name)
        set_launch_event(launch, Arguments((output,), {}), "evaluator")
        slots[place] = self._judged(launch, output.cell()[0][0], scorer, place, shown, node=launch.address)
        launch.start()

    async def _called(self, agent: cog.Agent, row: Row, job: Job, values: Any) -> Outcomes:
        if listening():
            inputs = [NodeInput(None, [value]) for value in (*row.args, *row.kwargs.values())]
            emit(NodeLaunched(job.address, job.launch.name, job.launch.line, "forward", 1, inputs))
        return [await agent.once(job, row.args, row.kwargs)]

    def _judged(
        self, launch: Launch, output: Slot, scorer: Scorer, place: Place, shown: Progress, node: str = ""
    ) -> Slot:
        """Add the job that scores an output; returns the slot of the score."""
        path = self._path(place)
        ctx = Context(Arguments((), {}), (), (), (), 0, node or path)
        options = {"scorer": scorer, "purpose": scorer.name}

        async def body(job: Job, values: Any) -> Outcomes:
            try:
                if values[0] is None or isinstance(values[0], Failure):
                    return [values[0]]
                return (await RowMetric.run_forward(job, ctx, values, options))[:1]
            finally:
                shown.scored()

        score = Slot(launch)
        launch.add(body, [output], [score], path=f"{path}/{METRIC}", gather=True)
        return score

    def _path(self, place: Place) -> str:
        return f"draw {place[1] + 1}/{self._numbers[place[0]]}"

    def _count(self, event: Any) -> None:
        """Add a call to the row that made it; called on the runtime's thread."""
        if isinstance(event, CallEnded | CallReplayed):
            draw, _, rest = event.address.partition("/")
            number, _, rest = rest.partition("/")
            use = self._uses.get(f"{draw}/{number}")
            if use is not None:
                use.add(event, judged=rest.startswith(f"{METRIC}/"))

    # The result

    def _evaluation(self, run: Run, paid: Decimal | None, minutes: float) -> Evaluation:
        """Return the result. Looks prices up, so not on an event loop."""
        prices = {key: price_of(*key) for use in self._uses.values() for key in use.usage}

        def draw(place: Place) -> Draw:
            use = self._uses[self._path(place)]
            bills = [
                None if (price := prices[key]) is None else cost(price, usage)
                for key, usage in use.usage.items()
            ]
            dollars = None if None in bills else float(sum(bill for bill in bills if bill is not None))
            tokens = sum(usage.total_tokens for usage in use.usage.values())
            return Draw(*self._done[place], use.calls, tokens, dollars, use.seconds)

        evaluated = [
            EvaluatedRow(
                row.number, self._keys[number], row.inputs, row.expected,
                tuple(draw((number, again)) for again in range(self.draws)),
            )
            for number, row in enumerate(self.rows)
        ]  # fmt: skip
        uses = self._uses.values()
        home = self.store.parent.parent
        trained = trained_on(home, self.subject.texts)
        return Evaluation(
            name=self.project,
            rows=evaluated,
            metric=getattr(self.metric, "__name__", type(self.metric).__name__),
            perfect=self.perfect,
            prompts=dict(self.subject.texts),
            replayed=sum(use.replayed for use in uses),
            judged=sum(use.judged for use in uses),
            paid=None if paid is None else float(paid),
            minutes=minutes,
            run=f"{run.namespace}/{run.project}/{run.name}",
            home=str(home),
            notes=self._notes(evaluated),
            trained=sorted(trained.intersection(self._keys)),
        )

    def _notes(self, rows: Sequence[EvaluatedRow]) -> list[str]:
        notes = []
        inputs = len({row.key for row in rows})
        if inputs < len(rows):
            notes.append(
                f"{counted(len(rows), 'row')} have {inputs:,} different inputs; each input counts once"
            )
        if (
            self.draws > 1
            and len(rows) > 1
            and all(len({draw.output for draw in row.draws}) == 1 for row in rows)
        ):
            notes.append(f"all {self.draws} draws of each row are equal, so one draw says as much")
        if not any(use.calls for use in self._uses.values()):
            notes.append("the agent made no call that Afnio sees, so budget and limits don't hold for it")
        return notes


def _printable(text: str) -> str:
    """Return a text without halves of characters, which no file or terminal takes."""
    return text.encode("utf-8", "backslashreplace").decode()
