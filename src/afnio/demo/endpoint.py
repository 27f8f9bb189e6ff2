"""Endpoint: who plays student, critic and optimizer in the demo, and what is said about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from afnio.models._client import ChatClient

Kind = Literal["simulated", "live", "local"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A client and what each of its three roles is called with, the model's name included.

    Attributes:
        base_url: without credentials.
        notes: lines that the user must read before the figures.
        quorum: the fraction of a batch that must succeed; the rest is left out and reported.
    """

    kind: Kind
    client: ChatClient
    base_url: str
    forward: Mapping[str, Any]
    backward: Mapping[str, Any]
    step: Mapping[str, Any]
    notes: tuple[str, ...]
    quorum: float = 1.0

    @property
    def models(self) -> dict[str, str]:
        return {
            "forward": self.forward["model"],
            "backward": self.backward["model"],
            "step": self.step["model"],
        }
