"""The test kit: a scripted client, an OpenAI-compatible provider with limits and faults, and a simulated LM."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afnio._public import lazily

if TYPE_CHECKING:
    from afnio.testing._scripted import ScriptedClient
    from afnio.testing.conformance import optimizer_conformance
    from afnio.testing.provider._batches import Batches
    from afnio.testing.provider._faults import Fault, FaultPlan, Latency
    from afnio.testing.provider._provider import Provider
    from afnio.testing.provider._quota import Quota
    from afnio.testing.simulated._lm import SimulatedLM

__all__ = [
    "Batches",
    "Fault",
    "FaultPlan",
    "Latency",
    "Provider",
    "Quota",
    "ScriptedClient",
    "SimulatedLM",
    "optimizer_conformance",
]

__getattr__, __dir__ = lazily(
    __name__,
    globals(),
    {
        "afnio.testing._scripted": "ScriptedClient",
        "afnio.testing.conformance": "optimizer_conformance",
        "afnio.testing.provider._batches": "Batches",
        "afnio.testing.provider._faults": "Fault FaultPlan Latency",
        "afnio.testing.provider._provider": "Provider",
        "afnio.testing.provider._quota": "Quota",
        "afnio.testing.simulated._lm": "SimulatedLM",
    },
)
