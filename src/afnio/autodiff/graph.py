"""Graph: the nodes that ops leave behind and the edges between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, final

from afnio.errors import GraphError

if TYPE_CHECKING:
    from afnio.autodiff.context import Context
    from afnio.autodiff.crossing import Crossing
    from afnio.autodiff.function import Function
    from afnio.autodiff.hooks import Hook, Hooks
    from afnio.autodiff.variable import Variable
    from afnio.runtime._kernel import Slot
    from afnio.runtime._tracebacks import Line

_sequence = itertools.count()


class GradientEdge(NamedTuple):
    """A place in the graph: output number `output_nr` of `node`."""

    node: Node
    output_nr: int


@final
class Edge:
    """From a consumer to one of its inputs, with the slots that the consumer captured.

    Attributes:
        node: the node that produced the input; for a leaf its `AccumulateGrad`.
        slots: one for each lane of the input, a single one where the input is a scalar.
        role: the input's role when it was captured.
        lanes: which lanes of the consumer used it, None for all.
    """

    __slots__ = ("batch", "lanes", "node", "output_nr", "role", "slots")

    def __init__(
        self,
        node: Node,
        output_nr: int,
        slots: Sequence[Slot],
        batch: bool,
        role: str,
        lanes: Sequence[int] | None = None,
    ) -> None:
        self.lanes = lanes
        self.node = node
        self.output_nr = output_nr
        self.slots = slots
        self.batch = batch
        self.role = role


class Node:
    """One op in the graph: what its backward pass needs.

    Attributes:
        size: number of lanes, None where the op worked on scalars alone.
        edges: one for each Variable that the op was given; None where it needs no gradient.
        outputs: for each output the slots of its lanes, as the op filled them.
        contexts: the `ctx` of each lane.
        address: of its launch, None for an op that isn't launched.
        retained: for an output that retains its feedback, its Variable, weakly.
        hooks: for an output that has some, the hooks on its feedback.
        crossing: which place of a module's call it is, where the module has backward hooks.
    """

    __slots__ = (
        "__weakref__", "address", "claims", "contexts", "crossing", "edges", "function", "hooks",
        "launch_name", "line", "outputs", "retained", "sequence", "size",
    )  # fmt: skip

    def __init__(
        self,
        function: type[Function] | None,
        name: str,
        line: Line | None,
        size: int | None,
        edges: Sequence[Edge | None],
        outputs: Sequence[Sequence[Slot]],
        contexts: Sequence[Context],
        address: str | None = None,
    ) -> None:
        self.function = function
        self.launch_name = name
        self.line = line
        self.size = size
        self.edges = edges
        self.outputs = outputs
        self.contexts = contexts
        self.address = address
        self.retained: dict[int, Any] = {}
        self.hooks: dict[int, Hooks[Hook]] = {}
        self.crossing: Crossing | None = None
        self.sequence = next(_sequence)
        # The passes that want to free it; the first has it. Appending is atomic, so this needs no lock.
        self.claims: list[object] = []

    def name(self) -> str:
        return f"{self.launch_name}Backward0"

    @property
    def next_functions(self) -> tuple[GradientEdge | tuple[None, int], ...]:
        """The edges to the op's inputs, `(None, 0)` for an input that needs no gradient."""
        return tuple((None, 0) if e is None else GradientEdge(e.node, e.output_nr) for e in self.edges)

    @property
    def lanes(self) -> int:
        return 1 if self.size is None else self.size

    def release(self) -> None:
        """Let go of what the backward pass needs, and of the nodes before."""
        self.edges = [None] * len(self.edges)
        self.outputs = ()
        self.contexts = ()
        self.crossing = None

    def __repr__(self) -> str:
        return f"<{self.name()}>"


@final
class AccumulateGrad(Node):
    """Where feedback for a leaf arrives; all of those of one leaf are equal."""

    __slots__ = ("variable",)

    def __init__(self, variable: Variable) -> None:
        super().__init__(None, "AccumulateGrad", None, None, (), (), ())
        self.variable = variable

    def name(self) -> str:
        return "AccumulateGrad"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AccumulateGrad) and other.variable is self.variable

    def __hash__(self) -> int:
        return hash(id(self.variable))


def claim(nodes: Sequence[Node], *, keep: bool) -> object:
    """Reserve `nodes` for one backward pass that frees them, all or none; one that keeps them only looks.

    Returns what `unclaim` takes.

    Raises:
        GraphError: if another pass has claimed one of them.
    """
    mine = object()
    for position, node in enumerate(nodes):
        if not keep:
            node.claims.append(mine)
        if node.claims and node.claims[0] is not mine:
            unclaim(nodes[: position + 1], mine)
            raise GraphError(
                f"backward() through {node.name()} (launched at {node.line}) a second time, but its "
                "graph is freed by the first; pass retain_graph=True to the first one"
            )
    return mine


def unclaim(nodes: Sequence[Node], mine: object) -> None:
    """Take back a claim."""
    for node in nodes:
        if mine in node.claims:
            node.claims.remove(mine)
