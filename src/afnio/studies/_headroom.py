"""headroom: can better prompts help this agent at all? A few hundred calls, before a training is paid for.

"Prompt optimization is a coin flip" (arXiv:2604.14585): about half of 72 published-style runs ended below their start.
Often there was nothing to win: the score was noise, the mistakes weren't the prompt's, or all was right already. The
test looks for that:

1. *Noise.* The start prompts are scored on the same rows twice. What changes is noise.
2. *Form.* Which mistakes are replies that can't be read, or the right answer in another form?
3. *Varied prompts.* Two steps of `optim.EditTGD`: chains of small edits from different mistakes, their union, and the
   start prompts without one of their sentences, raced against the start prompts.
4. *How much better?* The winner runs together with the start prompts on rows that nothing else has seen. The gain that
   is reported is measured there alone. So it needs no correction for having looked at the best of several.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, NamedTuple, final

import anyio.to_thread

from afnio import cognitive as cog
from afnio._figures import Gain, foreseen
from afnio.errors import BatchError, BudgetExceeded, ModelError, first_of, reason
from afnio.models._backward_model import set_backward_model_client
from afnio.models._client import ChatClient, ChatModel
from afnio.optim import EditTGD
from afnio.runtime._budget import Budget
from afnio.runtime._limits import Limits
from afnio.runtime._spending import Amount, Ledger
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import active_journal, scope
from afnio.runtime.events import StepEnded, subscribed
from afnio.stats import p_value
from afnio.studies._needs import CallCount, cost_factors
from afnio.studies._result import in_time
from afnio.studies._rows import Row, by_input, distinct, in_words, means_by_input, read_rows
from afnio.studies._scoring import Scored, Scoring, takes_expected, wanted_by
from afnio.studies._study import Study, job
from afnio.studies._subject import Subject
from afnio.utils.data import DataLoader

# The test never takes more calls than this, whatever the budget is.
MOST_CALLS: Final = 400
FEWEST_ROWS: Final = 40
# One-sided. Without headroom at most this share of tests finds some.
LEVEL: Final = 0.05
# Rows below which a comparison says nothing.
FEWEST_PAIRS: Final = 8
# Rows that show what a row costs.
PROBED: Final = 4
# The score of a row whose reply the agent or the metric could not read.
_CRASHED: Final = 0.0


@folding
def headroom(
    agent: Callable[..., Any] | cog.Module,
    rows: Sequence[Any],
    metric: Callable[..., Any],
    *,
    prompts: Mapping[str, str] | None = None,
    critic: str | tuple[ChatClient, Any] | ChatModel,
    budget: float | Budget,
    perfect: float = 1.0,
    seed: int | None = None,
    limits: Limits | None = None,
    makes_calls: bool = True,
) -> Headroom:
    """Test if better prompts can raise an agent's score, before a training is paid for.

    It takes about 300 calls, and never begins what would take more than 400. Where there is nothing to gain, it finds
    something in at most 5 of 100 tests. If it finds nothing, a single round of varied prompts reached nothing; the
    interval in the verdict shows how large a gain would still fit.

    Blocks like `afnio.optimize`; on a running event loop, await it. The agent isn't changed.

    Args:
        agent, rows, metric, prompts, critic, perfect: As for `afnio.optimize`.
        budget: The most to spend: dollars, or `afnio.budget(max_calls=…)` and so on.
        seed: Of the order of the rows.
        limits: `afnio.Limits` of each account that a function's clients and the critic use. Of these and the limits
            around it, such as those of `bridge.installed(limits=…)`, the tightest hold. A Module's clients have their
            own.
        makes_calls: False if the agent asks no model. By default it is an error if none of the first rows makes a call
            that Afnio sees, before a critic is paid.

    Raises:
        TypeError, ValueError: for arguments that can't work, before the first call; for a budget that can't pay for
            the smallest test, with the sum, after the first eight rows at the latest.
        BatchError: if more than a tenth of the calls fail.

    >>> import afnio
    >>> from afnio.testing import ScriptedClient
    >>> client = ScriptedClient({"value": "Say hi.", "criticism": "Say hi.", "feedback": []})
    >>> async def greet(name, system):
    ...     return "hi"
    >>> rows = [(f"Ann {n}", "hi") for n in range(48)]
    >>> print(afnio.headroom(greet, rows, lambda output, expected: output == expected, prompts={"system": "Greet."},
    ...     critic=(client, "any"), budget=afnio.budget(max_calls=300), makes_calls=False).verdict)
    No headroom: all 8 rows are right (95 %: at least 68.8 % of all are).
    """
    test = HeadroomTest(
        Subject.of(agent, prompts, wanted_by(metric)),
        metric,
        rows=read_rows(rows, labelled=takes_expected(metric)),
        critic=critic,
        budget=budget,
        perfect=perfect,
        seed=seed,
        limits=limits,
        makes_calls=makes_calls,
    )
    return job(test.run, "headroom")


@final
@dataclass(frozen=True, slots=True)
class Headroom:
    """What a headroom test found. `print` it for the verdict.

    Attributes:
        found: True if a varied prompt is better than the start prompts beyond chance.
        verdict: The finding in a sentence.
        gain: The best variant against the start prompts on rows that it wasn't chosen on. None if there were no
            mistakes to make variants from, or if no variant came out ahead of the start prompts.
        start: The mean score of the start prompts.
        noise: The share of rows whose score changed when the same prompts were scored again.
        wrong: How many of `rows` scored below perfect.
        form: How many of those are mistakes of form: a reply that can't be read, or the right answer written otherwise.
        rows: How many rows `start`, `noise`, `wrong` and `form` are of.
        variants: How many varied prompts were tried.
        prompts: The best variant if it is better, else the start prompts.
        calls, tokens, cost, minutes: What it took; the cost is None if a price is unknown.
        replayed: How many of the calls a journal answered.
    """

    found: bool
    verdict: str
    gain: Gain | None
    start: float
    noise: float
    wrong: int
    form: int
    rows: int
    variants: int
    prompts: Mapping[str, str]
    calls: int
    tokens: int
    cost: float | None
    minutes: float
    replayed: int = 0

    def __str__(self) -> str:
        replayed = f" ({self.replayed:,} from the journal)" if self.replayed else ""
        spent = f"{self.calls:,} calls{replayed}, {in_time(self.minutes)}"
        if self.cost is not None:
            spent += f", ${self.cost:.4f}"
        return f"{self.verdict} ({spent})"


class Design(NamedTuple):
    """How many rows each part of the test gets.

    Attributes:
        twice: Rows that the start prompts are scored on twice.
        tried: Rows that variants are made from and raced on.
        final: Rows that the best one and the start prompts are scored on.
        step: Calls that making and racing variants may take.
    """

    twice: int
    tried: int
    final: int
    step: int


def design_for(rows: int, each: float, calls: float) -> Design:
    """Return the design for a number of rows and of calls, if a row takes `each`.

    Raises:
        ValueError: if the calls can't pay for the smallest one.

    >>> design_for(rows=132, each=1, calls=400)
    Design(twice=16, tried=36, final=80, step=208)
    """
    most = min(calls, MOST_CALLS)
    twice = max(PROBED, min(16, rows // 6, int(0.05 * most / each)))
    tried = min(LEARNT + 12, int(0.45 * (rows - twice)))
    final = max(10, min(80, rows - twice - tried, int(0.21 * most / each)))
    step = int(most - 2 * (twice + final) * each)
    if step < _STEP * each:
        least = math.ceil((2 * (PROBED + 10) + _STEP) * each)
        raise ValueError(
            f"budget must pay for at least {least} calls, {each:g} a row (got {int(most)}); give more, or test one "
            "part of the agent"
        )
    return Design(twice, rows - twice - final, final, step)


# Rows that the smallest step runs.
_STEP: Final = 24


@final
@dataclass(slots=True)
class Passed:
    """A pass over rows: one score for each, None for rows whose calls failed; which of them are wrong in their form."""

    scores: list[float | None] = field(default_factory=list)
    form: list[bool] = field(default_factory=list)


@final
class HeadroomTest(Study):
    """One test. `run` it once."""

    def __init__(
        self,
        subject: Subject,
        metric: Callable[..., Any],
        *,
        rows: Sequence[Row],
        critic: str | tuple[ChatClient, Any] | ChatModel,
        budget: float | Budget,
        perfect: float,
        seed: int | None,
        limits: Limits | None,
        makes_calls: bool,
    ) -> None:
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
        self.rows, _ = distinct(rows)
        rows = self.rows
        if len(rows) < FEWEST_ROWS:
            raise ValueError(f"a headroom test needs at least {FEWEST_ROWS} rows (got {len(rows)}); add rows")
        subject.check(self.rows[0])
        self._each = 1.0
        self._is_graded = False
        self.design(None)

    async def run(self) -> Headroom:
        """Do the test."""
        started, spent = time.monotonic(), CallCount()
        async with AsyncExitStack() as stack:
            stack.enter_context(
                set_backward_model_client(self.critic.client, completion_args=self.critic.completion_args)
            )
            stack.enter_context(self.bridge())
            stack.enter_context(self.budget)
            stack.enter_context(subscribed(spent))
            await stack.enter_async_context(scope(name="headroom"))
            result = await self._tested(spent)
        price = await anyio.to_thread.run_sync(lambda: spent.cost)
        if result["wrong"] and not self._is_graded:
            power = foreseen(len(by_input(self.rows)) // 2)
            result["verdict"] += f" By `optimize`, {power}."
        return Headroom(
            **result,
            calls=spent.calls,
            replayed=spent.replayed,
            tokens=spent.tokens,
            cost=None if price is None else float(price),
            minutes=(time.monotonic() - started) / 60,
        )

    async def _tested(self, spent: CallCount) -> dict[str, Any]:
        rows = random.Random(f"headroom {self.seed}").sample(self.rows, len(self.rows))
        # Some rows first show what a row costs. The sizes of all that follows depend on it.
        with self.seeing(PROBED):
            (probe,) = await self._pass("first", rows[:PROBED], self.start)
        each = await anyio.to_thread.run_sync(spent.each, PROBED)
        design = await anyio.to_thread.run_sync(self.design, each)
        twice, final = rows[: design.twice], rows[design.twice : design.twice + design.final]
        (rest,) = await self._pass("first", twice[PROBED:], self.start)
        (again,) = await self._pass("again", twice, self.start)
        once = Passed([*probe.scores, *rest.scores], [*probe.form, *rest.form])
        pairs = [(a, b) for a, b in zip(once.scores, again.scores, strict=True) if None not in (a, b)]
        tried = rows[design.twice + design.final :]
        best, variants = await self._varied(tried, design, spent, each)
        old, new = once, None
        final = final[: self._affordable(spent)]
        if best != self.start and len(final) >= FEWEST_PAIRS:
            old, new = await self._pass("final", final, self.start, best)
        self._is_graded = any(score not in (None, 0, 1) for score in once.scores)
        shown = [once, old] if new else [once]
        scored = [score for one in shown for score in one.scores if score is not None]
        about: dict[str, Any] = {
            "start": math.fsum(scored) / max(len(scored), 1),
            "noise": sum(a != b for a, b in pairs) / max(len(pairs), 1),
            "wrong": sum(score < self.perfect for score in scored),
            "form": sum(sum(one.form) for one in shown),
            "rows": len(scored),
            "variants": variants,
        }
        gain = None
        is_found = False
        if new is not None:
            before, after = means_by_input([row.key for row in final], old.scores, new.scores)
            graded = any(score not in (0, 1) for score in (*before, *after))
            gain = Gain.of(before, after, graded=graded, highest=self.perfect)
            changes = [b - a for a, b in zip(before, after, strict=True)]
            is_found = sum(changes) > 0 and p_value(changes) <= LEVEL
        return {
            **about,
            "found": is_found,
            "verdict": _verdict(gain, about, is_found=is_found),
            "gain": gain,
            "prompts": best if is_found else self.start,
        }

    def _affordable(self, spent: CallCount) -> int:
        """Return how many rows both sets of prompts can be scored on with what is left of the calls."""
        caps = self.budget.caps
        most = MOST_CALLS if caps.calls is None else min(caps.calls, MOST_CALLS)
        return max(0, int((most - spent.calls) / (2 * self._each)))

    def design(self, measured: Amount | None) -> Design:
        """Return the design that the budget allows for what a row takes: one call, before that is known."""
        caps = self.budget.caps
        calls = math.inf if caps.calls is None else caps.calls
        each = 1.0
        if measured is not None:
            each = self._each = max(measured.calls, 0.01)
            # The critics' calls aren't counted here: they make the step smaller, not the passes.
            if caps.cost is not None and measured.cost:
                calls = min(calls, float(caps.cost / measured.cost) * each / LONGER)
            if caps.tokens is not None and measured.tokens:
                calls = min(calls, caps.tokens / measured.tokens * each / LONGER)
        return design_for(len(self.rows), each, calls)

    # Looking

    async def _pass(self, name: str, rows: Sequence[Row], *versions: Mapping[str, str]) -> list[Passed]:
        """Score rows with each version of the prompts, side by side."""
        looked = (
            await self.scored(name, rows, *versions, tolerant=True) if rows else [Scored() for _ in versions]
        )
        return [self._judged(rows, one) for one in looked]

    def _judged(self, rows: Sequence[Row], looked: Scored) -> Passed:
        """Tell rows whose calls failed from rows whose replies the agent or the metric couldn't read."""
        failed = [error for error in looked.errors if first_of(error, ModelError) is not None]
        if len(failed) > len(rows) / 10:
            raise BatchError(
                f"{len(failed)} of {len(rows)} rows failed, more than a tenth; the first with {reason(failed[0])}",
                [error for error in failed if isinstance(error, Exception)],
            ) from None
        passed, errors = Passed(), iter(looked.errors)
        labels = self._labels(rows, looked)
        for row, score, output in zip(rows, looked.scores, looked.outputs, strict=True):
            error = next(errors, None) if score is None else None
            lost = error is not None and first_of(error, ModelError) is not None
            passed.scores.append(None if lost else _CRASHED if score is None else score)
            is_wrong = not lost and (score is None or score < self.perfect)
            passed.form.append(is_wrong and (score is None or _is_form(output, row, labels)))
        return passed

    def _labels(self, rows: Sequence[Row], looked: Scored) -> frozenset[str]:
        """Return the answers that are expected, if they are few and all right outputs are among them; else none."""
        expected = frozenset(in_words(row.expected).strip() for row in self.rows)
        right = [
            output
            for score, output in zip(looked.scores, looked.outputs, strict=True)
            if score is not None and score >= self.perfect and output is not None
        ]
        few = len(expected) <= max(2, len(self.rows) // 5)
        return (
            expected if few and right and all(output.strip() in expected for output in right) else frozenset()
        )

    # Variants

    async def _varied(
        self, rows: Sequence[Row], design: Design, spent: CallCount, each: Amount
    ) -> tuple[dict[str, str], int]:
        """Return the winner of a race of varied prompts against the start prompts, and how many there were.

        What the last comparison takes of a limit in tokens or dollars is kept for it. If the rest ends in a step, the
        winner of the step before is the result.
        """
        subject = self.subject.copied()
        search = Scoring(subject, self.metric, self.perfect)

        async def evaluate(batch: Sequence[Row]) -> Any:
            evaluation, _ = await search.evaluated(batch)
            return evaluation

        rest, calls = await anyio.to_thread.run_sync(self._rest, spent, 2 * SPARE * design.final, each)
        # With few rows a chain leaves half of them to the race. On one row all candidates are equal.
        minibatch = max(3, min(LEARNT // 3, 2 * len(rows) // 9))
        optimizer = EditTGD(
            list(subject.parameters.values()),
            self.critic.client,
            evaluate,
            DataLoader(rows, collate_fn=list),
            inner=3,
            minibatch=minibatch,
            race=max(1, min(RACED, len(rows) - 3 * minibatch)),
            first=8,
            # A step takes at most a third of this.
            budget=max(math.ceil(_STEP * self._each), int(3 * min(design.step, calls) // STEPS)),
            quorum=_QUORUM,
            search_seed=self.seed,
            **self.critic.completion_args,
        )
        raced: list[int] = []
        started = spent.calls

        def count(event: Any) -> None:
            if isinstance(event, StepEnded):
                raced.append(len(event.candidates) - 1)

        with subscribed(count), rest, suppress(BudgetExceeded):
            for number in range(STEPS):
                await optimizer.step()
                taken = spent.calls - started
                if taken + taken / (number + 1) > _STRETCH * design.step:
                    break
        return subject.texts, max(0, sum(raced))

    def _rest(self, spent: CallCount, rows: float, each: Amount) -> tuple[Budget, float]:
        """Return a budget of what is left of tokens and dollars without `rows` rows, and the calls that it pays for."""
        caps, calls = self.budget.caps, math.inf
        in_tokens, in_dollars = cost_factors(each, self.critic, len(self.subject.parameters))
        tokens = dollars = None
        if caps.tokens is not None:
            tokens = max(0, int(caps.tokens - spent.tokens - rows * each.tokens))
            calls = tokens / max(1.0, each.tokens * in_tokens) * each.calls
        if caps.cost is not None:
            dollars = max(Decimal(0), caps.cost - (spent.cost or 0) - Decimal(rows) * each.cost)
            calls = min(calls, float(dollars) / (float(each.cost) * in_dollars or 1) * each.calls)
        rest = Budget(max_tokens=tokens, max_cost=dollars)
        rest.charge(
            Ledger(), active_journal.get()
        )  # what a journal recorded before is in `spent`, as it is replayed
        return rest, calls


# Prompts get longer, so a call of the test may take so many times one of the start prompts.
LONGER: Final = 1.5
# The last comparison is reserved with this factor: the new prompts may be longer.
SPARE: Final = 1.2
# A variant that has been corrected once shows more of what there is to gain than a first guess.
STEPS: Final = 2
# A second step may take a little of what is meant for the last comparison: it is worth more there.
_STRETCH: Final = 1.15
# Rows of the race of variants: few, as the rows of the last comparison decide.
RACED: Final = 16
# Rows that a chain of EditTGD learns from, if there are enough.
LEARNT: Final = 24
# Rows that crash are mistakes here, of form. With fewer left than this the race would be blind.
_QUORUM: Final = 0.25


def _is_form(output: str | None, row: Row, labels: frozenset[str]) -> bool:
    if output is None or not output.strip():
        return True
    if labels and output.strip() not in labels:
        return True
    return _bare(output) == _bare(in_words(row.expected))


def _bare(text: str) -> str:
    """Return the letters and digits of a text, in lower case.

    >>> _bare(" *Positive*.") == _bare("positive")
    True
    """
    return "".join(letter for letter in text.lower() if letter.isalnum())


# The verdict


def _all_right(rows: int) -> str:
    # Clopper and Pearson's one-sided bound for no failures.
    least = 0.05 ** (1 / rows)
    return f"No headroom: all {rows} rows are right (95 %: at least {100 * least:.1f} % of all are)."


def _verdict(gain: Gain | None, about: Mapping[str, Any], *, is_found: bool) -> str:
    if not about["wrong"]:
        return _all_right(about["rows"])
    if gain is None:
        said = (
            f"No headroom was found: none of {about['variants']} varied prompts came out ahead of the start."
        )
    else:
        on = f"{gain.amount} (95 %: {gain.interval}) on {gain.rows} rows that it wasn't chosen on."
        best = f"the best of {about['variants']} varied prompts"
        said = (
            f"There is headroom: {best} gains {on}"
            if is_found
            else f"No headroom was found: {best} changed {on}"
        )
    if about["noise"] >= 0.05:
        said += f" The same prompts score differently on {100 * about['noise']:.0f} % of the rows."
    if about["form"]:
        said += f" {about['form']} of {about['wrong']} mistakes are of form."
    return said
