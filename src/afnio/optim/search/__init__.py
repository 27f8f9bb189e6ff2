"""Parts of searches that compare several candidates before a prompt changes, for an `Acceptance` of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afnio._public import lazily

if TYPE_CHECKING:
    from afnio._statistics import differences, p_value
    from afnio.optim._holdout import Holdout
    from afnio.optim.search._pareto import Merge, Pool, PoolMember, possible_merges, trial_samples
    from afnio.optim.search._races import Race, Verdict, chance, each_alpha

__all__ = [
    "Holdout",
    "Merge",
    "Pool",
    "PoolMember",
    "Race",
    "Verdict",
    "chance",
    "differences",
    "each_alpha",
    "p_value",
    "possible_merges",
    "trial_samples",
]

__getattr__, __dir__ = lazily(
    __name__,
    globals(),
    {
        "afnio._statistics": "differences p_value",
        "afnio.optim._holdout": "Holdout",
        "afnio.optim.search._pareto": "Merge Pool PoolMember possible_merges trial_samples",
        "afnio.optim.search._races": "Race Verdict chance each_alpha",
    },
)
