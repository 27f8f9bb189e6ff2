"""Report: what the demo prints at its end."""

from __future__ import annotations

import difflib
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from afnio.demo.endpoint import Endpoint
from afnio.demo.job import Result
from afnio.demo.phase_table import phase_table
from afnio.demo.progress import say
from afnio.demo.tally import Tally
from afnio.trainer._options import Accuracy

STYLES: Final = {"+": "green", "-": "red"}


def print_report(console: Console, endpoint: Endpoint, result: Result, tally: Tally, seconds: float) -> None:
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
