"""Trainer: the ready-made loop, for runs that can be left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afnio.trainer.callback import Callback, StopTraining
    from afnio.trainer.checkpoint import Checkpoint
    from afnio.trainer.early_stopping import EarlyStopping
    from afnio.trainer.estimate import Estimate
    from afnio.trainer.length_watch import LengthWatch
    from afnio.trainer.summary import AgentSummary
    from afnio.trainer.trainer import Trainer

__all__ = [
    "AgentSummary",
    "Callback",
    "Checkpoint",
    "EarlyStopping",
    "Estimate",
    "LengthWatch",
    "StopTraining",
    "Trainer",
]

_HOMES = {
    "AgentSummary": "afnio.trainer.summary",
    "Callback": "afnio.trainer.callback",
    "Checkpoint": "afnio.trainer.checkpoint",
    "EarlyStopping": "afnio.trainer.early_stopping",
    "Estimate": "afnio.trainer.estimate",
    "LengthWatch": "afnio.trainer.length_watch",
    "StopTraining": "afnio.trainer.callback",
    "Trainer": "afnio.trainer.trainer",
}


def __getattr__(name: str) -> Any:
    # Lazy, as the tutorial's demo takes only parts of this package.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
