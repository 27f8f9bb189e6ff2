"""Optimizers: they gather feedback, propose new values, check and commit them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afnio._public import lazily, show_in
from afnio.optim._checks import leaks
from afnio.optim._optimizer import Candidate, Change, Lineage, Optimizer
from afnio.optim._prompts import prompts, replace_prompts
from afnio.optim._tgd import TGD, reduce, tgd

if TYPE_CHECKING:
    from afnio.optim._demos import Demos
    from afnio.optim._edit_tgd import EditTGD
    from afnio.optim._gate import Gate

__all__ = [
    "Candidate",
    "Change",
    "Demos",
    "EditTGD",
    "Gate",
    "Lineage",
    "Optimizer",
    "TGD",
    "leaks",
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
        "afnio.optim._edit_tgd": "EditTGD",
        "afnio.optim._gate": "Gate",
    },
)
show_in(__name__, globals(), [name for name in __all__ if name in globals()])
