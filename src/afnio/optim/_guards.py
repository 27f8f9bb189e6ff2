"""Guards: samples that a text must go on getting right, and the veto of a candidate that breaks one.

Answers differ between draws, so one wrong answer says little. A guard is firm if the start texts get it right in
`DRAWS` draws; the others guard nothing. A candidate breaks a firm guard if it is wrong, and wrong again in one of two
more draws. A sample that is wrong by chance in 5 % of its draws is so broken in 0.5 % of all looks; with 20 of them, a
look refuses a harmless candidate in 8 of 100. One draw would refuse it in 58.

A candidate is asked about in its race, before it may go on. So a training loses a candidate, not its result.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, final

from afnio.optim._edit_state import Entry
from afnio.optim._holdout import Evaluate, Holdout, raise_end, scores_of
from afnio.optim._optimizer import StepInputs, side_by_side
from afnio.runtime._settings import Priority
from afnio.runtime._waiting import scope

DRAWS: Final = 3
"""Draws in which the start texts must get a guard right, and in which a candidate gets it wrong or right."""


@final
class Guards:
    """The samples that candidates must not break.

    Args:
        evaluate: runs the agent on a batch, as `EditTGD` documents it.
        samples: the guards.
        perfect: the score that makes a sample right.
    """

    def __init__(self, evaluate: Evaluate, samples: Any, perfect: float) -> None:
        self._evaluate, self._samples, self._perfect = evaluate, Holdout(samples), perfect

    def __len__(self) -> int:
        return len(self._samples)

    async def firm(self, inputs: StepInputs) -> list[int]:
        """Return the numbers of the guards that the current texts get right in each draw.

        Raises:
            ValueError: if there is none.
        """
        everything = range(len(self))
        wrong: list[list[int]] = [[] for _ in range(DRAWS)]

        async def draw(number: int) -> None:
            wrong[number] = await self._wrong(inputs, inputs.values, everything, f"draw {number + 1}")

        async with scope(name="guards"):
            await side_by_side([partial(draw, number) for number in range(DRAWS)])
        soft = {unit for units in wrong for unit in units}
        firm = [unit for unit in everything if unit not in soft]
        if not firm:
            raise ValueError(
                f"guards must have a sample that the start texts get right {DRAWS} times of {DRAWS} (got none of "
                f"{len(self)}); choose samples that must not break, or leave guards out"
            )
        if soft:
            logging.getLogger("afnio").warning(
                "%d of %d guards guard nothing, because the start texts don't get them right %d times of %d (%s)",
                len(soft), len(self), DRAWS, DRAWS, ", ".join(str(unit + 1) for unit in sorted(soft)),
            )  # fmt: skip
        return firm

    async def broken(self, inputs: StepInputs, entry: Entry, firm: Sequence[int]) -> list[int]:
        """Return the firm guards that a candidate breaks."""
        async with scope(name=f"guards of candidate {entry.place}"):
            missed = await self._wrong(inputs, entry.values, firm, "draw 1")
            if not missed:
                return []
            again: list[list[int]] = [[] for _ in range(1, DRAWS)]

            async def draw(number: int) -> None:
                again[number] = await self._wrong(inputs, entry.values, missed, f"draw {number + 2}")

            await side_by_side([partial(draw, number) for number in range(len(again))])
        return [unit for unit in missed if any(unit in units for units in again)]

    async def _wrong(
        self, inputs: StepInputs, values: Sequence[Any], units: Sequence[int], name: str
    ) -> list[int]:
        """Return those of `units` that get less than a perfect score. One that fails isn't right."""
        try:
            scores = await scores_of(
                self._evaluate,
                self._samples.batch(units),
                inputs.bound(values),
                name=name,
                urgency=Priority.VALIDATION,
                quorum=_ANY,
            )
            self._samples.by_unit(units, scores)  # raises if there isn't one for each sample
        except Exception as error:
            raise_end(error)
            return list(units)
        return [
            unit for unit, score in zip(units, scores, strict=True) if score is None or score < self._perfect
        ]


_ANY: Final = 1e-6
"""The quorum of a look: samples that fail count as wrong, so they needn't end it."""
