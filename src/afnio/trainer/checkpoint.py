"""Checkpoint: everything that a training run needs to go on, in a file that people can read."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from afnio.archive import packed, replace, unpacked
from afnio.autodiff._variable import Variable
from afnio.checkpoint_file import documents_of, fields_of, foreign
from afnio.errors import CheckpointError
from afnio.trainer.counters import Counters
from afnio.trainer.metric import Outcome


def current_versions() -> dict[str, str]:
    """Return what writes a checkpoint here.

    >>> sorted(current_versions())
    ['afnio', 'python']
    """
    from afnio import __version__

    return {"afnio": __version__, "python": platform.python_version()}


@dataclass(slots=True)
class Checkpoint:
    """A run as it stood after some step.

    The file is a zip of JSON documents: `parameters.json` with the agent's texts, `optimizer.json`,
    `loop.json`, `rng.json`, `ledger.json`, `callbacks.json`, `versions.json`.

    Attributes:
        agent: the agent's state dict: Variables by name.
        optimizers: the state dict of each optimizer.
        sampler: state of the training loader, or None where it has none.
        rng: states of generators; whatever the loop puts there.
        counters: epoch, step, batch, samples.
        metrics: the newest of each; `Checkpoints` finds the monitored one here.
        history: metrics of each step, epoch and validation pass; what an entry holds is never changed.
        ledger: what was spent, as JSON types.
        callbacks: the state of each callback that has one.
        versions: of Afnio and Python that wrote it.

    >>> Checkpoint(agent={"task": Variable("Be brief.")}, counters={"epoch": 3}).counters["epoch"]
    3
    """

    agent: dict[str, Any]
    optimizers: list[dict[str, Any]] = field(default_factory=list)
    sampler: dict[str, Any] | None = None
    rng: dict[str, Any] = field(default_factory=dict)
    counters: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    history: list[Any] = field(default_factory=list)
    ledger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=current_versions)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file whole or not at all, a kill at any point included; waits for values and the disk.

        Raises:
            TypeError: for a value that JSON can't hold.
            OSError: if the disk is full, or the folder gone or read-only.
        """
        replace(Path(path), self.to_bytes())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Return the checkpoint in a file of this format or of an older one; opening it runs no code of it.

        Raises:
            CheckpointError: for a file that is missing, damaged, newer, or something else, such as a pickle.
        """
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            reason = error.strerror or error
            raise CheckpointError(
                f"the checkpoint [{path}] can't be read ({reason}); name another"
            ) from error
        try:
            documents = unpacked(content)
        except ValueError as error:
            raise foreign(path, error) from error
        return cls(**fields_of(path, documents))

    def check(self, name: object) -> None:
        """Raise a `CheckpointError` unless a training can go on from it; `name` is the file's.

        What agent, optimizers, loaders and callbacks make of their states shows when they load them.
        """
        try:
            Counters.of(self.counters)
            for metric, value in self.metrics.items():
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise ValueError(f"its metric {metric} must be a number (got {value!r})")  # noqa: TRY004
            if not isinstance((self.sampler or {}).get("train"), dict | None):
                raise ValueError("the state of its training loader must be a dict")  # noqa: TRY004
        except ValueError as error:
            raise unusable(name, error) from error
        for number, entry in enumerate(self.history):
            try:
                _check_entry(entry)
            except Exception as error:  # an edited entry can hold anything
                reason = f"entry {number} of its history has {type(error).__name__}: {error}"
                raise unusable(name, reason) from error

    def to_bytes(self) -> bytes:
        """Return the file's content; equal checkpoints have equal bytes."""
        return packed(documents_of({name: getattr(self, name) for name in self.__slots__}))

    def snapshot(self) -> Self:
        """Return a copy that later training doesn't change; nothing is waited for."""
        kept = {name: _kept(getattr(self, name)) for name in self.__slots__ if name != "history"}
        # A long training has very many entries, and what an entry holds is never changed.
        return type(self)(**kept, history=[dict(entry) for entry in self.history])


def unusable(name: object, reason: object) -> CheckpointError:
    """Return the error for a checkpoint that a training can't go on from."""
    return CheckpointError(
        f"the training can't go on from the checkpoint [{name}] ({' '.join(str(reason).split())}); name another, or "
        "put it right"
    )


def _check_entry(entry: Any) -> None:
    counts = [entry[name] for name in ("epoch", "step", "samples", "failed", "skipped")]
    counts += [metric[1] for metric in entry["metrics"].values()]
    if entry["kind"] not in ("step", "epoch", "val") or any(type(n) is not int or n < 0 for n in counts):
        raise ValueError("a count that is none")
    flat = Outcome.from_json(entry).flat()
    if not all(isinstance(value, float) for value in flat.values()):
        raise ValueError("a metric that is no number")
    dict(entry["values"])


def _kept(value: Any) -> Any:
    if isinstance(value, Variable):
        # Over the slots of now, whatever is assigned later.
        copy = type(value).over(list(value.cell()[0]), value.batch, value.role)
        copy._provenance = value.provenance
        return copy.requires_grad_(value.requires_grad)
    if isinstance(value, Mapping):
        return {key: _kept(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_kept(item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
