"""Report: what the demo prints at its end."""

from __future__ import annotations

import difflib
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from afnio.demo.endpoint import Endpoint
from afnio.demo.interval import Accuracy
from afnio.demo.job import Result
from afnio.demo.phase_table import phase_table
from afnio.demo.progress import say
from afnio.demo.tally import Tally

STYLES: Final = {"+": "green", "-": "red"}


def print_report(console: Console, endpoint: Endpoint, result: Result, tally: Tally, seconds: float) -> None:
    """Print prompts, calls, cost, time and accuracies; the line with both counts comes last."""
    before, after = result.epochs[0].prompt, result.chosen.prompt
    say(console)
    say(console, "The prompt, before and after:")
    if before == after:
        say(console, "  (unchanged)")
    print_difference(console, before, after)
    say(console)
    console.print(phase_table(tally.phases, tally.total))
    say(console)
    say(console, f"feedback  {tally.gradients} texts on {result.wrong} wrong answers")
    say(console, f"cost      unpriced{' (simulated)' if endpoint.kind == 'simulated' else ''}")
    flight = tally.total.seconds
    say(console, f"time      {seconds:.1f} s for {flight:.1f} s of calls")
    say(console, f"final     {choice(result)}")
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
    """Return which prompt was tested at the end, and why."""
    chosen = result.chosen
    if chosen.number == 0:
        return "the first prompt: none did better on val"
    return f"prompt of epoch {chosen.number}, best with {chosen.validation} on val"


def described(accuracy: Accuracy) -> str:
    """Return an accuracy in words: count, share, 95 % interval, and what failed.

    >>> described(Accuracy(25, 68))
    '25/68  36.8 %  26.3 to 48.6 %'
    """
    low, high = accuracy.interval
    share = "none" if accuracy.share is None else f"{100 * accuracy.share:.1f} %"
    failed = f", {accuracy.failed} without an answer" if accuracy.failed else ""
    return f"{accuracy}  {share}  {100 * low:.1f} to {100 * high:.1f} %{failed}"


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
