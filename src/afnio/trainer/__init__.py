"""Trainer: the ready-made loop, for runs that can be left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afnio._public import lazily

if TYPE_CHECKING:
    from afnio.trainer._callbacks import Callback, EarlyStopping, LengthWatch, StopTraining
    from afnio.trainer._checkpoints import Checkpoint
    from afnio.trainer._trainer import AgentSummary, Trainer

__all__ = [
    "AgentSummary",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "LengthWatch",
    "StopTraining",
    "Trainer",
]

__getattr__, __dir__ = lazily(
    __name__,
    globals(),
    {
        "afnio.trainer._callbacks": "Callback EarlyStopping LengthWatch StopTraining",
        "afnio.trainer._checkpoints": "Checkpoint",
        "afnio.trainer._trainer": "AgentSummary Trainer",
    },
)
