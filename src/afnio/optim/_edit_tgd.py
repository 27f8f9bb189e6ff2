"""EditTGD: chains of small steps side by side, raced on fresh samples.

A large batch pays in selection: many candidates are tried in the time of one, each on samples that it wasn't made from.
It doesn't pay as evidence for single sentences. A sentence is worth one to four points, and to see three points takes
more than a thousand paired samples. So texts are chosen whole, and each block keeps a record instead of a verdict.

One step:

* `lr` chains start from the current text. Each takes `inner` small steps, on its own samples: run `minibatch` samples,
  show the mistakes to the proposer, apply its edits (`afnio.optim._edits`). A chain has already corrected itself once,
  so its end is a better candidate than a first guess. The first small step needs no samples: the winner's mistakes in
  the last race are dealt to the chains.
* The edits of all chains together are a candidate too, and every few steps the text without one of its blocks.
* `race` runs all candidates and the current text on samples that no edit of the step was made from, also not those
  whose mistakes the last race dealt. The highest sum wins, and ties keep the current text.

All draws come from a seed, the step's number and the data's order, before the first call. A repeated run makes the same
candidates, and a journal answers their calls.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, final

from afnio.autodiff._variable import Variable
from afnio.models._client import ChatClient
from afnio.models._messages import check_completion_args
from afnio.models._trace import rehearsal, rehearsing
from afnio.optim._blocks import Draft
from afnio.optim._checks import WORDS
from afnio.optim._edit_state import Guards, SearchState
from afnio.optim._edit_step import ChainSetup, ChainStep, Runner
from afnio.optim._edits import Mistake, propose_edits
from afnio.optim._holdout import Evaluate, Holdout
from afnio.optim._optimizer import Change, DecideAll, Decision, Evidence, Lineage, Optimizer, StepInputs
from afnio.optim._sizes import SampleCost, Sizes, affordable
from afnio.runtime._budget import current_budgets
from afnio.runtime._kernel import current_scope
from afnio.runtime._settings import draw_seed


@final
class EditTGD(Optimizer):
    """Textual gradient descent by edits: chains of small steps side by side, raced on fresh samples.

    Each step, `lr` chains start from the current text. A chain takes `inner` small steps: it runs `minibatch` training
    samples, shows the mistakes to the proposer, and applies the edits that come back (add, replace or delete a block),
    within `max_chars`. Then the current text, the ends of the chains, and all of their edits together are run on
    `race` samples that none of these edits was made from: the first `first` samples for all, the rest for the best
    `keep`. The highest sum becomes the value. Ties keep the current text, which is dropped after the first samples like
    any other if `keep` texts did better on them.

    Before the first step each sentence of the start text is left out once, as a candidate of such a race; later, every
    `prune_every` steps, the block that was tested longest ago. That can help out of a start text with a fault
    that no mistake shows.

    An agent with one prompt needs no critic: the proposer reads the mistakes itself. With several prompts the critics'
    feedback says which one to change.

    The race is also the next forward pass: the winner's mistakes in it are what the next step's chains begin with. So a
    step takes `2 * inner + 1` latencies, `inner` more with critics, and one more if chains contest a place. The first
    step takes one more, and one or two for the race before it.

    `step()` needs no feedback, because it runs `evaluate` itself. Feedback that a loop or a Trainer has gathered in
    `grad` is dealt to the chains too, in place of their first samples.

    The current text keeps its scores and mistakes as long as it stays: a race that comes to one of its samples again
    doesn't run it there.

    A race decides which text goes on, and proves nothing. `optim.Gate` tests the result of a run once, on samples that
    nothing else used.

    Sizes follow the budget. A step may cost a third of it (40 % with more than four chains), so `lr`, then `race` and
    `minibatch` shrink to that. The budget is `budget`, or the lowest `max_calls` of the `afnio.budget` blocks around
    the step. With a larger one use more chains, not longer ones. To know what a sample costs, the first step runs one
    with made-up replies. That sends nothing, but the agent's own code runs.

    A race takes half of the training samples at most. If the rest is too small for all chains, each goes through it in
    an order of its own, several times if need be.

    Sources: minibatch reflection and edits after SkillOpt (arXiv:2605.23904); proposals that are merged instead of
    criticism after ComBEE (arXiv:2604.04247); racing after CAPO (arXiv:2504.16005).

    Args:
        params: parameters, or dicts with "params" and options for that group.
        model_client: the client that proposes.
        evaluate: called with a batch. Runs the agent and returns an evaluator's `(score, explanation)`, with its graph
            recorded. A `def` may read values; an `async def` awaits them.
        train: a `Dataset`, a list of samples, or a `DataLoader`, of which the dataset and `collate_fn` are used.
            `evaluate` gets samples in batches, as a `DataLoader` makes them. At least two.
        lr: the number of chains, 1 or more. With several groups the largest counts.
        inner: the number of small steps in a chain.
        minibatch: the number of samples of a small step.
        race: the number of fresh samples that candidates are compared on.
        first: how many of them all candidates get.
        keep: how many candidates get the rest.
        max_chars: the most characters of a text. A start text that is longer may keep its length. None sets no limit.
            A group may have its own.
        guards: samples that a text must go on getting right: a `Dataset` or a list, as `train` is. A guard is firm if
            the start texts get it right in three draws; the others guard nothing, and a warning counts them. In a race
            a candidate is refused if it gets a firm guard wrong, and wrong again in one of two more draws. Guards may
            be training samples, too. They cost calls in each step.
        perfect: the score that makes a guard right.
        prune_every: every so many steps a block is left out. None never does, nor before the first step.
        critics: if critics give feedback. By default only with several parameters.
        budget: calls that the run may take.
        reserve: calls of the budget that something else needs, such as a gate.
        quorum: the fraction of the samples that must not fail.
        constraints: rules in words that every value must obey.
        leak_words: length in words from which a passage counts as copied from the instructions or from training
            samples (`optim.leaks`). None doesn't look for copies.
        mistake_tokens: tokens of mistakes that one prompt shows. Longer ones lose their middle. None shows all.
        search_seed: seed of all draws. By default it comes from the run.
        **completion_args: `model`, and any other argument of the provider.

    Raises:
        TypeError, ValueError: for arguments that can't work.
        ValueError: from a step, before its first call, if the budget can't pay for one.

    >>> import afnio
    >>> from afnio.testing import ScriptedClient
    >>> prompt = afnio.Parameter("Say 1.", role="prompt")
    >>> student = ScriptedClient(lambda request: "2" if "Say 2" in str(request.messages) else "1")
    >>> F = afnio.cognitive.functional
    >>> def evaluate(batch):
    ...     messages = [{"role": "user", "content": [prompt, afnio.Variable("{x}")]}]
    ...     pred = F.chat_completion(student, messages, inputs={"x": afnio.Variable(batch)}, model="m")
    ...     return F.exact_match_evaluator(pred, ["2"] * len(batch))
    >>> proposer = ScriptedClient({"edits": [{"op": "replace", "block": 1, "text": "Say 2.", "samples": [1]}]})
    >>> optimizer = afnio.optim.EditTGD([prompt], proposer, evaluate, ["a", "b", "c", "d"], lr=1, model="m")
    >>> _ = optimizer.step()
    >>> prompt.data
    'Say 2.'
    """

    needs_feedback = False

    def __init__(
        self,
        params: Iterable[Variable] | Iterable[dict[str, Any]],
        model_client: ChatClient,
        evaluate: Evaluate,
        train: Any,
        *,
        lr: int = 3,
        inner: int = 4,
        minibatch: int = 12,
        race: int = 24,
        first: int = 12,
        keep: int = 2,
        max_chars: int | None = 1_000,
        guards: Any = None,
        perfect: float = 1.0,
        prune_every: int | None = 4,
        critics: bool | None = None,
        budget: int | None = None,
        reserve: int = 0,
        quorum: float = 0.9,
        constraints: Sequence[str | Variable] | None = None,
        leak_words: int | None = WORDS,
        mistake_tokens: int | None = 8_000,
        search_seed: int | None = None,
        **completion_args: Any,
    ) -> None:
        wanted = Sizes(1, inner, minibatch, race, first, keep)
        _check_search(evaluate, wanted, prune_every, budget, reserve, quorum)
        rows = Holdout(train)
        if len(rows) < 2:
            raise ValueError(
                f"train must have at least 2 samples (got {len(rows)}); a race needs one that no edit was made from"
            )
        guarded = None if guards is None else Guards(evaluate, guards, perfect)
        self._setup = ChainSetup(evaluate, rows, guarded, prune_every, critics, quorum)
        wanted = wanted._replace(guards=0 if guarded is None else len(guarded))
        self._wanted, self._budget, self._reserve = wanted, budget, reserve
        self._search = SearchState(len(rows), search_seed)
        defaults = {
            "model_client": model_client,
            "lr": lr,
            "max_chars": max_chars,
            "constraints": _listed(constraints),
            "leak_words": leak_words,
            "mistake_tokens": mistake_tokens,
            "completion_args": completion_args,
        }
        super().__init__(params, defaults)

    def add_param_group(self, group: dict[str, Any]) -> None:
        if isinstance(group, dict) and "constraints" in group:
            group = {**group, "constraints": _listed(group["constraints"])}
        _check_options({**self.defaults, **group} if isinstance(group, dict) else self.defaults)
        super().add_param_group(group)

    async def propose(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
    ) -> Change:
        """Return one small step: the edits that the feedback asks for."""
        mistakes = [Mistake(None, str(entry.data), entry.provenance) for entry in gradients]
        draft = Draft.of(_text(parameter, value))
        proposal = await propose_edits(parameter, draft, mistakes, options, limit=options["max_chars"])
        evidence = tuple(Evidence(m.text, m.trail) for m in mistakes)
        rejected = "; ".join(proposal.dropped) if proposal.dropped and not proposal.edits else None
        after = proposal.draft.text
        return Change(parameter.role, value, after, len(gradients), rejected, evidence, (), proposal.dropped)

    def _begin(self) -> DecideAll:
        if self._search.seed is None:
            self._search.seed = draw_seed(f"{current_scope().path}/{type(self).__name__}")
        return partial(self._searched, max(group["lr"] for group in self.param_groups))

    async def _searched(self, chains: int, inputs: StepInputs) -> Decision:
        texts = [_text(p, v) for p, v in zip(inputs.parameters, inputs.values, strict=True)]
        # Work on a copy: a step that is cancelled must leave the state as it leaves the values.
        state = deepcopy(self._search)
        state.begin(texts)
        sizes = await self._sized(state, inputs, chains)
        decision = await ChainStep(self._setup, state, inputs, sizes).run()
        self._search = state
        return decision

    async def _sized(self, state: SearchState, inputs: StepInputs, chains: int) -> Sizes:
        sizes = self._wanted._replace(chains=chains)
        prompts = sum(parameter.requires_grad for parameter in inputs.parameters)
        limits = [b.caps.calls for b in current_budgets() if b.caps.calls is not None]
        calls = self._budget if self._budget is not None else min(limits, default=None)
        if calls is not None:
            if state.sample is None:
                state.sample = await self._rehearsed(inputs, prompts)
            sizes = affordable(sizes, state.sample, int(calls), self._reserve)
        state.sizes, state.step_cost = sizes, sizes.cost(state.sample or SampleCost(1, 0, prompts))
        return sizes

    async def _rehearsed(self, inputs: StepInputs, prompts: int) -> SampleCost:
        """Return what one sample costs. It is run with made-up replies, which sends nothing."""
        direct = self._setup.direct(inputs.parameters)
        if rehearsal.get() is not None:  # this step itself is rehearsed
            return SampleCost(1, 0 if direct else 1, prompts)
        with rehearsing() as found:
            try:
                await Runner(self._setup, inputs).learn(inputs.values, [0], "rehearsal", quorum=1e-6)
            except Exception:  # made-up replies may be of no use to the agent
                logging.getLogger("afnio").debug("a sample could not be rehearsed", exc_info=True)
        forward = max(1, sum(call.purpose != "backward" for call in found.calls))
        critics = sum(call.purpose == "backward" for call in found.calls)
        return SampleCost(forward, 0 if direct else critics or forward, prompts)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "search": self._search.state_dict(), "guards": self._wanted.guards}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if "search" not in state_dict:
            raise ValueError("the state must be one of EditTGD, with a search (got none)")
        if state_dict["guards"] != self._wanted.guards:
            raise ValueError(
                f"the state must be of {self._wanted.guards} guards (got {state_dict['guards']}); load it with the same"
            )
        search = SearchState.from_dict(self._search.count, state_dict["search"])
        super().load_state_dict(state_dict)
        self._search = search

    @property
    def lineage(self) -> list[list[Lineage]]:
        """The blocks of each parameter's last value, with their records, in order."""
        state = self._search
        return [state.lineage(at, text) for at, text in enumerate(state.texts)]

    @property
    def firm_guards(self) -> list[int] | None:
        """The numbers of the guards that guard something. None before the first step, or without guards."""
        return self._search.firm

    @property
    def sizes(self) -> Sizes | None:
        """The sizes of the last step, after shrinking. None before the first one."""
        return self._search.sizes

    @property
    def step_cost(self) -> int | None:
        """About how many calls a step takes. None before the first one."""
        return self._search.step_cost


def _listed(constraints: Any) -> list[str | Variable]:
    if isinstance(constraints, str | Variable):
        raise TypeError(
            f"constraints must be a list of texts or Variables (got {constraints!r}); write [...]"
        )
    return list(constraints or ())


def _check_search(
    evaluate: Any,
    wanted: Sizes,
    prune_every: Any,
    budget: Any,
    reserve: Any,
    quorum: float,
) -> None:
    if not callable(evaluate):
        raise TypeError(f"evaluate must be a callable of a batch (got {evaluate!r})")
    sizes = {name: number for name, number in wanted._asdict().items() if name != "guards"}
    optional = {"prune_every": prune_every, "budget": budget}
    for name, number in {**sizes, **{k: v for k, v in optional.items() if v is not None}}.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number, 1 or more (got {number!r})")
    if isinstance(reserve, bool) or not isinstance(reserve, int) or reserve < 0:
        raise ValueError(f"reserve must be a whole number of calls, 0 or more (got {reserve!r})")
    if not 0 < quorum <= 1:
        raise ValueError(f"quorum must be above 0 and at most 1 (got {quorum!r})")


def _check_options(options: Mapping[str, Any]) -> None:
    if not isinstance(options["model_client"], ChatClient):
        raise TypeError(f"model_client must be a model client (got {options['model_client']!r})")
    lr = options["lr"]
    if isinstance(lr, bool) or not isinstance(lr, int) or lr < 1:
        raise ValueError(f"lr must be a whole number of chains, 1 or more (got {lr!r})")
    most = options["max_chars"]
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 1):
        raise ValueError(f"max_chars must be a whole number, 1 or more (got {most!r})")
    for name, least in (("leak_words", 4), ("mistake_tokens", 100)):
        number = options[name]
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise ValueError(f"{name} must be a number from {least}, or None (got {number!r})")
    for constraint in options["constraints"]:
        if not isinstance(constraint, str | Variable):
            raise TypeError(f"a constraint must be a text or a Variable (got {constraint!r})")
    check_completion_args(**options["completion_args"])


def _text(parameter: Variable, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a value that is edited must be a text (got {value!r} for {parameter.role!r})")
    return value
