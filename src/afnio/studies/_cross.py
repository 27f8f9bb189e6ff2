"""cross_fit: two trainings, each on one half of the rows and tested on the other, so that each row is held out once.

With few rows, half of them show hardly any gain. All of them show twice as much, if each is scored with prompts that
were trained without it:

1. `CrossFit.train` trains on the one half and then, from the start prompts again, on the other. Each training gets half
   of what scoring all rows leaves of the budget.
2. The seed picks which of the two prompts may be returned, before any row is scored with them. If that training found
   no others than the start prompts, it is the other's.
3. `CrossFit.judge` scores the rows that the picked prompts weren't trained on. If these are evidence of harm, it stops,
   as any first look does. Otherwise it scores the other half, with the prompts of the other training.
4. The claim is the mean gain on all rows: what two trainings gained on average. It doesn't say which one gained it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import final

from afnio.runtime._spending import Amount
from afnio.studies._held import HeldOut, HeldScores
from afnio.studies._needs import Needs
from afnio.studies._rows import Row, by_input
from afnio.studies._study import Study
from afnio.studies._training import TrainingRun
from afnio.tellurio._run import Run

NOTE = "cross-fitted: each of two trainings took one half of the rows, and was tested on the other"


@final
class CrossFit:
    """Both trainings of one study, and their test.

    Args:
        halves: the rows.
        inputs: how many inputs of both halves together to score.

    Attributes:
        trained: the rows that the picked prompts were trained on, without guards; empty before the trainings.
    """

    def __init__(
        self, study: Study, halves: Sequence[Sequence[Row]], *, inputs: int, draws: int, patience: int
    ) -> None:
        self._study, self._halves, self._draws, self._patience = study, halves, draws, patience
        groups = [by_input(half) for half in halves]
        share = inputs / sum(map(len, groups))
        self._tested = [some[: max(1, round(share * len(some)))] for some in groups]
        self._found: list[Mapping[str, str]] = []
        self._picked = random.Random(f"cross-fit {study.seed}").randrange(2)

    @property
    def runs(self) -> int:
        """How often the agent runs to test both prompts."""
        return 2 * self._draws * sum(len(group) for groups in self._tested for group in groups)

    @property
    def trained(self) -> Sequence[Row]:
        return self._halves[self._picked] if self._found else ()

    async def train(self, run: Run, needs: Needs, measured: Amount, started: float) -> TrainingRun:
        """Train on each half, and give the agent the picked prompts. Returns the second training.

        Args:
            measured: what a row costs.
            started: when the study began, by `time.monotonic`.
        """
        study = self._study
        training: TrainingRun | None = None
        for number, half in enumerate(self._halves):
            study.subject.write(study.start)
            before, rows = training, [*half, *study.subject.rules.guards]
            training = TrainingRun(
                study, rows, needs, measured=measured, held=self.runs, patience=self._patience,
                halved=number == 0, after=before,
            )  # fmt: skip
            if number == 0 and training.weakness is not None:
                study.tell(training.weakness)
            await training.run(run, time.monotonic() - started)
            self._found.append(study.subject.texts)
            if before is not None and before.ended != training.ended:
                training.ended = f"{before.ended}; then {training.ended}"
        assert training is not None
        if self._found[self._picked] == study.start:
            self._picked = 1 - self._picked
        study.subject.write(self._found[self._picked])
        return training

    async def judge(self) -> HeldScores:
        """Compare the prompts of both trainings with the start prompts, and restore these if they aren't kept."""
        mine, other = self._tested[1 - self._picked], self._tested[self._picked]
        held = HeldOut(self._study, [*mine, *other], self._draws, first=len(mine))
        return await held.judge(self._study.start, self._found[1 - self._picked])
