"""The public test kit: a scripted client, an OpenAI-compatible provider with limits and faults, its LM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afnio.testing.conformance import optimizer_conformance
    from afnio.testing.fault import Fault
    from afnio.testing.fault_plan import FaultPlan
    from afnio.testing.latency import Latency
    from afnio.testing.provider import Provider
    from afnio.testing.quota import Quota
    from afnio.testing.scripted import ScriptedClient
    from afnio.testing.simulated import SimulatedLM

__all__ = [
    "Fault",
    "FaultPlan",
    "Latency",
    "Provider",
    "Quota",
    "ScriptedClient",
    "SimulatedLM",
    "optimizer_conformance",
]

_HOMES = {
    "Fault": "afnio.testing.fault",
    "FaultPlan": "afnio.testing.fault_plan",
    "Latency": "afnio.testing.latency",
    "Provider": "afnio.testing.provider",
    "Quota": "afnio.testing.quota",
    "ScriptedClient": "afnio.testing.scripted",
    "SimulatedLM": "afnio.testing.simulated",
    "optimizer_conformance": "afnio.testing.conformance",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `python -m afnio.testing.provider` doesn't find itself imported already.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
