"""State: what the loop tells of itself, as plain data; for displays and callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

Stage = Literal["fit", "validate", "test", "predict"]
"""What the Trainer was asked to do."""

Phase = Literal["train", "val", "test", "predict"]
"""What is under way; a fit has "train" and "val", which overlap."""

Moment = Literal["batch", "validation", "epoch", "end"]
"""Why a display is told: a batch has ended, a validation pass, an epoch, or all."""


@final
@dataclass(frozen=True, slots=True)
class Plan:
    """What lies ahead, as known when it starts.

    Attributes:
        stage: what the Trainer was asked to do.
        agent: the agent's class.
        epochs: how many there will be at most; None if only other limits end the run, and without training.
        batches, samples: of one epoch of training, or of the pass; None where the loader has no length.
        val_batches, val_samples: of one validation pass; None without validation, or where not known.
        max_steps, max_time, max_cost: the limits: steps, seconds, dollars; None for none.
        monitor: the metric that the best checkpoint is chosen by, such as "val_loss".
        mode: "max" where a larger value is better, else "min".
        folder: where checkpoints go; None where none are kept.
        resumed: the checkpoint that this goes on from, None for a start.
    """

    stage: Stage
    agent: str
    epochs: int | None = None
    batches: int | None = None
    samples: int | None = None
    val_batches: int | None = None
    val_samples: int | None = None
    max_steps: int | None = None
    max_time: float | None = None
    max_cost: float | None = None
    monitor: str | None = None
    mode: Literal["min", "max"] = "max"
    folder: str | None = None
    resumed: str | None = None


@final
@dataclass(frozen=True, slots=True)
class LoopState:
    """How far the loop is.

    Attributes:
        phase: whose batch or pass this is about.
        moment: why it is told.
        epoch: the current one, from 1; 0 outside of training.
        epochs: how many there will be at most, None if not known.
        batch, batches: batches of this epoch or pass that have ended, of how many (None if not known).
        step: optimizer steps that have ended, over all epochs.
        samples, total: samples of this epoch or pass that have ended, failed ones among them, of how many.
        failed: those of them that failed.
        train: training metrics of the epoch so far, without prefix, such as "loss" and "accuracy".
        val: metrics of the last validation pass (or of the pass under way in validate, test).
        best: the best value of the monitored metric so far.
        seconds: of this call of the Trainer so far, by the monotonic clock.
        started: that clock's reading (`time.monotonic()`) when the call began.
    """

    phase: Phase
    moment: Moment
    epoch: int
    epochs: int | None
    batch: int
    batches: int | None
    step: int
    samples: int
    total: int | None
    failed: int
    started: float
    seconds: float
    train: Mapping[str, Any] = field(default_factory=dict)
    val: Mapping[str, Any] = field(default_factory=dict)
    best: float | None = None
