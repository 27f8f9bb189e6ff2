"""The tutorial's job: train the prompt of a sentiment classifier, and measure it.

The prompt that is tested at the end is the one that did best on the validation messages, the first
prompt among them; the test messages decide nothing.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import afnio
from afnio import cognitive as cog
from afnio import tellurio as te
from afnio.demo.endpoint import Endpoint
from afnio.demo.error import sentence
from afnio.demo.options import Options
from afnio.demo.progress import Progress
from afnio.demo.splits import Splits
from afnio.errors import BatchError, ReplyError
from afnio.optim._tgd import TGD
from afnio.trainer._options import Accuracy
from afnio.utils.agents import SentimentAnalyzer
from afnio.utils.data._dataloader import DataLoader

CONSTRAINT: Final = (
    "The improved variable must never include or reference the characters `{` or `}`. "
    "Do not output them, mention them, or describe them in any way."
)
_FENCE: Final = re.compile(r"^```json\n|\n```$")


@dataclass(frozen=True, slots=True)
class Epoch:
    """The prompt after an epoch and how it did; epoch 0 is the prompt before training.

    Attributes:
        training: right answers while the prompt was changing.
        skipped: why steps of the epoch changed nothing, where that was a failure.
    """

    number: int
    prompt: str
    validation: Accuracy
    training: Accuracy | None = None
    skipped: tuple[str, ...] = ()


@dataclass(slots=True)
class Result:
    """What the job found, in the order in which it found it."""

    baseline: Accuracy
    epochs: list[Epoch]
    chosen: Epoch
    final: Accuracy
    wrong: int
    """Training samples that were answered wrongly, so that feedback was due."""


@dataclass(slots=True)
class Job:
    """One run of the tutorial's program against an endpoint."""

    endpoint: Endpoint
    splits: Splits
    options: Options
    progress: Progress
    agent: SentimentAnalyzer = field(default_factory=SentimentAnalyzer)
    loss_fn: cog.ExactMatchEvaluator = field(default_factory=cog.ExactMatchEvaluator)
    wrong: int = 0

    @property
    def prompt(self) -> str:
        return str(self.agent.sentiment_task.data)

    @property
    def forward_calls(self) -> int:
        """How many messages are answered if training helps."""
        sizes, epochs = self.splits.sizes, self.options.epochs
        return 2 * sizes["test"] + (epochs + 1) * sizes["validation"] + epochs * sizes["train"]

    def run(self) -> Result:
        """Train, choose and test.

        Raises:
            BatchError: if more samples failed than the endpoint's quorum allows.
        """
        backward = dict(self.endpoint.backward)
        with (
            afnio.set_backward_model_client(self.endpoint.client, completion_args=backward),
            afnio.tolerate(self.endpoint.quorum),
        ):
            baseline = self.measure(self.splits.test, "baseline on test", "test before")
            epochs = self._epochs()
            chosen = best(epochs)
            final = baseline
            if chosen.number > 0:
                with afnio.bind({self.agent.sentiment_task: chosen.prompt}):
                    final = self.measure(self.splits.test, "final on test", "test after")
        return Result(baseline, epochs, chosen, final, self.wrong)

    def measure(self, items: Sequence[Any], stage: str, phase: str) -> Accuracy:
        """Return how often the agent's prompt is right on `items`; recorded as `phase`."""
        self.progress.stage(stage)
        self.agent.eval()
        loader = DataLoader(items, batch_size=self.options.batch_size, seed=42)
        with afnio.no_grad(), afnio.scope(phase):
            # All batches are under way before the first one is read.
            launched = [self._judge(batch) for batch in loader]
            return sum((counted(evaluation) for evaluation in launched), Accuracy(0, 0))

    def _epochs(self) -> list[Epoch]:
        loader = self.splits.loader_of_training(self.options.batch_size, self.options.seed)
        optimizer = TGD(
            self.agent.parameters(),
            model_client=self.endpoint.client,
            constraints=[afnio.Variable(CONSTRAINT, role="optimizer constraint")],
            momentum=3,
            **self.endpoint.step,
        )
        validation = self.measure(self.splits.validation, "first prompt on validation", "epoch 0/validation")
        epochs = [Epoch(0, self.prompt, validation)]
        self._tell(epochs[0], 0.0)
        for number in range(1, self.options.epochs + 1):
            started = time.monotonic()
            name = f"epoch {number}/{self.options.epochs}"
            training, skipped = self._train(loader, optimizer, name, number)
            phase = f"epoch {number}/validation"
            validation = self.measure(self.splits.validation, f"{name} validation", phase)
            epochs.append(Epoch(number, self.prompt, validation, training, tuple(skipped)))
            self._tell(epochs[-1], time.monotonic() - started)
        return epochs

    def _train(
        self, loader: Iterable[Any], optimizer: TGD, name: str, epoch: int
    ) -> tuple[Accuracy, list[str]]:
        self.agent.train()
        training, skipped = Accuracy(0, 0), []
        for number, batch in enumerate(loader, start=1):
            self.progress.stage(f"{name} step {number}")
            with afnio.scope(f"epoch {epoch}/step {number}"):
                accuracy, problem = self._step(batch, optimizer)
            training += accuracy
            self.wrong += accuracy.total - accuracy.correct
            if problem is not None:
                skipped.append(problem)
                self.progress.line(f"  {name} step {number} changed nothing: {problem}")
        return training, skipped

    def _step(self, batch: Any, optimizer: TGD) -> tuple[Accuracy, str | None]:
        evaluation = self._judge(batch)
        accuracy, problem = counted(evaluation), None
        try:
            evaluation.explanation.backward()
            optimizer.step()
        except (BatchError, ReplyError) as error:
            # Replies that can't be read cost the step, not the run; the prompt has kept its value.
            problem = str(sentence(error))
        optimizer.clear_grad()
        return accuracy, problem

    def _judge(self, batch: Any) -> cog.Evaluation:
        messages, (_, sentiment, _) = batch
        reply = self.agent(self.endpoint.client, inputs={"message": messages}, **self.endpoint.forward)
        return self.loss_fn(reply.map(read_sentiment), sentiment)

    def _tell(self, epoch: Epoch, seconds: float) -> None:
        te.log({"validation_accuracy": epoch.validation.share or 0.0}, step=epoch.number)
        parts = [f"epoch {epoch.number}", f"val {epoch.validation}"]
        if epoch.training is not None:
            te.log({"training_accuracy": epoch.training.share or 0.0}, step=epoch.number)
            parts = [parts[0], f"train {epoch.training}", parts[1], f"{seconds:.1f} s"]
        self.progress.line("  ".join(parts))


def best(epochs: Sequence[Epoch]) -> Epoch:
    """Return the epoch whose prompt did best on validation, the earliest of equals.

    A prompt that came back or stayed counts once: replies of a real model vary, and a second try is luck.
    """
    first_with = {epoch.prompt: epoch for epoch in reversed(epochs)}
    return max(first_with.values(), key=lambda epoch: (epoch.validation.share or 0.0, -epoch.number))


def read_sentiment(reply: str) -> str:
    """Return the sentiment that a reply names.

    >>> read_sentiment('{"sentiment": "Neutral"}')
    'neutral'
    """
    try:
        return str(json.loads(_FENCE.sub("", reply))["sentiment"]).lower()
    except (ValueError, KeyError, TypeError) as error:
        raise ReplyError(
            f'the reply is no JSON object with the key "sentiment" (it starts {reply[:60]!r})'
        ) from error


def counted(evaluation: cog.Evaluation) -> Accuracy:
    """Return a batch's right answers; waits for them, and raises if the quorum doesn't hold."""
    _ = evaluation.score.data
    scores = evaluation.score.samples
    given = [score for score in scores if score is not None]
    return Accuracy(sum(given), len(given), len(scores) - len(given))
