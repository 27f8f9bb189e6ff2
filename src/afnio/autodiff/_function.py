"""Functions: the ops of the graph, and how one op is launched over all lanes of a batch.

A `Function` describes one lane. Its `forward` takes plain values and returns plain values; its `backward` takes
texts and returns texts. This module turns that into an op on Variables. `Shout.apply(x)` takes four steps:

1. `Arguments` takes the Variables out of the arguments and captures their slots. The Variables may be assigned
   or dropped afterwards; the launch works on the values of now.
2. `record_op` writes the op into the graph: a `Context` for each lane, and a `Node` with an edge to each Variable
   that wants feedback. Every op goes through it, also those that need no launch (`Split`, `stack`).
3. A `Launch` gets one job for each lane, or a single one if the op is `batched`, and starts.
4. The caller gets Variables over the output slots. It has not waited for anything.

The graph must never keep a Variable alive. The runtime cancels a launch when no one can reach its outputs any
more; a node that held its inputs would keep every call of a dropped sample running, and paid for. Nodes and contexts
therefore refer to slots, and `Arguments.forget` drops the Variables as soon as the op is recorded.

The basic ops are in `_ops.py`.
"""

from __future__ import annotations

import inspect
import weakref
from collections import namedtuple
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, final

from afnio.autodiff._graph import Edge, Feedback, Node, is_grad_enabled
from afnio.autodiff._variable import Cell, Origin, Variable, checked
from afnio.runtime._callables import batch_failure, call_in_node, caller_loop, current_quorum
from afnio.runtime._kernel import PENDING, Job, Launch, Outcomes, Slot, inherited
from afnio.runtime._tracebacks import folding
from afnio.runtime.events import NodeInput, NodeLaunched, listening

if TYPE_CHECKING:
    from afnio.runtime._loop import CallerLoop
    from afnio.runtime._remote import Remote

# One lane's feedback to its inputs: an entry for each Variable that the op was given, in order.
LaneFeedback = Sequence[Feedback | str | None]
# Starts a backward that must be awaited.
Later = Callable[[], Awaitable[LaneFeedback]]


class Critic(Protocol):
    """Writes the feedback of Functions without a `backward`. `afnio.cognitive` brings it, as it knows models."""

    def check(self) -> None:
        """Raise for anything that a backward pass will lack."""

    async def watch(self, ctx: Context, forward: Callable[[], Awaitable[Any]]) -> Any:
        """Return the result of one lane's forward; keep what it did on `ctx`."""

    def criticize(self, job: Job, ctx: Context, names: Mapping[int, str]) -> Later:
        """Start the backward of one lane. The names are those of its Variables, by number."""


# Where an `async def` runs: on the runtime's loop, or on the loop that launched it.
Loop = Literal["runtime", "caller"]


def checked_loop(loop: Any) -> Loop:
    """Return `loop`, or raise ValueError if it names no loop."""
    if loop not in ("runtime", "caller"):
        raise ValueError(f"loop must be 'runtime' or 'caller' (got {loop!r})")
    named: Loop = loop
    return named


class Function:
    """An op of your own: subclass it, write static `forward` and `backward`, call `apply`.

    `forward(ctx, …)` gets plain values in the places of Variables, once for each lane, and returns a
    value for each output. `backward(ctx, *feedback)` gets one text for each output (None if there is
    none) and returns one text for each argument of `forward`, or None for an argument without feedback.
    Either may be a `def`, which runs in a worker thread, or an `async def`, which runs on the runtime's loop.

    Without a `backward`, a critic writes the feedback: the backward model reads the calls of language models that
    `forward` made, in one call for each lane with feedback, and comments on each Variable that requires it.

    Class attributes:
        outputs: names of the outputs; with several, `apply` returns a named tuple that can be awaited.
        batched: forward gets lists with one entry for each sample, and returns one; a barrier.
        inline: forward and backward are pure and quick, and run on the runtime's own thread.
        loop: "caller" runs an `async def` on the asyncio or trio loop that called `apply`, for clients that are
            bound to it. A `def` runs in a worker thread either way.
        executor: runs forward in other processes: an executor or what makes one, as for `Variable.map`. What it sets
            on `ctx` comes back for backward, which runs here.

    >>> class Shout(Function):
    ...     @staticmethod
    ...     def forward(ctx, text):
    ...         return text.upper()
    ...     @staticmethod
    ...     def backward(ctx, feedback):
    ...         return f"(shouted) {feedback}"
    >>> Shout.apply(Variable(["a", "b"])).data
    ['A', 'B']
    """

    outputs: ClassVar[tuple[str, ...]] = ("output",)
    batched: ClassVar[bool] = False
    inline: ClassVar[bool] = False
    loop: ClassVar[Loop] = "runtime"
    executor: ClassVar[Any] = None
    critic: ClassVar[Critic]
    """The critic of Functions without a `backward`; assigned by `afnio.cognitive`."""
    seedless: ClassVar[bool] = False
    """If True, a backward pass may start here without a seed, as at an evaluator."""
    transparent: ClassVar[bool] = False
    """If True, it passes feedback on by a fixed rule, so it is seedless if its inputs are."""
    kind: ClassVar[str] = "forward"
    """The kind of launch that events report."""

    _bundle: ClassVar[Any] = None

    def __init_subclass__(cls) -> None:
        if len(cls.outputs) > 1:
            base = namedtuple(f"{cls.__name__}Outputs", cls.outputs)  # type: ignore[misc]  # noqa: PYI024
            cls._bundle = type(base.__name__, (_Awaitable, base), {"__slots__": ()})

    def __init__(self) -> None:
        raise RuntimeError(
            f"{type(self).__name__} is not instantiated; call {type(self).__name__}.apply(...)"
        )

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("write a static forward(ctx, ...) that returns a value")

    @staticmethod
    def backward(ctx: Any, *feedback: Any) -> Any:
        raise NotImplementedError(
            "write a static backward(ctx, *feedback), or leave it out: a critic is called then"
        )

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Launch the op and return its output, or a named tuple of several; doesn't wait."""
        arguments = Arguments(args, kwargs)
        cls.check(arguments)
        elsewhere = None
        if cls.executor is not None:
            elsewhere = packed_forward(cls)
        launch = Launch(cls.title(arguments))
        if cls.loop_of(arguments) == "caller":
            launch.home = caller_loop(launch)
        slots = [[Slot(launch) for _ in arguments.lanes] for _ in cls.outputs]
        set_launch_event(launch, arguments, cls.kind)
        origin = Origin(launch.name, launch.line, launch.address)
        op = record_op(cls, arguments, cls.output_roles(arguments), slots, origin)
        if elsewhere is not None:
            for ctx in op.contexts:
                ctx.elsewhere = elsewhere
        if cls.batched and arguments.size is not None:
            _add_batched(launch, op)
        else:
            _add_lanes(launch, op)
        outputs = op.variables(cls.reduce(launch, op))
        launch.holders = [weakref.ref(output) for output in outputs]
        launch.start()
        return cls.wrap(outputs, op)

    # Built-in ops override these.

    @classmethod
    def check(cls, arguments: Arguments) -> None:
        """Raise for arguments that can't work, at the launch line."""

    @classmethod
    def criticised(cls) -> bool:
        """Return True if a critic writes the feedback, because there is no backward."""
        own: Any = cls.run_backward
        return cls.backward is Function.backward and own.__func__ is Function.run_backward.__func__  # type: ignore[attr-defined]

    @classmethod
    def title(cls, arguments: Arguments) -> str:
        """Return the op's name in errors, events and the graph."""
        return cls.__name__

    @classmethod
    def loop_of(cls, arguments: Arguments) -> Loop:
        """Return where an `async def` of this op runs."""
        return cls.loop

    @classmethod
    def output(cls, value: Any) -> Any:
        """Return what forward returned as an output can hold it.

        Raises:
            TypeError: for what no Variable holds.
        """
        return checked(value)

    @classmethod
    def output_roles(cls, arguments: Arguments) -> Sequence[str]:
        """Return the role of each output."""
        return [f"{name} of {cls.__name__}" for name in cls.outputs]

    @classmethod
    def wanted(cls, arguments: Arguments) -> Sequence[bool]:
        """Return for each Variable whether it gets feedback when the graph is recorded."""
        return [variable.requires_grad for variable in arguments.variables]

    @classmethod
    async def run_forward(cls, job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run forward for one lane; an op that calls a model needs the job for it."""
        ctx.home = job.launch.home
        forward = partial(call_in_node, job, partial(cls.forward, ctx, *args, **kwargs))
        if ctx.elsewhere is not None:
            forward = partial(forward_elsewhere, job, ctx, args, kwargs)
        if any(ctx.wanted) and cls.criticised():
            return await cls.critic.watch(ctx, forward)
        return await forward()

    @classmethod
    def reduce(cls, launch: Launch, op: Op) -> Sequence[list[Slot]] | None:
        """Add a job that reduces the lanes of each output to one value; return its slots, or None to keep the lanes."""
        return None

    @classmethod
    def variable_type(cls, number: int) -> type[Variable]:
        """Return the class of output `number`."""
        return Variable

    @classmethod
    def wrap(cls, outputs: list[Variable], op: Op) -> Any:
        """Return the result of `apply`: the one output, or a named tuple of several."""
        return outputs[0] if len(outputs) == 1 else cls._bundle(*outputs)

    @classmethod
    def check_backward(cls, ctx: Context) -> None:
        """Raise at the line of `backward()` for anything that the pass will lack here, such as a model."""
        if cls.criticised():
            cls.critic.check()

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> LaneFeedback | Later:
        """Run backward for one lane with `ctx.feedback` set; return one entry for each Variable.

        An async backward is returned as a function that starts it. A coroutine made here would never be
        awaited if the job is cancelled before its first step, and Python would warn about that.
        """
        if cls.criticised():
            return cls.critic.criticize(job, ctx, _names(cls, ctx.arguments))
        texts = [_one_text(incoming) for incoming in ctx.feedback]
        if cls.inline:
            return _by_variable(cls, ctx, cls.backward(ctx, *texts))

        async def run() -> LaneFeedback:
            returned = await call_in_node(job, cls.backward, ctx, *texts, home=ctx.home)
            return _by_variable(cls, ctx, await resolved(returned))

        return run


class _Awaitable:
    """Mixin of the named tuples that ops with several outputs return: awaiting it awaits each."""

    @folding
    def __await__(self) -> Generator[Any, None, Any]:
        for variable in self:  # type: ignore[attr-defined]
            yield from variable.__await__()
        return self


@final
class Op:
    """One use of a Function, recorded: its lanes, its outputs' slots, and its node if it has one."""

    __slots__ = ("arguments", "contexts", "function", "node", "origin", "roles", "slots")

    def __init__(
        self,
        function: type[Function],
        arguments: Arguments,
        roles: Sequence[str],
        slots: Sequence[list[Slot]],
        origin: Origin,
    ) -> None:
        self.function = function
        self.arguments = arguments
        self.roles = roles
        self.slots = slots
        self.origin = origin
        self.contexts: Sequence[Context] = ()
        self.node: Node | None = None

    def variables(self, reduced: Sequence[list[Slot]] | None = None) -> list[Variable]:
        """Return a Variable over each output; over its reduction, one value, if there is one."""
        batch = self.arguments.size is not None and reduced is None
        return [
            self.function.variable_type(number).over(
                slots, batch, role, node=self.node, output_nr=number, origin=self.origin
            )
            for number, (slots, role) in enumerate(zip(reduced or self.slots, self.roles, strict=True))
        ]  # fmt: skip


def record_op(
    function: type[Function],
    arguments: Arguments,
    roles: Sequence[str],
    slots: Sequence[list[Slot]],
    origin: Origin,
) -> Op:
    """Record one use of `function` in the graph, and let go of its Variables.

    A node is made only if the graph is recorded here (see `no_grad`) and some input wants feedback.

    Args:
        roles: one for each output.
        slots: for each output a slot for each lane.
        origin: name, line and address of the launch; without an address if nothing is launched.
    """
    wanted = function.wanted(arguments) if is_grad_enabled() else [False] * len(arguments.variables)
    input_roles = [variable.role for variable in arguments.variables]
    op = Op(function, arguments, roles, slots, origin)
    op.contexts = [
        Context(arguments, wanted, input_roles, roles, lane, origin.address) for lane in arguments.lanes
    ]
    if any(wanted):
        edges = [
            Edge(variable.graph_node(), variable.output_nr, captured, batch) if want else None
            for variable, (captured, batch), want in zip(
                arguments.variables, arguments.cells, wanted, strict=True
            )
        ]
        op.node = Node(function, origin, arguments.size, edges, slots, op.contexts)
    arguments.forget()
    return op


def _add_lanes(launch: Launch, op: Op) -> None:
    """Add one job for each lane; it runs as soon as that lane's inputs are there."""
    cls, arguments, contexts = op.function, op.arguments, op.contexts

    def inline(job: Job, values: list[Any]) -> Outcomes:
        args, kwargs = arguments.fill(values)
        return _outcomes(cls, cls.forward(contexts[job.lane or 0], *args, **kwargs))

    async def run(job: Job, values: list[Any]) -> Outcomes:
        args, kwargs = arguments.fill(values)
        result = await cls.run_forward(job, contexts[job.lane or 0], args, kwargs)
        return _outcomes(cls, await resolved(result))

    body = inline if cls.inline else run
    for number, ctx in enumerate(contexts):
        launch.add(body, arguments.lane(number), [column[number] for column in op.slots], lane=ctx.lane)


def _add_batched(launch: Launch, op: Op) -> None:
    """Add one job over all lanes; missing and failed lanes are left out of the lists that forward gets."""
    cls, arguments, contexts = op.function, op.arguments, op.contexts
    size = len(contexts)
    quorum = current_quorum()
    lanes = [arguments.lane(number) for number in range(size)]
    width = len(arguments.cells)

    async def run(job: Job, outcomes: list[Any]) -> Outcomes:
        rows = [outcomes[number * width : (number + 1) * width] for number in range(size)]
        stopped = {n: outcome for n, row in enumerate(rows) if (outcome := inherited(row)) is not PENDING}
        error = batch_failure([stopped.get(n, True) for n in range(size)], launch.title, quorum)
        if error is not None:
            raise error
        present = [number for number in range(size) if number not in stopped]
        columns = [
            [rows[number][index] for number in present] if batch else outcomes[index]
            for index, (_, batch) in enumerate(arguments.cells)
        ]
        results: list[list[Any]] = [[] for _ in cls.outputs]
        if present:
            args, kwargs = arguments.fill(columns)
            returned = await cls.run_forward(job, contexts[0], args, kwargs)
            results = _checked_columns(cls, returned, len(present))
        flat: list[Any] = []
        for column in results:
            by_lane = dict(zip(present, column, strict=True))
            flat += [by_lane.get(number, stopped.get(number)) for number in range(size)]
        return flat

    # Forward runs once, but backward runs for each lane: share what forward saves on its `ctx`.
    for ctx in contexts[1:]:
        ctx.__dict__ = contexts[0].__dict__
    launch.add(
        run,
        [slot for lane in lanes for slot in lane],
        [slot for column in op.slots for slot in column],
        gather=True,
    )


# Results of forward and backward, checked and put in the engine's shape.


def _outcomes(cls: type[Function], result: Any) -> Outcomes:
    if len(cls.outputs) == 1:
        return [cls.output(result)]
    if not isinstance(result, tuple | list) or len(result) != len(cls.outputs):
        raise ValueError(
            f"{cls.__name__}.forward must return {len(cls.outputs)} values, {', '.join(cls.outputs)} "
            f"(got {result!r}); set `outputs` on the class"
        )
    return [cls.output(value) for value in result]


def _checked_columns(cls: type[Function], returned: Any, size: int) -> list[list[Any]]:
    columns = [returned] if len(cls.outputs) == 1 else list(returned)
    for column in columns:
        if not isinstance(column, list) or len(column) != size:
            raise ValueError(
                f"{cls.__name__}.forward is batched and must return lists of {size} values (got {column!r})"
            )
    return [[cls.output(value) for value in column] for column in columns]


async def resolved(result: Any) -> Any:
    """Await every Variable that a body returned, and return their values in the same places."""
    if isinstance(result, Variable):
        return (await result).data
    if isinstance(result, tuple | list) and any(isinstance(item, Variable) for item in result):
        return [await resolved(item) for item in result]
    return result


def _one_text(incoming: Sequence[Feedback]) -> str | None:
    """Return several consumers' feedback as one text, None if there is none."""
    texts = [feedback.text for feedback in incoming]
    return "\n".join(texts) if texts else None


def _names(cls: type[Function], arguments: Arguments) -> dict[int, str]:
    """Return the name of each Variable by its number: that of its argument, as forward's signature has it."""
    positional = list(inspect.signature(cls.forward).parameters)[1 : 1 + len(arguments.args)]
    names = [*positional, *[""] * (len(arguments.args) - len(positional)), *arguments.kwargs]
    by_number: dict[int, str] = {}

    def visit(position: int, index: int) -> None:
        if names[position]:
            by_number.setdefault(index, names[position])

    arguments.places(visit)
    return by_number


def _by_variable(cls: type[Function], ctx: Context, returned: Any) -> list[Feedback | str | None]:
    """Turn the entries that backward returned, one for each argument, into one for each Variable."""
    arguments = ctx.arguments
    width = len(arguments.args) + len(arguments.kwargs)
    entries = list(returned) if isinstance(returned, tuple | list) else [returned]
    if len(entries) != width:
        raise ValueError(
            f"{cls.__name__}.backward must return {width} values, one for each argument of forward "
            f"(got {len(entries)}); return None for an argument without feedback"
        )
    names: list[list[str]] = [[] for _ in arguments.cells]
    lists = {position: iter(entry) for position, entry in enumerate(entries) if isinstance(entry, list)}

    def visit(position: int, index: int) -> None:
        entry = next(lists[position], None) if position in lists else entries[position]
        if entry is not None and not isinstance(entry, str):
            raise TypeError(f"{cls.__name__}.backward must return texts or None (got {entry!r})")
        if entry and entry not in names[index]:
            names[index].append(entry)

    arguments.places(visit)
    return ["\n".join(texts) if texts else None for texts in names]


# The arguments of an op.


class Place(NamedTuple):
    """Marks where a Variable was among the arguments."""

    number: int


# Makes one argument of a lane from the lane's values of the Variables.
Filler = Callable[[Sequence[Any]], Any]


@final
class Arguments:
    """An op's arguments with the Variables taken out, each once, in order of appearance.

    Attributes:
        variables: the distinct Variables; empty after `forget`.
        cells: for each of them the slots that this launch captured, and whether they are a batch.
        size: number of lanes, None if all are scalars.

    >>> arguments = Arguments((Variable(["a", "b"]), "c"), {})
    >>> arguments.forget()
    >>> arguments.size, arguments.fill(["a"])
    (2, (('a', 'c'), {}))
    """

    __slots__ = ("_fillers", "_index", "args", "cells", "kwargs", "size", "variables")

    def __init__(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.args = args
        self.kwargs = kwargs
        self.variables: list[Variable] = []
        self._index: dict[int, int] = {}
        self._fillers: tuple[list[Filler], dict[str, Filler]] | None = None
        for value in (*args, *kwargs.values()):
            self._collect(value)
        self.cells = [variable.cell() for variable in self.variables]
        self.size = self._common_size()

    @property
    def lanes(self) -> Sequence[int | None]:
        """The index of each lane; a single None if all Variables are scalars."""
        return [None] if self.size is None else range(self.size)

    def lane(self, number: int) -> list[Slot]:
        """Return the slots that lane `number` works on, one for each Variable."""
        return [slots[number] if batch else slots[0] for slots, batch in self.cells]

    def fill(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return `(args, kwargs)` with a value in the place of each Variable; after `forget`."""
        if self._fillers is None:
            # Make the fillers once for a launch: walking the arguments again for each lane took a tenth of
            # a call's CPU time.
            self._fillers = (
                [_filler(value) for value in self.args],
                {name: _filler(value) for name, value in self.kwargs.items()},
            )
        args, kwargs = self._fillers
        return tuple([put(values) for put in args]), {name: put(values) for name, put in kwargs.items()}

    def forget(self) -> None:
        """Replace the Variables by marks, so that the graph doesn't keep them alive."""
        self.args = tuple(_marked(value, self._index) for value in self.args)
        self.kwargs = {name: _marked(value, self._index) for name, value in self.kwargs.items()}
        self.variables = []
        self._index = {}

    def places(self, visit: Callable[[int, int], None]) -> None:
        """Call `visit(position, index)` for each place of a Variable; positions count args, then kwargs."""
        for position, value in enumerate((*self.args, *self.kwargs.values())):
            for index in _places_in(value):
                visit(position, index)

    def _collect(self, value: Any) -> None:
        if isinstance(value, Variable):
            if id(value) not in self._index:
                self._index[id(value)] = len(self.variables)
                self.variables.append(value)
        elif isinstance(value, Mapping):
            for item in value.values():
                self._collect(item)
        elif isinstance(value, list | tuple):
            for item in value:
                self._collect(item)

    def _common_size(self) -> int | None:
        sizes = [
            (len(slots), v) for (slots, batch), v in zip(self.cells, self.variables, strict=True) if batch
        ]
        if not sizes:
            return None
        if any(size != sizes[0][0] for size, _ in sizes):
            shown = ", ".join(f"{variable.role!r} has {size}" for size, variable in sizes)
            raise ValueError(
                f"batches given to one op must have equal lengths (got {shown}); a scalar is shared by all samples"
            )
        return sizes[0][0]


def _marked(value: Any, index: Mapping[int, int]) -> Any:
    """Return `value` with a `Place` for each Variable; a list, tuple or mapping without any stays itself."""
    if isinstance(value, Variable):
        return Place(index[id(value)])
    if isinstance(value, Mapping):
        items = {name: _marked(item, index) for name, item in value.items()}
        return items if any(items[name] is not item for name, item in value.items()) else value
    if isinstance(value, list) or type(value) is tuple:
        items_of = [_marked(item, index) for item in value]
        if all(new is old for new, old in zip(items_of, value, strict=True)):
            return value
        return items_of if isinstance(value, list) else tuple(items_of)
    return value


def _filler(value: Any) -> Filler:
    """Return a function that puts values into the places of `value`; without places it returns `value` itself."""
    if isinstance(value, Place):
        return itemgetter(value.number)
    if next(_places_in(value), None) is None:
        return lambda values: value
    if isinstance(value, Mapping):
        named = {name: _filler(item) for name, item in value.items()}
        return lambda values: {name: put(values) for name, put in named.items()}
    parts = [_filler(item) for item in value]
    if isinstance(value, list):
        return lambda values: [put(values) for put in parts]
    return lambda values: tuple([put(values) for put in parts])


def _places_in(value: Any) -> Iterator[int]:
    if isinstance(value, Place):
        yield value.number
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _places_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _places_in(item)


class Context:
    """The `ctx` of one lane; set any attribute on it in `forward` and read it in `backward`.

    Attributes:
        needs_input_grad: for each argument of `forward` whether backward should return feedback for it.
        input_roles: the roles of the Variables among the arguments, in order of appearance.
        output_roles: the roles of the outputs.
        lane: index of the sample, None for scalars.
        address: of the launch.
        feedback: in `backward`, for each output the consumers' `Feedback`, one entry each.
        saved_values: the values given to `save_for_backward`; of a batched Function, for all of its samples.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    __slots__ = (
        "__dict__", "address", "arguments", "elsewhere", "feedback", "home", "input_roles", "lane", "output_roles",
        "wanted",
    )  # fmt: skip

    def __init__(
        self,
        arguments: Arguments,
        wanted: Sequence[bool],
        input_roles: Sequence[str],
        output_roles: Sequence[str],
        lane: int | None,
        address: str | None = None,
    ) -> None:
        self.arguments = arguments
        self.wanted = wanted
        self.input_roles = input_roles
        self.output_roles = output_roles
        self.lane = lane
        self.address = address
        self.home: CallerLoop | None = None
        # Forward, packed for an executor.
        self.elsewhere: Callable[..., Any] | None = None
        self.feedback: list[list[Feedback]] = []

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        positions = [False] * (len(self.arguments.args) + len(self.arguments.kwargs))

        def visit(position: int, index: int) -> None:
            positions[position] = positions[position] or self.wanted[index]

        self.arguments.places(visit)
        return tuple(positions)

    def lane_values(self) -> list[Any]:
        """Return the value of each Variable in this lane at the time of the launch."""
        return [slot.outcome for slot in self.arguments.lane(self.lane or 0)]

    def with_feedback(self, feedback: list[list[Feedback]]) -> Context:
        """Return a ctx for one backward pass over this lane; it shares the attributes that `forward` set."""
        ctx = Context(
            self.arguments, self.wanted, self.input_roles, self.output_roles, self.lane, self.address
        )
        ctx.__dict__ = self.__dict__
        ctx.home = self.home
        ctx.feedback = feedback
        return ctx

    def save_for_backward(self, *values: Any) -> None:
        """Keep values for `backward`; read them there as `ctx.saved_values`."""
        self._saved = values

    @property
    def saved_values(self) -> tuple[Any, ...]:
        saved: tuple[Any, ...] = self.__dict__.get("_saved", ())
        return saved


# Events: a launch reports its inputs when it starts, if there is a subscriber.


def set_launch_event(launch: Launch, arguments: Arguments, kind: str) -> None:
    """Prepare the event of a launch; call it before `arguments.forget()`."""
    if listening():
        inputs = [
            _input(variable, cell, arguments.size)
            for variable, cell in zip(arguments.variables, arguments.cells, strict=True)
        ]
        launch.event = NodeLaunched(launch.address, launch.name, launch.line, kind, arguments.size, inputs)


def set_sweep_event(launch: Launch, nodes: Sequence[Node]) -> None:
    """Prepare the event of a backward pass: its inputs are the forward launches that it goes through."""
    if listening():
        inputs = [NodeInput(node.address) for node in nodes]
        launch.event = NodeLaunched(launch.address, launch.name, launch.line, "backward", None, inputs)


def _input(variable: Variable, cell: Cell, size: int | None) -> NodeInput:
    if variable.origin is not None:
        return NodeInput(variable.origin.address)
    slots, batch = cell
    # Samples are told apart by their own leaves. A prompt, or a value that a whole batch shares, is the same in
    # every sample, so leave it out.
    if variable.requires_grad or batch != (size is not None):
        return NodeInput(None)
    return NodeInput(None, [slot.outcome for slot in slots])


# The forward in a worker process. A `ctx` leads to the graph and its slots, so it stays. The worker gets a
# `WorkerContext` with the same plain attributes; what `forward` sets on it comes back with the result, for `backward`,
# which runs here.


@final
class WorkerContext:
    """The `ctx` of a forward in a worker. Its attributes are those of `Context`."""

    def __init__(
        self,
        needs_input_grad: tuple[bool, ...],
        input_roles: Sequence[str],
        output_roles: Sequence[str],
        lane: int | None,
        address: str | None,
    ) -> None:
        self.needs_input_grad = needs_input_grad
        self.input_roles = input_roles
        self.output_roles = output_roles
        self.lane = lane
        self.address = address
        self._given = frozenset(self.__dict__)

    def save_for_backward(self, *values: Any) -> None:
        """Keep values for `backward`; read them there as `ctx.saved_values`."""
        self._saved = values

    @property
    def saved_values(self) -> tuple[Any, ...]:
        saved: tuple[Any, ...] = self.__dict__.get("_saved", ())
        return saved

    def added(self) -> dict[str, Any]:
        """Return what forward has set."""
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in self._given and name != "_given"
        }


def packed_forward(function: type[Function]) -> Remote:
    """Pack the forward of `function` for its executor, on the line of the launch."""
    from afnio.runtime._executors import Workers
    from afnio.runtime._remote import Remote

    assert function.executor is not None
    run = partial(run_in_worker, function.forward)
    return Remote(run, Workers.of(function.executor), name=function.__name__)


def run_in_worker(forward: Callable[..., Any], context: tuple[Any, ...], args: Any, kwargs: Any) -> Any:
    """Run one lane's forward; in the worker. Returns its result and what it has set on `ctx`."""
    ctx = WorkerContext(*context)
    result = forward(ctx, *args, **kwargs)
    if not inspect.iscoroutine(result):
        return result, ctx.added()

    async def finish() -> Any:
        return await result, ctx.added()

    return finish()


async def forward_elsewhere(job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run one lane's forward in a worker, and take over what it has set on `ctx`."""
    context = (ctx.needs_input_grad, tuple(ctx.input_roles), tuple(ctx.output_roles), ctx.lane, ctx.address)
    assert ctx.elsewhere is not None
    result, added = await call_in_node(job, ctx.elsewhere, context, args, kwargs)
    ctx.__dict__.update(added)
    return result
