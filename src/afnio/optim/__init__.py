"""Optimizers: they gather feedback, propose new values, check and commit them."""

from __future__ import annotations

from afnio._public import show_in
from afnio.optim import lr_scheduler
from afnio.optim._checks import leaks
from afnio.optim._demos import Demos
from afnio.optim._gate import Gate, GateVerdict
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

show_in(__name__, globals(), __all__)
