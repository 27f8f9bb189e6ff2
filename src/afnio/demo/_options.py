"""Options: what the command line asks of the demo."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from afnio import tellurio as te
from afnio.errors import AfnioError, BatchError
from afnio.utils.data._dataloader import DataLoader
from afnio.utils.data._sampler import WeightedRandomSampler
from afnio.utils.datasets import FacilitySupport, Message

EPOCHS: Final = 5
LOCAL_EPOCHS: Final = 2
LOCAL_MESSAGES: Final = 24
BATCH_SIZE: Final = 33
LIVE_ONLY: Final = ("model", "backward_model", "optim_model", "base_url", "max_in_flight", "yes")


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The command line, with the defaults of its mode filled in.

    Attributes:
        messages: how many of each split are used; None for all.
    """

    live: bool
    local: bool
    yes: bool
    model: str | None
    backward_model: str | None
    optim_model: str | None
    base_url: str | None
    max_in_flight: int | None
    epochs: int
    batch_size: int
    messages: int | None
    seed: int


def read_options(argv: Sequence[str] | None) -> DemoOptions:
    """Return the options of a command line; a wrong one ends the process with code 2 and a sentence."""
    parser = _parser()
    args = parser.parse_args(argv)
    given = [name for name in LIVE_ONLY if getattr(args, name)]
    if given and not args.live:
        parser.error(f"--{given[0].replace('_', '-')} is about your endpoint; add --live (make demo LIVE=1)")
    local = args.lm == "local"
    return DemoOptions(
        live=args.live,
        local=local,
        yes=args.yes,
        model=args.model,
        backward_model=args.backward_model,
        optim_model=args.optim_model,
        base_url=args.base_url,
        max_in_flight=args.max_in_flight,
        epochs=args.epochs or (LOCAL_EPOCHS if local else EPOCHS),
        batch_size=args.batch_size,
        messages=args.messages or (LOCAL_MESSAGES if local else None),
        seed=args.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m afnio.demo",
        description="Run the tutorial's job: make the prompt of a sentiment classifier better by feedback.",
    )
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--live", action="store_true", help="call your endpoint, after an estimate")
    mode.add_argument("--lm", choices=["simulated", "local"], default="simulated", help="whom to ask here")
    live = parser.add_argument_group("with --live")
    live.add_argument("--yes", action="store_true", help="don't ask whether the estimate is fine")
    live.add_argument("--base-url", help="endpoint (default: OPENAI_BASE_URL, else OpenAI)")
    live.add_argument("--model", help="whose prompt is optimized (default at OpenAI: gpt-4.1-nano)")
    live.add_argument("--backward-model", help="who writes the feedback (default at OpenAI: gpt-5)")
    live.add_argument("--optim-model", help="who rewrites the prompt (default: the backward model)")
    live.add_argument("--max-in-flight", type=_count, help="calls at once, at most (default: adapts)")
    job = parser.add_argument_group("the job")
    job.add_argument("--epochs", type=_count, help=f"default: {EPOCHS}, local {LOCAL_EPOCHS}")
    job.add_argument("--batch-size", type=_count, default=BATCH_SIZE, help="default: %(default)s")
    job.add_argument("--messages", type=_count, help=f"of each split (default: all, local {LOCAL_MESSAGES})")
    job.add_argument("--seed", type=int, default=0, help="of the training order (default: %(default)s)")
    return parser


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 (got {text})")
    return value


# Splits: the messages that the demo trains on, chooses by, and tests with.


@dataclass(frozen=True, slots=True)
class Splits:
    """FacilitySupport's three splits, or the first messages of each."""

    train: Sequence[Message]
    validation: Sequence[Message]
    test: Sequence[Message]

    @property
    def sizes(self) -> dict[str, int]:
        return {"train": len(self.train), "validation": len(self.validation), "test": len(self.test)}

    def loader_of_training(self, batch_size: int, seed: int) -> DataLoader:
        """Return the training loader of the tutorial: every label is drawn as often as the others."""
        weights = sample_weights(self.train)
        sampler = WeightedRandomSampler(weights, num_samples=len(self.train), replacement=True, seed=seed)
        return DataLoader(self.train, sampler=sampler, batch_size=batch_size)


def load_splits(messages: int | None) -> Splits:
    """Return the splits, fetched if need be.

    Args:
        messages: how many of each are used; None for all.

    Raises:
        DownloadError: if no source has the file.
    """
    train, validation, test = (
        _head(FacilitySupport("train"), messages),
        _head(FacilitySupport("val"), messages),
        _head(FacilitySupport("test"), messages),
    )
    return Splits(train, validation, test)


def sample_weights(items: Sequence[Message]) -> list[float]:
    """Return a weight for each item, so that each label's weights have the same sum."""
    with te.suppress_variable_notifications():
        labels = [sentiment.data for _, (_, sentiment, _) in items]
    return [len(labels) / labels.count(label) for label in labels]


def _head(data: FacilitySupport, messages: int | None) -> list[Message]:
    return [data[index] for index in range(min(len(data), messages or len(data)))]


# What ends the demo with one sentence instead of a traceback.


class DemoError(AfnioError):
    """The demo can't go on; the message says why and what to do."""


class RefusedError(DemoError):
    """The demo was asked for something that it won't do; nothing was called."""


def sentence(error: BaseException) -> str | None:
    """Return what to tell a user of an error that is no bug, else None.

    >>> sentence(DemoError("no network"))
    'no network'
    """
    if isinstance(error, BatchError):
        return f"{len(error.samples) or len(error.exceptions)} samples failed, the first with: {error.exceptions[0]}"
    return str(error) if isinstance(error, AfnioError | OSError) else None
