"""optimize: from an agent, rows and a metric to better prompts, and a verdict on whether they are.

It is the engine's front door: everything here is put together from parts that can be used alone. In order:

1. `optimize` checks its arguments at the caller's line. `Optimization` is the rest.
2. The rows are split (`_rows`). The start prompts are scored on eight training rows: an agent that crashes, a metric
   that returns a text, a model without a price and a budget that is too small all show up there, before the first
   critic is paid.
3. `optim.EditTGD` trains: chains of small steps, raced on fresh training rows (`_training`). Its budget is what the
   user gives, less what the held-out rows will cost.
4. Old and new prompts are scored once, side by side, on rows that nothing else saw (`_held`). They decide which ones
   are kept, and by how much they are better. `Result` says what came out.

The whole runs inside a run of `te.init` that is recognized by what the call is about (`_identity`), not by the program.
A process that was killed is started again and continues, because the run's journal has every reply that was paid for.
One that had finished gets its result from the run. What depends on spending is decided by `CallCount`, so that a
continued run decides the same.
"""

from __future__ import annotations

import math
import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, Self, final

import anyio.to_thread

from afnio import cognitive as cog
from afnio._figures import Gain, Measured, compared, foreseen
from afnio.errors import BudgetExceeded, UnknownPriceError
from afnio.models._backward_model import set_backward_model_client
from afnio.models._client import ChatClient, ChatModel
from afnio.models._prices import earlier_ledger, price_of
from afnio.runtime._blocking import stoppable
from afnio.runtime._budget import Budget
from afnio.runtime._control import gently, seconds_paused
from afnio.runtime._limits import Limits
from afnio.runtime._spending import Amount
from afnio.runtime._tracebacks import folding
from afnio.runtime.events import subscribed
from afnio.studies._cross import NOTE as CROSS
from afnio.studies._cross import CrossFit
from afnio.studies._earlier import RESULT, Earlier
from afnio.studies._held import HeldOut, HeldScores
from afnio.studies._identity import Contents, requested
from afnio.studies._needs import FIRST, Needs
from afnio.studies._result import KEPT, UNTESTED, Result, evidence, from_json, to_json, verdict_of
from afnio.studies._rows import FEWEST, Row, by_input, digest, in_words, read_rows, split_rows
from afnio.studies._rules import MOST_CHARACTERS, Rules, guards_of
from afnio.studies._scoring import check_draws, takes_expected, wanted_by
from afnio.studies._study import Study, job
from afnio.studies._subject import Subject
from afnio.studies._training import TrainingRun
from afnio.tellurio._card import CARD, Example
from afnio.tellurio._run import Run, init
from afnio.tellurio._store import store_path

NAMESPACE: Final = "optimize"


@folding
def optimize(
    agent: Callable[..., Any] | cog.Module,
    rows: Sequence[Any],
    metric: Callable[..., Any],
    *,
    prompts: Mapping[str, str] | None = None,
    critic: str | tuple[ChatClient, Any] | ChatModel,
    budget: float | Budget,
    guards: Sequence[Any] | Callable[[Any], bool] | None = None,
    constraints: Sequence[str | Callable[[str, str], str | None]] = (),
    max_chars: int | Mapping[str, int | None] | None = MOST_CHARACTERS,
    testset: Sequence[Any] | None = None,
    draws: int = 1,
    cross_fit: bool = False,
    name: str | None = None,
    dir: str | os.PathLike[str] | None = None,  # noqa: A002 (as in te.init)
    seed: int | None = None,
    patience: int = 3,
    perfect: float = 1.0,
    limits: Limits | None = None,
    makes_calls: bool = True,
) -> Result:
    """Improve an agent's prompts on rows of data, and measure by how much.

    In a script, a thread or a notebook it returns when it is done. In an async app, on asyncio or trio, write
    `await afnio.optimize(…)`.

    It trains with `optim.EditTGD`: chains of small steps side by side, raced on fresh rows, with prompts of 1,000
    characters at most, or of their first length if that is more. Half of the rows are held out: nothing in the training
    sees them. At its end the old and the new prompts are scored on them, side by side, once. The new ones are kept if
    they are ahead there (p of no gain 0.5 or less), and the gain is claimed on all of these rows, with its 95 %
    interval. With 48 held-out rows or more, the first 40 % are scored first; if they are evidence of harm (p of a loss
    0.1 or less), the others aren't scored, and no interval is given. Nothing stops a result for success, so the
    interval needs no correction.

    A row that crashes counts as wrong there, with the old prompts as with the new ones.

    With fewer than 20 rows none are held out: all train, nothing is measured, and the old prompts are the result.
    `result.candidate` has the new ones, for somebody to read.

    The first Ctrl-C ends the training: what was learned so far is tested and returned. The second one stops at once.
    A process that was stopped or killed continues if the same call is made again, and pays for no reply twice. If that
    call had finished, its result is returned from the run (`result.earlier`); to start anew, give another `seed` or
    `name`. A call is the same if rows, prompts, critic, seed and `name` are, and agent and metric: their code, and the
    values that they can see, such as closures, defaults, globals, helpers and settings. A client has no value that
    could be compared; what the first row asks a model for counts instead. It is run with made-up replies for that. An
    object that no request shows makes a new run, which `print(result)` says.

    Inputs are counted, not rows: exact copies of a row are left out, and rows with equal inputs stay together and count
    once. Rows that are in `testset`, too, aren't used in the training.

    Args:
        agent: a function, `def` or `async def`, that is called once a row with the row's inputs and, by name, the
            prompts. Or a Module, called once a batch; its Parameters are the prompts. It isn't changed:
            `result.agent` is the better one.
        rows: `(inputs, expected)` each, or dicts with "inputs" and "expected" (MLflow's "expectations" will do), or
            dicts of inputs with the key "expected". Inputs are one value, or a dict of arguments by name. For a metric
            that takes no label also inputs alone: a text, a dict, or a tuple of one value.
        metric: `metric(output, expected)`; if it has parameters of these names it also gets the row's `inputs`, and
            `trace`, the list of the model calls behind the output. `metric(output)` and `metric(output, inputs)` take
            no label. Returns True or False, a number, or
            `(score, feedback)` with a sentence for the critic; larger is better. `def` or `async def`.
        prompts: the function's prompts by name.
        critic: the model that reads mistakes and rewrites prompts: "openai/gpt-5", or `(client, model)`.
        budget: the most to spend: dollars, or `afnio.budget(max_calls=…)` and so on. It pays for everything.
            The held-out rows take half of it at most; if it pays for fewer than there are, `result.notes` say so.
        guards: rows that must not break, in any of the forms of `rows`, or a function that picks them from these, such
            as `lambda row: "stolen" in row[0]`. They train, too, but aren't held out. A guard is firm if the old
            prompts get it right in three draws; the others guard nothing, which `result.notes` say. A candidate that
            gets a firm one wrong, and wrong again in one of two more draws, is refused in its race.
        constraints: rules for the new prompts. A text is told to the critic. A function `(name, text)` checks each new
            text, and returns None or the reason to refuse it.
        max_chars: the most characters of a prompt, for all or by name. A prompt that starts longer may keep its
            length. None sets no limit.
        testset: the rows to hold out, in place of half of `rows`.
        draws: how often each held-out row is scored with each prompt. Several make the interval narrower if answers to
            one row differ; they are no rows, so it is by input.
        cross_fit: train twice, each time on one half of the rows and tested on the other, so that all rows measure. It
            is for 20 to 95 rows, of which half see few gains. The claim is what two trainings gained on average; the
            seed picks whose prompts are returned, before anything is scored. It makes as many calls, so each training
            has fewer.
        name: of the project in the store; by default the function's or the class's name.
        dir: the folder of the store; `.afnio` by default.
        seed: of the splits and the order of the rows.
        patience: end the training if this number of steps gained less than two rows in their races, all together.
        perfect: the score that makes a row right. A right row is never criticized.
        limits: `afnio.Limits` of each account that a function's clients and the critic use. Of these and the limits
            around it, such as those of `bridge.installed(limits=…)`, the tightest hold. A Module's clients have their
            own.
        makes_calls: False if the agent asks no model, or sends its prompts only after certain replies. By default it is
            an error if none of the first rows makes a call that Afnio sees, before a critic is paid, and if a row's
            requests contain none of the prompts, before anything is paid.

    Raises:
        TypeError, ValueError: for a constraint that the old prompts break, or if no guard is firm.
        TypeError, ValueError: for arguments that can't work, before the first call, among them too few rows, and
            a budget in calls that can't pay for 12 held-out rows and one step, with the sum. For one in dollars or
            tokens after the first eight rows. For a metric that returns a text or NaN (`MetricError`), with its row.
        BatchError: if more than a tenth of the rows crash with the first prompts.
        UnknownPriceError: if dollars are limited and a model has no price.

    >>> import afnio, tempfile
    >>> from afnio.testing import ScriptedClient
    >>> client = ScriptedClient({"edits": [{"op": "replace", "block": 1, "text": "Say hi.", "samples": [1]}]})
    >>> async def greet(name, system):
    ...     return "hi" if system == "Say hi." else "hello"
    >>> rows = [(f"Ann {number}", "hi") for number in range(96)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = optimize(greet, rows, lambda output, expected: output == expected, prompts={"system": "Greet."},
    ...                       critic=(client, "any"), budget=afnio.budget(max_calls=500), dir=folder,
    ...                       makes_calls=False)
    >>> result.prompts, result.verdict
    ({'system': 'Say hi.'}, 'Better: +100.0 points (95 %: 88.2 to 100.0) on 48 held-out rows.')
    """
    task = Optimization.of(
        agent,
        rows,
        metric,
        prompts=prompts,
        guards=guards,
        constraints=constraints,
        max_chars=max_chars,
        testset=testset,
        draws=draws,
        cross_fit=cross_fit,
        critic=critic,
        budget=budget,
        name=name,
        dir=dir,
        seed=seed,
        limits=limits,
        makes_calls=makes_calls,
        patience=patience,
        perfect=perfect,
    )
    return job(task.run, "optimize", gently=task.stop)


# The optimization


@final
class Optimization(Study):
    """One optimization. `run` it once; `stop` ends the training early, from any thread."""

    @classmethod
    def of(
        cls,
        agent: Callable[..., Any] | cog.Module,
        rows: Sequence[Any],
        metric: Callable[..., Any],
        *,
        prompts: Mapping[str, str] | None = None,
        guards: Sequence[Any] | Callable[[Any], bool] | None = None,
        constraints: Sequence[str | Callable[[str, str], str | None]] = (),
        max_chars: int | Mapping[str, int | None] | None = MOST_CHARACTERS,
        **settings: Any,
    ) -> Self:
        """Return the optimization that the arguments of `optimize` mean, all of them checked."""
        subject = Subject.of(agent, prompts, wanted_by(metric))
        guarding, rows = guards_of(guards, rows, labelled=takes_expected(metric))
        subject.govern(Rules.of(subject.texts, guarding, constraints, max_chars))
        return cls(subject, metric, rows=rows, **settings)

    def __init__(
        self,
        subject: Subject,
        metric: Callable[..., Any],
        *,
        rows: Any,
        critic: str | tuple[ChatClient, Any] | ChatModel,
        budget: float | Budget,
        testset: Any = None,
        draws: int = 1,
        cross_fit: bool = False,
        name: str | None = None,
        dir: str | os.PathLike[str] | None = None,  # noqa: A002 (as in te.init)
        seed: int | None = None,
        limits: Limits | None = None,
        makes_calls: bool = True,
        patience: int = 3,
        perfect: float = 1.0,
    ) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be a number of steps, 1 or more (got {patience!r})")
        check_draws(draws)
        if not isinstance(cross_fit, bool):
            raise TypeError(f"cross_fit must be True or False (got {cross_fit!r})")
        if cross_fit and testset is not None:
            raise ValueError("cross_fit must be False with a testset (got True); leave testset out")
        super().__init__(
            subject,
            metric,
            perfect=perfect,
            critic=critic,
            budget=budget,
            seed=seed,
            limits=limits,
            makes_calls=makes_calls,
        )
        data, tested = (
            read_rows(() if one is None else one, part, labelled=takes_expected(metric))
            for one, part in ((rows, "rows"), (testset, "testset"))
        )
        rules = subject.rules
        given = (data, tested, rules.guards)
        for part in given:
            if part:
                subject.check(part[0])
        self.patience, self.folder, self.draws = patience, dir, draws
        self.splits = split_rows(data, tested, self.seed, rules.guards)
        guarded = {row.key for row in rules.guards}
        self.cross_fit = cross_fit
        self.halves = [[row for row in self.splits.train if row.key not in guarded], self.splits.held]
        self.held = [row for half in self.halves for row in half] if cross_fit else self.splits.held
        if cross_fit and not self.splits.held:
            raise ValueError(
                f"cross_fit must have at least {FEWEST} rows with different inputs (got "
                f"{len(by_input(self.held))}); leave it out"
            )
        self.project = name or subject.title
        self.store = store_path(NAMESPACE, self.project, dir)
        contents = Contents()
        self.unseen = contents.unseen
        self.identity = digest(
            contents.of(self.subject.origin),
            contents.of(metric, "the metric"),
            [contents.of(check, "a constraint") for check in rules.checks],
            [[(row.args, row.kwargs, row.expected) for row in part] for part in given],
            self.start,
            [self.critic.client.account.url, self.critic.completion_args],
            [self.seed, cross_fit],
        )
        caps = self.budget.caps
        self.settings = {
            "budget": [
                caps.calls,
                caps.tokens,
                None if caps.cost is None else str(caps.cost),
                self.budget.max_seconds,
            ],
            "patience": patience,
            "perfect": perfect,
            "draws": draws,
            "constraints": list(rules.told),
            "max_chars": dict(rules.lengths),
        }
        self.notes = [*self.splits.notes, *([CROSS] if cross_fit else [])]
        self.needs = Needs(subject, self.held, self.critic, self.budget, draws, trainings=1 + cross_fit)
        self.needs.check_calls(1)
        self.offers_tools = self.is_graded = False
        self.paid_before = 0

    def stop(self, reason: str = "Ctrl-C") -> None:
        """End the training after the current step."""
        if self.asked is None:
            self.asked = reason
            self.tell("the training ends after this step, then the held-out rows follow; Ctrl-C again stops")

    # The run

    async def run(self) -> Result:
        """Optimize, or continue or return what an earlier call of the same did."""
        with self.bridge():
            calls = await self.rehearsed(self.splits.train[0])
        self.identity = digest(self.identity, requested(calls))
        if self.unseen and not calls:
            # Nothing shows what these objects do, so another call may be another agent's.
            self.identity = f"{self.identity} {secrets.token_hex(8)}"
            self.notes.append(
                f"a new run in any case, as nothing shows what is in {', '.join(self.unseen[:3])}; give the agent "
                "values instead of objects to have it continued"
            )
        earlier = await anyio.to_thread.run_sync(Earlier.find, self.store, self.identity, self.settings)
        if earlier.result is not None:
            self.tell(f"optimize returns the result of {earlier.when}; another seed or name starts anew")
            return from_json(
                earlier.result, home=self._home, make_agent=self.subject.restored, earlier=earlier.when,
                examples=() if earlier.card is None else earlier.card.rows,
                test_rows=self._untrained(earlier.result.get("trained", ())),
            )  # fmt: skip
        with self.bridge():
            self._check_sent(await self.unsent(self.splits.train[0]))
        started = time.monotonic()
        self.offers_tools = any(call.params.get("tools") for call in calls)
        if self.budget.caps.calls is not None:
            self.needs.check_calls(max(1, len(calls)))
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
                self.paid_before = ledger.total.calls
                for budget in (spending, self.budget):
                    if not budget.has_charged(run.journal):
                        budget.charge(ledger, run.journal)
            async with stoppable():
                with gently(self.stop):
                    result = await self._optimized(run, spending, started)
            await anyio.to_thread.run_sync(self._keep, run, result)
        return result

    def _check_sent(self, missing: Sequence[str]) -> None:
        """Raise if the agent sends none of its prompts, and note it if it doesn't send some."""
        names = ", ".join(missing)
        if self.makes_calls and len(missing) == len(self.start):
            raise ValueError(
                f"the agent must send {'its prompt' if len(missing) == 1 else 'one of its prompts'} to a model (got a "
                f"row whose requests contain nothing of {names}, so nothing was paid); put {missing[0]} into the "
                "messages, or pass makes_calls=False if it is sent only after certain replies"
            )
        if missing:
            self.notes.append(f"the first row's requests contain nothing of {names}")

    @property
    def _home(self) -> str:
        return str(self.store.parent.parent)

    def _begin(self, run_id: str | None) -> Run:
        about = {"identity": self.identity, "settings": self.settings, "agent": self.subject.title}
        return init(NAMESPACE, self.project, config=about, dir=self.folder, resume=run_id or False)

    def _keep(self, run: Run, result: Result) -> None:
        run.record(CARD, result.card.to_json())
        run.record(RESULT, to_json(result))
        run.flush()

    # The story

    async def _optimized(self, run: Run, spending: Budget, started: float) -> Result:
        measured = await self._first_look()
        size = await anyio.to_thread.run_sync(self.needs.check, measured)
        groups = by_input(self.held)
        if size < len(groups):
            self.notes.append(
                f"{size} of {len(groups)} held-out rows are used, as half of the budget pays for no more"
            )
            groups = groups[:size]
        held = HeldOut(self, groups, self.draws)
        crossed = None
        if self.cross_fit:
            crossed = CrossFit(self, self.halves, inputs=size, draws=self.draws, patience=self.patience)
        trained = f"{self.sizes['train']} rows train"
        if not groups:
            self.tell(f"{trained}, and none are held out, so nothing is measured")
        elif not self.is_graded:
            self.tell(f"{trained}; {foreseen(len(groups))}")
        if crossed is not None:
            training = await crossed.train(run, self.needs, measured, started)
        else:
            training = TrainingRun(
                self, self.splits.train, self.needs, measured=measured, held=held.runs, patience=self.patience
            )  # fmt: skip
            if training.weakness is not None:
                self.tell(training.weakness)
            await training.run(run, _gone_since(started))
        if training.weakness is not None:
            self.notes.append(training.weakness)
        candidate = self.subject.texts
        tested: HeldScores | None = None
        try:
            if crossed is not None:
                tested = await crossed.judge()
            elif groups:
                tested = await held.judge(self.start)
                stop = tested.verdict
                if stop is not None and stop.stopped and training.goes_on(held.rest.runs):
                    self.notes.append(
                        f"the first held-out rows stopped a first result ({evidence(stop)}); what it left of the "
                        "budget paid for a second attempt, which the other rows test"
                    )
                    await training.run(run, _gone_since(started))
                    if self.subject.texts != self.start:
                        candidate = self.subject.texts
                        tested = await held.rest.judge(self.start)
        except BudgetExceeded as error:  # a row cost more than was reserved for it
            tested = None
            training.ended = f"the budget ended before all held-out rows were scored ({error.limit})"
        self.notes += training.notes
        if tested is None:
            self.subject.write(self.start)
        trained_on = self.splits.train if crossed is None else [*crossed.trained, *self.subject.rules.guards]
        return self._result(run, spending, training, tested, started, candidate, trained_on)

    async def _first_look(self) -> Amount:
        """Score the start prompts on a few training rows. Returns what a row costs."""
        first = list(self.splits.train[:FIRST])
        await anyio.to_thread.run_sync(
            self._check_price, self.critic.completion_args.get("model"), self.critic.client
        )
        try:
            with self.seeing(len(first)):
                if self.offers_tools:
                    await self._count_first(first.pop(0))
                (scored,) = await self.scored("first", first, self.start)
        except UnknownPriceError as error:
            raise UnknownPriceError(f"{error}; or give budget=afnio.budget(max_calls=…)") from None
        except BudgetExceeded as error:
            raise ValueError(f"budget must pay for more than the first {len(first)} rows ({error})") from None
        self.is_graded = any(score not in (None, 0, 1) for score in scored.scores)
        return await anyio.to_thread.run_sync(self.count.each, len(first))

    async def _count_first(self, row: Row) -> None:
        """Count the calls of a real row: made-up replies call no tools, so they show only an agent's first call."""
        await self.scored("first row", [row], self.start)
        if self.budget.caps.calls is not None:
            self.needs.check_calls(max(1, self.count.calls))
        self.notes.append(
            f"the agent offers tools, which made-up replies can't call, so its first row was run and paid for to count "
            f"its calls: {self.count.calls}"
        )

    def _result(
        self,
        run: Run,
        spending: Budget,
        training: TrainingRun,
        tested: HeldScores | None,
        started: float,
        candidate: Mapping[str, str],
        trained_on: Sequence[Row],
    ) -> Result:
        found = HeldScores() if tested is None else tested
        gate = found.verdict
        graded = any(score not in (None, 0, 1) for look in found.looks for score in look.scores)
        unit = "rows" if len(found.before) * self.draws == len(found.rows) else "inputs"
        on = (
            f"{len(found.before)} {unit}, each held out once"
            if self.cross_fit
            else (f"{len(found.before)} held-out {unit}")
        )
        on += f", {self.draws} draws each" if self.draws > 1 else ""
        # The first rows of a result that was stopped show more harm than there is, so nothing is measured by them.
        is_measured = tested is not None and not (gate is not None and gate.stopped)
        gain: Gain | None = None
        before: Measured | None = None
        after: Measured | None = None
        if is_measured:
            before, after, gain = compared(
                found.before,
                found.after,
                graded=graded,
                highest=self.perfect,
                answers=(len(found.rows), len(found.rows)),
                confidence=found.confidence,
                trainings=1 + self.cross_fit,
            )
        gain = None if gate is None else gain  # without new prompts there is nothing to compare
        spent = spending.ledger.total
        return Result(
            verdict=verdict_of(gain, gate, on=on, vetoed=training.vetoed)
            if tested is not None
            else UNTESTED
            if self.splits.held
            else f"Not measured: {len(self.splits.train)} rows. {KEPT}",
            prompts=self.subject.texts,
            candidate=candidate,
            takes={} if gate is None else found.takes,
            start=dict(self.start),
            before=before,
            after=after,
            gain=gain,
            on=on,
            failed=found.crashed,
            stopped=training.ended or "",
            steps=training.steps,
            calls=spent.calls,
            paid_before=self.paid_before,
            tokens=spent.usage.total_tokens,
            cost=None if spent.cost is None else float(spent.cost),
            minutes=(time.monotonic() - started) / 60,
            run=f"{run.namespace}/{run.project}/{run.name}",
            gate=gate,
            notes=tuple(self.notes),
            home=self._home,
            splits=self.sizes,
            examples=_examples(found),
            make_agent=self.subject.restored,
            trained=(trained := [row.key for row in trained_on]),
            test_rows=self._untrained(trained),
        )

    @property
    def sizes(self) -> dict[str, int]:
        """How many rows train, and how many are held out."""
        train = len(self.splits.train) + (len(self.splits.held) if self.cross_fit else 0)
        return {"train": train, "held": len(self.held)}

    def _untrained(self, trained: Sequence[str]) -> list[Any]:
        return [(row.inputs, row.expected) for row in self.held if row.key not in trained]

    def _check_price(self, model: Any, client: ChatClient) -> None:
        if self.budget.caps.cost is None or price_of(str(model), client.account.url) is not None:
            return
        raise UnknownPriceError(
            f"budget=${self.budget.caps.cost} needs the price of {model!r} at {client.account.url}, which is unknown; "
            "give budget=afnio.budget(max_calls=…), or write the price into ~/.config/afnio/prices.toml"
        )


def _gone_since(started: float) -> float:
    """Return the seconds since then in which the run wasn't paused."""
    elapsed = time.monotonic() - started
    return elapsed - seconds_paused(elapsed)


def _examples(found: HeldScores) -> list[Example]:
    """Return the scored rows, each with its mean scores and its first outputs."""
    places: dict[int, list[int]] = {}
    for place, row in enumerate(found.rows):
        places.setdefault(row.number, []).append(place)
    return [
        Example(
            number,
            found.rows[mine[0]].text,
            in_words(found.rows[mine[0]].expected),
            tuple(look.outputs[mine[0]] for look in found.looks),
            tuple(_mean([look.scores[place] for place in mine]) for look in found.looks),
        )
        for number, mine in places.items()
    ]


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return math.fsum(known) / len(known) if known else None
