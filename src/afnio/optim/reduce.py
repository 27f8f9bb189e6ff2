"""Reduce: gathered gradients, cut down to what a proposer can read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import final

from afnio.autodiff._variable import Variable, gradient
from afnio.cognitive._reduction import BUDGET, QUORUM, Reduction, reduce_feedback
from afnio.models._client import ChatModel
from afnio.optim.change import Evidence
from afnio.runtime._kernel import Job


@final
class Reduced(list[Variable]):
    """Gradients as a proposer is shown them; a list of them, each with the provenance of all that is behind it.

    Attributes:
        gathered: how many gradients there were before.
        reduction: what was done to them: its points name, by number, the gradients that stand behind each.
    """

    def __init__(self, gradients: Iterable[Variable], gathered: int, reduction: Reduction) -> None:
        super().__init__(gradients)
        self.gathered = gathered
        self.reduction = reduction

    def part(self, numbers: Sequence[int]) -> Reduced:
        """Return the gradients of those numbers, as if only what is behind them had been gathered."""
        points = tuple(self.reduction.points[number] for number in numbers)
        behind = {source for point in points for source in point.sources}
        reduction = replace(self.reduction, points=points)
        return Reduced([self[number] for number in numbers], len(behind), reduction)


async def reduce(
    job: Job,
    gradients: Sequence[Variable],
    model: ChatModel,
    *,
    role: str = "",
    value: str = "",
    budget: int | None = BUDGET,
    per_failure: int | None = None,
    quorum: float = QUORUM,
) -> Reduced:
    """Return the gradients so that they fit `budget` tokens; without a call if they do already.

    For the `reduce` of any optimizer. Similar failures are put together and summed up in a concurrent tree; each
    gradient that it returns says one thing, and its provenance is that of all the gradients behind it. See
    `afnio.cognitive._reduction` for how.

    Args:
        job: the step's; its calls get that address and priority, and the purpose "reduce".
        gradients: of one parameter, each one text.
        model: who sums up.
        role, value: of the parameter.
        budget: tokens of feedback that one prompt may show; None never reduces.
        per_failure: of a cluster of similar failures take so many at most; None takes all.
        quorum: the fraction of the gradients that must have been read where calls fail.

    Raises:
        BatchError: if calls failed and less than the quorum is left.

    >>> import afnio
    >>> from afnio.testing import ScriptedClient
    >>> class Joined(afnio.optim.Optimizer):
    ...     async def propose(self, job, parameter, value, gradients, group):
    ...         model = afnio.models.ChatModel(group["client"], {"model": "any"})
    ...         points = await afnio.optim.reduce(job, gradients, model, value=value, budget=300)
    ...         after = " ".join([value, *(point.data for point in points)])
    ...         return afnio.optim.Change(parameter.role, value, after, len(gradients))
    >>> prompt = afnio.Parameter("Answer.")
    >>> for number in range(60):
    ...     prompt.append_grad(afnio.Variable(f"Reply {number} was too long."))
    >>> client = ScriptedClient({"points": [{"point": "Be brief.", "sources": [1, 2, 3]}]})
    >>> _ = Joined([prompt], {"client": client}).step()
    >>> prompt.data
    'Answer. Be brief.'
    """
    texts = [str(entry.data) for entry in gradients]
    reduction = await reduce_feedback(
        job,
        texts,
        [entry.provenance for entry in gradients],
        model,
        role=role,
        value=value,
        budget=budget,
        per_failure=per_failure,
        quorum=quorum,
    )
    points: list[Variable] = []
    for point in reduction.points:
        first = point.sources[0]
        if len(point.sources) == 1 and point.text == texts[first]:
            points.append(gradients[first])  # nothing was put together
        else:
            trail = [entry for source in point.sources for entry in gradients[source].provenance]
            points.append(gradient(point.text, role, trail))
    return Reduced(points, len(gradients), reduction)


def gathered_of(gradients: Sequence[Variable]) -> int:
    """Return how many gradients there were before they were reduced."""
    return gradients.gathered if isinstance(gradients, Reduced) else len(gradients)


def evidence_of(gradients: Sequence[Variable]) -> tuple[Evidence, ...]:
    """Return what a proposer was shown, with the samples behind it, for `Change.evidence`."""
    return tuple(Evidence(str(entry.data), entry.provenance) for entry in gradients)
