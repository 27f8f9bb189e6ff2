"""A language model simulated by rules, which answers, criticizes and proposes."""

from afnio.testing.simulated.conversation import Kind, kind_of
from afnio.testing.simulated.lm import FixedReply, SimulatedLM

__all__ = ["FixedReply", "Kind", "SimulatedLM", "kind_of"]
