"""Crossing: a node where feedback leaves or enters one call of a module, for the module's backward hooks."""

from __future__ import annotations

from typing import Any, NamedTuple, final

from afnio.autodiff.arguments import Arguments
from afnio.autodiff.context import Context
from afnio.autodiff.function import Function, Said, edges_to
from afnio.autodiff.grad_mode import is_grad_enabled
from afnio.autodiff.graph import Node
from afnio.autodiff.hooks import Hook, Hooks
from afnio.autodiff.variable import Variable
from afnio.runtime._kernel import Job
from afnio.runtime._tracebacks import caller_line


@final
class Boundary:
    """One call of a module: its hooks, and how many arguments and outputs it has."""

    __slots__ = ("hooks", "inputs", "module", "outputs")

    def __init__(self, module: Any, hooks: Hooks[Hook]) -> None:
        self.module = module
        self.hooks = hooks
        self.inputs = 0
        self.outputs = 0

    def entered(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Return the call's arguments, Variables that want feedback replaced by others over the same slots."""
        self.inputs = len(args)
        return tuple(self._entered(value, position) for position, value in enumerate(args))

    def _entered(self, value: Any, position: int) -> Any:
        if not _wants(value):
            return value
        slots, batch = value.cell()
        node = _node(value, Crossing(self, True, position))
        return Variable.over(list(slots), batch, value.role, node=node, origin=value._origin)

    def left(self, output: Any) -> Any:
        """Have what the call returned, a Variable or a tuple of some, lead through the boundary."""
        outputs = output if isinstance(output, tuple) else (output,)
        self.outputs = len(outputs)
        for position, value in enumerate(outputs):
            # In place: an op's output may be more than a Variable, and it is what holds the op's launch.
            if _wants(value) and value.grad_fn is not None:
                value.lead_through(_node(value, Crossing(self, False, position)))
        return output


class Crossing(NamedTuple):
    """Which place of which boundary a node is."""

    boundary: Boundary
    is_input: bool
    position: int


@final
class Cross(Function):
    """Passes values and feedback on as they are."""

    inline = True
    transparent = True

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> Said:
        (incoming,) = ctx.feedback
        if len(incoming) == 1:
            return incoming
        return ["\n".join(feedback.text for feedback in incoming if feedback.text)]


def _wants(value: Any) -> bool:
    return isinstance(value, Variable) and value.requires_grad and is_grad_enabled()


def _node(variable: Variable, crossing: Crossing) -> Node:
    """Return a node that leads to `variable` as it is now."""
    arguments = Arguments((variable,), {})
    ((slots, _),) = arguments.cells
    roles = [variable.role]
    lanes = [None] if arguments.size is None else range(arguments.size)
    contexts = [Context(arguments, [True], roles, roles, lane) for lane in lanes]
    edges = edges_to(arguments, [True])
    arguments.forget()
    node = Node(
        Cross,
        type(crossing.boundary.module).__name__,
        caller_line(),
        arguments.size,
        edges,
        [slots],
        contexts,
    )
    node.crossing = crossing
    return node
