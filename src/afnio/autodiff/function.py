"""Function: an op, with its forward and backward for one lane, and how it is launched over all of them."""

from __future__ import annotations

import weakref
from collections import namedtuple
from collections.abc import Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import Any, ClassVar

from afnio.autodiff.arguments import Arguments
from afnio.autodiff.context import Context
from afnio.autodiff.data import checked
from afnio.autodiff.feedback import Feedback
from afnio.autodiff.grad_mode import is_grad_enabled
from afnio.autodiff.graph import Edge, Node
from afnio.autodiff.launch_event import tell_launch
from afnio.autodiff.variable import Origin, Variable
from afnio.runtime._callables import batch_failure, call_in_node, current_quorum
from afnio.runtime._kernel import PENDING, Job, Launch, Outcomes, Slot, inherited
from afnio.runtime._tracebacks import folding

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
        Edge(variable.graph_node(), variable.output_nr, slots, batch, variable.role) if want else None
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
