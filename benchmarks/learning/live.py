"""Live: what a benchmark with a real model will cost, said before the first call, and the page at its end.

    python -m benchmarks.learning --live --model gpt-4.1-nano --critic gpt-5 [--yes]

The tokens of a call are estimated from the task's own texts: the longest prompt that is allowed, the message, and the
reply. They are rounded up on purpose; a bill that is lower than what was said annoys nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from afnio.models._prices import price_of
from benchmarks.learning.intervals import KIND, difference
from benchmarks.learning.outcome import Key, Outcome
from benchmarks.learning.report import rows_of
from benchmarks.learning.tasks import load

PROMPT = 1000
"""Characters of a prompt in training."""
REPLY = {"student": 60, "critic": 800}
"""Tokens of a reply, reasoning included."""
SHARE = 0.35
"""Share of a training's calls that the critic and the proposer make."""
MISTAKES = 6
"""Conversations that one call of theirs shows, on average."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Calls, tokens and dollars of some runs; no dollars where a model's price isn't known."""

    calls: int
    tokens: int
    dollars: float | None

    def __add__(self, other: Cost) -> Cost:
        known = None if None in (self.dollars, other.dollars) else (self.dollars or 0) + (other.dollars or 0)
        return Cost(self.calls + other.calls, self.tokens + other.tokens, known)


def estimate(
    keys: Sequence[Key], models: Mapping[str, str], base_url: str, subset: Sequence[int] | None = None
) -> dict[str, Cost]:
    """Return what the runs of each task will take, the test included.

    Args:
        models: of the student and of the critic.
    """
    found: dict[str, Cost] = {}
    for method, name, calls, _, _, _ in keys:
        task = load(name).subset(subset)
        steps = sum(1 for _ in task.agent().parameters())
        message = mean(sum(map(len, item.inputs.values())) for item in task.train) / 4
        tested = len(task.test) * steps
        trained = 0 if method in ("baseline", "Demos") else calls
        asked = round(trained * SHARE)
        student = _cost(trained - asked + tested, PROMPT / 4 + message, "student", models, base_url)
        critic = _cost(asked, PROMPT / 4 + MISTAKES * message, "critic", models, base_url)
        found[name] = found.get(name, Cost(0, 0, 0.0)) + student + critic
    return found


def _cost(calls: int, prompt: float, role: str, models: Mapping[str, str], base_url: str) -> Cost:
    price = price_of(models[role], base_url)
    reply = REPLY[role]
    dollars = None
    if price is not None:
        dollars = calls * float(prompt * float(price.input) + reply * float(price.output)) / 1e6
    return Cost(calls, round(calls * (prompt + reply)), dollars)


def estimate_lines(found: Mapping[str, Cost]) -> Iterator[str]:
    """Yield the estimate as a table, with its sum."""
    total = sum(found.values(), Cost(0, 0, 0.0))
    cells = [[name, *_shown(cost)] for name, cost in found.items()]
    yield from rows_of(["task", "calls", "tokens", "dollars"], [*cells, ["all", *_shown(total)]])
    if total.dollars is None:
        yield "\nPrices come from `afnio[prices]` and from ~/.config/afnio/prices.toml."


def _shown(cost: Cost) -> list[str]:
    dollars = "unknown price" if cost.dollars is None else f"{cost.dollars:.2f}"
    return [f"{cost.calls:,}", f"{cost.tokens:,}", dollars]


# At the end


def page(runs: Sequence[Outcome], models: str) -> Iterator[str]:
    """Yield a page on the runs: what each method reached with each task and budget, and what it took.

    Args:
        models: a sentence on which models were asked.
    """
    yield "# Learning, measured"
    yield f"\n{models}"
    starts = {run.task: run for run in runs if run.method == "baseline"}
    groups: dict[tuple[str, int], dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.method != "baseline" and run.scores:
            groups[run.task, run.budget][run.method].append(run)
    head = [
        "method",
        "seeds",
        "accuracy (95 %)",
        "against the start",
        "calls",
        "rounds",
        "dollars",
        "seconds",
    ]
    for (task, calls), methods in groups.items():
        yield f"\n## {task}, {calls} calls\n"
        start = starts.get(task)
        first = [] if start is None else [["start", "", _reached([start]), "", "0", "", "", ""]]
        yield from rows_of(head, [*first, *(_line(name, some, start) for name, some in methods.items())])
    yield f"\nIntervals: {KIND}. Calls, rounds, dollars and seconds: of a training without its test, on average."


def _line(name: str, runs: Sequence[Outcome], start: Outcome | None) -> list[str]:
    dollars = [run.cost for run in runs if run.cost is not None]
    gain = (
        "" if start is None else _points(difference([one.scores for one in runs], [start.scores] * len(runs)))
    )
    return [
        name,
        str(len(runs)),
        _reached(runs),
        gain,
        f"{mean(run.calls for run in runs):,.0f}",
        f"{mean(run.rounds for run in runs):,.0f}",
        f"{mean(dollars):.4f}" if len(dollars) == len(runs) else "unknown price",
        f"{mean(run.seconds for run in runs):,.0f}",
    ]


def _reached(runs: Sequence[Outcome]) -> str:
    """Return the accuracy of runs on the test split, with its interval."""
    mid, low, high = difference([run.scores for run in runs], [[0.0] * len(run.scores) for run in runs])
    return f"{100 * mid:.1f} % ({100 * low:.1f} to {100 * high:.1f})"


def _points(found: tuple[float, float, float]) -> str:
    gain, low, high = (100 * one for one in found)
    return f"{gain:+.1f} ({low:+.1f} to {high:+.1f})"
