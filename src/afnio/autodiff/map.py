"""Map: a function of each sample, between ops, without a barrier and without leaving the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from afnio.autodiff.arguments import Arguments
from afnio.autodiff.context import Context
from afnio.autodiff.feedback import Feedback
from afnio.autodiff.function import Function, Said
from afnio.runtime._callables import call_in_node
from afnio.runtime._kernel import Job


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
