"""Training: the loop that all of our methods share, with a meter of what it took."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import afnio
from afnio import cognitive as cog
from afnio.demo._endpoint import Endpoint
from afnio.errors import BatchError, ReplyError
from afnio.optim import Demos, Optimizer, ParetoTGD
from afnio.runtime.events import CallEnded, StepEnded, Usage, subscribed
from benchmarks.learning.outcome import Outcome
from benchmarks.learning.tasks import Item, Task

MakeOptimizer = Callable[["Trial"], Optimizer]


@dataclass(slots=True)
class Trial:
    """One method on one task with one seed.

    Attributes:
        budget: LM calls that training is to take, to within half a step.
        batch: samples of a step.
    """

    method: str
    task: Task
    endpoint: Endpoint
    seed: int
    budget: int
    batch: int
    most_steps: int | None = None
    agent: cog.Module = field(init=False)
    tally: CallTotals = field(init=False)

    def __post_init__(self) -> None:
        self.agent = self.task.agent()
        self.tally = CallTotals()

    def judged(self, items: Sequence[Item]) -> cog.Evaluation:
        """Launch the agent on `items` and return scores and feedback at once."""
        inputs = {name: [item.inputs[name] for item in items] for name in items[0].inputs}
        reply = self.agent(self.endpoint.client, inputs, **self.endpoint.forward)
        return self.task.evaluate(reply, [item.target for item in items])

    def measured(self, items: Sequence[Item]) -> list[float | None]:
        """Return the score of each item; None where there was no usable answer."""
        with afnio.no_grad():
            return scores_of(self.judged(items))

    def run(self, make_optimizer: MakeOptimizer | None) -> Outcome:
        """Train within the budget, then look at the test split, once."""
        outcome = Outcome(self.method, self.task.name, self.seed)
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
                    self._train(make_optimizer(self), outcome)
            outcome.seconds = time.monotonic() - began
            outcome.calls, outcome.prompt_tokens = self.tally.calls, self.tally.usage.prompt_tokens
            outcome.completion_tokens = self.tally.usage.completion_tokens
            outcome.prompts = {name: str(p.data) for name, p in self.agent.named_parameters()}
            outcome.scores = self.measured(self.task.test)
        return outcome

    def _train(self, optimizer: Optimizer, outcome: Outcome) -> None:
        if isinstance(optimizer, Demos):
            self._show(optimizer)
            return
        for batch in batches(self.task.train, self.batch, self.seed):
            try:
                if not isinstance(optimizer, ParetoTGD):  # which draws its own batches
                    self.judged(batch).explanation.backward()
                optimizer.step()
            except (BatchError, ReplyError) as error:
                # Replies that can't be read cost the step, not the run; the prompt has kept its value.
                outcome.note = f"a step changed nothing: {str(error).splitlines()[0][:120]}"
            optimizer.clear_grad()
            outcome.steps += 1
            outcome.lengths.append(sum(len(str(p.data)) for p in self.agent.parameters()))
            spent = self.tally.calls
            # Half a step more or less: on average the budget is met, whatever a step costs.
            if spent + spent / outcome.steps / 2 > self.budget or outcome.steps == self.most_steps:
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


def scores_of(evaluation: cog.Evaluation) -> list[float | None]:
    """Return a batch's scores; waits for them, and raises if the quorum doesn't hold."""
    _ = evaluation.score.data
    return [None if score is None else float(score) for score in evaluation.score.samples]


class CallTotals:
    """Adds up the calls that end while it is subscribed to the engine's events."""

    def __init__(self) -> None:
        self.calls, self.usage = 0, Usage()

    def __call__(self, event: Any) -> None:
        if isinstance(event, CallEnded):
            self.calls += 1
            self.usage += event.usage


class _Watch:
    """Counts the feedback that each parameter got, and how often it was changed."""

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
