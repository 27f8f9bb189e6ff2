"""Optimizers: they gather feedback, propose new values, check and commit them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afnio._public import lazily, show_in
from afnio.optim import lr_scheduler
from afnio.optim._checks import leaks
from afnio.optim._optimizer import (
    Acceptance,
    Candidate,
    Change,
    Decision,
    Evidence,
    Lineage,
    Optimizer,
    StepInputs,
)
from afnio.optim._prompts import prompts, replace_prompts
from afnio.optim._tgd import TGD, Reduced, reduce, tgd

if TYPE_CHECKING:
    from afnio.optim import search as search
    from afnio.optim._demos import Demos
    from afnio.optim._gate import Gate, GateVerdict
    from afnio.optim.search._chains import EditTGD
    from afnio.optim.search._improves import Improves
    from afnio.optim.search._pareto import ParetoTGD

__all__ = [
    "Acceptance",
    "Candidate",
    "Change",
    "Decision",
    "Demos",
    "EditTGD",
    "Evidence",
    "Gate",
    "GateVerdict",
    "Improves",
    "Lineage",
    "Optimizer",
    "ParetoTGD",
    "Reduced",
    "StepInputs",
    "TGD",
    "leaks",
    "lr_scheduler",
    "prompts",
    "reduce",
    "replace_prompts",
    "tgd",
]

__getattr__, __dir__ = lazily(
    __name__,
    globals(),
    {
        "afnio.optim._demos": "Demos",
        "afnio.optim._gate": "Gate GateVerdict",
        "afnio.optim.search._chains": "EditTGD",
        "afnio.optim.search._improves": "Improves",
        "afnio.optim.search._pareto": "ParetoTGD",
    },
    modules="search",
)
show_in(__name__, globals(), [name for name in __all__ if name in globals()])
