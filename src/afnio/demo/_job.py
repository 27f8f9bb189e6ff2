"""The tutorial's job: train the prompt of a sentiment classifier, and measure it.

The prompt that is tested at the end is the one that did best on the validation messages, the first
prompt among them; the test messages decide nothing.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

import afnio
from afnio import cognitive as cog
from afnio import tellurio as te
from afnio.cognitive._prompts import CRITIC_SYSTEM
from afnio.demo._endpoint import Endpoint
from afnio.demo._options import DemoOptions, RefusedError, Splits, sentence
from afnio.demo._watch import DemoProgress, say
from afnio.errors import BatchError, ReplyError
from afnio.optim._prompts import TGD_SYSTEM
from afnio.optim._tgd import TGD
from afnio.runtime.events import CallEnded, CallRetried, StepEnded
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
class DemoJob:
    """One run of the tutorial's program against an endpoint."""

    endpoint: Endpoint
    splits: Splits
    options: DemoOptions
    progress: DemoProgress
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


# demo.json: all figures of a run.


FILE: Final = Path("demo.json")


def figures(
    endpoint: Endpoint, options: DemoOptions, splits: Splits, result: Result, tally: DemoTally, seconds: float
) -> dict[str, Any]:
    """Return everything that the report shows, and what it takes to repeat the run, as plain data."""
    return {
        "afnio": afnio.__version__,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "lm": endpoint.kind,
        "simulated": endpoint.kind == "simulated",
        "base_url": endpoint.base_url,
        "models": endpoint.models,
        "data": {"name": "FacilitySupport", **splits.sizes},
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "baseline": _accuracy(result.baseline),
        "final": _accuracy(result.final),
        "chosen_epoch": result.chosen.number,
        "history": [_epoch(epoch) for epoch in result.epochs],
        "prompt": {"before": result.epochs[0].prompt, "after": result.chosen.prompt},
        "feedback": {"wrong_answers": result.wrong, "gradients": tally.gradients},
        "phases": {name: _phase(phase) for name, phase in tally.phases.items()},
        "total": _phase(tally.total),
        # There is no price table; a cost that nobody knows is not 0.
        "cost": None,
        "wall_seconds": round(seconds, 2),
    }


def check_folder() -> None:
    """Raise if demo.json can't be written here; asked before the work and the calls, not after."""
    folder = Path.cwd()
    if not os.access(folder, os.W_OK | os.X_OK):
        raise RefusedError(f"{FILE} can't be written here ({folder}); start the demo in a folder of yours")


def write(data: dict[str, Any], path: Path = FILE) -> None:
    """Write `data` as JSON; a reader sees the whole file or the one before."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    temporary = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=2, ensure_ascii=False)
            file.write("\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _accuracy(accuracy: Accuracy) -> dict[str, Any]:
    low, high = accuracy.interval
    return {
        "correct": accuracy.correct,
        "total": accuracy.total,
        "failed": accuracy.failed,
        "accuracy": accuracy.share,
        "interval_95": [low, high],
    }


def _epoch(epoch: Epoch) -> dict[str, Any]:
    return {
        "epoch": epoch.number,
        "training": None if epoch.training is None else _accuracy(epoch.training),
        "validation": _accuracy(epoch.validation),
        "skipped_steps": list(epoch.skipped),
        "prompt": epoch.prompt,
    }


def _phase(phase: Phase) -> dict[str, Any]:
    return {**asdict(phase), "seconds": round(phase.seconds, 2)}


# Tally: the calls and tokens of each phase, counted from the engine's events.


@dataclass(slots=True)
class Phase:
    """Calls of one purpose.

    Attributes:
        failed: calls that got no reply in all of their attempts.
        seconds: from launch to reply, added up over all calls.
    """

    calls: int = 0
    retries: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0

    def __add__(self, other: Phase) -> Phase:
        return Phase(
            self.calls + other.calls,
            self.retries + other.retries,
            self.failed + other.failed,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.seconds + other.seconds,
        )


@dataclass(slots=True)
class DemoTally:
    """Subscriber of events; it is called on the runtime's thread and read once the calls have ended.

    Attributes:
        gradients: feedback texts that steps were given.
        on_call: told of each call that ended, with its purpose.
        on_retry: told why a call is tried again.
    """

    on_call: Callable[[str], None]
    on_retry: Callable[[str], None]
    phases: dict[str, Phase] = field(default_factory=dict)
    gradients: int = 0

    def __call__(self, event: Any) -> None:
        if isinstance(event, CallEnded):
            phase = self.phases.setdefault(event.purpose, Phase())
            phase.calls += 1
            phase.failed += event.error is not None
            phase.prompt_tokens += event.usage.prompt_tokens
            phase.completion_tokens += event.usage.completion_tokens
            phase.seconds += event.seconds
            self.on_call(event.purpose)
        elif isinstance(event, CallRetried):
            self.phases.setdefault(event.purpose, Phase()).retries += 1
            self.on_retry(f"attempt {event.attempt} failed, again in {event.wait:.1f} s: {event.error}")
        elif isinstance(event, StepEnded):
            self.gradients += sum(change.gradients for change in event.changes)

    @property
    def total(self) -> Phase:
        return sum(self.phases.values(), Phase())


# Estimate: what a live run will ask of an endpoint, shown before anything is called.


CHARACTERS_PER_TOKEN: Final = 4
PROMPT_TOKENS: Final = 400
"""What a prompt that has been rewritten a few times comes to."""
WRAPPING_TOKENS: Final = 200
"""Tags, roles, schema and evaluator's words around the texts that a critic or an optimizer reads."""
ANSWER_TOKENS: Final = 15
FEEDBACK_TOKENS: Final = 100
HISTORY: Final = 3
"""The momentum: how many batches of feedback an optimizer reads."""


@dataclass(frozen=True, slots=True)
class DemoEstimate:
    """Calls, at most, and tokens, roughly, of each phase."""

    phases: dict[str, Phase]

    @property
    def total(self) -> Phase:
        return sum(self.phases.values(), Phase())


def estimate(splits: Splits, options: DemoOptions) -> DemoEstimate:
    """Return what a run asks for if every training answer is wrong."""
    sizes, epochs = splits.sizes, options.epochs
    answers = 2 * sizes["test"] + (epochs + 1) * sizes["validation"] + epochs * sizes["train"]
    wrong = epochs * sizes["train"]
    steps = epochs * -(-sizes["train"] // options.batch_size)
    message = _mean_tokens([*splits.train, *splits.validation, *splits.test])
    read = PROMPT_TOKENS + message
    criticized = read + PROMPT_TOKENS + ANSWER_TOKENS + WRAPPING_TOKENS + _tokens(CRITIC_SYSTEM)
    feedback = HISTORY * min(options.batch_size, sizes["train"]) * FEEDBACK_TOKENS
    rewritten = feedback + HISTORY * PROMPT_TOKENS + WRAPPING_TOKENS + _tokens(TGD_SYSTEM)
    return DemoEstimate(
        {
            "forward": _estimated_phase(answers, read, ANSWER_TOKENS),
            "backward": _estimated_phase(wrong, criticized, FEEDBACK_TOKENS),
            "step": _estimated_phase(steps, rewritten, PROMPT_TOKENS),
        }
    )


def ask(console: Console, endpoint: Endpoint, splits: Splits, options: DemoOptions) -> None:
    """Show the estimate and go on only if the user wants that.

    Raises:
        RefusedError: if they don't, or can't be asked.
    """
    expected = estimate(splits, options)
    say(console, "At most these calls, and roughly these tokens:")
    console.print(phase_table(expected.phases, expected.total))
    for phase, model in endpoint.models.items():
        say(console, f"{phase}: {model}")
    say(console, "Thoughts of reasoning models come on top. Cost: unpriced (see your provider's prices).")
    if options.yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError(
            "--live asks before it calls anything, and stdin is no terminal; pass --yes to agree beforehand"
        )
    try:
        answer = console.input("Go on? [y/N] ", markup=False)
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise RefusedError("nothing was called")


def _estimated_phase(calls: int, prompt_tokens: int, completion_tokens: int) -> Phase:
    return Phase(
        calls=calls, prompt_tokens=calls * prompt_tokens, completion_tokens=calls * completion_tokens
    )


def _mean_tokens(items: list[Any]) -> int:
    return sum(_tokens(message.data) for message, _ in items) // len(items)


def _tokens(text: str) -> int:
    return len(text) // CHARACTERS_PER_TOKEN


# The table of calls and tokens of each phase.


def phase_table(phases: Mapping[str, Phase], total: Phase) -> Table:
    """Return the table, with columns for retries and failures only where there were some."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    columns = {
        "calls": [phase.calls for phase in [*phases.values(), total]],
        "retries": [phase.retries for phase in [*phases.values(), total]],
        "failed": [phase.failed for phase in [*phases.values(), total]],
        "tokens in": [phase.prompt_tokens for phase in [*phases.values(), total]],
        "tokens out": [phase.completion_tokens for phase in [*phases.values(), total]],
    }
    for name in ("retries", "failed"):
        if not any(columns[name]):
            del columns[name]
    table.add_column("phase", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for name, *counts in zip([*phases, "all"], *columns.values(), strict=True):
        table.add_row(name, *(f"{count:,}" for count in counts), style="bold" if name == "all" else "")
    return table


# Report: what the demo prints at its end.


STYLES: Final = {"+": "green", "-": "red"}


def print_report(
    console: Console, endpoint: Endpoint, result: Result, tally: DemoTally, seconds: float
) -> None:
    """Print prompts, calls, cost, time and accuracies; the line with both counts comes last."""
    say(console)
    print_prompts(console, result)
    say(console)
    console.print(phase_table(tally.phases, tally.total))
    say(console)
    say(console, f"feedback  {tally.gradients} texts on {result.wrong} wrong answers")
    say(console, f"cost      unpriced{' (simulated)' if endpoint.kind == 'simulated' else ''}")
    say(console, f"time      {seconds:.1f} s")
    say(console, f"chosen    {choice(result)}")
    if endpoint.kind == "simulated":
        say(console, "lm        SIMULATED")
    say(console)
    say(console, "Test accuracy, 95 % interval:")
    say(console, f"  before  {described(result.baseline)}")
    say(console, f"  after   {described(result.final)}")
    say(console, Text(headline(result), style="bold"))


def headline(result: Result) -> str:
    """Return the line that other programs look for."""
    return f"baseline {result.baseline} final {result.final}"


def choice(result: Result) -> str:
    """Return which prompt the final test is of, and why."""
    chosen = result.chosen
    if chosen.number == 0:
        return "the first prompt: none did better on validation"
    return f"epoch {chosen.number}'s prompt, best on validation ({chosen.validation})"


def described(accuracy: Accuracy) -> str:
    """Return an accuracy in words: count, share, 95 % interval, and what failed.

    >>> described(Accuracy(25, 68))
    '25/68  36.8 %  26.3 to 48.6 %'
    """
    low, high = accuracy.interval
    share = "none" if accuracy.share is None else f"{100 * accuracy.share:.1f} %"
    failed = f", {accuracy.failed} without an answer" if accuracy.failed else ""
    return f"{accuracy}  {share}  {100 * low:.1f} to {100 * high:.1f} %{failed}"


def print_prompts(console: Console, result: Result) -> None:
    """Print the prompt before and after; where training made none better, what it made as well."""
    first, last = result.epochs[0], result.epochs[-1]
    say(console, "The prompt, before and after:")
    if result.chosen.prompt == first.prompt:
        say(console, "  (unchanged)")
    print_difference(console, first.prompt, result.chosen.prompt)
    if result.chosen is first and last.prompt != first.prompt:
        say(console)
        say(console, f"Not taken, the prompt of epoch {last.number} ({last.validation} on validation):")
        print_difference(console, first.prompt, last.prompt)


def print_difference(console: Console, before: str, after: str) -> None:
    """Print the lines of both texts, marked with what happened to them."""
    grid = Table.grid(padding=(0, 1))
    for mark, line in difference(before, after):
        if console.is_terminal:
            # In a grid what is wrapped stays beside its mark.
            grid.add_row(mark, Text(line), style=STYLES.get(mark, ""))
        else:
            say(console, f"{mark} {line}".rstrip())
    if console.is_terminal:
        console.print(grid)


def difference(before: str, after: str) -> list[tuple[str, str]]:
    """Return the lines of both texts, each with its mark: "-" only before, "+" only after, " " in both.

    >>> difference("a", "b")
    [('-', 'a'), ('+', 'b')]
    """
    lines = difflib.ndiff(before.splitlines(), after.splitlines())
    return [(line[0], line[2:].rstrip()) for line in lines if not line.startswith("?")]
