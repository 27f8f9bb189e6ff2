"""LaunchEvent: what is told of a launch in the graph, if anybody listens."""

from __future__ import annotations

from collections.abc import Sequence

from afnio.autodiff.arguments import Arguments
from afnio.autodiff.bind import Cell
from afnio.autodiff.graph import Node
from afnio.autodiff.variable import Variable
from afnio.runtime._kernel import Launch
from afnio.runtime.events import NodeInput, NodeLaunched, listening


def tell_launch(launch: Launch, arguments: Arguments, kind: str = "forward") -> None:
    """Have the start of `launch` tell what it works on; before `arguments.forget()`."""
    if listening():
        inputs = [
            _input(variable, cell, arguments.size)
            for variable, cell in zip(arguments.variables, arguments.cells, strict=True)
        ]
        launch.event = NodeLaunched(launch.address, launch.name, launch.line, kind, arguments.size, inputs)


def tell_sweep(launch: Launch, nodes: Sequence[Node]) -> None:
    """Have the start of a backward pass tell which forward launches it goes through."""
    if listening():
        inputs = [NodeInput(node.address) for node in nodes]
        launch.event = NodeLaunched(launch.address, launch.name, launch.line, "backward", None, inputs)


def _input(variable: Variable, cell: Cell, size: int | None) -> NodeInput:
    if variable.origin is not None:
        return NodeInput(variable.origin.address)
    slots, batch = cell
    # A prompt is no part of what makes a sample that sample: neither is what a whole batch shares.
    if variable.requires_grad or batch != (size is not None):
        return NodeInput(None)
    return NodeInput(None, [slot.outcome for slot in slots])
