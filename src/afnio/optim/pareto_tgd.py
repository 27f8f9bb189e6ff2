"""ParetoTGD: a search over candidates of all parameters, on textual gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from afnio.autodiff._variable import Variable
from afnio.models._client import ChatClient
from afnio.optim.evaluation import Evaluate
from afnio.optim.offspring import Credit
from afnio.optim.pareto import Member
from afnio.optim.pareto_search import ParetoSearch
from afnio.optim.tgd import TGD, Messages


@final
class ParetoTGD(TGD):
    """Textual gradient descent over a pool of candidates, after GEPA (Agrawal et al., arXiv:2507.19457).

    Each step makes several proposals at once. For each a parent is drawn from the Pareto front of the scores on the
    validation samples, in proportion to the samples on which it is among the best; a minibatch of training
    samples runs forward and backward with the parent's values; a parameter that feedback reached is rewritten by
    it; if the child does strictly better on the same minibatch, it is evaluated on all validation samples and joins
    the pool. After a step that found something, the next one also tries a merge of two members of the front: each
    parameter from the one that changed it since their common ancestor. After each step the parameters hold the
    best member.

    Use it like any optimizer: `step()` needs no feedback, as it runs `evaluate` itself. What a loop or a closure
    has gathered in `grad` makes one proposal more, from the current values; so it works in a Trainer too.

    Differences from GEPA: feedback is textual gradients, so each parameter is rewritten by what reached it and
    not by whole traces; which one is rewritten is drawn by its share of the feedback (`credit="round_robin"` takes
    turns as GEPA does, among those that have some); proposals of a step run at once, from one front, and so
    does a merge; failed samples are left out of every comparison instead of scoring 0; a merge requires that each
    parent changed something that the other left alone, and is tried on up to 15 samples instead of 5.

    Args:
        params, model_client, messages, inputs, constraints: as for `TGD`.
        evaluate: called with a batch, runs the agent and returns `(score, explanation)` of an evaluator, its graph
            recorded; `def` (it may read) or `async def`.
        train, validation: a `Dataset`, a list of samples, or a `DataLoader`, of which the dataset and `collate_fn` are
            used. `evaluate` gets samples in batches, as a `DataLoader` makes them.
        proposals: how many a step makes at once.
        minibatch_size: training samples of a proposal.
        credit: which parameter a proposal rewrites: "share", "round_robin", or "all".
        merges: how many are tried at most.
        block_size: validation samples that are evaluated together.
        quorum: fraction of the samples that must not fail.
        search_seed: of all its draws; from the run by default.
        **completion_args: `model`, and whatever else `TGD` or the provider takes, such as a `seed` of the replies.

    >>> import afnio
    >>> from afnio.testing import ScriptedClient
    >>> prompt = afnio.Parameter("Say 1.", role="prompt")
    >>> student = ScriptedClient(lambda request: "2" if "Say 2" in str(request.messages) else "1")
    >>> critic = ScriptedClient({"feedback": [{"variable": "v1", "text": "They expect 2."}]})
    >>> def evaluate(batch):
    ...     messages = [{"role": "user", "content": [prompt, afnio.Variable("{x}")]}]
    ...     pred = afnio.functional.chat_completion(student, messages, inputs={"x": afnio.Variable(batch)}, model="m")
    ...     return afnio.functional.exact_match_evaluator(pred, ["2"] * len(batch))
    >>> optimizer = afnio.optim.ParetoTGD(
    ...     [prompt], ScriptedClient({"value": "Say 2."}), evaluate, ["a", "b"], ["c", "d"], model="m")
    >>> _ = afnio.set_backward_model_client(critic, completion_args={"model": "m"})
    >>> _ = optimizer.step()
    >>> prompt.data, [member.mean for member in optimizer.pool]
    ('Say 2.', [0.0, 1.0])
    """

    def __init__(
        self,
        params: Iterable[Variable] | Iterable[dict[str, Any]],
        model_client: ChatClient,
        evaluate: Evaluate,
        train: Any,
        validation: Any,
        *,
        proposals: int = 4,
        minibatch_size: int = 3,
        credit: Credit = "share",
        merges: int = 5,
        block_size: int = 16,
        quorum: float = 0.9,
        search_seed: int | None = None,
        messages: Messages | None = None,
        inputs: Mapping[str, Any] | None = None,
        constraints: Sequence[str | Variable] | None = None,
        **completion_args: Any,
    ) -> None:
        self._search = ParetoSearch(
            evaluate, train, validation, proposals=proposals, minibatch_size=minibatch_size, credit=credit,
            merges=merges, block_size=block_size, quorum=quorum, seed=search_seed,
        )  # fmt: skip
        super().__init__(
            params, model_client, messages, inputs, constraints, accept=self._search, **completion_args
        )

    @property
    def pool(self) -> list[Member]:
        """All candidates that were validated, oldest first."""
        return list(self._search.pool.members)

    @property
    def front(self) -> list[Member]:
        """The members that are among the best on some validation sample, without superfluous ones."""
        pool = self._search.pool
        return [pool[number] for number in pool.front] if pool.members else []
