"""Context: what a Function's forward leaves for its backward, for one lane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afnio.autodiff.arguments import Arguments
    from afnio.autodiff.feedback import Feedback


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
