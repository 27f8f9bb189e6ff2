"""A language model simulated by rules, which answers, criticizes and proposes."""

from __future__ import annotations

from afnio._public import show_in
from afnio.testing.simulated._language import Kind, kind_of
from afnio.testing.simulated._lm import FixedReply, SimulatedLM

__all__ = [
    "FixedReply",
    "Kind",
    "SimulatedLM",
    "kind_of",
]

show_in(__name__, globals(), __all__)
