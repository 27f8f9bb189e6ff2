"""Races: candidates against an incumbent, in blocks of samples. A candidate that can't win any more is out early.

Blocks may arrive in any order. A candidate is judged on its own blocks 1..b, in the order of their numbers. So the
winner doesn't depend on which block arrived first; only the number of calls does.

`Race` compares several candidates, `RaceComparison` one, and the functions at the end are the statistics. A pair is the
score of one sample under the candidate minus its score under the incumbent. Samples differ far more in difficulty than
candidates do in quality, and differences cancel the difficulty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

from afnio._statistics import NORMAL, Scores, differences, p_value
from afnio.runtime._callables import quorum_holds

FUTILE: Final = 0.10
"""A candidate with a lower chance of being accepted is dropped."""
SURE: Final = 0.99
"""A candidate with at least this chance is accepted without its last blocks, if no other can win."""
EFFECT: Final = 0.5
"""The prior's standard deviation of the effect size (mean difference / spread of the differences)."""


@final
@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of one candidate.

    Attributes:
        outcome: "accepted" (significantly better, though another may have won), "rejected" on all samples,
            "dropped" on the first blocks, or "failed".
        blocks: The number of blocks it rests on.
        mean, against: Mean scores of the candidate and of the incumbent, on the samples that both have a score of.
        p: The p-value of the sign-flip test.
        scores: The candidate's scores of those blocks. None for failed samples.
        error: The error that made it fail.
    """

    outcome: Literal["accepted", "rejected", "dropped", "failed"]
    blocks: int
    mean: float = math.nan
    against: float = math.nan
    p: float = 1.0
    scores: tuple[float | None, ...] = ()
    error: BaseException | None = None

    @property
    def gain(self) -> float:
        return self.mean - self.against

    def __str__(self) -> str:
        if self.outcome == "failed":
            return f"failed: {self.error}"
        found = f"{self.mean:.3g} against {self.against:.3g} on {len(self.scores)} samples, p={self.p:.2g}"
        return f"{self.outcome}: {found}"


@final
class RaceComparison:
    """One candidate against the incumbent, block by block.

    Args:
        sizes: The number of samples in each block.
        alpha: Level of the test on all of them.
        quorum: The fraction of the samples that both must have a score of.
    """

    def __init__(self, sizes: Sequence[int], alpha: float, quorum: float) -> None:
        self._sizes = sizes
        self._alpha = alpha
        self._quorum = quorum
        self._candidate: dict[int, Scores | BaseException] = {}
        self._incumbent: dict[int, Scores | BaseException] = {}
        self._ours: list[float | None] = []
        self._theirs: list[float | None] = []
        self.survived = 0
        """The number of blocks that it has survived."""
        self.sure: Verdict | None = None
        self.verdict: Verdict | None = None

    def add(self, block: int, candidate: Scores | BaseException) -> None:
        """Add the candidate's scores of one block, or the error that there is instead."""
        self._candidate.setdefault(block, candidate)
        self._advance()

    def add_incumbent(self, block: int, incumbent: Scores | BaseException) -> None:
        """Add the incumbent's scores of one block, or the error that there is instead."""
        self._incumbent.setdefault(block, incumbent)
        self._advance()

    def fail(self, error: BaseException) -> None:
        """Take the candidate out, because it couldn't be made."""
        self.verdict = self.verdict or Verdict("failed", 0, error=error)

    def _advance(self) -> None:
        while self.verdict is None and self.survived in self._candidate and self.survived in self._incumbent:
            ours, theirs = self._candidate[self.survived], self._incumbent[self.survived]
            error = ours if isinstance(ours, BaseException) else theirs
            if isinstance(ours, BaseException) or isinstance(theirs, BaseException):
                assert isinstance(error, BaseException)
                self.verdict = Verdict("failed", self.survived, scores=tuple(self._ours), error=error)
                return
            if len(ours) != len(theirs):
                error = ValueError(
                    f"evaluate must return as many scores as for the same batch before, {len(theirs)} (got {len(ours)})"
                )
                self.verdict = Verdict("failed", self.survived, scores=tuple(self._ours), error=error)
                return
            self._ours += ours
            self._theirs += theirs
            self._judge()

    def _judge(self) -> None:
        pairs = differences(self._ours, self._theirs)
        if not pairs or not quorum_holds(len(pairs), len(self._ours), self._quorum):
            short = f"only {len(pairs)} of {len(self._ours)} samples have both scores (quorum={self._quorum})"
            self.verdict = Verdict(
                "failed", self.survived + 1, scores=tuple(self._ours), error=RuntimeError(short)
            )
            return
        self.survived += 1
        if self.survived == len(self._sizes):
            accepted = self.sure is not None or p_value(pairs) <= self._alpha
            self.verdict = self._verdict("accepted" if accepted else "rejected", pairs)
            return
        # Samples that failed so far stay failed. Expect scores of all others.
        planned = len(pairs) + sum(self._sizes[self.survived :])
        probable = chance(pairs, planned, self._alpha)
        if self.sure is None and probable < FUTILE:
            self.verdict = self._verdict("dropped", pairs)
        elif self.sure is None and probable >= SURE:
            self.sure = self._verdict("accepted", pairs)

    def _verdict(
        self, outcome: Literal["accepted", "rejected", "dropped"], pairs: Sequence[float]
    ) -> Verdict:
        both = [
            (ours, theirs)
            for ours, theirs in zip(self._ours, self._theirs, strict=True)
            if ours is not None and theirs is not None
        ]
        mean = math.fsum(ours for ours, _ in both) / len(both)
        against = math.fsum(theirs for _, theirs in both) / len(both)
        return Verdict(outcome, self.survived, mean, against, p_value(pairs), tuple(self._ours))


@final
class Race:
    """Several candidates against one incumbent.

    Args:
        sizes: The number of samples in each block.
        candidates: The number of candidates.
        confidence: The probability that none is accepted if none is better.
        quorum: The fraction of the samples that a candidate and the incumbent both must have a score of.

    >>> race = Race([4, 4], candidates=2, confidence=0.8, quorum=0.9)
    >>> for block in range(2):
    ...     race.add_incumbent(block, [0, 0, 0, 1])
    ...     race.add(0, block, [1, 1, 1, 1])
    ...     race.add(1, block, [0, 0, 0, 0])
    >>> race.over, race.winner
    (True, 0)
    >>> print(race.verdict(1))
    dropped: 0 against 0.25 on 4 samples, p=1
    """

    def __init__(self, sizes: Sequence[int], *, candidates: int, confidence: float, quorum: float) -> None:
        alpha = each_alpha(confidence, candidates)
        self._comparisons = [RaceComparison(sizes, alpha, quorum) for _ in range(candidates)]

    def add_incumbent(self, block: int, scores: Scores | BaseException) -> None:
        """Add the incumbent's scores of one block, or the error that there is instead."""
        for comparison in self._comparisons:
            comparison.add_incumbent(block, scores)

    def add(self, candidate: int, block: int, scores: Scores | BaseException) -> None:
        """Add a candidate's scores of one block, or the error that there is instead."""
        self._comparisons[candidate].add(block, scores)

    def fail(self, candidate: int, error: BaseException) -> None:
        """Take a candidate out, because it couldn't be made."""
        self._comparisons[candidate].fail(error)

    def running(self, candidate: int) -> bool:
        """Return True if more of its blocks may change the result."""
        return self._comparisons[candidate].verdict is None and not self.over

    def survived(self, candidate: int) -> int:
        """Return the number of blocks that it has survived."""
        return self._comparisons[candidate].survived

    @property
    def over(self) -> bool:
        """True if no further block can change which candidate wins."""
        return all(c.verdict is not None for c in self._comparisons) or self._lone() is not None

    @property
    def winner(self) -> int | None:
        """The accepted candidate with the largest gain, the first of equals. Final once the race is over."""
        accepted = [
            number
            for number in range(len(self._comparisons))
            if (verdict := self.verdict(number)) is not None and verdict.outcome == "accepted"
        ]
        return max(accepted, key=lambda number: (self.gain(number), -number)) if accepted else None

    def gain(self, candidate: int) -> float:
        verdict = self.verdict(candidate)
        return -math.inf if verdict is None or math.isnan(verdict.gain) else verdict.gain

    def verdict(self, candidate: int) -> Verdict | None:
        """Return a candidate's verdict, if there is one. The last one left gets the verdict from when it was sure.

        Blocks after that may or may not have arrived before the race was over, so they must not count.
        """
        lone = self._lone()
        return lone if lone is not None and self._may_win() == [candidate] else self._decided(candidate)

    def _decided(self, candidate: int) -> Verdict | None:
        return self._comparisons[candidate].verdict

    def _may_win(self) -> list[int]:
        return [
            number
            for number, comparison in enumerate(self._comparisons)
            if comparison.verdict is None or comparison.verdict.outcome == "accepted"
        ]

    def _lone(self) -> Verdict | None:
        left = self._may_win()
        return self._comparisons[left[0]].sure if len(left) == 1 else None


# Levels.


def chance(pairs: Sequence[float], planned: int, alpha: float) -> float:
    """Return the probability that `planned` pairs, of which `pairs` are the first, will have p ≤ `alpha`.

    This is the predictive probability of a normal model with known spread (Spiegelhalter, Freedman, Blackburn, 1986,
    on stopping trials early). The effect's prior has mean 0 and a standard deviation of half the spread of the
    differences. That is weak: two blocks outweigh it.

    >>> chance([0.0] * 16, 64, 0.05)
    0.0
    >>> chance([1.0] * 12, 16, 0.05) > 0.9
    True
    """
    seen, left = len(pairs), planned - len(pairs)
    sizes = [abs(pair) for pair in pairs if pair]
    if left <= 0:
        return float(p_value(pairs) <= alpha)
    if not sizes:
        return 0.0
    largest = max(sizes)
    # Add one pair of the largest size. Without it, a few equal differences would look like certainty.
    spread = (math.fsum(size * size for size in sizes) + largest * largest) / (seen + 1)
    total, weight = math.fsum(pairs), seen * EFFECT * EFFECT
    effect = weight / (weight + 1) * total / seen
    doubt = EFFECT * EFFECT * spread / (weight + 1)
    needed = NORMAL.inv_cdf(1 - alpha) * math.sqrt(planned * spread)
    if largest == min(sizes):  # the sum moves in steps, and the exact test needs one step more
        needed += largest
    return NORMAL.cdf((total + left * effect - needed) / math.sqrt(left * spread + left * left * doubt))


def each_alpha(confidence: float, candidates: int) -> float:
    """Return the level for each of `candidates` at which all stay out with probability `confidence` (Šidák).

    >>> round(each_alpha(0.8, 4), 3)
    0.054
    """
    return float(1 - confidence ** (1 / candidates))
