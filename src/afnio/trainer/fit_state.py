"""Fit state: where a training stands, in the agent, the loaders and the history; checkpoints hold it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

from afnio.autodiff._variable import Variable
from afnio.cognitive._module import Module
from afnio.errors import CheckpointError
from afnio.optim._optimizer import Optimizer
from afnio.trainer.checkpoint import Checkpoint
from afnio.trainer.counters import Counters
from afnio.trainer.feed import Fetched, caught_up, loader_state, restore
from afnio.trainer.generators import generators_state, restore_generators
from afnio.trainer.metric import Outcome, combined
from afnio.trainer.quorum import reason
from afnio.trainer.step import StepEnd
from afnio.trainer.validation_pass import ValidationPass

if TYPE_CHECKING:
    from afnio.trainer.trainer import Trainer


@final
class FitState:
    """Where a training stands; what the Trainer shows of it (history, metrics, counts) is kept in step.

    Args:
        path: the address path that the training's launches start with, if no checkpoint says another.

    Attributes:
        epoch: what the epoch under way came to so far.
        val: what the last validation pass came to.
        train_loader, val_loader: the states of the loaders that belong to it; None where they have none.
    """

    def __init__(
        self,
        trainer: Trainer,
        agent: Module,
        optimizers: Sequence[Optimizer],
        train_loader: Any,
        val_loader: Any,
        path: str,
    ) -> None:
        self._trainer = trainer
        self._agent = agent
        self._optimizers = optimizers
        self._train_loader = train_loader
        self._val_loader = val_loader
        self.counters = Counters(scope=path)
        self.epoch = Outcome()
        self.val = Outcome()
        self.train_loader: dict[str, Any] | None = None
        self.val_loader: dict[str, Any] | None = None

    # Checkpoints

    def checkpoint(self, *, validating: bool = False) -> Checkpoint:
        """Return what is needed to stand here again."""
        trainer = self._trainer
        return Checkpoint(
            agent=self._agent.state_dict(),
            optimizers=[optimizer.state_dict() for optimizer in self._optimizers],
            sampler={"train": self.train_loader, "val": self.val_loader},
            rng=generators_state(),
            counters={**self.counters.to_dict(), "validating": validating},
            metrics=dict(trainer.metrics),
            history=list(trainer.history),
            ledger=json.loads(trainer.ledger.to_json()),
            callbacks=trainer.callbacks.state_dict(),
        )

    def restore(self, checkpoint: Checkpoint, limit: int | None) -> int:
        """Stand where `checkpoint` was made; return how many batches the training loader has to pass over.

        Args:
            limit: batches of an epoch at most.
        """
        if len(checkpoint.optimizers) != len(self._optimizers):
            raise CheckpointError(
                f"the checkpoint has {len(checkpoint.optimizers)} optimizers and configure_optimizers gives "
                f"{len(self._optimizers)}; give as many"
            )
        path = self.counters.scope
        with _named("agent or optimizers"):
            for name, own in self._agent.state_dict().items():
                given = checkpoint.agent.get(name)
                if isinstance(own, Variable) and isinstance(given, Variable):
                    _check_value(name, own.data, given.data)
            self._load(checkpoint, Counters.of(checkpoint.counters))
        self.counters.scope = self.counters.scope or path
        sampler = checkpoint.sampler or {}
        self.train_loader = sampler.get("train")
        with _named("training loader"):
            skip = restore(self._train_loader, self.train_loader, self.counters.batch, limit)
        if self._val_loader is not None:
            self.val_loader = sampler.get("val")
            with _named("validation loader"):
                restore(self._val_loader, self.val_loader, 0)
        with _named("random generators"):
            restore_generators(checkpoint.rng)
        with _named("callbacks"):
            self._trainer.callbacks.load_state_dict(checkpoint.callbacks)
        self._read_history()
        return skip

    def go_back(self, checkpoint: Checkpoint) -> None:
        """Undo what came after `checkpoint`, which this training made."""
        self._load(checkpoint, Counters.of({**checkpoint.counters, "validating": False}))

    def _load(self, checkpoint: Checkpoint, counters: Counters) -> None:
        self._agent.load_state_dict(checkpoint.agent)
        for optimizer, state in zip(self._optimizers, checkpoint.optimizers, strict=True):
            optimizer.load_state_dict(state)
        self.counters = counters
        self._trainer.history = list(checkpoint.history)
        self._trainer.metrics = dict(checkpoint.metrics)
        self._share_counters()

    def _read_history(self) -> None:
        history, epoch = self._trainer.history, self.counters.epoch + 1
        steps = [entry for entry in history if entry["kind"] == "step" and entry["epoch"] == epoch]
        self.epoch = combined(Outcome.from_json(entry) for entry in steps)
        for entry in history:
            if entry["kind"] == "val":
                self.val = Outcome.from_json(entry)
                self._note_best(self.val)

    def settle_loaders(self) -> None:
        """Take the loaders' states, unless a checkpoint gave them; settles seeds before anything runs."""
        if self.train_loader is None:
            self.train_loader = loader_state(self._train_loader)
        if self._val_loader is not None and self.val_loader is None:
            self.val_loader = loader_state(self._val_loader)

    # What has ended

    def count_step(self, group: Sequence[Fetched], end: StepEnd, number: int, skipped: str | None) -> None:
        """Take in a step.

        Args:
            skipped: why it was cut short, None if it wasn't.
        """
        counters, outcome = self.counters, combined(end.outcomes)
        if skipped is None:
            counters.skipped = 0
        elif len(end.outcomes) < len(group):  # what wasn't scored failed
            rest = sum(fetched.size for fetched in group[len(end.outcomes) :])
            outcome += Outcome(samples=rest, failed=rest)
        counters.step = number
        counters.batch += len(group)
        counters.samples += sum(fetched.size for fetched in group)
        self.train_loader = caught_up(self._train_loader, group[-1].state)
        self.epoch += outcome
        entry = {"kind": "step", "epoch": counters.epoch + 1, "step": number, "batch": counters.batch}
        self._record({**entry, **({} if skipped is None else {"error": skipped}), **outcome.to_json()})

    def count_epoch(self, ended: Fetched) -> None:
        """Take in the end of an epoch; `epoch` is left as it came to."""
        counters = self.counters
        counters.epoch += 1
        counters.batch = 0
        self.train_loader = caught_up(self._train_loader, ended.state)
        entry = {"kind": "epoch", "epoch": counters.epoch, "step": counters.step}
        self._record({**entry, **self.epoch.to_json()})

    def count_validation(self, validation: ValidationPass, outcome: Outcome) -> dict[str, float]:
        """Take in a validation pass; return its metrics."""
        trainer, state = self._trainer, loader_state(self._val_loader)
        self.val_loader = None if state is None else {**state, "drained": validation.drained}
        entry = {"kind": "val", "epoch": validation.epoch, "step": validation.step}
        if validation.error is not None:
            entry["error"] = reason(validation.error)
        entry |= outcome.to_json()
        trainer.history.insert(validation.place, entry)
        metrics = _prefixed("val", outcome.flat())
        trainer.metrics = {**validation.kept(trainer.metrics), **metrics}
        self.val = outcome
        self._note_best(outcome)
        trainer.log_to_run(entry)
        return metrics

    def _record(self, entry: dict[str, Any]) -> None:
        self._trainer.history.append(entry)
        self._trainer.log_to_run(entry)
        self._trainer.metrics |= _prefixed("train", self.epoch.flat())
        self._share_counters()

    def _share_counters(self) -> None:
        self._trainer.current_epoch = self.counters.epoch
        self._trainer.global_step = self.counters.step

    def _note_best(self, outcome: Outcome) -> None:
        trainer = self._trainer
        value = _prefixed("val", outcome.flat()).get(trainer.monitor)
        if value is not None:
            better = max if trainer.mode == "max" else min
            trainer.best_score = value if trainer.best_score is None else better(trainer.best_score, value)


def _check_value(name: str, own: Any, given: Any) -> None:
    if isinstance(own, str) and not isinstance(given, str):
        raise TypeError(f"{name} must be a text (got {given!r})")


@contextmanager
def _named(owner: str) -> Iterator[None]:
    """Have an error in the block say whose state it was."""
    try:
        yield
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(
            f"the training can't go on from the checkpoint, as its {owner} can't take their state ({reason}); name "
            "another, or give what it was made with"
        ) from error


def _prefixed(prefix: str, flat: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}_{name}": value for name, value in flat.items()}
