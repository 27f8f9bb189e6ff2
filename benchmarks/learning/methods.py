"""Methods: what is compared, each within the same number of LM calls."""

from __future__ import annotations

from afnio.optim import TGD
from benchmarks.learning.curve import SHORT
from benchmarks.learning.training import MakeOptimizer, Trial

BATCH = 16


def tgd(trial: Trial) -> TGD:
    """Return plain textual gradient descent: each proposal becomes the value."""
    return TGD(trial.agent.parameters(), trial.endpoint.client, **trial.endpoint.step)


def concatenated(trial: Trial) -> TGD:
    """Return descent in which the proposer reads all feedback of a batch as it came."""
    return TGD(trial.agent.parameters(), trial.endpoint.client, constraints=[SHORT], **trial.endpoint.step)


METHODS: dict[str, MakeOptimizer | None] = {"baseline": None, "TGD": tgd}
WAYS: dict[str, MakeOptimizer] = {"concatenation": concatenated}
"""How the feedback of a batch is put together, for the curve."""
