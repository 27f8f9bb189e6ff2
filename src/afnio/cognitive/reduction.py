"""Reduction: more feedback than one prompt should show, summed up.

Concatenation is no option: published runs lose 14 points between batches of 3 and of 100 (ComBEE,
arXiv:2604.04247). What fits is left alone. Otherwise similar feedback is put together (`cluster`), filled into
groups by a budget of tokens, and each group is summed up by one call; where there are many groups, their
summaries are summed up again (`reduction_tree`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

from afnio.cognitive.cluster import Cluster, clustered
from afnio.cognitive.reduction_tree import Point, ReductionTree, merged
from afnio.errors import BatchError
from afnio.likeness import reason
from afnio.models._client import ChatModel
from afnio.runtime._callables import call_in_node, quorum_holds
from afnio.runtime._kernel import Job

BUDGET: Final = 4_000
"""Tokens of feedback that one prompt shows by default: some hundred gradients of one sentence."""
QUORUM: Final = 0.5


@final
@dataclass(frozen=True, slots=True)
class Reduction:
    """What a proposer is to be shown.

    Attributes:
        points: what should change; the feedback itself, where it fitted.
        failures: clusters of two or more similar failures, the largest first; none where nothing was left out
            or summed up.
        failed: feedback that is left out, as the call that was to sum it up failed.
        capped: feedback that is left out, as enough of its cluster is shown.
        calls: how many groups were summed up.
    """

    points: tuple[Point, ...]
    failures: tuple[Cluster, ...] = ()
    failed: tuple[int, ...] = ()
    capped: tuple[int, ...] = ()
    calls: int = 0


async def reduce_feedback(
    job: Job,
    texts: Sequence[str],
    trails: Sequence[Sequence[Mapping[str, Any]]],
    model: ChatModel,
    *,
    role: str,
    value: str,
    budget: int | None = BUDGET,
    per_failure: int | None = None,
    quorum: float = QUORUM,
) -> Reduction:
    """Return `texts` so that they fit `budget`; without a call if they do.

    Args:
        job: whose address and priority its calls get, for the purpose "reduce".
        trails: where each text comes from, as in `Variable.provenance`.
        role, value: the text that the feedback is on.
        budget: tokens of feedback that one prompt may show; None never reduces.
        per_failure: how many of a cluster of similar failures are taken, at most; None takes all.
        quorum: the fraction of the texts that must have been read where calls fail.

    Raises:
        BatchError: if calls failed and less than the quorum is left.
    """
    everything = range(len(texts))
    sizes = [model.count_tokens(text) for text in texts]
    fits = budget is None or sum(sizes) <= budget
    if fits and (per_failure is None or len(texts) <= per_failure):
        return Reduction(tuple(Point(text, (number,)) for number, text in enumerate(texts)))
    clusters = await call_in_node(job, clustered, list(texts), list(trails))
    taken = [cluster.members[:per_failure] for cluster in clusters]
    capped = tuple(sorted(set(everything).difference(*taken)))
    points = merged([Point(texts[number], (number,)) for members in taken for number in members])
    failures = tuple(cluster for cluster in clusters if cluster.name)
    if budget is None or sum(sizes[point.sources[0]] for point in points) <= budget:
        return Reduction(points, failures, capped=capped)
    tree = ReductionTree(job, model, role, value, budget, failures)
    parts = await tree.run(points)
    failed = tuple(sorted({number for part in parts for number in part.failed}))
    shown = len(texts) - len(capped)
    if failed:
        _check_quorum(failed, shown, quorum, [error for part in parts for error in part.errors], role)
    united = merged([point for part in parts for point in part.points])
    ordered = tuple(sorted(united, key=lambda point: -len(point.sources)))
    return Reduction(ordered, failures, failed, capped, sum(part.calls for part in parts))


def _check_quorum(
    failed: Sequence[int], shown: int, quorum: float, errors: Sequence[Exception], role: str
) -> None:
    """Tell what a failed call leaves out; raise if that is too much."""
    if not quorum_holds(shown - len(failed), shown, quorum):
        raise BatchError(
            f"{len(failed)} of {shown} feedback texts on {role!r} could not be summed up, and quorum={quorum} "
            f"allows fewer: {reason(errors[0])}",
            list(errors),
            failed,
        )
    logging.getLogger("afnio").warning(
        "%d of %d feedback texts on %r are left out of the step, as the call that was to sum them up failed (%s)",
        len(failed),
        shown,
        role,
        errors[0],
    )
