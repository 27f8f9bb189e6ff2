"""Estimate: what a live run will ask of an endpoint, shown before anything is called."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console

from afnio.cognitive._prompts import CRITIC_SYSTEM
from afnio.demo.endpoint import Endpoint
from afnio.demo.error import RefusedError
from afnio.demo.options import Options
from afnio.demo.phase_table import phase_table
from afnio.demo.progress import say
from afnio.demo.splits import Splits
from afnio.demo.tally import Phase
from afnio.optim._prompts import TGD_SYSTEM

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
class Estimate:
    """Calls, at most, and tokens, roughly, of each phase."""

    phases: dict[str, Phase]

    @property
    def total(self) -> Phase:
        return sum(self.phases.values(), Phase())


def estimate(splits: Splits, options: Options) -> Estimate:
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
    return Estimate(
        {
            "forward": _phase(answers, read, ANSWER_TOKENS),
            "backward": _phase(wrong, criticized, FEEDBACK_TOKENS),
            "step": _phase(steps, rewritten, PROMPT_TOKENS),
        }
    )


def ask(console: Console, endpoint: Endpoint, splits: Splits, options: Options) -> None:
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


def _phase(calls: int, prompt_tokens: int, completion_tokens: int) -> Phase:
    return Phase(
        calls=calls, prompt_tokens=calls * prompt_tokens, completion_tokens=calls * completion_tokens
    )


def _mean_tokens(items: list[Any]) -> int:
    return sum(_tokens(message.data) for message, _ in items) // len(items)


def _tokens(text: str) -> int:
    return len(text) // CHARACTERS_PER_TOKEN
