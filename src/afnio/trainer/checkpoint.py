"""Checkpoint: everything that a training run needs to go on, in a file that people can read."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from afnio.archive import packed, replace, unpacked
from afnio.autodiff import Variable
from afnio.errors import CheckpointError
from afnio.serialization import decoded, encoded

FORMAT: Final = 1
_VERSIONS: Final = "versions"
_KIND: Final = "afnio checkpoint"
_LAYOUT: Final = {
    "parameters": ("agent",),
    "optimizer": ("optimizers",),
    "loop": ("counters", "metrics", "history", "sampler"),
    "rng": ("rng",),
    "ledger": ("ledger",),
    "callbacks": ("callbacks",),
}
"""Which fields each document holds. One that an older format lacks leaves its fields at their defaults."""


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
        history: metrics of each epoch.
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
            raise _foreign(path, error) from error
        return cls.from_documents(path, documents)

    @classmethod
    def from_documents(cls, name: object, documents: Mapping[str, Any]) -> Self:
        """Return the checkpoint that the documents of a file make; `name` is the file's, for errors."""
        versions = documents.get(_VERSIONS)
        if not isinstance(versions, dict) or versions.get("kind") != _KIND:
            raise _foreign(name, "it has no versions.json of one")
        found = versions.get("format")
        if not isinstance(found, int) or found > FORMAT:
            raise CheckpointError(
                f"the checkpoint [{name}] has format [{found}] of Afnio [{versions.get('afnio')}], and this "
                f"Afnio reads up to [{FORMAT}]; update Afnio to open it"
            )
        fields: dict[str, Any] = {
            "versions": {key: versions[key] for key in versions if key not in ("kind", "format")}
        }
        try:
            for document, names in _LAYOUT.items():
                content = decoded(documents.get(document, {}))
                fields |= {name: content[name] for name in names if name in content}
            checkpoint = cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise _foreign(name, error) from error
        _check(name, checkpoint)
        return checkpoint

    def to_bytes(self) -> bytes:
        """Return the file's content; equal checkpoints have equal bytes."""
        documents = {
            document: {name: encoded(getattr(self, name)) for name in names}
            for document, names in _LAYOUT.items()
        }
        documents[_VERSIONS] = {"kind": _KIND, "format": FORMAT, **self.versions}
        return packed(documents)

    def to_dict(self) -> dict[str, Any]:
        """Return what `afnio.load` gives for a checkpoint, under the names that programs know."""
        optimizers: Any = self.optimizers[0] if len(self.optimizers) == 1 else self.optimizers
        return {
            **{name: getattr(self, name) for names in _LAYOUT.values() for name in names},
            "epoch": self.counters.get("epoch"),
            "batch": self.counters.get("batch"),
            "agent_state_dict": self.agent,
            "optimizer_state_dict": optimizers,
            "versions": self.versions,
        }

    def snapshot(self) -> Self:
        """Return a copy that later training doesn't change; nothing is waited for."""
        return type(self)(**{name: _kept(getattr(self, name)) for name in self.__slots__})


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


def _check(name: object, checkpoint: Checkpoint) -> None:
    for field_name in checkpoint.__slots__:
        value = getattr(checkpoint, field_name)
        kinds = list if field_name in ("optimizers", "history") else dict
        if not isinstance(value, kinds) and not (field_name == "sampler" and value is None):
            raise _foreign(name, f"its {field_name} are {str(value)[:80]!r}")


def _foreign(name: object, reason: object) -> CheckpointError:
    return CheckpointError(
        f"[{name}] is no checkpoint that a Trainer wrote, or it is damaged ({reason}); pickles are not opened, "
        "name another file"
    )
