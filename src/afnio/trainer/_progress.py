"""Progress: how far a run of the Trainer is, in a terminal, a notebook or a log.

The loop calls `start`, `update` after each batch, epoch and validation pass, `message` for a line that stays, and
`stop`. A `Progress` adds the calls to that, counted from the engine's events, and the dollars of the budget that
applies. `Snapshot` is all of it at one moment, as text: the same text is redrawn at the bottom of a terminal, replaced
in the output of a notebook's cell, and written as one line of a log.

Three rules hold:

* A display never ends a run. A terminal, pipe or kernel that is gone ends the display only.
* A display costs next to nothing. It reads a few counters a few times a second, on its own thread, however many calls
  there are. (`python -m benchmarks trainer` holds it, with checkpoints and tracking, to 5 % of the wall time.)
* Unknown figures are called unknown. A model without a price doesn't cost $0, and a loader without a length has no
  time left.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Protocol, final

from rich.cells import cell_len
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.live import Live
from rich.text import Text

from afnio.runtime._budget import Budget, current_budgets
from afnio.runtime._kernel import current_runtime
from afnio.runtime._places import Places, places, shown
from afnio.runtime._replicas import on_wire
from afnio.runtime.events import (
    CallEnded,
    CallReplayed,
    CallRetried,
    CircuitClosed,
    CircuitOpened,
    ReplicaLeftOut,
    ReplicaTakenBack,
    subscribed,
)
from afnio.trainer._checkpoints import LoopState, Phase, Plan

_PHASES: Final[tuple[Phase, ...]] = ("train", "val", "test", "predict")
_FIRST: Final[dict[str, Phase]] = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}


@final
class Progress:
    """The display of one run of the Trainer. No method raises because of the display.

    Args:
        enable: False shows nothing here, but still tells the run store how far it is; messages are logged then,
            because they say what went wrong.

    >>> progress = Progress(enable=False)
    >>> progress.start(Plan("fit", "Agent"))
    >>> progress.stop()
    """

    def __init__(self, enable: bool = True) -> None:
        self._enabled = enable
        self._lock = threading.Lock()  # the loop updates, and a display's thread reads
        self._subscription = ExitStack()
        self._screen: _Screen | None = None

    def start(self, plan: Plan) -> None:
        """Begin. Call this in the task that trains: the calls that it launches from here on are counted."""
        self._plan, self._calls, self._started = plan, _CallCounts(), time.monotonic()
        self._states: dict[Phase, LoopState] = {}
        self._newest: LoopState | None = None
        self._alone = 0  # samples without a report of a loop
        self._unvalidated: LoopState | None = None  # the end of an epoch whose validation hasn't ended
        self._samples, self._steps = _Rate(), _Rate()
        if plan.resumed is None:  # a resumed run has done samples and steps before it started
            self._samples.update(0.0, 0)
            self._steps.update(0.0, 0)
        self._budget = _shown_budget(current_budgets(), given=plan.max_cost is not None)
        self._subscription.enter_context(subscribed(self._calls))
        self._subscription.enter_context(shown(self._lines))
        self._screen = _fitting_screen() if self._enabled else _Nowhere()
        self._screen.open(self._beginning(), self.snapshot)

    def update(self, state: LoopState) -> None:
        """Show how far the loop is."""
        if self._screen is None:
            return
        with self._lock:
            self._take(state)
            ended = self._ended_epoch(state)
        if ended:
            self._screen.line(ended)

    def step(self, number: int, score: float | None) -> None:
        """Show a step of a job without epochs, and the score that it reached."""
        if self._screen is None:
            return
        scored = {} if score is None else {"score": score}
        with self._lock:
            self._take(
                LoopState(
                    "train",
                    "batch",
                    0,
                    None,
                    number,
                    None,
                    number,
                    0,
                    None,
                    0,
                    self._started,
                    self._seconds,
                    scored,
                )
            )
        self._screen.line(
            [f"step {number}", *_metrics(scored), f"time {clock(self._seconds)}", f"cost {self._cost()}"]
        )

    def scored(self) -> None:
        """Count a sample of a job without a loop."""
        self._alone += 1  # on the runtime's thread only

    def message(self, text: str) -> None:
        """Show a line that stays."""
        if self._screen is None or not self._enabled:
            logging.getLogger("afnio").warning("%s", text)
        else:
            self._screen.line([text])

    def stop(self) -> None:
        """End the display, with a last line on calls and cost. Safe to call twice."""
        screen, self._screen = self._screen, None
        with suppress(
            ValueError
        ):  # another context than `start` was called in: there is nothing to undo here
            self._subscription.close()
        if screen is not None:
            screen.close()
            if self._unvalidated is not None:
                screen.line(self._epoch_line(self._unvalidated, None))
            screen.line(self._ending())

    def snapshot(self) -> Snapshot:
        """Return what to show now. Safe to call from any thread."""
        with self._lock:
            rows = [self._row(self._states[phase]) for phase in _PHASES if phase in self._states]
            if not rows:
                self._samples.update(self._seconds, self._alone)
                rows = [_ProgressLine(_FIRST[self._plan.stage], self._alone, self._plan.samples)]
            now = places(current_runtime())
            title, trouble = self._title(now), self._calls.trouble()
            return Snapshot(title, rows, self._call_facts(), now.facts(), trouble, self._seconds)

    def _lines(self) -> list[str]:
        now = self.snapshot()
        return [
            ", ".join(now.title),
            *(", ".join([f"{row.name} {row.count}", *row.facts]) for row in now.rows),
        ]

    # The loop's reports

    def _take(self, state: LoopState) -> None:
        self._started = time.monotonic() - state.seconds
        before, self._newest = self._states.get(state.phase), state
        if state.moment in ("validation", "end") and before is not None:
            # A report between two epochs: its counts are the next epoch's, and only the metrics are new.
            val = state.val if state.phase == "val" else before.val
            self._states[state.phase] = replace(before, val=val, best=state.best)
            return
        self._states[state.phase] = state
        self._samples.update(state.seconds, self._done())
        self._steps.update(state.seconds, state.step)

    def _ended_epoch(self, state: LoopState) -> list[str]:
        """Return the line on an epoch that has ended with this report, validation included."""
        if self._plan.stage != "fit":
            return []
        if state.moment == "epoch":
            self._unvalidated = state
            return [] if self._plan.val_batches else self._epoch_line(state, None)
        epoch, val = self._unvalidated, self._states.get("val")
        if (
            state.moment == "validation"
            and val is not None
            and epoch is not None
            and epoch.epoch == val.epoch
        ):
            return self._epoch_line(state, val)
        return self._epoch_line(epoch, None) if state.moment == "end" and epoch is not None else []

    def _done(self) -> int:
        """Return the samples of all epochs and passes, those before a resumption included."""
        states = self._states.values()
        return sum(max(0, state.epoch - 1) * (state.total or 0) + state.samples for state in states)

    def _total(self) -> int | None:
        plan = self._plan
        if plan.stage != "fit" or plan.samples is None:
            return plan.samples
        return None if plan.epochs is None else plan.epochs * (plan.samples + (plan.val_samples or 0))

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _left(self, where: Places) -> float | None:
        """Return the seconds until the first limit is reached, or None if no rate or limit is known.

        A quota that holds calls is known before the rate shows it: what is sent at once at the start says nothing.
        """
        plan, newest, ends = self._plan, self._newest, []
        if newest is not None:
            total, now = self._total(), self._seconds
            samples, steps = self._samples.at(now), self._steps.at(now)
            if total is not None and samples:
                rest = total - self._done()
                calls = self._calls.replied / max(1, self._done()) * rest
                ends.append(max([rest / samples, *(calls / one.pace for one in where.queues if one.pace)]))
            if plan.max_steps is not None and steps:
                ends.append((plan.max_steps - newest.step) / steps)
        if plan.max_time is not None:
            ends.append(plan.max_time - self._seconds)
        # All samples may be done, or the time be up, before the last step is: then nobody knows.
        return max(1.0, min(ends)) if ends and min(ends) > 0 else None

    # Text

    def _title(self, where: Places) -> list[str]:
        plan, newest, train, left = self._plan, self._newest, self._states.get("train"), self._left(where)
        facts = [plan.agent, plan.stage]
        if train is not None:
            facts = [plan.agent, *([f"epoch {_of(train.epoch, train.epochs)}"] if train.epoch else [])]
            facts.append(f"step {_of(train.step, plan.max_steps)}")
        facts.append(clock(self._seconds) + ("" if left is None else f", {clock(left)} left"))
        if rate := self._samples.at(self._seconds):
            facts.append(f"{rate:,.1f} samples/s")
        if newest is not None and newest.best is not None and plan.monitor:
            phase, _, name = plan.monitor.partition("_")
            facts.append(f"best {phase} {name} {number(newest.best)}".replace("  ", " "))
        return facts

    def _row(self, state: LoopState) -> _ProgressLine:
        facts = _metrics(state.train if state.phase == "train" else state.val)
        facts += [f"{state.failed:,} failed"] if state.failed else []
        return _ProgressLine(state.phase, state.samples, state.total, facts)

    def _epoch_line(self, now: LoopState, val: LoopState | None) -> list[str]:
        train, self._unvalidated = self._unvalidated, None
        assert train is not None
        failed = train.failed + (0 if val is None else val.failed)
        return [
            f"epoch {_of(train.epoch, train.epochs)}",
            *(f"train {fact}" for fact in _metrics(train.train)),
            *(f"val {fact}" for fact in ([] if val is None else _metrics(val.val))),
            *([f"{failed:,} samples failed"] if failed else []),
            f"time {clock(now.seconds)}",
            f"cost {self._cost()}",
        ]

    def _beginning(self) -> list[str]:
        plan = self._plan
        facts = [f"{plan.stage} {plan.agent}"]
        if plan.resumed is not None:
            facts.append(f"continuing from {plan.resumed}")
        if plan.samples is not None:
            facts.append(f"{plan.samples:,} samples" + (" an epoch" if plan.stage == "fit" else ""))
        if plan.epochs is not None:
            facts.append(_count(plan.epochs, "epoch"))
        if plan.val_samples is not None:
            facts.append(f"validation on {plan.val_samples:,}")
        if plan.folder is not None:
            facts.append(f"checkpoints in {plan.folder}")
        return facts

    def _ending(self) -> list[str]:
        newest, facts = self._newest, [f"{self._plan.stage} of {self._plan.agent}"]
        if newest is not None and self._plan.stage == "fit":
            facts.append(_count(newest.step, "step"))
        elif newest is not None:
            facts += [f"{newest.samples:,} samples", *_metrics(newest.val)]
            facts += [f"{newest.failed:,} failed"] if newest.failed else []
        lost = sum(executor.lost for executor in places(current_runtime()).executors)
        facts += [clock(self._seconds), *([f"{lost:,} lost by their workers"] if lost else [])]
        return [*facts, *self._call_facts()]

    def _call_facts(self) -> list[str]:
        calls, runtime = self._calls, current_runtime()
        # Read from the admitters, so of the whole process: an event for each start would cost every call.
        wire = on_wire(runtime)
        counts = {
            "from the journal": calls.replayed,
            "in flight": wire,
            "waiting": max(0, runtime.calls_open - wire),
            "retried": calls.retried,
            "failed": calls.failed,
        }
        facts = [_count(calls.replied, "call"), *(f"{n:,} {name}" for name, n in counts.items() if n)]
        cap = None if self._budget is None else self._budget.caps.calls
        facts[0] += "" if cap is None else f" of {cap:,}"
        return [*facts, f"{short(calls.tokens)} tokens", f"cost {self._cost()}"]

    def _cost(self) -> str:
        """Return the dollars so far and their ceiling."""
        cap = None if self._plan.max_cost is None else Decimal(str(self._plan.max_cost))
        if cap is None and self._budget is not None:
            cap = self._budget.caps.cost
        ceiling = "" if cap is None else f" of {money(cap)}"
        total = None if self._budget is None else self._budget.ledger.total
        if total is None or (total.unpriced and not total.known_cost):
            return f"unknown{ceiling}"
        unknown = f" and {_count(total.unpriced, 'call')} of unknown cost" if total.unpriced else ""
        return f"{money(total.known_cost)}{unknown}{ceiling}"


def _shown_budget(budgets: tuple[Budget, ...], *, given: bool) -> Budget | None:
    """Return the innermost budget; without a limit given to the Trainer, the innermost one that limits dollars."""
    limiting = [] if given else [budget for budget in budgets if budget.caps.cost is not None]
    return next(reversed(limiting or list(budgets)), None)


# A moment of a run, as text


_GAP: Final = "  "
_INDENT: Final = 7
# Columns of a bar, at least and at most.
_BAR: Final = (10, 40)


@final
@dataclass(frozen=True, slots=True)
class _ProgressLine:
    """One phase: how many of its samples have ended, the total (None if unknown), and its metrics."""

    name: str
    done: int
    total: int | None
    facts: Sequence[str] = ()

    @property
    def count(self) -> str:
        return f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"

    def head(self, width: int, marks: str) -> str:
        """Return the phase's name, bar and count."""
        if not self.total:
            return f"{self.name:{_INDENT}}{self.count}"
        columns = min(max(_BAR[0], width // 3), _BAR[1])
        full = min(columns, columns * self.done // self.total)
        return f"{self.name:{_INDENT}}{marks[0] * full}{marks[1] * (columns - full)} {self.count}"


@final
@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a display shows at one moment.

    Attributes:
        title: the agent's class, epoch, step, time and time left, the best score.
        rows: one for each phase.
        calls: what the calls do and cost.
        places: what each executor does, and each group of replicas; none where all runs in one place.
        trouble: what is wrong with a provider at this moment, or None.
        seconds: since the Trainer was called.
    """

    title: Sequence[str]
    rows: Sequence[_ProgressLine]
    calls: Sequence[str]
    places: Sequence[Sequence[str]] = ()
    trouble: str | None = None
    seconds: float = 0.0

    def lines(self, width: int, marks: str = "━─") -> list[str]:
        """Return lines of at most `width` columns, if no single fact is longer.

        Args:
            marks: the characters of a bar, for what is done and what is left.

        >>> Snapshot(["Agent", "step 2"], [_ProgressLine("train", 5, 10, ["score 0.5"])], ["8 calls"]).lines(40, "#-")
        ['Agent  step 2', 'train  ######------- 5/10  score 0.5', '8 calls']
        """
        lines = list(_wrapped(self.title, width, 0))
        for row in self.rows:
            head = row.head(width, marks)
            whole = list(_wrapped([head, *row.facts], width, _INDENT))
            lines += whole if len(whole) == 1 else [head, *_wrapped(row.facts, width, _INDENT, first=_INDENT)]
        for facts in (self.calls, *self.places):
            lines += _wrapped(facts, width, 0 if facts is self.calls else _INDENT)
        return [*lines, self.trouble] if self.trouble else lines

    def __str__(self) -> str:
        rows = [", ".join([f"{row.name} {row.count}", *row.facts]) for row in self.rows]
        parts = [", ".join(self.title), *rows, *(", ".join(facts) for facts in (self.calls, *self.places))]
        return "; ".join([*parts, self.trouble] if self.trouble else parts)


def _wrapped(facts: Sequence[str], width: int, indent: int, first: int = 0) -> Iterator[str]:
    """Yield lines of at most `width` columns, indented from the second one on. No fact is broken."""
    line, empty = " " * first, True
    for fact in facts:
        gap = "" if empty else _GAP
        if not empty and cell_len(line + gap + fact) > width:
            yield line
            line, gap = " " * indent, ""
        line, empty = line + gap + fact, False
    if not empty:
        yield line


# Counts


# Seconds for which a failed attempt is shown.
_TROUBLE_LASTS: Final = 15.0
_READINGS: Final = 20


@final
class _CallCounts:
    """Counts calls from the engine's events. It is called on the runtime's thread and read on any other.

    Attributes:
        replied: calls that got a reply.
        failed: calls that got none in all of their attempts; cancelled ones aren't counted.
        retried: attempts that failed and were followed by another.
        replayed: calls answered from the journal, which count nowhere else.
        tokens: in and out, as providers count them.
    """

    def __init__(self) -> None:
        self.replied = self.failed = self.retried = self.replayed = self.tokens = 0
        # The last call that failed and the last one that is tried again, each with its time.
        self._failure: tuple[float, str] | None = None
        self._retry: tuple[float, str] | None = None
        self._closed: dict[str, str] = {}

    def __call__(self, event: Any) -> None:
        match event:
            case CallEnded(error=None):
                self.replied += 1
                self.tokens += event.usage.total_tokens
            case CallEnded():
                self.tokens += event.usage.total_tokens
                if not str(event.error).startswith("Cancelled"):
                    self.failed += 1
                    self._failure = time.monotonic(), f"a call failed: {event.error}"
            case CallRetried():
                self.retried += 1
                when = f" in {event.wait:.1f} s" if event.wait >= 0.1 else ""
                self._retry = time.monotonic(), f"a call is tried again{when}: {event.error}"
            case CallReplayed():
                self.replayed += 1
            case CircuitOpened():
                self._closed[event.account] = f"{event.account} does not answer, calls wait: {event.error}"
            case ReplicaLeftOut():
                self._closed[event.account] = (
                    f"{event.account} is left out, others take its calls: {event.error}"
                )
            case CircuitClosed() | ReplicaTakenBack():
                self._closed.pop(event.account, None)

    def trouble(self) -> str | None:
        """An account that doesn't answer, a call that failed recently or is tried again; one line."""
        texts = list(self._closed.values())
        since = time.monotonic() - _TROUBLE_LASTS
        texts += [said[1] for said in (self._failure, self._retry) if said is not None and said[0] > since]
        return " ".join(texts[0].split()) if texts else None


@final
class _Rate:
    """The rate of a count over its last readings, so that a run that slows down or stands shows it.

    >>> rate = _Rate()
    >>> rate.update(0.0, 0), rate.update(2.0, 10), rate.update(4.0, 30)
    (None, None, None)
    >>> rate.at(4.0), rate.at(30.0)
    (7.5, 1.0)
    """

    def __init__(self) -> None:
        self._readings: deque[tuple[float, float]] = deque(maxlen=_READINGS)

    def update(self, seconds: float, count: float) -> None:
        self._readings.append((seconds, count))

    def at(self, now: float) -> float | None:
        """Per second up to now, or None if nothing has been done between the readings."""
        if len(self._readings) < 2:
            return None
        (first, before), (last, after) = self._readings[0], self._readings[-1]
        return (after - before) / (max(now, last) - first) if last > first and after > before else None


# Numbers as people read them


# Characters of a metric that is a text.
_LONGEST_TEXT: Final = 24


def _metrics(values: Mapping[str, Any]) -> list[str]:
    """Return metrics as facts, the score first, proportions with their 95 % interval.

    >>> _metrics({"accuracy": 0.75, "score": 0.5, "score_low": 0.38, "score_high": 0.62, "failed": 0.0})
    ['score 0.5000 (0.38 to 0.62)', 'accuracy 0.7500']
    """
    companions = {f"{name}_{kind}" for name in values for kind in ("sum", "low", "high")}
    facts = []
    for name in sorted(set(values) - companions - {"failed"}, key=lambda name: (name != "score", name)):
        low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
        interval = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
        if values[name] is not None:
            facts.append(f"{name} {number(values[name])}{interval}")
    return facts


def _of(number: int, total: int | None) -> str:
    return f"{number}/{total}" if total else f"{number}"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}" if number == 1 else f"{number:,} {name}s"


def number(value: Any) -> str:
    """Return a metric's value: small numbers with four digits after the point, texts in one short line.

    >>> number(0.5), number(24.51234), number(66), number(1234567.0)
    ('0.5000', '24.51', '66', '1,234,567')
    """
    if isinstance(value, bool | int) or not isinstance(value, float):
        text = " ".join(str(value).split())
        return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}…"
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def short(count: int) -> str:
    """Return a large count in few characters.

    >>> short(950), short(12_400), short(3_450_000)
    ('950', '12.4k', '3.5M')
    """
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1e3:.1f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


def money(amount: Decimal) -> str:
    """Return dollars, with four digits below one dollar.

    >>> [money(Decimal(text)) for text in ("0", "0.00001", "0.01234", "12.5")]
    ['$0.00', 'under $0.0001', '$0.0123', '$12.50']
    """
    if amount and amount < Decimal("0.0001"):
        return "under $0.0001"
    return f"${amount:,.4f}" if 0 < amount < 1 else f"${amount:,.2f}"


def clock(seconds: float) -> str:
    """Return a duration.

    >>> clock(72.4), clock(90_000)
    ('1:12', '25:00:00')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


# Where it is shown


class _Screen(Protocol):
    """A place to show snapshots. After `close` it still takes lines."""

    def open(self, beginning: Sequence[str], snapshot: Callable[[], Snapshot]) -> None: ...

    def line(self, facts: Sequence[str]) -> None: ...

    def close(self) -> None: ...


_PLAIN_TERMINALS: Final = ("", "dumb", "unknown")


def _fitting_screen() -> _Screen:
    """Return the place that fits where the program runs: a notebook's cell, live lines, or log lines."""
    ipython = sys.modules.get("IPython")
    if ipython is not None and hasattr(ipython.get_ipython(), "kernel"):
        return _Notebook()
    # Rich's file proxies mean that another display redraws this terminal already.
    taken = isinstance(sys.stderr, FileProxy) or isinstance(sys.stdout, FileProxy)
    if taken or os.environ.get("CI") or os.environ.get("TERM", "") in _PLAIN_TERMINALS:
        return _Log()
    try:
        return _Terminal() if sys.stderr.isatty() else _Log()
    except (AttributeError, ValueError):  # there is no standard error, or it is closed
        return _Log()


@final
class _Nowhere:
    """Shows nothing."""

    def open(self, beginning: Sequence[str], snapshot: Callable[[], Snapshot]) -> None:
        return

    def line(self, facts: Sequence[str]) -> None:
        return

    def close(self) -> None:
        return


@final
class _Terminal:
    """Redraws the newest snapshot at the bottom of the terminal; prints and log lines appear above it."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        unicode = (self._console.encoding or "").lower().startswith("utf")
        self._marks = "━─" if unicode else "#-"
        self._handlers: list[tuple[logging.StreamHandler[Any], Any]] = []

    def open(self, beginning: Sequence[str], snapshot: Callable[[], Snapshot]) -> None:
        self.line(beginning)
        streams = (sys.stdout, sys.stderr)
        self._live = _Live(
            get_renderable=lambda: self._drawn(snapshot()),
            console=self._console,
            transient=True,
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)
        # Handlers made before hold the streams themselves. They would write into the live lines, not above them.
        proxies = {id(old): new for old, new in zip(streams, (sys.stdout, sys.stderr), strict=True)}
        for handler in _stream_handlers():
            stream = handler.stream
            if proxies.get(id(stream), stream) is not stream:
                handler.setStream(proxies[id(stream)])
                self._handlers.append((handler, stream))

    def line(self, facts: Sequence[str]) -> None:
        with suppress(OSError, ValueError):
            for line in _wrapped(facts, self._console.width, _INDENT):
                self._console.print(Text(line))

    def close(self) -> None:
        for handler, stream in self._handlers:
            handler.setStream(stream)
        with suppress(OSError, ValueError):
            self._live.stop()

    def _drawn(self, snapshot: Snapshot) -> Text:
        lines = snapshot.lines(self._console.width, self._marks)
        drawn = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
        drawn.stylize("bold", 0, len(snapshot.title[0]))
        if self._marks[0] == "━":
            drawn.highlight_regex("━+", "cyan")
            drawn.highlight_regex("─+", "dim")
        if snapshot.trouble:
            drawn.stylize("yellow", len(drawn) - len(snapshot.trouble))
        return drawn


class _Live(Live):
    """Live lines whose refreshing thread survives a terminal that is gone."""

    def refresh(self) -> None:
        with suppress(OSError, ValueError):
            super().refresh()


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {id(handler): handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    return (handler for handler in handlers.values() if isinstance(handler, logging.StreamHandler))


# Seconds between two lines on how far a run is, at least and at most.
_SILENCE: Final = (10.0, 300.0)
# Share of a run's time between two such lines: a night makes some hundred.
_SILENT_SHARE: Final = 0.02


@final
class _Log:
    """Writes lines with the time to standard error, for logs, pipes and CI."""

    def open(self, beginning: Sequence[str], snapshot: Callable[[], Snapshot]) -> None:
        self.line(beginning)
        self._snapshot = snapshot
        self._ticker = _Ticker(self._tick, 1.0)

    def line(self, facts: Sequence[str]) -> None:
        self._written = time.monotonic()
        now, stream = datetime.now().astimezone(), sys.stderr
        with suppress(OSError, ValueError, AttributeError):
            encoding = stream.encoding or "utf-8"
            line = f"{now:%Y-%m-%d %H:%M:%S}  {', '.join(facts)}\n"
            stream.write(line.encode(encoding, "replace").decode(encoding))
            stream.flush()

    def close(self) -> None:
        self._ticker.stop()

    def _tick(self) -> None:
        snapshot = self._snapshot()
        least, most = _SILENCE
        if time.monotonic() - self._written >= min(max(least, _SILENT_SHARE * snapshot.seconds), most):
            self.line([str(snapshot)])


# Columns of a notebook's output.
_WIDTH: Final = 110
# The newest lines that a notebook's output keeps.
_KEPT: Final = 50


@final
class _Notebook:
    """One text in the cell's output, replaced in place. Prints of the program appear below it. It needs no widgets."""

    def open(self, beginning: Sequence[str], snapshot: Callable[[], Snapshot]) -> None:
        from IPython import display

        show: Any = display.display  # it has no types
        self._beginning = list(_wrapped(beginning, _WIDTH, _INDENT))
        self._lines: deque[str] = deque(maxlen=_KEPT)
        self._snapshot: Callable[[], Snapshot] | None = snapshot
        self._handle = show(self._bundle(), raw=True, display_id=True)
        self._ticker = _Ticker(self._show, 0.5)

    def line(self, facts: Sequence[str]) -> None:
        self._lines.extend(_wrapped(facts, _WIDTH, _INDENT))
        self._show()

    def close(self) -> None:
        self._ticker.stop()
        self._snapshot = None

    def _show(self) -> None:
        with suppress(Exception):  # the kernel is shutting down
            self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        live = [] if self._snapshot is None else self._snapshot().lines(_WIDTH)
        return {"text/plain": "\n".join([*self._beginning, *list(self._lines), *live])}


@final
class _Ticker:
    """A thread that calls `tick` every `period` seconds until `stop`, which waits for it."""

    def __init__(self, tick: Callable[[], object], period: float) -> None:
        self._tick, self._period = tick, period
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="afnio progress", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._period):
            self._tick()
