"""Basic ops: Add, Sum and Split. Their feedback follows fixed rules; no model is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, final

from afnio.autodiff.arguments import Arguments
from afnio.autodiff.context import Context
from afnio.autodiff.feedback import Feedback
from afnio.autodiff.function import Function, Said, edges_to
from afnio.autodiff.grad_mode import is_grad_enabled
from afnio.autodiff.graph import Node
from afnio.autodiff.map import merged
from afnio.autodiff.variable import Origin, Variable
from afnio.runtime._kernel import PENDING, Job, Slot
from afnio.runtime._tracebacks import caller_line

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
