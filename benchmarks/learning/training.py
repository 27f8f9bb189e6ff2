"""Training: the loop that all of our methods share, with a meter of what it took."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import afnio
from afnio import cognitive as cog
from afnio.errors import BatchError, ReplyError
from afnio.optim import Demos, Gate, Optimizer
from afnio.optim._gate import rows_for
from afnio.runtime.events import CallEnded, StepEnded, Usage, subscribed
from afnio.utils.data import DataLoader, Dataset
from benchmarks.learning.endpoints import Endpoint
from benchmarks.learning.outcome import Outcome
from benchmarks.learning.tasks import Item, Task

MakeOptimizer = Callable[["Trial"], Optimizer]


class Items(Dataset[Item]):
    """Items of a split, for what draws its own batches."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = list(items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(slots=True)
class Trial:
    """One method on one task with one seed.

    Attributes:
        budget: LM calls that training is to take, to within half a step.
        batch: samples of a step.
        gated: test the result against the start on rows of the validation split; the budget pays for it.
        probe: asked after the training, about the test split and the path; the endpoint by default.
        traced: remember the prompts after each step, and what they reach.
    """

    method: str
    task: Task
    endpoint: Endpoint
    seed: int
    budget: int
    batch: int
    most_steps: int | None = None
    probe: Endpoint | None = None
    traced: bool = False
    gated: bool = False
    agent: cog.Module = field(init=False)
    tally: CallTotals = field(init=False)
    path: list[tuple[float, int, int, dict[str, str]]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.agent = self.task.agent()
        self.tally = CallTotals()

    @property
    def reserve(self) -> int:
        """The calls that the gate takes."""
        if not self.gated:
            return 0
        each = sum(1 for _ in self.agent.parameters())  # the agents here make one call with each prompt
        return 2 * each * min(len(self.task.val), rows_for(self.budget, each))

    def judged(self, items: Sequence[Item], endpoint: Endpoint | None = None) -> cog.Judgement:
        """Launch the agent on `items` and return scores and feedback at once."""
        endpoint = endpoint or self.endpoint
        inputs = {name: [item.inputs[name] for item in items] for name in items[0].inputs}
        reply = self.agent(endpoint.client, inputs, **endpoint.forward)
        return self.task.evaluate(reply, [item.target for item in items])

    def tested(self, prompts: Mapping[str, str]) -> list[float | None]:
        """Return the score of each item of the test split with these prompts; None where none can be read."""
        parameters = dict(self.agent.named_parameters())
        bound = {parameters[name]: text for name, text in prompts.items()}
        endpoint = self.probe or self.endpoint
        with afnio.bind(bound), afnio.no_grad(), afnio.tolerate(self.endpoint.quorum):
            return scores_of(self.judged(self.task.test, endpoint))

    def outcome(self) -> Outcome:
        """Return the outcome of a run that hasn't begun."""
        return Outcome(self.method, self.task.name, self.seed, budget=self.budget)

    def look_back(self, path: Sequence[tuple[float, int, int, dict[str, str]]], outcome: Outcome) -> None:
        """Test the prompts of each step; they were remembered, so that this took no time then."""
        known: dict[tuple[str, ...], float] = {}
        for seconds, calls, rounds, prompts in path:
            texts = tuple(prompts.values())
            if texts not in known:
                scores = [score for score in self.tested(prompts) if score is not None]
                known[texts] = round(sum(scores) / max(len(scores), 1), 4)
            outcome.path.append((round(seconds, 2), calls, rounds, known[texts]))

    def run(self, make_optimizer: MakeOptimizer | None) -> Outcome:
        """Train within the budget, then look at the test split, once."""
        outcome = self.outcome()
        began = time.monotonic()
        with (
            afnio.set_backward_model_client(
                self.endpoint.client, completion_args=dict(self.endpoint.backward)
            ),
            afnio.tolerate(self.endpoint.quorum),
            afnio.scope(f"{self.method}/{self.seed}"),
        ):
            if make_optimizer is not None:
                with subscribed(self.tally), subscribed(_Watch(outcome, self.agent)):
                    self._remember(began)
                    gate = self._gate() if self.gated else None
                    self._train(make_optimizer(self), outcome, began)
                    if gate is not None:
                        outcome.gate = str(gate.judge().wait())
                        self._remember(began)
            outcome.seconds = time.monotonic() - began
            outcome.calls, outcome.prompt_tokens = self.tally.calls, self.tally.usage.prompt_tokens
            outcome.rounds = self.tally.rounds
            outcome.cost = None if self.tally.cost is None else float(self.tally.cost)
            outcome.completion_tokens = self.tally.usage.completion_tokens
            outcome.prompts = self._prompts()
        outcome.scores = self.tested(outcome.prompts)
        self.look_back(self.path, outcome)
        return outcome

    def _gate(self) -> Gate:
        gate = Gate(
            self.judged,
            DataLoader(Items(self.task.val), collate_fn=list),
            budget=self.budget,
            quorum=self.endpoint.quorum,
            seed=self.seed,
        )
        gate.start(self.agent.parameters())
        return gate

    def _prompts(self) -> dict[str, str]:
        return {name: str(p.data) for name, p in self.agent.named_parameters()}

    def _remember(self, began: float) -> None:
        if self.traced:
            done = (time.monotonic() - began, self.tally.calls, self.tally.rounds)
            self.path.append((*done, self._prompts()))

    def _train(self, optimizer: Optimizer, outcome: Outcome, began: float) -> None:
        if isinstance(optimizer, Demos):
            self._show(optimizer)
            return
        for batch in batches(self.task.train, self.batch, self.seed):
            try:
                if optimizer.needs_feedback:  # the others draw their own batches
                    self.judged(batch).explanation.backward()
                optimizer.step()
            except (BatchError, ReplyError) as error:
                # Replies that can't be read cost the step, not the run; the prompt has kept its value.
                outcome.note = f"a step changed nothing: {str(error).splitlines()[0][:120]}"
            optimizer.clear_grad()
            outcome.steps += 1
            outcome.lengths.append(sum(len(str(p.data)) for p in self.agent.parameters()))
            self._remember(began)
            spent = self.tally.calls
            # Half a step more or less: on average the budget is met, whatever a step costs.
            if (
                spent + spent / outcome.steps / 2 > self.budget - self.reserve
                or outcome.steps == self.most_steps
            ):
                return

    def _show(self, optimizer: Demos) -> None:
        """Let examples be chosen from the training split and its targets."""
        items = next(batches(self.task.train, len(self.task.train), self.seed))
        inputs = {name: [item.inputs[name] for item in items] for name in items[0].inputs}
        optimizer.observe(inputs, [item.target for item in items], [1.0] * len(items))
        optimizer.step()


def batches(items: Sequence[Item], size: int, seed: int) -> Iterator[list[Item]]:
    """Return batches for ever: all items in an order of the seed, then all of them in another."""
    rng, waiting = random.Random(seed), []
    while True:
        while len(waiting) < size:
            waiting += rng.sample(list(items), len(items))
        yield waiting[:size]
        del waiting[:size]


def scores_of(evaluation: cog.Judgement) -> list[float | None]:
    """Return a batch's scores; waits for them, and raises if the quorum doesn't hold."""
    _ = evaluation.score.data
    return [None if score is None else float(score) for score in evaluation.score.samples]


class CallTotals:
    """Adds up the calls that end while it is subscribed to the engine's events.

    Attributes:
        rounds: the most calls that waited for one another: each began after the one before had ended.
    """

    def __init__(self) -> None:
        self.calls, self.usage = 0, Usage()
        self.cost: Decimal | None = Decimal(0)  # None if a price is unknown
        self.rounds, self._round_ended = 0, 0.0

    def __call__(self, event: Any) -> None:
        if isinstance(event, CallEnded):
            self.calls += 1
            self.usage += event.usage
            self.cost = None if None in (self.cost, event.cost) else self.cost + event.cost
            self.ended(event.seconds)

    def ended(self, seconds: float) -> None:
        """Note that a call ends now that took so long."""
        now = time.monotonic()
        if now - seconds >= self._round_ended:  # it had to wait for another call
            self.rounds, self._round_ended = self.rounds + 1, now


class _Watch:
    """Counts the feedback that each parameter got, how often it was changed, and the edits that were left out."""

    def __init__(self, outcome: Outcome, agent: cog.Module) -> None:
        self._outcome = outcome
        self._names = {parameter.role: name for name, parameter in agent.named_parameters()}

    def __call__(self, event: Any) -> None:
        if isinstance(event, StepEnded):
            for change in event.changes:
                name = self._names[change.role]
                counts, changed = self._outcome.gradients, self._outcome.changed
                counts[name] = counts.get(name, 0) + change.gradients
                changed[name] = changed.get(name, 0) + (change.after != change.before)
                for reason in change.dropped:
                    self._outcome.dropped[reason] = self._outcome.dropped.get(reason, 0) + 1
