"""Training: the steps of `optim.EditTGD` on the training rows, until the budget, the rows or the patience end them."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Final, final

from afnio.cognitive._members import mode
from afnio.errors import BudgetExceeded, JournalError, first_of, is_passing, reason
from afnio.optim import EditTGD
from afnio.optim._edit_state import CLEAR, DRAWS
from afnio.optim._sizes import SHARE as STEP_SHARE
from afnio.optim._sizes import WIDE, SampleCost, Sizes, affordable
from afnio.optim._sizes import WIDE_SHARE as WIDE_STEP_SHARE
from afnio.runtime._batch_api import current_plan
from afnio.runtime._budget import Budget, Ceiling, run_ceiling
from afnio.runtime._callables import tolerate
from afnio.runtime._spending import Amount
from afnio.runtime._waiting import active_journal, scope
from afnio.runtime.events import CallEnded, CallReplayed, StepEnded, subscribed
from afnio.stats import Scores, differences
from afnio.studies._needs import FIRST, SMALLEST, Needs
from afnio.studies._rows import Row
from afnio.studies._scoring import QUORUM
from afnio.studies._study import Study
from afnio.tellurio._run import Run
from afnio.trainer._checkpoints import Plan, Stage
from afnio.trainer._progress import Progress
from afnio.utils.data import DataLoader

# Steps that may fail one after the other, for instance because a provider was away.
MOST_SKIPPED: Final = 3


@final
class TrainingRun:
    """The training of one study.

    Args:
        measured: what a row costs.
        held: how many rows will be scored on the held-out part, with both prompts together.
        patience: the number of steps that end it if they gained less than two rows together.
        halved: leave half of the budget to another training.
        after: the training before this one, whose steps, vetoes and mistakes are counted on.

    Attributes:
        ended: why it ended.
        steps: optimizer steps.
        weakness: a warning, if its races are on few rows; or None.
    """

    def __init__(
        self,
        study: Study,
        rows: Sequence[Row],
        needs: Needs,
        *,
        measured: Amount,
        held: int,
        patience: int,
        halved: bool = False,
        after: TrainingRun | None = None,
    ) -> None:
        rules = study.subject.rules
        self.ended: str | None = None
        self._vetoes = self._tried = self._critics = self._blames = 0
        self.steps = 0
        if after is not None:
            self._vetoes, self._tried, self.steps = after._vetoes, after._tried, after.steps
            self._critics, self._blames = after._critics, after._blames
        self._halved = halved
        self._study, self._rows, self._patience = study, rows, patience
        self._needs, self._measured = needs, measured
        self._reserve(held)
        self._right = 0
        self._won: deque[float] = deque(maxlen=patience)  # in the races of the last steps
        self._sample = needs.sample(measured.calls)
        # The chains get at least half of the rows.
        sizes = SIZES if current_plan.get() is None else BATCH_SIZES
        wanted = sizes._replace(
            chains=chains_for(self._calls, len(rows)),
            race=max(1, min(sizes.race, len(rows) // 2)),
            guards=len(rules.guards),
        )
        budget = step_budget(wanted, self._sample, self._calls)
        race = wanted.race if budget is None else affordable(wanted, self._sample, budget, 0).race
        self.weakness = None if race >= FEW_RACED else _weakness(len(rows), self._calls, race)
        self._optimizer = EditTGD(
            [
                {"params": [parameter], "max_chars": rules.lengths[name]}
                for name, parameter in study.subject.parameters.items()
            ],
            study.critic.client,
            self._evaluate,
            DataLoader(rows, collate_fn=list),
            lr=wanted.chains,
            **{name: size for name, size in wanted._asdict().items() if name not in ("chains", "guards")},
            constraints=rules.told,
            guards=DataLoader(rules.guards, collate_fn=list) if rules.guards else None,
            perfect=study.perfect,
            budget=budget,
            quorum=ENOUGH_ROWS,
            search_seed=study.seed,
            **study.critic.completion_args,
        )

    def _reserve(self, held: int) -> None:
        """Keep what it takes to score so many held-out rows, and train with the rest."""
        self._held = held
        self._reserved = self._needs.looks(self._measured, held)
        if self._halved:
            self._reserved = self._needs.with_half(self._reserved, self._study.count)
        self._calls = self._needs.training_calls(self._measured, self._reserved, self._study.count)
        self._begun = self._study.count.calls

    def goes_on(self, held: int) -> bool:
        """Prepare to `run` again, as far as the budget goes. Return False if it doesn't pay for a step.

        Args:
            held: as in the constructor, of the next look at held-out rows.
        """
        self._reserve(held)
        self._right = 0
        self._won.clear()
        return self._study.asked is None and self._calls >= SMALLEST.cost(self._sample) and not self._short()

    async def run(self, run: Run, gone: float) -> None:
        """Train on what the held-out rows leave of the budget.

        Args:
            run: gets the score of each step.
            gone: seconds since the start, which the first rows took.
        """
        skipped = 0
        self.ended = self._study.asked
        ceiling = run_ceiling.get() or Ceiling()
        with (
            self._budget(gone),
            ceiling.keeping(self._reserved),
            mode(True),
            tolerate(QUORUM),
            shown("fit", self._study.subject.title) as progress,
        ):
            async with scope(name="training"):
                while self.ended is None and not self._short():
                    try:
                        async with scope(name=f"step {self.steps + 1}"):
                            scores = await self._step()
                    except Exception as error:
                        broken = first_of(error, JournalError)
                        if broken is not None:
                            raise broken from None
                        if first_of(error, BudgetExceeded) is not None:
                            break
                        skipped += 1
                        if not is_passing(error) or skipped >= MOST_SKIPPED:
                            raise
                        logging.getLogger("afnio").warning(
                            "step %d was cut short: %s", self.steps + 1, reason(error)
                        )
                        scores = []
                    else:
                        skipped = 0
                    self.steps += 1
                    score = math.fsum(scores) / len(scores) if scores else None
                    progress.step(self.steps, score)
                    if score is not None:
                        run.log("train_score", score, step=self.steps)
                    self.ended = self.ended or self._study.asked
        self.ended = self.ended or "the budget for training is used up"

    @property
    def vetoed(self) -> str:
        """How many candidates the guards refused, such as "3 of 7 candidates"; empty if none."""
        if not self._vetoes:
            return ""
        return f"{'all' if self._vetoes == self._tried else f'{self._vetoes} of'} {self._tried} candidates"

    @property
    def notes(self) -> list[str]:
        """What the guards and the critics had to say."""
        guards, firm = self._study.subject.rules.guards, self._optimizer.firm_guards
        notes = []
        if firm is not None and len(firm) < len(guards):
            soft = [guard.text for number, guard in enumerate(guards) if number not in firm]
            notes.append(
                f"{len(soft)} of {len(guards)} guards guard nothing, as the old prompts don't get them right "
                f"{DRAWS} times of {DRAWS}: {', '.join(f'{text:.60}' for text in soft[:3])}"
            )
        if self.vetoed:
            notes.append(f"the guards vetoed {self.vetoed}")
        if self._critics and not self._blames:
            notes.append(f"the critics blamed no prompt for any of {self._critics} mistakes")
        return notes

    def _budget(self, gone: float) -> Budget:
        caps, reserved, seconds = self._study.budget.caps, self._reserved, self._study.budget.max_seconds
        if seconds is not None:
            # The rest may take as long as the first rows if quota is short, but half of what is left at most.
            looks = self._held / FIRST * gone
            seconds = max(0.0, seconds - gone - min(looks, (seconds - gone) / 2)) / (1 + self._halved)
        inner = Budget(
            max_calls=None if caps.calls is None else max(0, caps.calls - reserved.calls),
            max_tokens=None if caps.tokens is None else max(0, caps.tokens - reserved.tokens),
            max_cost=None if caps.cost is None else max(Decimal(0), caps.cost - reserved.cost),
            max_seconds=seconds,
        )
        inner.charge(self._study.budget.ledger, active_journal.get())
        return inner

    async def _evaluate(self, rows: list[Any]) -> Any:
        evaluation, _ = await self._study.evaluated(rows)
        return evaluation

    async def _step(self) -> list[float]:
        """Take one step. Return the scores of the text that goes on, in its race."""
        ended: list[StepEnded] = []

        def note(event: Any) -> None:
            if isinstance(event, StepEnded):
                ended.append(event)
            elif isinstance(event, CallEnded | CallReplayed) and event.purpose == "backward":
                self._critics += event.reply is not None

        with subscribed(note):
            await self._optimizer.step()
        raced = [one for event in ended for one in event.candidates if one.scores and one.name != "incumbent"]
        self._tried += len(raced)
        self._vetoes += sum(one.vetoed for one in raced)
        self._blames += sum(change.gradients for event in ended for change in event.changes)
        now, before = self._raced(ended)
        self._watch(ended, now, before)
        return [score for score in now if score is not None]

    def _short(self) -> bool:
        """Return True if the rest of the budget doesn't pay for a step: a part of one would be for nothing.

        A rest that pays for fewer chains is used for these.
        """
        left = self._calls - (self._study.count.calls - self._begun)
        cost, sizes = self._optimizer.step_cost, self._optimizer.sizes
        if cost is None or sizes is None or left >= cost:
            return False
        for chains in range(sizes.chains - 1, 0, -1):
            if sizes._replace(chains=chains).cost(self._sample) <= left:
                for group in self._optimizer.param_groups:
                    group["lr"] = chains
                return False
        return True

    def _raced(self, ended: Sequence[StepEnded]) -> tuple[Scores, Scores]:
        """Return the scores of the values of now and of those before, in the step's last race; none without a race."""
        values = tuple(self._study.subject.texts.values())
        raced = [one for event in ended for one in event.candidates if one.scores]
        now = [one.scores for one in raced if one.values == values]
        before = [one.scores for one in raced if one.name == "incumbent"]
        return (now[-1], before[-1]) if now and before else ((), ())

    def _watch(self, ended: Sequence[StepEnded], now: Scores, before: Scores) -> None:
        """End the training if nothing is left to learn, or nothing has got clearly better for a while."""
        if not any(change.gradients for event in ended for change in event.changes):
            sizes = self._optimizer.sizes
            # A race that is left out for want of edits leaves up to half of the rows unseen.
            rows = len(self._rows)
            seen = 0 if sizes is None else sizes.chains * max(1, sizes.inner - 1) * sizes.minibatch
            self._right += min(seen, rows - rows // 2)
            if self._right >= min(SURE_ROWS, len(self._rows)):
                self.ended = "no mistakes are left on the training rows"
        else:
            self._right = 0
        known = [score for score in (*now, *before) if score is not None]
        # In rows: of right and wrong answers, a difference is the number of rows that are won.
        both = min(len(now), len(before))  # a text that is out on the first rows hasn't run the others
        won = math.fsum(differences(now[:both], before[:both])) / (
            (max(known, default=0) - min(known, default=0)) or 1
        )
        self._won.append(won)
        if len(self._won) == self._patience and math.fsum(self._won) < CLEAR:
            self.ended = self.ended or f"no clear gain in {self._patience} steps together"


# Rows in a row without a mistake from which on there is nothing to learn.
SURE_ROWS: Final = 32
# The share of a small step's rows that must not crash. With a tenth, one row of eight would end it.
ENOUGH_ROWS: Final = 0.6


# With races on fewer rows a training is warned of.
FEW_RACED: Final = 12


def _weakness(rows: int, calls: float, race: int) -> str:
    """Return the warning of races on so few rows.

    >>> _weakness(20, 500, 10)
    'with 20 training rows, races compare texts on 10 rows, where luck decides more than prompts do; give more rows'
    """
    few = rows // 2 < FEW_RACED
    what = f"{rows} training rows" if few else f"about {calls:,.0f} calls to train"
    return (
        f"with {what}, races compare texts on {race} rows, where luck decides more than prompts do; give more "
        f"{'rows' if few else 'calls'}"
    )


# A step's sizes before a budget lowers them.
SIZES: Final = Sizes(chains=3, inner=3, minibatch=8, race=24, first=8, keep=2)
# The same in a block of `afnio.batch_api`, where each round of calls may wait for an hour: with 600 calls it takes 10
# rounds in place of 20. A rare edit is found less often, because it makes fewer proposals (docs/learning-tables.md).
BATCH_SIZES: Final = Sizes(chains=3, inner=2, minibatch=12, race=20, first=20, keep=2)


def step_budget(wanted: Sizes, sample: SampleCost, calls: float) -> int | None:
    """Return the budget by which `EditTGD` makes steps that use up `calls` as a whole number of them.

    A part of a step that is left over would be of no use.

    >>> limit = step_budget(SIZES, SampleCost(1, 0, 1), 360)
    >>> affordable(SIZES, SampleCost(1, 0, 1), limit, 0)
    Sizes(chains=2, inner=3, minibatch=8, race=24, first=8, keep=2, guards=0)
    """
    if math.isinf(calls):
        return None
    # The first step takes more: its chains have no mistakes of a race to begin with. Replies are repaired.
    left = 0.97 * calls - wanted.minibatch * sample.forward
    whole = affordable(wanted, sample, max(int(left), SMALLEST.cost(sample)), 0).cost(sample)
    steps = max(3, round(left / whole))
    share = STEP_SHARE if wanted.chains <= WIDE else WIDE_STEP_SHARE
    return max(2 * SMALLEST.cost(sample), math.ceil(left / steps / share))


def chains_for(calls: float, rows: int) -> int:
    """Return how many chains run side by side: as many as the budget pays for and the rows feed, from 3 to 24.

    More of them take no more time. They don't learn more from the same calls, but they end sooner.

    >>> chains_for(600, 1_000), chains_for(4_800, 1_000), chains_for(4_800, 200)
    (3, 12, 4)
    """
    fed = (rows - 24) // 36
    return max(3, int(min(24, calls // 400, fed)))


@contextmanager
def shown(stage: Stage, title: str, samples: int | None = None) -> Iterator[Progress]:
    """Show the progress of a part of a study, as a Trainer's is shown."""
    progress = Progress()
    progress.start(Plan(stage, title, samples=samples))
    try:
        yield progress
    finally:
        progress.stop()
