"""The basic ops: `Add`, `Sum`, `Split`, `stack` and `Map`.

They never call a model: their feedback follows fixed rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

from afnio.autodiff._function import Arguments, Context, Function, LaneFeedback, Loop, checked_loop, record_op
from afnio.autodiff._graph import Feedback
from afnio.autodiff._variable import Origin, Variable
from afnio.runtime._callables import call_in_node
from afnio.runtime._kernel import PENDING, Job, Slot
from afnio.runtime._tracebacks import caller_line

# Characters of a role that ops join from those of their inputs; a longer one is cut.
MAX_ROLE: Final = 200


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
    def run_backward(cls, job: Job, ctx: Context) -> LaneFeedback:
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
    def run_backward(cls, job: Job, ctx: Context) -> LaneFeedback:
        return _spread(ctx, "The {role} is one item of a collection that received this feedback:")


def _spread(ctx: Context, lead: str) -> LaneFeedback:
    """Give the whole feedback to each input that wants it, with a lead that names the input's role.

    Only one lead is written: in a chain of additions each level would otherwise quote the roles of all
    levels above it.
    """
    feedback = merged(ctx.feedback[0])
    spread: list[Feedback | None] = []
    for role, want in zip(ctx.input_roles, ctx.wanted, strict=True):
        text = feedback.text
        if text and not feedback.led_in:
            text = f"{lead.format(role=role)} {text}"
        spread.append(Feedback(text, provenance=feedback.provenance, led_in=bool(text)) if want else None)
    return spread


def _joined_role(roles: Sequence[str]) -> str:
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
    """Raise at the launch line if values that have already arrived can't be combined."""
    firsts = [slots[0].outcome for slots, _ in arguments.cells if slots and slots[0].outcome is not PENDING]
    values = [value for value in firsts if isinstance(value, str | int | float)]
    if values:
        _require_one_kind(op, values)


@final
class Split(Function):
    """The parts of each string. Only the value shows how many parts there are, so `apply` waits for it."""

    transparent = True

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> tuple[Variable, ...]:
        variable, sep, maxsplit = _split_arguments(*args, **kwargs)
        parts = _columns(variable.data, sep, maxsplit)
        roles = [f"split part {number} of {variable.role}" for number in range(len(parts))]
        slots = [[Slot.filled(value) for value in column] for column in parts]
        op = record_op(cls, Arguments((variable,), {}), roles, slots, Origin("Split", caller_line()))
        return tuple(op.variables())

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> LaneFeedback:
        lines = [f"<ITEM>{merged(incoming).text if incoming else ''}</ITEM>" for incoming in ctx.feedback]
        provenance = tuple(entry for incoming in ctx.feedback for f in incoming for entry in f.provenance)
        lead = "This text was split; its parts, in order, received this feedback:"
        return [Feedback(f"{lead} {''.join(lines)}", provenance=provenance)]


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
    """Return for each part its value in every lane; lanes with fewer parts are padded with ""."""
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


@final
class Stack(Function):
    """Scalars side by side as the lanes of one batch; each gets the feedback on its own lane."""

    transparent = True

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> LaneFeedback:
        return [merged(ctx.feedback[0])] * len(ctx.wanted)  # `Edge.lanes` picks the entry of this lane


def stack(variables: Sequence[Variable]) -> Variable:
    """Return one batch whose lanes are the values of scalar Variables; doesn't wait.

    >>> stack([Variable("a"), Variable("b")]).data
    ['a', 'b']
    """
    for variable in variables:
        if variable.cell()[1]:
            raise ValueError(f"stack takes scalars (got a batch, {variable!r})")
    arguments = Arguments((list(variables),), {})
    arguments.size = len(variables)  # the inputs are scalars, but each becomes a lane of the output
    distinct = arguments.variables
    slots = [variable.cell()[0][0] for variable in variables]
    op = record_op(Stack, arguments, [variables[0].role], [slots], Origin("Stack", caller_line()))
    if op.node is not None:
        lanes: dict[int, list[int]] = {}
        for lane, variable in enumerate(variables):
            lanes.setdefault(id(variable), []).append(lane)
        for variable, edge in zip(distinct, op.node.edges, strict=True):
            if edge is not None:
                edge.lanes = lanes[id(variable)]
    (output,) = op.variables()
    return output


@final
class Map(Function):
    """`fn` of each sample, without a barrier; feedback on the result passes through to the sample."""

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
    def loop_of(cls, arguments: Arguments) -> Loop:
        loop: Loop = arguments.kwargs["loop"]
        return checked_loop(loop)

    @classmethod
    async def run_forward(cls, job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        return await call_in_node(job, kwargs["fn"], args[0])

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> LaneFeedback:
        # `seen` stays the mapped value: the critic of the sample must see the text that was judged.
        return [merged(ctx.feedback[0])]


def merged(incoming: Sequence[Feedback]) -> Feedback:
    """Return several consumers' feedback as one; `seen` is the first one's."""
    if len(incoming) == 1:
        return incoming[0]
    return Feedback(
        "\n".join(feedback.text for feedback in incoming if feedback.text),
        incoming[0].seen,
        tuple(entry for feedback in incoming for entry in feedback.provenance),
        all(feedback.led_in for feedback in incoming),
    )
