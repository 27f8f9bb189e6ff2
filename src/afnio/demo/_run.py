"""The tutorial's job: train the prompt of a sentiment classifier with the Trainer, then test it.

The first prompt is tested. The Trainer trains, with prompts of 1,000 characters at most, and validates after each epoch
on half of the validation messages. The epoch that did best there is its checkpoint `best`. A gate compares that prompt
with the first one on the other half, which chose nothing. If it passes, it is tested too; else the first prompt is kept
and its test counts for both. The test messages decide nothing.

A simulated LM on this machine answers, in a process of its own. If that process dies, its calls
would be tried again for a minute, so `_watched` checks it and ends the block with one sentence.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

import afnio
from afnio import cognitive as cog
from afnio import tellurio as te
from afnio.errors import AfnioError, BatchError, ReplyError
from afnio.models._client import ChatClient
from afnio.models.openai import AsyncOpenAI
from afnio.optim import TGD, Gate
from afnio.optim._gate import FEWEST
from afnio.runtime import Ledger
from afnio.tellurio._queries import home_folder
from afnio.tellurio._store import store_path
from afnio.tellurio.studio._report import write_report
from afnio.testing.provider._provider import Provider
from afnio.trainer import Trainer
from afnio.utils.agents import SentimentAnalyzer
from afnio.utils.data import DataLoader, WeightedRandomSampler
from afnio.utils.datasets import FacilitySupport, Message

NAMESPACE: Final = "demo"
PROJECT: Final = "facility-support"
PAGE: Final = Path("demo.html")
CONSTRAINTS: Final = (
    "The improved variable must never include or reference the characters `{` or `}`.",
    "Use at most 1000 characters.",
)
LATENCY: Final = 0.2
"""Seconds that each simulated call takes, so that concurrent calls can be told from calls in a row."""
KEY: Final = "simulated"
MODEL: Final = "simulated"
WRITING: Final[dict[str, Any]] = {"model": MODEL, "temperature": 1.0, "max_completion_tokens": 32000}
"""The arguments of the critic's and the optimizer's calls."""
_FENCE: Final = re.compile(r"^```json\n|\n```$")


class DemoError(AfnioError):
    """The demo can't continue; the message contains the reason and what to do."""


class RefusedError(DemoError):
    """The demo may not start. Nothing was called."""


class SentimentJob(SentimentAnalyzer):
    """The tutorial's agent, with the steps that a Trainer asks for."""

    def __init__(self, client: ChatClient) -> None:
        super().__init__()
        self.client = client
        self.loss_fn = cog.ExactMatchEvaluator()

    async def training_step(self, batch: Any, batch_idx: int) -> cog.Judgement:
        messages, (_, sentiments, _) = batch
        reply = self(self.client, inputs={"message": messages}, model=MODEL, temperature=0.0)
        return self.loss_fn(reply.map(read_sentiment), sentiments)

    validation_step = test_step = training_step

    def configure_optimizers(self) -> TGD:
        return TGD(
            self.parameters(),
            model_client=self.client,
            constraints=[afnio.Variable(text, role="optimizer constraint") for text in CONSTRAINTS],
            momentum=3,
            **WRITING,
        )


def read_sentiment(reply: str) -> str:
    """Return the sentiment that a reply names.

    Raises:
        ReplyError: if the reply isn't a JSON object with the key "sentiment". The sample has failed then.

    >>> read_sentiment('{"sentiment": "Neutral"}')
    'neutral'
    """
    try:
        return str(json.loads(_FENCE.sub("", reply))["sentiment"]).lower()
    except (ValueError, KeyError, TypeError) as error:
        raise ReplyError(
            f'the reply must be a JSON object with the key "sentiment" (got {reply[:60]!r})'
        ) from error


class Loaders(NamedTuple):
    """The loaders of FacilitySupport's three splits, or of the first messages of each.

    Attributes:
        gate: half of the validation messages; None if these are too few.
    """

    train: DataLoader
    validation: DataLoader
    gate: DataLoader | None
    test: DataLoader

    @classmethod
    def of(cls, options: argparse.Namespace) -> Self:
        """Load the messages, downloading them if they aren't there.

        Raises:
            DownloadError: if no source has the file.
        """
        train, validation, test = (_head(split, options.messages) for split in ("train", "val", "test"))
        with te.suppress_variable_notifications():
            labels = [sentiment.data for _, (_, sentiment, _) in train]
        # Draw each label equally often, as the tutorial does.
        sampler = WeightedRandomSampler(
            [len(labels) / labels.count(label) for label in labels], num_samples=len(train), seed=options.seed
        )
        half = len(validation) // 2
        chosen, gate = (validation[half:], validation[:half]) if half >= FEWEST else (validation, [])
        return cls(
            DataLoader(train, sampler=sampler, batch_size=options.batch_size),
            DataLoader(chosen, batch_size=len(chosen)),
            DataLoader(gate, batch_size=len(gate)) if gate else None,
            DataLoader(test, batch_size=len(test)),
        )

    @property
    def sizes(self) -> list[int]:
        return [0 if loader is None else len(loader.dataset) for loader in self]  # type: ignore[arg-type]


def _head(split: Any, count: int | None) -> Sequence[Message]:
    data = FacilitySupport(split)
    return [data[number] for number in range(min(len(data), count or len(data)))]


def run(options: argparse.Namespace) -> None:
    """Run the job and print the result.

    Raises:
        RefusedError: before anything is called, if the demo may not start.
        AfnioError: if the run fails.
    """
    if not os.access(Path.cwd(), os.W_OK | os.X_OK):
        raise RefusedError(
            f"the working folder must be writable (got {Path.cwd()}); start the demo elsewhere"
        )
    loaders = Loaders.of(options)
    with ExitStack() as stack:
        client = stack.enter_context(simulated_client())
        print("The LM is SIMULATED: rules on this machine play it, no model is called.")
        print("The figures show that feedback reaches the prompt, not what a language model can do.")
        print(f"Each simulated call takes {LATENCY:g} s.")
        train, validation, gate, test = loaders.sizes
        print(
            f"FacilitySupport: {train} training, {validation} validation, {gate} gate and {test} test messages."
        )
        print(f"Endpoint: {client.base_url}")
        stack.enter_context(afnio.set_backward_model_client(client, completion_args=WRITING))
        agent = SentimentJob(client)
        tracked = stack.enter_context(te.init(NAMESPACE, PROJECT, config={"lm": "simulated"}, resume=False))
        store = store_path(NAMESPACE, PROJECT)
        print(f"Recorded as run {tracked.name} in {store}", flush=True)
        trainer = Trainer(
            max_epochs=options.epochs,
            seed=options.seed,
            enable_agent_summary=False,
            default_root_dir=store.with_suffix("") / tracked.id,
        )
        started = time.monotonic()
        result = _train_and_test(agent, loaders, trainer)
    _print_result(agent, result, trainer.ledger, time.monotonic() - started)
    try:
        print(f"The run as a page: {write_report(home_folder(), tracked.id, PAGE)}")
    except (AfnioError, OSError) as error:
        print(f"The run as a page could not be written: {error}")


class Tested(NamedTuple):
    """The results of the job.

    Attributes:
        before, after: metrics of the first and of the chosen prompt on the test messages.
        chosen: which prompt that is, and why.
        gate: the gate's verdict; None without a gate.
        tests: test messages.
    """

    before: dict[str, float]
    after: dict[str, float]
    chosen: str
    gate: str | None
    tests: int


def _train_and_test(agent: SentimentJob, loaders: Loaders, trainer: Trainer) -> Tested:
    before = after = trainer.test(agent, loaders.test)
    gate = None
    if loaders.gate is not None:
        gate = Gate(lambda batch: agent.training_step(batch, 0), loaders.gate)
        gate.start(agent.parameters())
    trainer.fit(agent, loaders.train, loaders.validation)
    chosen = "the last one: no epoch has a score"
    if trainer.best_score is not None:
        best = afnio.load(trainer.folder / "best")
        agent.load_state_dict(best["agent_state_dict"])
        chosen = f"after epoch {best['counters']['epoch']}, the best one on the validation messages"
    verdict = None if gate is None else gate.judge().wait()
    if verdict is not None and not verdict.passed:
        chosen = "unchanged: the gate kept it"
    elif verdict is None or verdict.rows:
        after = trainer.test(agent, loaders.test)
    te.log({"baseline": before.get("score", 0.0), "final": after.get("score", 0.0)})
    return Tested(before, after, chosen, None if verdict is None else str(verdict), loaders.sizes[3])


def _print_result(agent: SentimentJob, result: Tested, ledger: Ledger, seconds: float) -> None:
    print(f"\nThe prompt, {result.chosen}:")
    for line in str(agent.sentiment_task.data).splitlines():
        print(f"  {line}")
    print(f"\nGate: {result.gate or 'none, too few messages'}")
    print(f"\n{'phase':<9}{'calls':>6}{'tokens in':>12}{'tokens out':>12}")
    for purpose in dict.fromkeys(item.purpose for item in ledger.items):
        spent = Ledger({item: one for item, one in ledger.items.items() if item.purpose == purpose}).total
        tokens = f"{spent.usage.prompt_tokens:>12,}{spent.usage.completion_tokens:>12,}"
        print(f"{purpose:<9}{spent.calls:>6,}{tokens}")
    cost = ledger.total.cost
    print(f"cost     {'unpriced' if cost is None else f'${cost:,.4f}'} (simulated), time {seconds:.1f} s\n")
    for name, found in (("first", result.before), ("chosen", result.after)):
        print(f"{name:<6} prompt, test messages: {described(found, result.tests)}")
    before, after = (right(found, result.tests) for found in (result.before, result.after))
    print(f"baseline {before} final {after}")


def right(found: dict[str, float], samples: int) -> str:
    """Return the right answers among those given, from a pass's metrics.

    >>> right({"score_sum": 25.0, "failed": 2.0}, 70)
    '25/68'
    """
    return f"{found.get('score_sum', 0.0):.0f}/{samples - found['failed']:.0f}"


def described(found: dict[str, float], samples: int) -> str:
    """Return right answers, their share, its 95 % interval, and how many messages have no answer.

    >>> described({"score": 0.5, "score_sum": 34.0, "score_low": 0.384, "score_high": 0.616, "failed": 2.0}, 70)
    '34/68, 50.0 %, 95 % interval 38.4 to 61.6 %, 2 without an answer'
    """
    parts = [right(found, samples)]
    if "score_low" in found:
        share, low, high = (100 * found[name] for name in ("score", "score_low", "score_high"))
        parts += [f"{share:.1f} %", f"95 % interval {low:.1f} to {high:.1f} %"]
    if found["failed"]:
        parts.append(f"{found['failed']:.0f} without an answer")
    return ", ".join(parts)


def sentence(error: Exception) -> str | None:
    """Return the sentence to show for an error that a user can act on, or None for a bug.

    >>> sentence(ReplyError("no network"))
    'no network'
    """
    if isinstance(error, BatchError):
        failed = len(error.samples) or len(error.exceptions)
        return f"{failed} samples failed, the first with: {error.exceptions[0]}"
    return str(error) if isinstance(error, AfnioError | OSError) else None


# The simulated LM: the bundled provider, in a process of its own on 127.0.0.1


@contextmanager
def simulated_client() -> Iterator[AsyncOpenAI]:
    """Run the bundled provider while the block lasts.

    Raises:
        DemoError: if it can't be started, or ends while it is needed.
    """
    _stay_on_this_machine()
    process = Provider.process(latency=LATENCY, api_key=KEY)
    try:
        process.__enter__()
    except (OSError, RuntimeError) as error:
        raise DemoError(f"the bundled provider could not be started ({error})") from error
    try:
        with _watched(process.base_url):
            yield AsyncOpenAI(base_url=process.base_url, api_key=KEY)
    finally:
        process.__exit__(None, None, None)


HOST: Final = "127.0.0.1"


def _stay_on_this_machine() -> None:
    """Change this process's environment so that no setting of the user redirects or labels a call.

    Variables of the OpenAI SDK could add an organization's name or headers. A proxy would get the requests to 127.0.0.1
    unless that is excluded. Other addresses, such as a package index, keep their proxy.
    """
    for name in [name for name in os.environ if name.startswith("OPENAI_")]:
        del os.environ[name]
    excluded = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    value = f"{excluded},{HOST}" if excluded else HOST
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = value


PERIOD: Final = 0.5
"""Seconds between two checks of the server."""


@contextmanager
def _watched(base_url: str) -> Iterator[None]:
    """Interrupt the block, and raise a `DemoError`, once the server at `base_url` takes no connections."""
    ended, lost = threading.Event(), threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def check() -> None:
        while not ended.wait(PERIOD):
            # Check `ended` again: the server may have stopped because the block is over.
            if not _takes_connections(base_url) and not ended.is_set():
                lost.set()
                # A real signal ends a wait for a lock; `_thread.interrupt_main` doesn't.
                signal.pthread_kill(main, signal.SIGINT)
                return

    threading.Thread(target=check, name="watch", daemon=True).start()
    try:
        yield
    except BaseException:
        if lost.is_set():
            raise DemoError(
                f"the bundled provider's process ended while it was needed ({base_url} takes no connection); "
                "start the demo again"
            ) from None
        raise
    finally:
        ended.set()


def _takes_connections(base_url: str) -> bool:
    """Return True if a server takes connections there, even if it is slow to answer."""
    # Not urllib: it would send the request through a proxy from the environment.
    connection = HTTPConnection(urlsplit(base_url).netloc, timeout=10.0)
    try:
        connection.request("GET", "/health")
        connection.getresponse().read()
    except TimeoutError:
        return True
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
    return True
