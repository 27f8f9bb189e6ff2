"""Inputs: what a Trainer is given to work on, checked before anything is called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from afnio.cognitive._module import Module, Training
from afnio.optim._optimizer import Optimizer


def optimizers_of(agent: Module) -> list[Optimizer]:
    """Return what `configure_optimizers` gives, as a list."""
    given = agent.configure_optimizers()
    found = list(given) if isinstance(given, list | tuple) else [given]
    for optimizer in found:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"configure_optimizers must return an optimizer or a list of them (got {optimizer!r})"
            )
    return found


def check_agent(agent: Any, *needed: str) -> None:
    """Raise unless `agent` is a Module that has the methods `needed`."""
    if not isinstance(agent, Module):
        raise TypeError(f"agent must be a cognitive.Module (got {agent!r})")
    for name in needed:
        if getattr(type(agent), name) is getattr(Training, name) and name not in agent.__dict__:
            raise AttributeError(f"{type(agent).__name__} has no {name}; write `def {name}(self, ...)`")


def check_loader(name: str, loader: Any) -> None:
    """Raise unless `loader` can be iterated over; `name` is what the caller calls it."""
    if not isinstance(loader, Iterable):
        raise TypeError(f"{name} must be a DataLoader, or something else to iterate over (got {loader!r})")
