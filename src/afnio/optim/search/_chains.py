"""EditTGD: chains of small steps side by side, raced on fresh samples.

A large batch pays in selection: many candidates are tried in the time of one, each on samples that it wasn't made from.
It doesn't pay as evidence for single sentences. A sentence is worth one to four points, and to see three points takes
more than a thousand paired samples. So texts are chosen whole, and each block keeps a record instead of a verdict.

One step:

* `lr` chains start from the current text. Each takes `inner` small steps, on its own samples: run `minibatch` samples,
  show the mistakes to the proposer, apply its edits (`afnio.optim._edits`). A chain has already corrected itself once,
  so its end is a better candidate than a first guess.
* The edits of all chains together are a candidate too, and every few steps the text without one of its blocks.
* `race` runs all candidates and the current text on samples that none of them was made from. The highest sum wins, and
  ties keep the current text.

All draws come from a seed, the step's number and the data's order, before the first call. A repeated run makes the same
candidates, and a journal answers their calls.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, final

from afnio.autodiff._backward import launch_grad
from afnio.autodiff._graph import enable_grad, no_grad
from afnio.autodiff._variable import Variable, bind
from afnio.errors import BudgetExceeded, JournalError, ScoreError
from afnio.models._backward_model import backward_by, backward_model
from afnio.models._client import ChatClient, rehearsal, rehearsing
from afnio.models._messages import check_completion_args
from afnio.optim._blocks import Draft, Edit, blocks_of, is_editable, union, without_block
from afnio.optim._checks import WORDS, objections
from afnio.optim._edits import LostEdit, Mistake, Proposal, Quoting, merge_edits, propose_edits
from afnio.optim._optimizer import (
    Acceptance,
    Candidate,
    Change,
    Decision,
    Evidence,
    Lineage,
    Optimizer,
    StepInputs,
    for_each,
)
from afnio.optim.search._improves import Evaluate, Holdout, called, digest, sample_scores
from afnio.optim.search._pareto import side_by_side
from afnio.runtime._budget import current_budgets
from afnio.runtime._callables import quorum_holds, tolerate
from afnio.runtime._kernel import current_scope
from afnio.runtime._settings import Priority, draw_seed, prioritised
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Pending, scope

_ENDS: Final = (BudgetExceeded, JournalError, ScoreError)
"""Errors that end a step: no part of it could be judged after them."""


@final
class EditTGD(Optimizer):
    """Textual gradient descent by edits: chains of small steps side by side, raced on fresh samples.

    Each step, `lr` chains start from the current text. A chain takes `inner` small steps: it runs `minibatch` training
    samples, shows the mistakes to the proposer, and applies the edits that come back (add, replace or delete a block),
    within `max_chars`. Then the current text, the ends of the chains, and all of their edits together are run on
    `race` samples that none of them was made from: the first `first` samples for all, the rest for the best `keep`.
    The highest sum becomes the value. Ties keep the current text.

    Before the first step each sentence of the start text is left out once, as a candidate of such a race; later, every
    `prune_every` steps, the block that was tested longest ago. That is the way out of a start text with a fault that
    no mistake shows.

    An agent with one prompt needs no critic: the proposer reads the mistakes itself. With several prompts the critics'
    feedback says which one to change.

    `step()` needs no feedback, because it runs `evaluate` itself. Feedback that a loop or a Trainer has gathered in
    `grad` is dealt to the chains, in place of their first samples. A step takes `2 * inner + 2` latencies, `inner` more
    with critics, and one more if chains contest a place. With `inner=1` the mistakes of the race feed the next step,
    which saves a latency; the first step still runs samples for them.

    A race decides which text goes on, and proves nothing. `optim.Gate` tests the result of a run once, on samples that
    nothing else used.

    Sizes follow the budget. A step may cost a quarter of it (40 % with more than four chains), so `lr`, `minibatch`
    and `race` shrink to that. The budget is `budget`, or the lowest `max_calls` of the `afnio.budget` blocks around the
    step. With a larger one use more chains, not longer ones.

    Sources: minibatch reflection and edits after SkillOpt (arXiv:2605.23904); proposals that are merged instead of
    criticism after ComBEE (arXiv:2604.04247); racing after CAPO (arXiv:2504.16005).

    Args:
        params: Parameters, or dicts with "params" and options for that group.
        model_client: The client that proposes.
        evaluate: Called with a batch. Runs the agent and returns an evaluator's `(score, explanation)`, with its graph
            recorded. A `def` may read values; an `async def` awaits them.
        train: A `Dataset`, a list of samples, or a `DataLoader`, of which the dataset and `collate_fn` are used.
            `evaluate` gets samples in batches, as a `DataLoader` makes them. At least two.
        lr: The number of chains, 1 or more. `optim.lr_scheduler` may make it a fraction: `max(1, round(lr))` chains
            run. With several groups the largest counts.
        inner: The number of small steps in a chain.
        minibatch: The number of samples of a small step.
        race: The number of fresh samples that candidates are compared on.
        first: How many of them all candidates get.
        keep: How many candidates get the rest.
        max_chars: The most characters of a text. A start text that is longer may keep its length. None sets no limit.
        prune_every: Every so many steps a block is left out. None never does, nor before the first step.
        critics: If critics give feedback. By default only with several parameters.
        budget: Calls that the run may take.
        reserve: Calls of the budget that something else needs, such as a gate.
        quorum: The fraction of the samples that must not fail.
        constraints: Rules in words that every value must obey.
        leak_words: Length in words from which a passage counts as copied from the instructions or from training
            samples (`optim.leaks`). None doesn't look for copies.
        mistake_tokens: Tokens of mistakes that one prompt shows. Longer ones lose their middle. None shows all.
        search_seed: Seed of all draws. By default it comes from the run.
        **completion_args: `model`, and any other argument of the provider.

    Raises:
        TypeError, ValueError: for arguments that can't work.
        ValueError: from a step, before its first call, if the budget can't pay for one.

    >>> import afnio
    >>> from afnio.testing import ScriptedClient
    >>> prompt = afnio.Parameter("Say 1.", role="prompt")
    >>> student = ScriptedClient(lambda request: "2" if "Say 2" in str(request.messages) else "1")
    >>> def evaluate(batch):
    ...     messages = [{"role": "user", "content": [prompt, afnio.Variable("{x}")]}]
    ...     pred = afnio.functional.chat_completion(student, messages, inputs={"x": afnio.Variable(batch)}, model="m")
    ...     return afnio.functional.exact_match_evaluator(pred, ["2"] * len(batch))
    >>> proposer = ScriptedClient({"edits": [{"op": "replace", "block": 1, "text": "Say 2.", "samples": [1]}]})
    >>> optimizer = afnio.optim.EditTGD([prompt], proposer, evaluate, ["a", "b", "c", "d"], lr=1, model="m")
    >>> _ = optimizer.step()
    >>> prompt.data
    'Say 2.'
    """

    def __init__(
        self,
        params: Iterable[Variable] | Iterable[dict[str, Any]],
        model_client: ChatClient,
        evaluate: Evaluate,
        train: Any,
        *,
        lr: float = 3,
        inner: int = 3,
        minibatch: int = 8,
        race: int = 24,
        first: int = 8,
        keep: int = 2,
        max_chars: int | None = 1_000,
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
        self._search = ChainSearch(
            evaluate, train, Sizes(1, inner, minibatch, race, first, keep), max_chars=max_chars,
            prune_every=prune_every, critics=critics, budget=budget, reserve=reserve, quorum=quorum, seed=search_seed,
        )  # fmt: skip
        defaults = {
            "model_client": model_client,
            "lr": lr,
            "constraints": _listed(constraints),
            "leak_words": leak_words,
            "mistake_tokens": mistake_tokens,
            "completion_args": completion_args,
        }
        super().__init__(params, defaults, accept=self._search)

    def add_param_group(self, group: dict[str, Any]) -> None:
        if isinstance(group, dict) and "constraints" in group:
            group = {**group, "constraints": _listed(group["constraints"])}
        _check_options({**self.defaults, **group} if isinstance(group, dict) else self.defaults)
        super().add_param_group(group)

    @folding
    def step(self, closure: Callable[[], Any] | None = None) -> Pending[Any]:
        # Read `lr` on this line: a scheduler's next step must not reach a step that was launched before it.
        token = _lr.set(max(float(group["lr"]) for group in self.param_groups))
        try:
            return super().step(closure)
        finally:
            _lr.reset(token)

    async def propose(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
    ) -> Change:
        """Return one small step: the edits that the feedback asks for."""
        mistakes = [Mistake(None, str(entry.data), entry.provenance) for entry in gradients]
        draft = Draft.of(_text(parameter, value))
        limit = self._search.limit(0, draft.text)
        proposal = await propose_edits(parameter, draft, mistakes, options, limit=limit)
        evidence = tuple(Evidence(m.text, m.trail) for m in mistakes)
        rejected = "; ".join(proposal.dropped) if proposal.dropped and not proposal.edits else None
        after = proposal.draft.text
        return Change(parameter.role, value, after, len(gradients), rejected, evidence, (), proposal.dropped)

    @property
    def lineage(self) -> list[list[Lineage]]:
        """The blocks of each parameter's last value, with their records, in order."""
        return [self._search.lineage_of(at, text) for at, text in enumerate(self._search.texts)]

    @property
    def sizes(self) -> Sizes | None:
        """The sizes of the last step, after shrinking. None before the first one."""
        return self._search.sizes

    @property
    def step_cost(self) -> int | None:
        """About how many calls a step takes. None before the first one."""
        return self._search.step_cost


_lr: ContextVar[float] = ContextVar("afnio_edit_lr", default=1.0)


def _listed(constraints: Any) -> list[str | Variable]:
    if isinstance(constraints, str | Variable):
        raise TypeError(
            f"constraints must be a list of texts or Variables (got {constraints!r}); write [...]"
        )
    return list(constraints or ())


def _check_options(options: Mapping[str, Any]) -> None:
    if not isinstance(options["model_client"], ChatClient):
        raise TypeError(f"model_client must be a model client (got {options['model_client']!r})")
    lr = options["lr"]
    if isinstance(lr, bool) or not isinstance(lr, int | float) or not 1 <= lr < math.inf:
        raise ValueError(
            f"lr must be a number of chains, 1 or more (got {lr!r}); a scheduler may lower it later"
        )
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


# Sizes: how much one step does, and what it costs.


SHARE: Final = 0.25
WIDE_SHARE: Final = 0.4
WIDE: Final = 4
"""A step with more chains than this may cost `WIDE_SHARE` of the budget, one with fewer `SHARE`."""


class Sizes(NamedTuple):
    """What one step does; see `EditTGD` for the names."""

    chains: int
    inner: int
    minibatch: int
    race: int
    first: int
    keep: int

    def scaled(self, by: float) -> Sizes:
        """Return smaller sizes. The depth of a chain and the number that is kept stay."""
        return self._replace(
            chains=max(1, round(self.chains * by)),
            minibatch=max(min(self.minibatch, 3), round(self.minibatch * by)),
            race=max(min(self.race, 6), round(self.race * by)),
            first=max(min(self.first, 3), round(self.first * by)),
        )

    def cost(self, sample: SampleCost) -> int:
        """Return the calls of a step, if half of the samples need a critic and a place is contested."""
        small = (
            self.minibatch * sample.forward + math.ceil(self.minibatch * sample.critics / 2) + sample.prompts
        )
        several = self.chains > 1
        candidates = 1 + self.chains + several
        raced = candidates * min(self.first, self.race) + min(self.keep, candidates) * max(
            0, self.race - self.first
        )
        return self.chains * self.inner * small + several * sample.prompts + raced * sample.forward


class SampleCost(NamedTuple):
    """The calls that one sample takes.

    Attributes:
        forward: To run and score it.
        critics: To criticise it. 0 if the proposer reads the mistakes.
        prompts: Parameters that may change, each with a proposal.
    """

    forward: int
    critics: int
    prompts: int


def affordable(wanted: Sizes, sample: SampleCost, calls: int, reserve: int) -> Sizes:
    """Return the largest sizes that the budget pays for.

    Raises:
        ValueError: if it can't pay for the smallest step.

    >>> affordable(Sizes(3, 3, 8, 24, 8, 2), SampleCost(1, 0, 1), 1_200, 0)
    Sizes(chains=3, inner=3, minibatch=8, race=24, first=8, keep=2)
    >>> affordable(Sizes(3, 3, 8, 24, 8, 2), SampleCost(1, 0, 1), 300, 0).cost(SampleCost(1, 0, 1))
    75
    """
    share = WIDE_SHARE if wanted.chains > WIDE else SHARE
    left = calls - reserve
    for hundredths in range(100, 9, -5):
        sizes = wanted.scaled(hundredths / 100)
        if sizes.cost(sample) <= left * share:
            return sizes
    for inner in range(wanted.inner - 1, 0, -1):
        sizes = wanted.scaled(0.1)._replace(inner=inner)
        if sizes.cost(sample) <= left * share:
            return sizes
    least = sizes if wanted.inner > 1 else wanted.scaled(0.1)
    if least.cost(sample) > left:
        held = f" and a reserve of {reserve:,}" if reserve else ""
        raise ValueError(
            f"the budget must pay for one step of {least.cost(sample):,} calls{held} (got {calls:,}); raise it, or "
            "lower inner, minibatch or race"
        )
    return least


# Rows: the order in which training samples are used.


@final
class RowStream:
    """Numbers of training samples, epoch after epoch, each in another order."""

    def __init__(self, count: int, seed: int, epoch: int = 0, waiting: Sequence[int] = ()) -> None:
        self.count, self.seed, self.epoch = count, seed, epoch
        self.waiting = list(waiting)

    def copy(self) -> RowStream:
        return RowStream(self.count, self.seed, self.epoch, self.waiting)

    def take(self, number: int, avoid: Iterable[int] = ()) -> list[int]:
        """Take the next rows that aren't in `avoid`. Rows that are skipped come next. Fewer if there aren't enough.

        >>> stream = RowStream(4, seed=0)
        >>> one = stream.take(2)
        >>> sorted(one + stream.take(9, avoid=one))
        [0, 1, 2, 3]
        """
        taken: dict[int, None] = {}
        barred = set(avoid)
        while len(taken) < number:
            found = next((row for row in self.waiting if row not in barred and row not in taken), None)
            if found is not None:
                self.waiting.remove(found)
                taken[found] = None
            elif len(barred | set(taken)) >= self.count:
                break
            else:
                order = list(range(self.count))
                random.Random(f"{self.seed}/epoch/{self.epoch}").shuffle(order)
                self.epoch += 1
                self.waiting += order
        return list(taken)


class Rows(NamedTuple):
    """The training samples of one step.

    Attributes:
        chains: For each chain the samples of each of its small steps.
        race: Samples that are in none of these.
    """

    chains: list[list[list[int]]]
    race: list[int]


def rows_for(stream: RowStream, sizes: Sizes, *, forwards: int) -> Rows:
    """Take the samples of a step.

    If there are too few, chains share theirs. If there are too few for one chain, a quarter of all is kept for the race.

    Args:
        forwards: How many small steps of each chain run samples.

    >>> rows = rows_for(RowStream(8, seed=0), Sizes(2, 2, 4, 24, 8, 2), forwards=2)
    >>> len(rows.race), [len(shard) for chain in rows.chains for shard in chain]
    (2, [3, 3, 3, 3])
    """
    wanted = sizes.chains * forwards * sizes.minibatch
    race = min(sizes.race, max(stream.count - forwards * sizes.minibatch, stream.count // 4, 1))
    fresh = stream.take(race)
    chains: list[list[list[int]]] = []
    shared = stream.count - len(fresh) < wanted
    used: list[int] = list(fresh)
    for _ in range(sizes.chains):
        mine: list[int] = stream.take(sizes.minibatch * forwards, avoid=fresh if shared else used)
        used += mine
        size = max(1, math.ceil(len(mine) / forwards)) if forwards else 0
        shards = [mine[at * size : (at + 1) * size] for at in range(forwards)]
        chains.append([shard or mine[:size] for shard in shards])
    return Rows(chains, fresh)


# The records of blocks.


@dataclass(slots=True)
class BlockRecord:
    """What is known about one block; `Lineage` is what users see of it."""

    step: int = 0
    samples: tuple[int, ...] = ()
    replaces: str | None = None
    races: int = 0
    wins: int = 0
    losses: int = 0
    ties: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, differences: Sequence[float]) -> None:
        """Add one race's differences, with minus without the block."""
        self.races += 1
        self.wins += sum(d > 0 for d in differences)
        self.losses += sum(d < 0 for d in differences)
        self.ties += sum(d == 0 for d in differences)
        self.total += math.fsum(differences)
        self.squares += math.fsum(d * d for d in differences)

    def lineage(self, text: str) -> Lineage:
        """Return it as plain data, with a 95 % interval by the normal approximation."""
        count = self.wins + self.losses + self.ties
        effect = low = high = None
        if count:
            effect = self.total / count
        if effect is not None and count > 1:
            spread = max(0.0, (self.squares - count * effect * effect) / (count - 1))
            half = 1.96 * math.sqrt(spread / count)
            low, high = effect - half, effect + half
        return Lineage(
            text, self.step, self.samples, self.replaces, self.races, self.wins, self.losses, self.ties, effect, low, high
        )  # fmt: skip


RECORDS: Final = 400
"""Blocks of one parameter that records are kept of, those that aren't in its value among them."""
LOST: Final = 16
"""Lost edits of one parameter that are refused."""
LOST_SHOWN: Final = 6
"""Lost edits that a prompt shows."""


# The search.


@final
class ChainSearch(Acceptance):
    """The acceptance of `EditTGD`, which documents the arguments."""

    needs_feedback = False

    def __init__(
        self,
        evaluate: Evaluate,
        train: Any,
        wanted: Sizes,
        *,
        max_chars: int | None,
        prune_every: int | None,
        critics: bool | None,
        budget: int | None,
        reserve: int,
        quorum: float,
        seed: int | None,
    ) -> None:
        if not callable(evaluate):
            raise TypeError(f"evaluate must be a callable of a batch (got {evaluate!r})")
        numbers = {**wanted._asdict(), "max_chars": max_chars, "prune_every": prune_every, "budget": budget}
        for name, number in numbers.items():
            optional = number is None and name in ("max_chars", "prune_every", "budget")
            if not optional and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ValueError(f"{name} must be a whole number, 1 or more (got {number!r})")
        if isinstance(reserve, bool) or not isinstance(reserve, int) or reserve < 0:
            raise ValueError(f"reserve must be a whole number of calls, 0 or more (got {reserve!r})")
        if not 0 < quorum <= 1:
            raise ValueError(f"quorum must be above 0 and at most 1 (got {quorum!r})")
        self.train = Holdout(train)
        if len(self.train) < 2:
            raise ValueError(
                "train must have at least 2 samples (got 1); a race needs one that no edit was made from"
            )
        self.evaluate, self.quorum = evaluate, quorum
        self._wanted, self._max_chars, self.prune_every = wanted, max_chars, prune_every
        self._critics, self._budget, self._reserve = critics, budget, reserve
        self.seed = seed
        self.sizes: Sizes | None = None
        self.step_cost: int | None = None
        self.steps = 0
        self.next = 1
        self.incumbent = 0
        self.digest: str | None = None
        self.texts: list[str] = []
        self.starts: list[int] = []
        self.opened = False
        self.sample: SampleCost | None = None
        self.stream: RowStream | None = None
        self.records: list[dict[str, BlockRecord]] = []
        self.tested: list[dict[str, int]] = []
        self.lost: list[list[LostEdit]] = []
        self.carried: list[list[Mistake]] = []
        self._warned = False

    def begin(self) -> None:
        if self.seed is None:
            self.seed = draw_seed()

    def limit(self, position: int, text: str) -> int | None:
        """Return the most characters of a parameter's text."""
        if self._max_chars is None:
            return None
        return max(self._max_chars, self.starts[position] if self.starts else len(text))

    def lineage_of(self, position: int, text: str) -> list[Lineage]:
        known = self.records[position] if position < len(self.records) else {}
        return [known.get(b.text, _NEW).lineage(b.text) for b in blocks_of(text)]

    async def decide(self, inputs: StepInputs) -> Decision:
        texts = [_text(p, v) for p, v in zip(inputs.parameters, inputs.values, strict=True)]
        self._settle(inputs, texts)
        step = ChainStep(self, inputs, await self._sized(inputs))
        return await step.run()

    def _settle(self, inputs: StepInputs, texts: list[str]) -> None:
        """Prepare the records for the values that the step begins with."""
        assert self.seed is not None
        if self.stream is None:
            self.stream = RowStream(len(self.train), self.seed)
        if not self.starts:
            self.starts = [len(text) for text in texts]
            self.records = [{} for _ in texts]
            self.tested = [{} for _ in texts]
            self.lost = [[] for _ in texts]
        name = digest(texts)
        if self.digest is not None and self.digest != name:
            # Assigned from outside, so the mistakes of the last race are another text's.
            self.incumbent, self.next = self.next, self.next + 1
            self.carried = []
        self.digest, self.texts = name, texts
        for position, text in enumerate(texts):
            for block in blocks_of(text):
                self.records[position].setdefault(block.text, BlockRecord())

    def direct(self, inputs: StepInputs) -> bool:
        """Return True if the proposer reads the mistakes without a critic."""
        if self._critics is not None:
            return not self._critics
        return sum(p.requires_grad for p in inputs.parameters) == 1

    async def _sized(self, inputs: StepInputs) -> Sizes:
        wanted = self._wanted._replace(chains=max(1, round(_lr.get())))
        prompts = sum(parameter.requires_grad for parameter in inputs.parameters)
        caps = [b.caps.calls for b in current_budgets() if b.caps.calls is not None]
        calls = self._budget if self._budget is not None else min(caps, default=None)
        sizes = wanted
        sample = self.sample or SampleCost(1, 0, prompts)
        if calls is not None:
            if self.sample is None:
                self.sample = sample = await self._rehearsed(inputs, prompts)
            sizes = affordable(wanted, sample, int(calls), self._reserve)
        self.sizes, self.step_cost = sizes, sizes.cost(sample)
        return sizes

    async def _rehearsed(self, inputs: StepInputs, prompts: int) -> SampleCost:
        """Return what one sample costs, found by running it with made-up replies, which sends nothing."""
        direct = self.direct(inputs)
        if rehearsal.get() is not None:  # this step is itself rehearsed
            return SampleCost(1, 0 if direct else 1, prompts)
        runner = Runner(self, inputs, direct)
        with rehearsing() as found:
            try:
                async with scope(name="rehearsal"):
                    await runner.learn(inputs.values, [0], "sample", quorum=1e-6)
            except Exception:
                logging.getLogger("afnio").debug("a sample could not be rehearsed", exc_info=True)
        forward = max(1, sum(call.purpose != "backward" for call in found.calls))
        critics = sum(call.purpose == "backward" for call in found.calls)
        return SampleCost(forward, 0 if direct else critics or forward, prompts)

    def warn_few(self, got: int, wanted: int) -> None:
        if got < wanted and not self._warned:
            self._warned = True
            logging.getLogger("afnio").warning(
                "races compare on %d samples instead of %d, because the training set has only %d; give more rows",
                got,
                wanted,
                len(self.train),
            )

    # State

    def state_dict(self) -> dict[str, Any]:
        stream = self.stream
        return {
            "seed": self.seed,
            "steps": self.steps,
            "next": self.next,
            "incumbent": self.incumbent,
            "digest": self.digest,
            "texts": list(self.texts),
            "starts": list(self.starts),
            "opened": self.opened,
            "sample": None if self.sample is None else list(self.sample),
            "sizes": None if self.sizes is None else list(self.sizes),
            "step_cost": self.step_cost,
            "rows": None if stream is None else {"epoch": stream.epoch, "waiting": list(stream.waiting)},
            "records": [
                {text: _fields(record, _RECORD) for text, record in records.items()}
                for records in self.records
            ],
            "tested": [dict(tested) for tested in self.tested],
            "lost": [[_fields(edit, _LOST) for edit in edits] for edits in self.lost],
            "carried": [[_fields(mistake, _MISTAKE) for mistake in mistakes] for mistakes in self.carried],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seed, self.steps, self.next = state["seed"], state["steps"], state["next"]
        self.incumbent, self.digest = state["incumbent"], state["digest"]
        self.texts, self.starts, self.opened = list(state["texts"]), list(state["starts"]), state["opened"]
        self.sample = None if state["sample"] is None else SampleCost(*state["sample"])
        self.sizes = None if state["sizes"] is None else Sizes(*state["sizes"])
        self.step_cost = state["step_cost"]
        rows = state["rows"]
        self.stream = (
            None
            if rows is None
            else RowStream(len(self.train), self.seed or 0, rows["epoch"], rows["waiting"])
        )
        self.records = [
            {
                text: BlockRecord(**{**entry, "samples": tuple(entry["samples"])})
                for text, entry in records.items()
            }
            for records in state["records"]
        ]
        self.tested = [dict(tested) for tested in state["tested"]]
        self.lost = [[LostEdit(**edit) for edit in edits] for edits in state["lost"]]
        self.carried = [
            [Mistake(**{**mistake, "trail": tuple(mistake["trail"])}) for mistake in mistakes]
            for mistakes in state["carried"]
        ]

    def __repr__(self) -> str:
        return f"ChainSearch({', '.join(f'{k}={v}' for k, v in self._wanted._asdict().items() if k != 'chains')})"


_NEW: Final = BlockRecord()
_RECORD: Final = ("step", "samples", "replaces", "races", "wins", "losses", "ties", "total", "squares")
_LOST: Final = ("op", "text", "score", "against")
_MISTAKE: Final = ("unit", "text", "trail", "quoted")


def _fields(record: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return fields as JSON can hold them: tuples become lists."""
    found = {name: getattr(record, name) for name in names}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


# Running the agent.


@final
class Runner:
    """Runs the agent on training samples, with other values of its parameters."""

    def __init__(self, search: ChainSearch, inputs: StepInputs, direct: bool) -> None:
        self._search, self._inputs, self._direct = search, inputs, direct

    async def learn(
        self, values: Sequence[Any], units: Sequence[int], name: str, quorum: float | None = None
    ) -> tuple[list[float | None], list[list[Mistake]]]:
        """Run samples forward and backward. Return their scores, and the mistakes of each parameter."""
        async with scope(name=name):
            scores, explanation = await self.forward(
                values, units, "forward", Priority.TRAINING, quorum=quorum
            )
            return scores, await self.mistakes(explanation, units, "backward", quorum=quorum)

    async def forward(
        self,
        values: Sequence[Any],
        units: Sequence[int],
        name: str,
        level: Priority,
        *,
        graph: bool = True,
        quorum: float | None = None,
    ) -> tuple[list[float | None], Any]:
        """Run samples. Return their scores, None for those that failed, and the explanation if `graph`."""
        search = self._search
        async with scope(name=name):
            owner = current_scope()
            recording = enable_grad() if graph else no_grad()
            with (
                bind(self._inputs.bound(values)),
                recording,
                tolerate(quorum or search.quorum),
                prioritised(level),
            ):
                result = await called(search.evaluate, search.train.batch(units))
                scores = await sample_scores(result)
            owner.unread()  # a failed sample counts as missing, so don't raise its error when the scope is left
        search.train.by_unit(units, scores)  # raises if there isn't one for each sample
        explanation = result[1] if isinstance(result, tuple) and len(result) > 1 else None
        if graph and not (isinstance(explanation, Variable) and explanation.requires_grad):
            raise TypeError(
                f"evaluate must return (score, explanation) that parameters led to (got {result!r}); is it run "
                "under no_grad, or does it use other parameters?"
            )
        return scores, explanation

    async def mistakes(
        self, explanation: Variable, units: Sequence[int], name: str, quorum: float | None = None
    ) -> list[list[Mistake]]:
        """Send feedback backward. Return that of each parameter, in the order of the samples."""
        parameters = self._inputs.parameters
        async with scope(name=name):
            owner = current_scope()
            with self._critic(), tolerate(quorum or self._search.quorum), prioritised(Priority.TRAINING):
                gradients = await launch_grad(explanation, list(parameters))
            owner.unread()
        return [
            [self._mistake(entry, units) for entry in found] if parameter.requires_grad else []
            for parameter, found in zip(parameters, gradients, strict=True)
        ]

    def _mistake(self, entry: Variable, units: Sequence[int]) -> Mistake:
        lane = next((t.get("sample") for t in entry.provenance if isinstance(t, Mapping)), None)
        unit = units[lane] if isinstance(lane, int) and 0 <= lane < len(units) else None
        return Mistake(unit, str(entry.data), entry.provenance, self._direct)

    def _critic(self) -> AbstractContextManager[Any]:
        if not self._direct:
            return nullcontext()
        known = backward_model()
        group = next(
            o for p, o in zip(self._inputs.parameters, self._inputs.options, strict=True) if p.requires_grad
        )
        client = known.client if known is not None else group["model_client"]
        arguments = known.completion_args if known is not None else group["completion_args"]
        return backward_by(Quoting(client, arguments))


# One step.


@final
@dataclass(slots=True)
class Entry:
    """A candidate of a race.

    Attributes:
        values: One text for each parameter.
        edits: For each parameter its edits of the current text.
        mistakes: For each parameter the feedback that its edits were made from.
        note: Why it isn't raced. Empty if it is.
        place: Its number in the race.
    """

    name: str
    values: tuple[str, ...]
    edits: list[list[Edit]] = field(default_factory=list)
    mistakes: list[list[Mistake]] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    note: str = ""
    place: int = 0
    error: Exception | None = None
    scores: list[float | None] = field(default_factory=list)
    graphs: list[tuple[Any, list[int]]] = field(default_factory=list)
    verdict: str = ""


@final
class ChainStep:
    """One step of a search. It changes the search's state only where it has a result."""

    def __init__(self, search: ChainSearch, inputs: StepInputs, sizes: Sizes) -> None:
        self._search, self._inputs, self._sizes = search, inputs, sizes
        self._direct = search.direct(inputs)
        self._runner = Runner(search, inputs, self._direct)
        self._values: tuple[str, ...] = tuple(inputs.values)
        self._candidates: list[Candidate] = []
        self._number = search.steps + 1

    async def run(self) -> Decision:
        search = self._search
        if not search.opened and search.prune_every is not None:
            await self._open()
        search.opened = True
        assert search.stream is not None
        stream = search.stream.copy()
        given = self._given()
        known = any(mistakes for found in given for mistakes in found)
        rows = rows_for(stream, self._sizes, forwards=self._sizes.inner - known)
        search.warn_few(len(rows.race), self._sizes.race)
        try:
            chains = await self._chains(rows, given)
            entries = await self._composed(chains)
            result = await self._race(entries, rows.race, graph=self._sizes.inner == 1)
        except _ENDS as error:
            return self._undone(error)
        search.stream = stream
        return await self._concluded(result, chains)

    def _undone(self, error: Exception) -> Decision:
        """End the step without its race. What the race before the first step found stays."""
        changes = self._changes(None, "the step ended early")
        return Decision(self._values, changes, tuple(self._candidates), (error,))

    # Leaving out

    async def _open(self) -> None:
        """Try the start texts without each of their sentences, before the first step."""
        search, sizes = self._search, self._sizes
        options = self._removable()[: self._most_left_out()]
        if not options:
            return
        assert search.stream is not None
        stream = search.stream.copy()
        units = stream.take(min(sizes.race, len(search.train)))
        entries = [Entry("incumbent", self._values)]
        entries += [self._without(at, number) for at, number, _ in options]
        async with scope(name="start"):
            result = await self._race(entries, units, graph=sizes.inner == 1)
        search.stream = stream
        self._record_race(result)
        winner = result.winner
        self._note(result, search.incumbent)
        if winner is not None and winner.name != "incumbent":
            self._adopt(winner)
        if sizes.inner == 1 and winner is not None:
            search.carried = await self._carried(winner, "start mistakes")

    def _most_left_out(self) -> int:
        """Return how many sentences may be left out: together they may cost as much as a step."""
        search, sizes = self._search, self._sizes
        if search.sample is None or search.step_cost is None:
            return MOST_LEFT_OUT
        first, keep = min(sizes.first, sizes.race), sizes.keep
        samples = search.step_cost // search.sample.forward - keep * (sizes.race - first)
        return max(0, min(MOST_LEFT_OUT, samples // first - 1))

    def _removable(self) -> list[tuple[int, int, str]]:
        """Return (position, number, text) of each block that a text may lose."""
        found: list[tuple[int, int, str]] = []
        for at, parameter in enumerate(self._inputs.parameters):
            blocks = [b.text for b in blocks_of(self._values[at])]
            if not parameter.requires_grad or len(blocks) < 2:
                continue
            for number, text in enumerate(blocks, start=1):
                rest = without_block(self._values[at], number)
                if is_editable(text) and not objections(self._values[at], rest):
                    found.append((at, number, text))
        return found

    def _without(self, at: int, number: int) -> Entry:
        values = list(self._values)
        block = blocks_of(values[at])[number - 1].text
        self._search.tested[at][block] = self._number
        values[at] = without_block(values[at], number)
        edits: list[list[Edit]] = [[] for _ in values]
        edits[at] = [Edit("delete", number)]
        short = block if len(block) <= 40 else f"{block[:39]}…"
        return Entry(f'without "{short}"', tuple(values), edits)

    def _least_tested(self) -> Entry | None:
        search = self._search
        options = self._removable()
        if not options:
            return None
        at, number, _ = min(options, key=lambda option: search.tested[option[0]].get(option[2], -1))
        return self._without(at, number)

    # Chains

    def _given(self) -> list[list[list[Mistake]]]:
        """Return for each chain the mistakes that are there already, by parameter.

        They come from the last race (with `inner=1`), or from the loop around the step.
        """
        search, count = self._search, self._sizes.chains
        known = [list(found) for found in search.carried] or [[] for _ in self._values]
        for position, gradients in self._inputs.feedback.items():
            if self._inputs.parameters[position].requires_grad:
                known[position] += [Mistake(None, str(g.data), g.provenance) for g in gradients]
        return [[found[chain::count] for found in known] for chain in range(count)]

    async def _chains(self, rows: Rows, given: Sequence[Sequence[Sequence[Mistake]]]) -> list[Entry]:
        """Run all chains side by side. A chain that fails keeps the edits that it has made."""
        drafts = [[Draft.of(text) for text in self._values] for _ in rows.chains]
        entries = [
            Entry(
                f"chain {number}" if len(rows.chains) > 1 else "chain",
                self._values,
                mistakes=[[] for _ in self._values],
            )
            for number in range(1, len(rows.chains) + 1)
        ]

        async def chain(number: int) -> None:
            entry = entries[number]
            try:
                async with scope(name=entry.name):
                    await self._chain(entry, drafts[number], rows.chains[number], given[number])
            except _ENDS:
                raise
            except Exception as error:
                entry.error = error
            entry.values = tuple(draft.text for draft in drafts[number])
            entry.edits = [draft.edits for draft in drafts[number]]

        await side_by_side([partial(chain, number) for number in range(len(entries))])
        self._drafts = drafts
        return entries

    async def _chain(
        self,
        entry: Entry,
        drafts: list[Draft],
        shards: Sequence[Sequence[int]],
        given: Sequence[Sequence[Mistake]],
    ) -> None:
        waiting = list(shards)
        for number in range(1, self._sizes.inner + 1):
            if number == 1 and any(given):
                found = [list(mistakes) for mistakes in given]
            elif waiting:
                values = [draft.text for draft in drafts]
                _, found = await self._runner.learn(values, waiting.pop(0), f"samples {number}")
            else:
                break
            for position, mistakes in enumerate(found):
                entry.mistakes[position] += mistakes
            positions = [position for position, mistakes in enumerate(found) if mistakes]
            if not positions:
                continue
            async with scope(name=f"edits {number}"):
                made, failed = await for_each(positions, partial(self._edited, drafts, found))
            for position, proposal in made.items():
                drafts[position] = proposal.draft
                entry.dropped += proposal.dropped
            for error in failed.values():
                raise error

    async def _edited(
        self, drafts: Sequence[Draft], found: Sequence[Sequence[Mistake]], position: int
    ) -> Proposal:
        search, draft = self._search, drafts[position]
        return await propose_edits(
            self._inputs.parameters[position],
            draft,
            found[position],
            self._inputs.options[position],
            limit=search.limit(position, draft.text),
            lost=search.lost[position][-LOST_SHOWN:],
        )

    # Candidates

    async def _composed(self, chains: Sequence[Entry]) -> list[Entry]:
        """Return the candidates of the race: the current text, the chains' ends, their union, a deletion."""
        search = self._search
        entries = [Entry("incumbent", self._values), *chains]
        joint = await self._union(chains)
        if joint is not None:
            entries.append(joint)
        every = search.prune_every
        if every is not None and self._number % every == 0:
            shorter = self._least_tested()
            if shorter is not None:
                entries.append(shorter)
        seen: dict[tuple[str, ...], str] = {}
        for entry in entries:
            known = seen.setdefault(entry.values, entry.name)
            if known != entry.name:
                entry.note = "changed nothing" if known == "incumbent" else f"equals {known}"
                if entry.error is not None:
                    entry.note = f"failed: {entry.error}"
        return entries

    async def _union(self, chains: Sequence[Entry]) -> Entry | None:
        changed = [number for number, entry in enumerate(chains) if entry.values != self._values]
        if len(changed) < 2:
            return None
        joint = Entry("union", self._values, [[] for _ in self._values], [[] for _ in self._values])
        positions = [
            at
            for at, text in enumerate(self._values)
            if sum(chains[number].values[at] != text for number in changed) > 0
        ]

        async def merge(position: int) -> Proposal:
            found = union([self._drafts[number][position] for number in changed])
            search = self._search
            text = self._values[position]
            return await merge_edits(
                self._inputs.parameters[position],
                text,
                found,
                self._inputs.options[position],
                limit=search.limit(position, text),
            )

        async with scope(name="union"):
            made, failed = await for_each(positions, merge)
        for error in failed.values():
            if isinstance(error, _ENDS) or not isinstance(error, Exception):
                raise error
            joint.error, joint.note = error, f"failed: {error}"
        values = list(self._values)
        for position, proposal in made.items():
            values[position] = proposal.draft.text
            joint.edits[position] = list(proposal.edits)
            joint.dropped += proposal.dropped
        for entry in chains:
            for position, mistakes in enumerate(entry.mistakes):
                joint.mistakes[position] += mistakes
        joint.values = tuple(values)
        return joint

    # The race

    async def _race(self, entries: Sequence[Entry], units: Sequence[int], *, graph: bool) -> RaceResult:
        """Run candidates on fresh samples: some for all, the rest for the best."""
        racing = [entry for entry in entries if not entry.note]
        if len(racing) < 2 or not units:
            return RaceResult(list(entries), list(units), entries[0] if racing else None)
        for place, entry in enumerate(racing):
            entry.place = place
        sizes = self._sizes
        staged = len(racing) > sizes.keep and len(units) > sizes.first
        head = list(units[: sizes.first]) if staged else list(units)
        async with scope(name="race"):
            await self._run(racing, head, 1, graph=graph)
            left = self._best(racing, sizes.keep if staged else len(racing))
            if staged:
                await self._run(left, list(units[sizes.first :]), 2, graph=graph)
                left = self._best(left, len(left))
        return RaceResult(list(entries), list(units), left[0])

    async def _run(self, entries: Sequence[Entry], units: list[int], stage: int, *, graph: bool) -> None:
        async def one(entry: Entry) -> None:
            try:
                async with scope(name=f"candidate {entry.place} part {stage}"):
                    scores, explanation = await self._runner.forward(
                        entry.values, units, "samples", Priority.VALIDATION, graph=graph
                    )
            except _ENDS:
                raise
            except Exception as error:
                entry.error = error
                scores, explanation = [None] * len(units), None
            entry.scores += scores
            if explanation is not None:
                entry.graphs.append((explanation, units))

        await side_by_side([partial(one, entry) for entry in entries])

    def _best(self, entries: Sequence[Entry], most: int) -> list[Entry]:
        """Return the best candidates, by their sums on the samples that all of them have a score of."""
        able = [e for e in entries if self._enough(sum(s is not None for s in e.scores), len(e.scores))]
        for entry in entries:
            if entry not in able:
                scored = sum(s is not None for s in entry.scores)
                reason = f": {entry.error}" if entry.error is not None else ""
                entry.verdict = f"failed: only {scored} of {len(entry.scores)} samples have a score{reason}"
        if not able:
            raise entries[0].error or RuntimeError(
                f"no candidate has enough scores (quorum={self._search.quorum}); the race decides nothing"
            )
        columns = [c for c in zip(*(e.scores for e in able), strict=True) if None not in c]
        sums = [
            math.fsum(score for score in column if score is not None) for column in zip(*columns, strict=True)
        ]
        sums = sums or [0.0] * len(able)
        order = sorted(range(len(able)), key=lambda number: (-sums[number], able[number].place))
        best = able[order[0]]
        for number in order:
            entry = able[number]
            what = f"{sums[number]:g} against {sums[order[0]]:g} of {best.name} on {len(columns)} samples"
            entry.verdict = (
                f"lost: {what}" if number != order[0] else f"{sums[number]:g} on {len(columns)} samples"
            )
        return [able[number] for number in order[:most]]

    def _enough(self, scored: int, samples: int) -> bool:
        return scored > 0 and quorum_holds(scored, samples, self._search.quorum)

    # Results

    async def _concluded(self, result: RaceResult, chains: Sequence[Entry]) -> Decision:
        search = self._search
        failed = [entry.error for entry in chains if entry.error is not None]
        if len(failed) == len(chains) and all(entry.values == self._values for entry in chains):
            return Decision(self._values, (), tuple(self._candidates), tuple(failed[:1]))
        for entry in result.entries:
            self._remember(entry)
        self._record_race(result)
        self._note(result, search.incumbent)
        winner = result.winner
        before = self._values
        if winner is not None and winner.name != "incumbent":
            self._adopt(winner)
        elif winner is not None:
            self._lose(result)
        search.steps += 1
        search.carried = []
        if self._sizes.inner == 1 and winner is not None and winner.graphs:
            search.carried = await self._carried(winner, "mistakes")
        search.texts = list(self._values)
        search.digest = digest(self._values)
        self._forget()
        reason = None
        if before == self._values:
            raced = [e for e in result.entries if not e.note]
            reason = (
                "no edit was proposed"
                if len(raced) < 2
                else "no candidate did better than the current text in the race"
            )
        source = winner if winner is not None and winner.name != "incumbent" else None
        dropped = [text for entry in result.entries for text in entry.dropped]
        if dropped:
            logging.getLogger("afnio").info(
                "%d edits were left out of the step: %s", len(dropped), _counted(dropped)
            )
        return Decision(self._values, self._changes(source, reason, chains, dropped), tuple(self._candidates))

    def _changes(
        self,
        source: Entry | None,
        reason: str | None,
        chains: Sequence[Entry] = (),
        dropped: Sequence[str] = (),
    ) -> tuple[Change, ...]:
        """Return the change of each parameter that had feedback or another value before."""
        changes: list[Change] = []
        for at, (parameter, before) in enumerate(
            zip(self._inputs.parameters, self._inputs.values, strict=True)
        ):
            after = self._values[at]
            seen = [m for entry in chains for m in entry.mistakes[at]]
            if before == after and not seen:
                continue
            mine = source.mistakes[at] if source is not None and source.mistakes else seen
            evidence = tuple(Evidence(m.text, m.trail) for m in mine)
            lineage = tuple(self._search.lineage_of(at, after))
            why = None if before != after else reason or "another parameter was changed"
            changes.append(
                Change(
                    parameter.role,
                    before,
                    after,
                    len(seen),
                    why,
                    evidence,
                    lineage,
                    tuple(dropped) if not changes else (),
                )
            )
        return tuple(changes)

    def _adopt(self, winner: Entry) -> None:
        search = self._search
        self._values = winner.values
        number = next(
            (c.number for c in reversed(self._candidates) if c.values == winner.values), search.next
        )
        search.incumbent = number
        search.carried = []
        search.texts, search.digest = list(winner.values), digest(winner.values)

    def _note(self, result: RaceResult, incumbent: int) -> None:
        """Add the candidates of a race to the step's record."""
        search = self._search
        for entry in result.entries:
            number = incumbent
            parents: tuple[int, ...] = ()
            if entry.name != "incumbent":
                number, parents = search.next, (incumbent,)
                search.next += 1
            verdict = entry.note or entry.verdict or "not raced: there was no other candidate"
            if entry is result.winner and entry.verdict:
                verdict = f"{'kept' if entry.name == 'incumbent' else 'accepted'}: {entry.verdict}"
            if entry.dropped:
                verdict += f"; {len(entry.dropped)} edits left out: {_counted(entry.dropped)}"
            units = tuple(result.units[: len(entry.scores)])
            self._candidates.append(
                Candidate(number, parents, entry.values, tuple(entry.scores), verdict, entry.name, units)
            )

    def _remember(self, entry: Entry) -> None:
        """Note where the blocks of a candidate come from."""
        for position, edits in enumerate(entry.edits):
            before = [b.text for b in blocks_of(self._values[position])]
            records = self._search.records[position]
            for edit in edits:
                replaced = before[edit.block - 1] if edit.op == "replace" else None
                for block in blocks_of(edit.text):
                    known = records.get(block.text)
                    if known is None:
                        records[block.text] = BlockRecord(self._number, edit.samples, replaced)
                    elif known.step == self._number:
                        known.samples = tuple(dict.fromkeys((*known.samples, *edit.samples)))

    def _record_race(self, result: RaceResult) -> None:
        """Note how candidates with each block did against those without it."""
        raced = [entry for entry in result.entries if entry.scores]
        if len(raced) < 2:
            return
        for position, records in enumerate(self._search.records):
            texts = [{b.text for b in blocks_of(entry.values[position])} for entry in raced]
            for text in dict.fromkeys(b.text for e in raced for b in blocks_of(e.values[position])):
                owners = [text in blocks for blocks in texts]
                if all(owners):
                    continue
                differences: list[float] = []
                for sample in range(len(result.units)):
                    groups: tuple[list[float], list[float]] = ([], [])
                    for entry, owner in zip(raced, owners, strict=True):
                        score = entry.scores[sample] if sample < len(entry.scores) else None
                        if score is not None:
                            groups[not owner].append(score)
                    if groups[0] and groups[1]:
                        differences.append(
                            math.fsum(groups[0]) / len(groups[0]) - math.fsum(groups[1]) / len(groups[1])
                        )
                if differences:
                    records.setdefault(text, BlockRecord(self._number)).add(differences)

    def _lose(self, result: RaceResult) -> None:
        """Remember the edits whose candidates all scored less than the current text."""
        incumbent = next((e for e in result.entries if e.name == "incumbent"), None)
        if incumbent is None or not incumbent.scores:
            return
        for position, text in enumerate(self._values):
            blocks = [b.text for b in blocks_of(text)]
            found: dict[tuple[str, str], list[tuple[float, float, str, str]]] = {}
            for entry in result.entries:
                if not entry.scores or not entry.edits:
                    continue
                pairs = [
                    (a, b)
                    for a, b in zip(entry.scores, incumbent.scores, strict=False)
                    if a is not None and b is not None
                ]
                if not pairs:
                    continue
                score, against = (math.fsum(column) / len(pairs) for column in zip(*pairs, strict=True))
                for edit in entry.edits[position]:
                    what = blocks[edit.block - 1] if edit.op == "delete" else edit.text
                    found.setdefault((edit.op, what), []).append((score, against, edit.op, what))
            memory = self._search.lost[position]
            for trials in found.values():
                if all(score < against for score, against, _, _ in trials):
                    score, against, op, what = max(trials)
                    lost = LostEdit(op, what, score, against)
                    memory[:] = [*(past for past in memory if past.key != lost.key), lost][-LOST:]

    async def _carried(self, winner: Entry, name: str) -> list[list[Mistake]]:
        """Return the winner's mistakes in the race, for the next step's proposals."""
        carried: list[list[Mistake]] = [[] for _ in self._values]
        async with scope(name=name):
            for number, (explanation, units) in enumerate(winner.graphs, start=1):
                found = await self._runner.mistakes(explanation, units, f"part {number}")
                for position, mistakes in enumerate(found):
                    carried[position] += mistakes
        return carried

    def _forget(self) -> None:
        """Bound the records: those of the value's blocks, and the newest of the others."""
        for position, records in enumerate(self._search.records):
            mine = {b.text for b in blocks_of(self._values[position])}
            others = [text for text in records if text not in mine]
            for text in others[: max(0, len(records) - max(RECORDS, len(mine)))]:
                del records[text]
            tested = self._search.tested[position]
            for text in [text for text in tested if text not in records]:
                del tested[text]


MOST_LEFT_OUT: Final = 6
"""Sentences of the start texts that are left out, one at a time, before the first step."""


@final
class RaceResult(NamedTuple):
    """A race's candidates, its samples, and the candidate that goes on; None if none could be judged."""

    entries: list[Entry]
    units: list[int]
    winner: Entry | None


def _counted(reasons: Sequence[str]) -> str:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return "; ".join(
        reason if count == 1 else f"{reason} ({count} times)" for reason, count in counts.items()
    )
