"""How often `afnio.optimize` keeps, claims and covers a gain that is known: its own rules, on scores that are drawn.

    python -m benchmarks.learning.claims --runs 4000
    python -m benchmarks.learning.claims --cross-fit --rows 20 50 95

Each row is right or wrong with both texts. A share of them (`losing`) is wrong with the new one alone, and that share
plus the gain is right with the new one alone. Half of the rows are held out, as `optimize` does it, and after a stop a
second attempt, whose prompts have the same true gain, is tested on those that are left. With `--cross-fit` all rows
are held out, one half of them by each of two trainings with this gain. There is no second attempt.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from afnio._figures import Gain
from afnio.optim._gate import GateVerdict
from afnio.stats import wilson
from afnio.studies._held import first_rows, harms

ROWS = (50, 95, 96, 200, 400)
GAINS = (-0.1, 0.0, 0.05, 0.1, 0.2)


@dataclass(frozen=True, slots=True)
class Claims:
    """Counts of `runs` simulated runs.

    Attributes:
        better: verdicts "Better".
        kept: results that are kept.
        stopped: results that the first rows stopped. A second attempt, which has the same true gain, follows.
        covered: intervals that have the true gain.
        covered_kept: those of them whose result is kept.
    """

    runs: int
    better: int = 0
    kept: int = 0
    stopped: int = 0
    covered: int = 0
    covered_kept: int = 0


def simulated(
    rows: int, gain: float, losing: float, *, runs: int, seed: int = 0, cross_fit: bool = False
) -> Claims:
    """Return what happens to a result with this true gain in so many runs with `rows` rows."""
    draw = random.Random(f"{seed} {rows} {gain} {losing}")
    held = rows if cross_fit else rows // 2
    first = rows // 2 if cross_fit else first_rows(held)
    better = kept = stopped = covered = covered_kept = 0
    for _ in range(runs):
        outcomes = [_outcome(draw.random(), gain, losing) for _ in range(held)]
        confidence = 0.95
        if first and _harmful(outcomes[:first].count(1), outcomes[:first].count(-1)):
            stopped += 1
            if cross_fit:
                continue
            del outcomes[:first]
            confidence = 0.975
        passed, claimed, low, high = _decided(
            len(outcomes), outcomes.count(1), outcomes.count(-1), confidence
        )
        is_covered = low <= gain <= high
        kept += passed
        better += claimed
        covered += is_covered
        covered_kept += is_covered and passed
    return Claims(runs, better, kept, stopped, covered, covered_kept)


def _outcome(drawn: float, gain: float, losing: float) -> int:
    """Return 1 for a row that the new text wins, -1 for one that it loses, 0 for a tie."""
    return 1 if drawn < gain + losing else -1 if drawn < gain + 2 * losing else 0


@cache
def _harmful(won: int, lost: int) -> bool:
    return harms(*_scores(won + lost, won, lost))


@cache
def _decided(rows: int, won: int, lost: int, confidence: float) -> tuple[bool, bool, float, float]:
    before, after = _scores(rows, won, lost)
    gain = Gain.of(before, after, graded=False, confidence=confidence)
    assert gain.low is not None
    assert gain.high is not None
    return GateVerdict.of(before, after, range(rows)).passed, gain.is_clear, gain.low, gain.high


def _scores(rows: int, won: int, lost: int) -> tuple[Sequence[float], Sequence[float]]:
    rest = [0.0] * (rows - won - lost)
    return [0.0] * won + [1.0] * lost + rest, [1.0] * won + [0.0] * lost + rest


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=4000, help="simulated runs of each line (4000)")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="rows, half of which are held out")
    parser.add_argument("--cross-fit", action="store_true", help="hold out all rows, by two trainings")
    given = parser.parse_args()
    print(
        "| rows | true gain | lost rows | Better (95 %) | kept | stopped early | covered | covered, if kept |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for rows in given.rows:
        for gain in GAINS:
            for losing in (0.05, 0.1) if gain >= 0 else (0.15, 0.2):
                found = simulated(rows, gain, losing, runs=given.runs, cross_fit=given.cross_fit)
                low, high = wilson(found.better, found.runs)
                printed = found.runs - found.stopped * given.cross_fit  # runs that have an interval
                shares = [(found.kept, found.runs), (found.stopped, found.runs), (found.covered, printed)]
                rest = " | ".join(f"{100 * share / of:.1f} %" for share, of in shares)
                covered = f"{100 * found.covered_kept / found.kept:.1f} %" if found.kept else "-"
                print(
                    f"| {rows} | {100 * gain:+.0f} | {100 * losing:.0f} % | {100 * found.better / found.runs:.1f} % "
                    f"({100 * low:.1f} to {100 * high:.1f}) | {rest} | {covered} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
