"""The graph: the nodes that ops leave behind, the edges between them, hooks, feedback, and the grad mode.

The graph points backward, from each op to its inputs, and is kept alive by the Variables at its end: drop the loss and
the graph is gone. Nodes refer to slots, never to Variables, except `AccumulateGrad`, the node of a leaf: a leaf must
survive until its feedback arrives.

A backward pass frees the nodes that it goes through, unless it keeps the graph. Two passes may start at the same time
in two threads, so a pass first claims all of its nodes (`claim`): the second one raises at its own line, before it has
started anything.

`no_grad` and its relatives decide, per context, if ops record the graph.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, Self, TypeVar, cast, final

from afnio.errors import GraphError

if TYPE_CHECKING:
    from afnio.autodiff._function import Context, Function
    from afnio.autodiff._variable import Origin, Variable
    from afnio.runtime._kernel import Slot
    from afnio.runtime._tracebacks import Line


_sequence = itertools.count()


class GradientEdge(NamedTuple):
    """Output number `output_nr` of `node`: one end of an edge, and a target of `grad`."""

    node: Node
    output_nr: int


@final
class Edge:
    """An edge from a consumer to one of its inputs, with the slots that the consumer captured.

    Attributes:
        node: the node that produced the input; for a leaf its `AccumulateGrad`.
        slots: one for each lane of the input; a single one if the input is a scalar.
        lanes: the lanes of the consumer that used the input, None for all.
    """

    __slots__ = ("batch", "lanes", "node", "output_nr", "slots")

    def __init__(
        self,
        node: Node,
        output_nr: int,
        slots: Sequence[Slot],
        batch: bool,
        lanes: Sequence[int] | None = None,
    ) -> None:
        self.lanes = lanes
        self.node = node
        self.output_nr = output_nr
        self.slots = slots
        self.batch = batch


class Node:
    """One op in the graph, with everything that its backward needs.

    Attributes:
        size: number of lanes, None if the op worked on scalars alone.
        edges: one for each Variable that the op was given; None for one that needs no gradient.
        outputs: for each output the slots of its lanes. Assigning the output later doesn't change them.
        contexts: the `ctx` of each lane.
        origin: name, line and address of the op's launch; None for the node of a leaf.
        retained: weak references to the outputs that retain their feedback, by output number.
        hooks: the hooks on the feedback of each output that has some, by output number.
    """

    __slots__ = (
        "__weakref__", "claims", "contexts", "edges", "function", "hooks", "origin", "outputs", "retained",
        "sequence", "size",
    )  # fmt: skip

    def __init__(
        self,
        function: type[Function] | None,
        origin: Origin | None,
        size: int | None,
        edges: Sequence[Edge | None],
        outputs: Sequence[Sequence[Slot]],
        contexts: Sequence[Context],
    ) -> None:
        self.function = function
        self.origin = origin
        self.size = size
        self.edges = edges
        self.outputs = outputs
        self.contexts = contexts
        self.retained: dict[int, Any] = {}
        self.hooks: dict[int, Hooks[Hook]] = {}
        self.sequence = next(_sequence)
        # The passes that will free it; the first one wins. Appending to a list is atomic, so this needs no lock.
        self.claims: list[object] = []

    def name(self) -> str:
        return "AccumulateGrad" if self.origin is None else f"{self.origin.name}Backward0"

    @property
    def line(self) -> Line | None:
        """Where in the user's code the op was launched."""
        return None if self.origin is None else self.origin.line

    @property
    def address(self) -> str | None:
        """The address of the op's launch, None for an op that isn't launched."""
        return None if self.origin is None else self.origin.address

    @property
    def lanes(self) -> int:
        return 1 if self.size is None else self.size

    def release(self) -> None:
        """Drop everything that backward needs, and so the nodes before this one."""
        self.edges = [None] * len(self.edges)
        self.outputs = ()
        self.contexts = ()

    def __repr__(self) -> str:
        return f"<{self.name()}>"


@final
class AccumulateGrad(Node):
    """The node at which a leaf gathers its feedback; all nodes of one leaf are equal."""

    __slots__ = ("variable",)

    def __init__(self, variable: Variable) -> None:
        super().__init__(None, None, None, (), (), ())
        self.variable = variable

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AccumulateGrad) and other.variable is self.variable

    def __hash__(self) -> int:
        return hash(id(self.variable))


def claim(nodes: Sequence[Node], *, keep: bool) -> object:
    """Reserve `nodes`, all or none, for one backward pass that frees them; a pass that keeps them only checks.

    Returns the claim, for `unclaim`.

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


# Hooks of Variables and Modules.


Hook = Callable[..., Any]
H = TypeVar("H")

_numbers = itertools.count()


def checked_hook(hook: Hook) -> Hook:
    """Return `hook`, or raise if it can't be called."""
    if not callable(hook):
        raise TypeError(f"a hook must be a callable (got {hook!r})")
    return hook


@final
class Hooks(Generic[H]):
    """Hooks in the order in which they are called.

    >>> hooks = Hooks()
    >>> handle = hooks.add(print)
    >>> with hooks.add(len, prepend=True):
    ...     [hook.__name__ for hook in hooks]
    ['len', 'print']
    >>> handle.remove()
    >>> list(hooks)
    []
    """

    __slots__ = ("__weakref__", "_by_number")

    def __init__(self) -> None:
        # Replace the dict, never change it: another thread may be iterating over it.
        self._by_number: dict[int, H] = {}

    def add(self, hook: H, *, prepend: bool = False) -> RemovableHandle:
        number = next(_numbers)
        if prepend:
            self._by_number = {number: hook, **self._by_number}
        else:
            self._by_number = {**self._by_number, number: hook}
        return RemovableHandle(self, number)

    def remove(self, number: int) -> None:
        self._by_number = {other: hook for other, hook in self._by_number.items() if other != number}

    def __iter__(self) -> Iterator[H]:
        return iter(self._by_number.values())

    def __len__(self) -> int:
        return len(self._by_number)


@final
class RemovableHandle:
    """Removes a registered hook: call `remove()`, or use it as a `with` block that removes the hook at its end."""

    def __init__(self, hooks: Hooks[Any], number: int) -> None:
        self._hooks = weakref.ref(hooks)
        self._number = number

    def remove(self) -> None:
        """Remove the hook; does nothing the second time."""
        hooks = self._hooks()
        if hooks is not None:
            hooks.remove(self._number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()


# Feedback, and the gradients that it becomes.


@final
@dataclass(frozen=True, slots=True)
class Feedback:
    """One consumer's feedback on one lane of a value.

    Attributes:
        text: the feedback; empty from a root without a seed, where the evaluator writes the first words itself.
        seen: the value that the consumer judged, if known.
        provenance: where it comes from, as plain data (ids, texts, scores). A node or a Variable in it would keep
            the graph alive.
        led_in: True if the text already explains that it is about a whole, not a part.
    """

    text: str
    seen: Any = None
    provenance: tuple[Mapping[str, Any], ...] = ()
    led_in: bool = False


@final
class PendingGradients:
    """The gradients that one backward pass adds to a Variable's `grad`; pending until the whole pass has ended.

    The slot's value is a list of `(data, provenance)`, one for each gradient. The data is a text, or for a batch a
    list aligned to its lanes.
    """

    __slots__ = ("slot",)

    def __init__(self, slot: Slot) -> None:
        self.slot = slot


# The grad mode. It is local to a context, so `no_grad` in one task doesn't touch another one.


F = TypeVar("F", bound=Callable[..., Any])

_enabled: Final[ContextVar[bool]] = ContextVar("afnio_grad_enabled", default=True)


def is_grad_enabled() -> bool:
    """Return True if ops that are launched in this context record the graph."""
    return _enabled.get()


class _GradMode:
    """A context manager, and a decorator for functions, coroutines and generators of both kinds."""

    def __init__(self, enabled: bool) -> None:
        self._mode = enabled
        self._tokens: list[Token[bool]] = []

    def __enter__(self) -> None:
        self._tokens.append(_enabled.set(self._mode))

    def __exit__(self, *exc: object) -> None:
        _enabled.reset(self._tokens.pop())

    def __call__(self, function: F) -> F:
        mode = self._mode
        wrapper: Any
        if inspect.isasyncgenfunction(function):
            wrapper = _async_generator(function, mode)
        elif inspect.isgeneratorfunction(function):
            wrapper = _generator(function, mode)
        elif inspect.iscoroutinefunction(function):

            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                with _GradMode(mode):
                    return await function(*args, **kwargs)

            wrapper = coroutine
        else:

            def plain(*args: Any, **kwargs: Any) -> Any:
                with _GradMode(mode):
                    return function(*args, **kwargs)

            wrapper = plain
        return cast("F", functools.wraps(function)(wrapper))


class no_grad(_GradMode):  # noqa: N801
    """Record no graph in the block, or in the decorated function.

    >>> import afnio
    >>> prompt = afnio.Variable("a", requires_grad=True)
    >>> with no_grad():
    ...     (prompt + afnio.Variable("b")).requires_grad
    False
    """

    def __init__(self) -> None:
        super().__init__(enabled=False)


class enable_grad(_GradMode):  # noqa: N801
    """Record the graph in the block, or in the decorated function, inside `no_grad` too."""

    def __init__(self) -> None:
        super().__init__(enabled=True)


class set_grad_enabled(_GradMode):  # noqa: N801
    """Turn recording on or off for this context; as a `with` block, until its end.

    >>> with set_grad_enabled(False):
    ...     is_grad_enabled()
    False
    """

    def __init__(self, mode: bool) -> None:
        super().__init__(mode)
        self._plain: Token[bool] | None = _enabled.set(mode)

    def __enter__(self) -> None:
        # `set_grad_enabled(mode)` has set the mode when it was called; the block's end restores the one before.
        if self._plain is not None:
            self._tokens.append(self._plain)
            self._plain = None
        else:
            super().__enter__()

    def __call__(self, function: F) -> F:
        if self._plain is not None:
            _enabled.reset(self._plain)
            self._plain = None
        return super().__call__(function)


def _generator(function: Callable[..., Any], mode: bool) -> Callable[..., Generator[Any, Any, Any]]:
    # Set the mode only while the generator's own code runs: a `with` block around it would leak to the consumer at
    # every yield.
    def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        inner = function(*args, **kwargs)
        step: Callable[[], Any] = functools.partial(next, inner)
        while True:
            try:
                with _GradMode(mode):
                    value = step()
            except StopIteration as stop:
                return stop.value
            try:
                sent = yield value
            except GeneratorExit:
                with _GradMode(mode):
                    inner.close()
                raise
            except BaseException as error:
                step = functools.partial(inner.throw, error)
            else:
                step = functools.partial(inner.send, sent)

    return generator


def _async_generator(function: Callable[..., Any], mode: bool) -> Callable[..., AsyncGenerator[Any, Any]]:
    async def generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        inner = function(*args, **kwargs)
        step: Callable[[], Any] = inner.__anext__
        while True:
            try:
                with _GradMode(mode):
                    value = await step()
            except StopAsyncIteration:
                return
            try:
                sent = yield value
            except GeneratorExit:
                with _GradMode(mode):
                    await inner.aclose()
                raise
            except BaseException as error:
                step = functools.partial(inner.athrow, error)
            else:
                step = functools.partial(inner.asend, sent)

    return generator
