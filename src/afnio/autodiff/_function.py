"""Function: an op, with its forward and backward for one lane, and how it is launched over all of them."""

from __future__ import annotations

import weakref
from collections import namedtuple
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, final

from afnio.autodiff._data import Feedback, checked
from afnio.autodiff._graph import Edge, Node
from afnio.autodiff._variable import Cell, Origin, Variable, is_grad_enabled
from afnio.runtime._callables import batch_failure, call_in_node, current_quorum
from afnio.runtime._kernel import PENDING, Job, Launch, Outcomes, Slot, inherited
from afnio.runtime._tracebacks import caller_line, folding
from afnio.runtime.events import NodeInput, NodeLaunched, listening

if TYPE_CHECKING:
    from afnio.autodiff._data import Feedback


Said = Sequence[Feedback | str | None]
Later = Callable[[], Awaitable[Said]]
"""What one lane's backward says: an entry for each Variable that the op was given."""


class _Awaitable:
    """Mixin of the named tuples that ops with several outputs return: awaiting it awaits each."""

    @folding
    def __await__(self) -> Generator[Any, None, Any]:
        for variable in self:  # type: ignore[attr-defined]
            yield from variable.__await__()
        return self


class Function:
    """An op of your own: subclass it, write static `forward` and `backward`, call `apply`.

    `forward(ctx, …)` gets plain values in the places of Variables, once for each lane, and returns a
    value for each output. `backward(ctx, *feedback)` gets one text for each output, None where there is
    none, and returns one text for each argument of `forward`, None where it has nothing to say. Either
    may be `def`, which runs in a worker thread, or `async def`, which runs on the runtime's loop.

    Class attributes:
        outputs: names of the outputs; with several, `apply` returns a named tuple that can be awaited.
        batched: forward gets lists with one entry for each sample, and returns one; a barrier.
        inline: forward and backward are pure and quick, and run on the runtime's own thread.

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
    seedless: ClassVar[bool] = False
    """Whether a backward pass may start here without a seed, as at an evaluator."""
    transparent: ClassVar[bool] = False
    """Whether it passes feedback on by a fixed rule, so that it is seedless where its inputs are."""

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
        raise NotImplementedError("write a static backward(ctx, *feedback) that returns texts")

    @classmethod
    def output_roles(cls, arguments: Arguments) -> Sequence[str]:
        """Return the role of each output; override it to name them."""
        return [f"{name} of {cls.__name__}" for name in cls.outputs]

    @classmethod
    def check(cls, arguments: Arguments) -> None:
        """Raise for arguments that can't work, at the launch line; override it."""

    @classmethod
    def check_backward(cls, ctx: Context) -> None:
        """Raise for what a backward pass through here will lack, at its launch line; override it."""

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Launch the op and return its output, or a named tuple of several, at once."""
        arguments = Arguments(args, kwargs)
        cls.check(arguments)
        launch = Launch(cls.__name__)
        roles = cls.output_roles(arguments)
        wanted = [is_grad_enabled() and variable.requires_grad for variable in arguments.variables]
        lanes: Sequence[int | None] = [None] if arguments.size is None else range(arguments.size)
        input_roles = [variable.role for variable in arguments.variables]
        contexts = [Context(arguments, wanted, input_roles, roles, lane) for lane in lanes]
        slots = [[Slot(launch) for _ in lanes] for _ in cls.outputs]
        node = None
        if any(wanted):
            node = Node(
                cls,
                cls.__name__,
                launch.line,
                arguments.size,
                edges_to(arguments, wanted),
                slots,
                contexts,
                launch.address,
            )
        tell_launch(launch, arguments)
        arguments.forget()
        if cls.batched and arguments.size is not None:
            _launch_batched(cls, launch, arguments, contexts, slots)
        else:
            _launch_lanes(cls, launch, arguments, contexts, slots)
        origin = Origin(launch.name, launch.line, launch.address)
        outputs = [
            cls.variable_type(number).over(
                lane_slots, arguments.size is not None, role, node=node, output_nr=number,
                origin=origin,
            )
            for number, (lane_slots, role) in enumerate(zip(slots, roles, strict=True))
        ]  # fmt: skip
        launch.holders = [weakref.ref(output) for output in outputs]
        launch.start()
        return cls.wrap(outputs, contexts)

    @classmethod
    def variable_type(cls, number: int) -> type[Variable]:
        """Return the class of output `number`; ops whose outputs show more than data override it."""
        return Variable

    @classmethod
    def wrap(cls, outputs: list[Variable], contexts: Sequence[Context]) -> Any:
        """Return what `apply` returns: the one output, or a named tuple of several."""
        return outputs[0] if len(outputs) == 1 else cls._bundle(*outputs)

    @classmethod
    async def run_forward(cls, job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Run forward for one lane; built-in ops that need the job override it."""
        return await call_in_node(job, partial(cls.forward, ctx, *args, **kwargs))

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> Said | Later:
        """Run backward for one lane with `ctx.feedback` set; return one entry for each Variable.

        What has to be awaited is returned as a function that starts it. A coroutine made here would never be
        awaited if the job is cancelled before its first step, and Python would warn about that.
        """
        texts = [joined(incoming) for incoming in ctx.feedback]
        if cls.inline:
            return _by_variable(cls, ctx, cls.backward(ctx, *texts))

        async def run() -> Said:
            returned = await call_in_node(job, cls.backward, ctx, *texts)
            return _by_variable(cls, ctx, await plain(returned))

        return run


def edges_to(arguments: Arguments, wanted: Sequence[bool]) -> list[Edge | None]:
    """Return an edge for each Variable that wants feedback, None for the others."""
    return [
        Edge(variable.graph_node(), variable.output_nr, slots, batch) if want else None
        for variable, (slots, batch), want in zip(arguments.variables, arguments.cells, wanted, strict=True)
    ]


def joined(incoming: Sequence[Feedback]) -> str | None:
    """Return several consumers' feedback as one text, None if there is none."""
    texts = [feedback.text for feedback in incoming]
    return "\n".join(texts) if texts else None


def _launch_lanes(
    cls: type[Function],
    launch: Launch,
    arguments: Arguments,
    contexts: Sequence[Context],
    slots: Sequence[Sequence[Slot]],
) -> None:
    def inline(job: Job, values: list[Any]) -> Outcomes:
        args, kwargs = arguments.fill(values)
        return _outcomes(cls, cls.forward(contexts[job.lane or 0], *args, **kwargs))

    async def run(job: Job, values: list[Any]) -> Outcomes:
        args, kwargs = arguments.fill(values)
        result = await cls.run_forward(job, contexts[job.lane or 0], args, kwargs)
        return _outcomes(cls, await plain(result))

    body = inline if cls.inline else run
    for number, ctx in enumerate(contexts):
        launch.add(body, arguments.lane(number), [column[number] for column in slots], lane=ctx.lane)


def _launch_batched(
    cls: type[Function],
    launch: Launch,
    arguments: Arguments,
    contexts: Sequence[Context],
    slots: Sequence[Sequence[Slot]],
) -> None:
    """One job over all lanes: lanes with a missing or failed input stay out of the lists that forward gets."""
    size = len(contexts)
    quorum = current_quorum()
    lanes = [arguments.lane(number) for number in range(size)]
    width = len(arguments.cells)

    async def run(job: Job, outcomes: list[Any]) -> Outcomes:
        rows = [outcomes[number * width : (number + 1) * width] for number in range(size)]
        stopped = {n: found for n, row in enumerate(rows) if (found := inherited(row)) is not PENDING}
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

    # `ctx` is one for the whole batch: what forward saves, each lane's backward reads.
    for ctx in contexts[1:]:
        ctx.__dict__ = contexts[0].__dict__
    launch.add(
        run,
        [slot for lane in lanes for slot in lane],
        [slot for column in slots for slot in column],
        gather=True,
    )


def _checked_columns(cls: type[Function], returned: Any, size: int) -> list[list[Any]]:
    columns = [returned] if len(cls.outputs) == 1 else list(returned)
    for column in columns:
        if not isinstance(column, list) or len(column) != size:
            raise ValueError(
                f"{cls.__name__}.forward is batched and must return lists of {size} values (got {column!r})"
            )
    return [[checked(value) for value in column] for column in columns]


async def plain(result: Any) -> Any:
    """Return what a body returned with every Variable in it, awaited, replaced by its value."""
    if isinstance(result, Variable):
        return (await result).data
    if isinstance(result, tuple | list) and any(isinstance(item, Variable) for item in result):
        return [await plain(item) for item in result]
    return result


def _outcomes(cls: type[Function], result: Any) -> Outcomes:
    if len(cls.outputs) == 1:
        return [checked(result)]
    if not isinstance(result, tuple | list) or len(result) != len(cls.outputs):
        raise ValueError(
            f"{cls.__name__}.forward must return {len(cls.outputs)} values, {', '.join(cls.outputs)} "
            f"(got {result!r}); set `outputs` on the class"
        )
    return [checked(value) for value in result]


def _by_variable(cls: type[Function], ctx: Context, returned: Any) -> list[Feedback | str | None]:
    """Turn what backward returned, one entry for each argument, into one for each Variable."""
    arguments = ctx.arguments
    width = len(arguments.args) + len(arguments.kwargs)
    entries = list(returned) if isinstance(returned, tuple | list) else [returned]
    if len(entries) != width:
        raise ValueError(
            f"{cls.__name__}.backward must return {width} values, one for each argument of forward "
            f"(got {len(entries)}); return None where there is nothing to say"
        )
    found: list[list[str]] = [[] for _ in arguments.cells]
    lists = {position: iter(entry) for position, entry in enumerate(entries) if isinstance(entry, list)}

    def visit(position: int, index: int) -> None:
        entry = next(lists[position], None) if position in lists else entries[position]
        if entry is not None and not isinstance(entry, str):
            raise TypeError(f"{cls.__name__}.backward must return texts or None (got {entry!r})")
        if entry and entry not in found[index]:
            found[index].append(entry)

    arguments.places(visit)
    return ["\n".join(texts) if texts else None for texts in found]


# Arguments: the Variables among an op's arguments, and how to put lane values in their places.


class Place(NamedTuple):
    """Where a Variable was among the arguments."""

    number: int


Filler = Callable[[Sequence[Any]], Any]
"""Gives a lane's value of one argument from the values of the Variables."""


@final
class Arguments:
    """An op's arguments with the Variables taken out, each once, in order of appearance.

    Attributes:
        variables: the distinct Variables.
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

    def lane(self, number: int) -> list[Slot]:
        """Return the slots that lane `number` works on, one for each Variable."""
        return [slots[number] if batch else slots[0] for slots, batch in self.cells]

    def fill(self, values: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return `(args, kwargs)` with a value in the place of each Variable; after `forget`."""

        if self._fillers is None:
            # Once for a launch: walking the arguments again for each lane was a tenth of a call's CPU.
            self._fillers = (
                [_filler(value) for value in self.args],
                {name: _filler(value) for name, value in self.kwargs.items()},
            )
        args, kwargs = self._fillers
        return tuple([put(values) for put in args]), {name: put(values) for name, put in kwargs.items()}

    def forget(self) -> None:
        """Let go of the Variables, keeping their places.

        A graph must not keep its Variables alive: a value that nobody can reach any more is not wanted,
        and its calls are cancelled.
        """
        self.args = tuple(self._marked(value) for value in self.args)
        self.kwargs = {name: self._marked(value) for name, value in self.kwargs.items()}
        self.variables = []
        self._index = {}

    def places(self, visit: Callable[[int, int], None]) -> None:
        """Call `visit(position, index)` where each Variable was; positions count args, then kwargs."""
        for position, value in enumerate((*self.args, *self.kwargs.values())):
            for index in _places_in(value):
                visit(position, index)

    def _marked(self, value: Any) -> Any:
        return _marked(value, self._index)

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
                f"batches given to one op need equal lengths ({shown}); a scalar is shared by all samples"
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
    """Return what puts values into the places of `value`; without any it gives `value` itself."""
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


# Context: what a Function's forward leaves for its backward, for one lane.


class Context:
    """The `ctx` of one lane; set any attribute on it in `forward` and read it in `backward`.

    Attributes:
        needs_input_grad: for each argument of `forward` whether backward should return feedback for it.
        input_roles: the roles of the Variables among the arguments, in order of appearance.
        output_roles: the roles of the outputs.
        lane: index of the sample, None for scalars.
        feedback: in `backward`, for each output the consumers' `Feedback`, one entry each.
        saved_values: what `save_for_backward` was given; of a batched Function, for all of its samples.
    """

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    __slots__ = (
        "__dict__", "arguments", "feedback", "input_roles", "lane", "output_roles", "wanted",
    )  # fmt: skip

    def __init__(
        self,
        arguments: Arguments,
        wanted: Sequence[bool],
        input_roles: Sequence[str],
        output_roles: Sequence[str],
        lane: int | None,
    ) -> None:
        self.arguments = arguments
        self.wanted = wanted
        self.input_roles = input_roles
        self.output_roles = output_roles
        self.lane = lane
        self.feedback: list[list[Feedback]] = []

    @property
    def needs_input_grad(self) -> tuple[bool, ...]:
        positions = [False] * (len(self.arguments.args) + len(self.arguments.kwargs))

        def visit(position: int, index: int) -> None:
            positions[position] = positions[position] or self.wanted[index]

        self.arguments.places(visit)
        return tuple(positions)

    def lane_values(self) -> list[Any]:
        """Return the value of each Variable in this lane, as the op was given it."""
        return [slot.outcome for slot in self.arguments.lane(self.lane or 0)]

    def with_feedback(self, feedback: list[list[Feedback]]) -> Context:
        """Return a ctx for one backward pass over this lane; what `forward` set on this one is shared."""
        ctx = Context(self.arguments, self.wanted, self.input_roles, self.output_roles, self.lane)
        ctx.__dict__ = self.__dict__
        ctx.feedback = feedback
        return ctx

    def save_for_backward(self, *values: Any) -> None:
        """Keep values for `backward`, where `saved_values` has them."""
        self._saved = values

    @property
    def saved_values(self) -> tuple[Any, ...]:
        saved: tuple[Any, ...] = self.__dict__.get("_saved", ())
        return saved


# LaunchEvent: what is told of a launch in the graph, if anybody listens.


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


# Basic ops: Add, Sum and Split. Their feedback follows fixed rules; no model is called.


MAX_ROLE: Final = 200
"""Characters of a role that ops put together."""


def _spread(ctx: Context, lead: str) -> Said:
    """Give each input that wants it the whole feedback, led in by the input's role.

    Once is enough: in a chain of additions each level would else quote the roles of all levels above.
    """
    feedback = merged(ctx.feedback[0])
    said: list[Feedback | None] = []
    for role, want in zip(ctx.input_roles, ctx.wanted, strict=True):
        text = feedback.text
        if text and not feedback.led_in:
            text = f"{lead.format(role=role)} {text}"
        said.append(Feedback(text, trail=feedback.trail, led_in=bool(text)) if want else None)
    return said


def _joined_role(roles: Sequence[str]) -> str:
    """Return one role for several; a long list of them is cut, as nobody reads it."""
    joined = " and ".join(roles)
    return joined if len(joined) <= MAX_ROLE else f"{joined[:MAX_ROLE]}…"


def _require_variables(op: str, values: Sequence[Any]) -> None:
    for value in values:
        if not isinstance(value, Variable):
            raise TypeError(f"{op} takes Variables (got {value!r}); wrap it: afnio.Variable({value!r})")


def _require_one_kind(op: str, values: Sequence[Any]) -> None:
    if not (
        all(isinstance(value, str) for value in values)
        or all(isinstance(value, int | float) for value in values)
    ):
        shown = ", ".join(type(value).__name__ for value in values)
        raise TypeError(f"{op} takes strings or numbers, not both (got {shown}); convert one of them first")


def _check_known(op: str, arguments: Arguments) -> None:
    """Raise at the launch line for values that are known there and can't be combined."""
    firsts = [slots[0].outcome for slots, _ in arguments.cells if slots and slots[0].outcome is not PENDING]
    known = [value for value in firsts if isinstance(value, str | int | float)]
    if known:
        _require_one_kind(op, known)


@final
class Add(Function):
    """The sum of two numbers, or two strings one after the other, per sample."""

    inline = True
    transparent = True

    @classmethod
    def check(cls, arguments: Arguments) -> None:
        _require_variables("Add", arguments.args)
        _check_known("Add", arguments)

    @classmethod
    def output_roles(cls, arguments: Arguments) -> Sequence[str]:
        x, y = arguments.args
        return [_joined_role([x.role, y.role])]

    @staticmethod
    def forward(ctx: Context, *args: Any, **kwargs: Any) -> Any:
        x, y = args
        _require_one_kind("Add", (x, y))
        return x + y

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> Said:
        return _spread(ctx, "The {role} is one part of a whole that received this feedback:")


@final
class Sum(Function):
    """The sum of many numbers, or many strings each in its own `<ITEM>`, per sample."""

    inline = True
    transparent = True

    @classmethod
    def check(cls, arguments: Arguments) -> None:
        (items,) = arguments.args
        if not isinstance(items, list | tuple) or not items:
            raise TypeError(f"Sum takes a list of at least one Variable (got {items!r})")
        _require_variables("Sum", items)
        _check_known("Sum", arguments)

    @classmethod
    def output_roles(cls, arguments: Arguments) -> Sequence[str]:
        return [_joined_role([item.role for item in arguments.args[0]])]

    @staticmethod
    def forward(ctx: Context, *args: Any, **kwargs: Any) -> Any:
        (items,) = args
        _require_one_kind("Sum", items)
        if isinstance(items[0], str):
            return "".join(f"<ITEM>{item}</ITEM>" for item in items)
        return sum(items)

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> Said:
        return _spread(ctx, "The {role} is one item of a collection that received this feedback:")


@final
class Split(Function):
    """The parts of each string; the number of parts shows only in the value, so launching it is a read."""

    transparent = True

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> tuple[Variable, ...]:
        variable, sep, maxsplit = _split_arguments(*args, **kwargs)
        parts = _columns(variable.data, sep, maxsplit)
        arguments = Arguments((variable,), {})
        wanted = [is_grad_enabled() and variable.requires_grad]
        batch = arguments.size is not None
        lanes: Sequence[int | None] = range(arguments.size) if arguments.size is not None else [None]
        roles = [f"split part {number} of {variable.role}" for number in range(len(parts))]
        slots = [[Slot.filled(value) for value in column] for column in parts]
        line = caller_line()
        node = None
        if wanted[0]:
            contexts = [Context(arguments, wanted, [variable.role], roles, lane) for lane in lanes]
            node = Node(cls, "Split", line, arguments.size, edges_to(arguments, wanted), slots, contexts)
        arguments.forget()
        return tuple(
            Variable.over(column, batch, role, node=node, output_nr=number, origin=Origin("Split", line))
            for number, (column, role) in enumerate(zip(slots, roles, strict=True))
        )

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> Said:
        lines = [f"<ITEM>{merged(incoming).text if incoming else ''}</ITEM>" for incoming in ctx.feedback]
        trail = tuple(entry for incoming in ctx.feedback for f in incoming for entry in f.trail)
        lead = "This text was split; its parts, in order, received this feedback:"
        return [Feedback(f"{lead} {''.join(lines)}", trail=trail)]


@final
class Stack(Function):
    """Scalars side by side as the lanes of one batch; each gets the feedback on its own lane."""

    transparent = True

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> Said:
        return [merged(ctx.feedback[0])] * len(ctx.wanted)  # only this lane's own edge takes it


def stack(variables: Sequence[Variable]) -> Variable:
    """Return one batch whose lanes are the values of scalar Variables; doesn't wait.

    >>> stack([Variable("a"), Variable("b")]).data
    ['a', 'b']
    """
    for variable in variables:
        if variable.cell()[1]:
            raise ValueError(f"only scalars can be stacked (got a batch, {variable!r})")
    arguments = Arguments((list(variables),), {})
    slots = [variable.cell()[0][0] for variable in variables]
    wanted = [is_grad_enabled() and variable.requires_grad for variable in arguments.variables]
    line = caller_line()
    role = variables[0].role
    node = None
    if any(wanted):
        roles = [variable.role for variable in arguments.variables]
        contexts = [Context(arguments, wanted, roles, [role], lane) for lane in range(len(slots))]
        edges = edges_to(arguments, wanted)
        places: dict[int, list[int]] = {}
        for lane, variable in enumerate(variables):
            places.setdefault(id(variable), []).append(lane)
        for variable, edge in zip(arguments.variables, edges, strict=True):
            if edge is not None:
                edge.lanes = places[id(variable)]
        node = Node(Stack, "Stack", line, len(slots), edges, [slots], contexts)
    arguments.forget()
    return Variable.over(slots, True, role, node=node, origin=Origin("Stack", line))


def _split_arguments(
    x: Variable, sep: Variable | str | None = None, maxsplit: Variable | int = -1
) -> tuple[Variable, str | None, int]:
    _require_variables("Split", [x])
    separator = sep.data if isinstance(sep, Variable) else sep
    limit = maxsplit.data if isinstance(maxsplit, Variable) else maxsplit
    if separator is not None and (not isinstance(separator, str) or not separator):
        raise TypeError(f"Split's sep must be a string of at least one character or None (got {separator!r})")
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"Split's maxsplit must be an int (got {limit!r}); -1 splits everywhere")
    return x, separator, limit


def _columns(data: Any, sep: str | None, maxsplit: int) -> list[list[Any]]:
    """Return for each part its value in every lane, short lanes padded with ""."""
    rows = data if isinstance(data, list) else [data]
    for row in rows:
        if row is not None and not isinstance(row, str):
            raise TypeError(f"Split takes strings (got {row!r}, a {type(row).__name__})")
    split = [None if row is None else row.split(sep, maxsplit) for row in rows]
    width = max((len(parts) for parts in split if parts is not None), default=0)
    return [
        [None if parts is None else (parts[i] if i < len(parts) else "") for parts in split]
        for i in range(width)
    ]


# Map: a function of each sample, between ops, without a barrier and without leaving the graph.


@final
class Map(Function):
    """`fn` of each sample; feedback on the result passes through to the sample."""

    transparent = True

    @classmethod
    def check(cls, arguments: Arguments) -> None:
        fn = arguments.kwargs["fn"]
        if not callable(fn):
            raise TypeError(f"map takes a callable of one value (got {fn!r})")

    @classmethod
    def output_roles(cls, arguments: Arguments) -> Sequence[str]:
        return [arguments.kwargs["role"]]

    @classmethod
    async def run_forward(cls, job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return await call_in_node(job, kwargs["fn"], args[0])

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> Said:
        # The consumers judged the mapped value: that is what the producer's critic is to see.
        return [merged(ctx.feedback[0])]


def merged(incoming: Sequence[Feedback]) -> Feedback:
    """Return several consumers' feedback as one, with what the first one saw."""
    if len(incoming) == 1:
        return incoming[0]
    return Feedback(
        "\n".join(feedback.text for feedback in incoming if feedback.text),
        incoming[0].seen,
        tuple(entry for feedback in incoming for entry in feedback.trail),
        all(feedback.led_in for feedback in incoming),
    )
