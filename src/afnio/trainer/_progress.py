"""Progress: what a run shows of itself while it goes on, in a terminal, a notebook or a log."""

from __future__ import annotations

import contextvars
import logging
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from html import escape
from typing import Any, Final, Protocol, final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from afnio.runtime._admission import on_wire
from afnio.runtime._budget import Budget, current_budgets
from afnio.runtime._kernel import current_runtime
from afnio.runtime.events import (
    CallEnded,
    CallReplayed,
    CallRetried,
    CircuitClosed,
    CircuitOpened,
    subscribed,
)
from afnio.trainer._checkpoints import LoopState, Phase, Plan


class Progress(Protocol):
    """What the loop tells a display. No method raises because of the display."""

    def start(self, plan: Plan) -> None:
        """Begin; in the task that trains, as the calls that it launches from here on are counted."""

    def update(self, state: LoopState) -> None:
        """Take in how far the loop is."""

    def message(self, text: str) -> None:
        """Show a line that stays."""

    def stop(self) -> None:
        """End, whatever has happened; the last word on calls and cost stays. More than once does no harm."""


class Screen(Protocol):
    """What draws a board: in a terminal, a notebook or a log."""

    def open(self, board: Board) -> None: ...

    def update(self, state: LoopState) -> None: ...

    def line(self, text: str) -> None: ...

    def close(self) -> None: ...


def make_progress(enable: bool = True) -> Progress:
    """Return the display that fits where the program runs; it is chosen when it starts.

    HTML that is updated in place in a notebook; live lines in a terminal; elsewhere (a pipe, a file, CI), and
    where something else is live in the terminal already, plain lines with the time.

    Args:
        enable: False for none.

    >>> make_progress(False).start(Plan("fit", "Agent"))
    """
    return Display() if enable else Quiet()


@final
class Quiet:
    """Shows nothing of the progress; messages, which say what went wrong, are logged."""

    def start(self, plan: Plan) -> None:
        pass

    def update(self, state: LoopState) -> None:
        pass

    def message(self, text: str) -> None:
        logging.getLogger("afnio").warning("%s", text)

    def stop(self) -> None:
        pass


@final
class Display:
    """Counts calls and has a screen show them.

    Args:
        screen: by default the one that fits where the program runs.
    """

    def __init__(self, screen: Screen | None = None) -> None:
        self._given = screen
        self._screen: Screen | None = None
        self._context = ExitStack()

    def start(self, plan: Plan) -> None:
        traffic = Traffic()
        self._context.enter_context(_counting(traffic))
        self._screen = self._given or fitting_screen()
        self._screen.open(Board(plan, traffic))

    def update(self, state: LoopState) -> None:
        if self._screen is not None:
            self._screen.update(state)

    def message(self, text: str) -> None:
        if self._screen is None:
            Quiet().message(text)
        else:
            self._screen.line(text)

    def stop(self) -> None:
        screen, self._screen = self._screen, None
        self._context.close()
        if screen is not None:
            screen.close()


def fitting_screen() -> Screen:
    """Return the screen that fits where the program runs."""
    if notebook() is not None:
        return NotebookScreen()
    if is_live_terminal(sys.stderr):
        return TerminalScreen()

    return PlainScreen()


def notebook() -> Any:
    """Return the shell of the notebook kernel that this is, or None."""
    ipython = sys.modules.get("IPython")
    shell: Any = None if ipython is None else ipython.get_ipython()
    return shell if hasattr(shell, "kernel") else None


_PLAIN_TERMINALS: Final = ("", "dumb", "unknown")


def is_live_terminal(stream: Any) -> bool:
    """Whether lines on `stream` can be redrawn, and nobody else does that already."""
    from rich.file_proxy import FileProxy

    if isinstance(stream, FileProxy) or isinstance(sys.stdout, FileProxy) or os.environ.get("CI"):
        return False
    try:
        live: bool = stream.isatty()
        return live and os.environ.get("TERM", "") not in _PLAIN_TERMINALS
    except (AttributeError, ValueError):  # none, or closed
        return False


@contextmanager
def _counting(traffic: Traffic) -> Iterator[None]:
    """Count the calls that are launched here, until the end."""
    # A display that is stopped in another context than it was started in has nothing to undo there.
    with suppress(ValueError), subscribed(traffic):
        yield


# Board: what a display of a run shows, as texts without a layout.


@final
@dataclass(frozen=True, slots=True)
class ProgressRow:
    """One phase: how many of its samples have ended, of how many (None if not known), and facts about it."""

    name: str
    done: int
    total: int | None
    facts: list[str] = field(default_factory=list)

    @property
    def count(self) -> str:
        return f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"


@final
@dataclass(frozen=True, slots=True)
class Frame:
    """All that is to be seen at one moment."""

    title: list[str]
    rows: list[ProgressRow]
    calls: list[str]
    trouble: str | None


@final
class Board:
    """Puts together what the loop tells, what the calls do and what they cost.

    Cost and its ceiling are those of the innermost budget that holds where the board is made.
    """

    def __init__(self, plan: Plan, traffic: Traffic) -> None:
        self.plan = plan
        self.traffic = traffic
        self._started = time.monotonic()
        self._states: dict[Phase, LoopState] = {}
        self._newest: LoopState | None = None
        self._epoch: LoopState | None = None
        """An epoch that has ended and waits for its validation."""
        self._samples: dict[Phase, Pace] = {}
        self._work, self._steps = Pace(), Pace()
        if plan.resumed is None:
            self._work.read(0.0, 0)
            self._steps.read(0.0, 0)
        self._budget = _governing(current_budgets(), given=plan.max_cost is not None)
        self._lock = threading.Lock()

    def take(self, state: LoopState) -> None:
        """Take in how far the loop is."""
        with self._lock:  # as frames are made on a display's own thread
            self._take(state)

    def frame(self) -> Frame:
        """Return what is to be seen now."""
        with self._lock:
            # Who reads expects "val" below "train", whichever was told first.
            order: list[Phase] = ["train", "val", "test", "predict"]
            states = [self._states[phase] for phase in order if phase in self._states]
            rows = [self._row(state) for state in states] or [
                ProgressRow(self._first(), 0, self.plan.samples)
            ]
            return Frame(self._title(), rows, self.calls(), self.traffic.trouble)

    def _take(self, state: LoopState) -> None:
        # By this clock, whichever the loop's is.
        self._started = time.monotonic() - state.seconds
        before = self._states.get(state.phase)
        self._newest = state
        if state.moment in ("validation", "end") and before is not None:
            # Told between two epochs: only what is new in it, the counts are those of the pass that has ended.
            val = state.val if state.phase == "val" else before.val
            self._states[state.phase] = replace(before, val=val, best=state.best)
            return
        self._states[state.phase] = state
        if state.phase not in self._samples:
            self._samples[state.phase] = Pace()
            if self.plan.resumed is None and state.phase != "val":
                self._samples[state.phase].read(0.0, 0)
        self._samples[state.phase].read(state.seconds, _position(state, state.total))
        self._work.read(state.seconds, self._done())
        self._steps.read(state.seconds, state.step)

    def calls(self) -> list[str]:
        """Return what the calls do and cost."""
        traffic = self.traffic
        runtime = current_runtime()
        wire = on_wire(runtime)
        waiting = max(0, runtime.calls_open - wire)
        facts = [f"{traffic.calls:,} calls"]
        facts += [
            f"{count:,} {name}"
            for name, count in (
                ("from the journal", traffic.replayed),
                ("in flight", wire),
                ("waiting", waiting),
                ("retried", traffic.retried),
                ("failed", traffic.failed),
            )
            if count
        ]
        return [*facts, f"{short(traffic.tokens)} tokens", f"cost {self.cost()}"]

    def cost(self) -> str:
        """Return the dollars so far and their ceiling; what is not known is said, never 0."""
        cap = None if self.plan.max_cost is None else Decimal(str(self.plan.max_cost))
        if cap is None and self._budget is not None:
            cap = self._budget.caps.cost
        ceiling = "" if cap is None else f" of {money(cap)}"
        if self._budget is None:
            return f"unknown{ceiling}"
        total = self._budget.ledger.total
        if total.unpriced and not total.known_cost:
            return f"unknown{ceiling}"
        unknown = f" and {total.unpriced:,} calls of unknown cost" if total.unpriced else ""
        return f"{money(total.known_cost)}{unknown}{ceiling}"

    def beginning(self) -> list[str]:
        """Return what lies ahead."""
        plan = self.plan
        facts = [f"{plan.stage} {plan.agent}"]
        if plan.resumed is not None:
            facts.append(f"going on from {plan.resumed}")
        if plan.samples is not None:
            facts.append(f"{plan.samples:,} samples" + (" an epoch" if plan.stage == "fit" else ""))
        if plan.epochs is not None:
            facts.append(f"{plan.epochs:,} epochs" if plan.epochs != 1 else "1 epoch")
        if plan.val_samples is not None:
            facts.append(f"validation on {plan.val_samples:,}")
        if plan.folder is not None:
            facts.append(f"checkpoints in {plan.folder}")
        return facts

    def ending(self) -> list[str]:
        """Return the last word on the run."""
        newest, facts = self._newest, [f"{self.plan.stage} of {self.plan.agent}"]
        if newest is not None and self.plan.stage == "fit":
            facts.append(f"{newest.step:,} steps" if newest.step != 1 else "1 step")
        elif newest is not None:
            facts.append(f"{newest.samples:,} samples")
            facts += [f"{name} {text}" for name, text in metrics(newest.val, intervals=True).items()]
            facts += [f"{newest.failed:,} failed"] if newest.failed else []
        return [*facts, clock(self.seconds), *self.calls()]

    @property
    def seconds(self) -> float:
        """Since the Trainer was called."""
        return time.monotonic() - self._started

    def ended(self, state: LoopState) -> dict[str, str] | None:
        """Return what is to be kept of an epoch: texts by name, once its validation has ended too; else None."""
        if self.plan.stage != "fit":
            return None
        val = self._states.get("val")
        if state.moment == "epoch":
            self._epoch = state
            if self.plan.val_batches:
                return None
            return self._closed(state, None)
        if state.moment == "validation" and val is not None and self._is_of_epoch(val):
            return self._closed(state, val)
        return self.rest() if state.moment == "end" else None

    def rest(self) -> dict[str, str] | None:
        """Return what is to be kept of an epoch whose validation never ended, if there is one."""
        return None if self._epoch is None else self._closed(self._epoch, None)

    def _is_of_epoch(self, val: LoopState) -> bool:
        return self._epoch is not None and self._epoch.epoch == val.epoch

    def _closed(self, now: LoopState, val: LoopState | None) -> dict[str, str]:
        train, self._epoch = self._epoch, None
        assert train is not None
        facts = {"epoch": f"{train.epoch}" + (f"/{train.epochs}" if train.epochs else "")}
        facts |= {f"train {name}": text for name, text in metrics(train.train).items()}
        if val is not None:
            facts |= {f"val {name}": text for name, text in metrics(val.val).items()}
        failed = train.failed + (0 if val is None else val.failed)
        if failed:
            facts["samples failed"] = f"{failed:,}"
        return {**facts, "time": clock(now.seconds), "cost": self.cost()}

    def left(self) -> float | None:
        """Return the seconds to the end, as things go; None where nobody knows."""
        plan, newest = self.plan, self._newest
        if newest is None:
            return plan.max_time
        ends: list[float] = []
        total = self._total()
        if total is not None and self._work.rate:
            ends.append((total - self._done()) / self._work.rate)
        if plan.max_steps is not None and self._steps.rate:
            ends.append((plan.max_steps - newest.step) / self._steps.rate)
        since = self.seconds - newest.seconds
        ends = [end - since for end in ends]
        if plan.max_time is not None:
            ends.append(plan.max_time - self.seconds)
        return max(0.0, min(ends)) if ends else None

    def _title(self) -> list[str]:
        newest = self._newest
        facts: list[str] = [self.plan.stage]
        train = self._states.get("train")
        if train is not None:
            facts = [f"epoch {train.epoch}" + (f"/{train.epochs}" if train.epochs else "")]
            facts.append(f"step {train.step}" + (f"/{self.plan.max_steps}" if self.plan.max_steps else ""))
        left = self.left()
        facts.append(clock(self.seconds) + ("" if left is None else f", {clock(left)} left"))
        if newest is not None and newest.best is not None and self.plan.monitor:
            facts.append(f"best {self.plan.monitor} {number(newest.best)}")
        return [self.plan.agent, *facts]

    def _row(self, state: LoopState) -> ProgressRow:
        rate = self._samples[state.phase].rate
        facts = [] if rate is None or state.samples == state.total else [f"{rate:,.1f} samples/s"]
        values = metrics(state.train if state.phase == "train" else state.val)
        facts += [f"{name} {text}" for name, text in values.items()]
        if state.failed:
            facts.append(f"{state.failed:,} failed")
        return ProgressRow(state.phase, state.samples, state.total, facts)

    def _first(self) -> Phase:
        names: dict[str, Phase] = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}
        return names[self.plan.stage]

    def _done(self) -> int:
        """Return the samples of all epochs until now, those before a resumption among them."""
        return sum(_position(state, state.total) for state in self._states.values())

    def _total(self) -> int | None:
        plan = self.plan
        if plan.samples is None:
            return None
        if plan.stage != "fit":
            return plan.samples
        return None if plan.epochs is None else plan.epochs * (plan.samples + (plan.val_samples or 0))


def _position(state: LoopState, total: int | None) -> int:
    return max(0, state.epoch - 1) * (total or 0) + state.samples


def _governing(budgets: tuple[Budget, ...], *, given: bool) -> Budget | None:
    """Return the budget whose spending is shown: the innermost; where the plan limits none, one that does."""
    limiting = [] if given else [budget for budget in budgets if budget.caps.cost is not None]
    return next(reversed(limiting or list(budgets)), None)


# Traffic: the calls of a run, counted from the engine's events.


TROUBLE_LASTS: Final = 15.0
"""Seconds for which a failed attempt is worth a line."""


@final
class Traffic:
    """Subscriber of events: called on the runtime's thread, where it only adds, and read on any other.

    Attributes:
        calls: those that got a reply.
        failed: those that got none in all of their attempts.
        cancelled: those that nobody wanted any more.
        retried: attempts that failed and were followed by another.
        replayed: calls answered from the journal; they are none of the above.
        tokens: in and out, as providers count them.

    >>> from afnio.runtime.events import Usage
    >>> traffic = Traffic()
    >>> traffic(CallEnded("1/forward", "https://host", "m", "forward", 1, 0.5, 0.0, Usage(20, 4), None))
    >>> traffic.calls, traffic.tokens
    (1, 24)
    """

    __slots__ = ("_closed", "_trouble", "calls", "cancelled", "failed", "replayed", "retried", "tokens")

    def __init__(self) -> None:
        self.calls = self.failed = self.cancelled = self.retried = self.replayed = self.tokens = 0
        self._trouble: tuple[float, str] | None = None
        self._closed: dict[str, str] = {}

    def __call__(self, event: Any) -> None:
        if isinstance(event, CallEnded):
            self.tokens += event.usage.total_tokens
            if event.error is None:
                self.calls += 1
            elif event.error.startswith("Cancelled"):
                self.cancelled += 1
            else:
                self.failed += 1
                self._trouble = time.monotonic(), f"a call failed: {event.error}"
        elif isinstance(event, CallRetried):
            self.retried += 1
            when = f" in {event.wait:.1f} s" if event.wait >= 0.1 else ""
            self._trouble = time.monotonic(), f"a call is tried again{when}: {event.error}"
        elif isinstance(event, CallReplayed):
            self.replayed += 1
        elif isinstance(event, CircuitOpened):
            self._closed[event.account] = f"{event.account} does not answer, calls wait: {event.error}"
        elif isinstance(event, CircuitClosed):
            self._closed.pop(event.account, None)

    @property
    def trouble(self) -> str | None:
        """What is wrong with a provider just now, in one line, or None."""
        for text in list(self._closed.values()):
            return _line(text)
        trouble = self._trouble
        if trouble is not None and time.monotonic() - trouble[0] < TROUBLE_LASTS:
            return _line(trouble[1])
        return None


def _line(text: str) -> str:
    return " ".join(text.split())


# Pace: how fast something gets on, from its last readings.


READINGS: Final = 20


@final
class Pace:
    """The rate of a count, over its last readings: a run that slows down is seen to.

    >>> pace = Pace()
    >>> pace.read(0.0, 0), pace.read(2.0, 10), pace.read(4.0, 30)
    (None, None, None)
    >>> pace.rate
    7.5
    """

    def __init__(self) -> None:
        self._readings: deque[tuple[float, float]] = deque(maxlen=READINGS)

    def read(self, seconds: float, count: float) -> None:
        """Note that at `seconds` the count was `count`; one that has fallen starts anew."""
        if self._readings and count < self._readings[-1][1]:
            self._readings.clear()
        self._readings.append((seconds, count))

    @property
    def rate(self) -> float | None:
        """Per second; None before anything has got on."""
        if len(self._readings) < 2:
            return None
        (first, before), (last, after) = self._readings[0], self._readings[-1]
        return (after - before) / (last - first) if last > first and after > before else None


# Ticker: a thread that does something again and again.


@final
class Ticker:
    """Calls `tick` every `period` seconds, in a thread of its own with the caller's context, until `stop`."""

    def __init__(self, tick: Callable[[], object], period: float) -> None:
        self._tick = tick
        self._period = period
        self._stopped = threading.Event()
        context = contextvars.copy_context()
        self._thread = threading.Thread(
            target=context.run, args=(self._run,), name="afnio progress", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._period):
            self._tick()


# Quantities: numbers, durations, dollars and metrics as people read them.


LONGEST_TEXT: Final = 24
"""Characters of a metric that is a text."""


def summary(facts: Mapping[str, str]) -> list[str]:
    """Return named texts as facts.

    >>> summary({"epoch": "1/5", "val loss": "0.5000"})
    ['epoch 1/5', 'val loss 0.5000']
    """
    return [f"{name} {text}" for name, text in facts.items()]


def metrics(values: Mapping[str, Any], *, intervals: bool = False) -> dict[str, str]:
    """Return metrics as texts: the loss first, then by name; sums, bounds and counts of failures are left out.

    Args:
        intervals: give the bounds of a proportion's 95 % interval with it.

    >>> metrics({"accuracy": 0.75, "loss": 0.5, "loss_sum": 33.0, "note": "fine", "failed": 0.0})
    {'loss': '0.5000', 'accuracy': '0.7500', 'note': 'fine'}
    >>> metrics({"accuracy": 0.75, "accuracy_low": 0.63, "accuracy_high": 0.84}, intervals=True)
    {'accuracy': '0.7500 (0.63 to 0.84)'}
    """
    companions = {f"{name}_{kind}" for name in values for kind in ("sum", "low", "high")}
    names = sorted(set(values) - companions - {"failed"}, key=lambda name: (name != "loss", name))
    texts = {name: number(values[name]) for name in names if values[name] is not None}
    if not intervals:
        return texts
    return {name: text + _interval(values, name) for name, text in texts.items()}


def _interval(values: Mapping[str, Any], name: str) -> str:
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    return "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"


def number(value: Any) -> str:
    """Return a number as people read it: four digits after the point where it is small.

    >>> number(0.5), number(24.51234), number(66), number(1234567.0)
    ('0.5000', '24.51', '66', '1,234,567')
    """
    if isinstance(value, bool | int) or not isinstance(value, float):
        text = " ".join(str(value).split())
        return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 1]}…"
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
    """Return dollars, to the cent where there are some.

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


# Terminal progress: lines at the bottom of a terminal that are redrawn in place.


FRAMES: Final = 4
"""Redraws in a second."""
BAR: Final = (10, 40)
"""Columns of a bar, at least and at most."""
GAP: Final = "  "
INDENT: Final = 7


@final
class TerminalScreen:
    """Draws on standard error with rich; prints and log lines of the program come out above it.

    Standard output is left alone where it is no terminal.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        self._board: Board | None = None
        self._live: Live | None = None
        self._handlers: list[tuple[Any, Any]] = []

    def open(self, board: Board) -> None:
        self._board = board
        self._facts(board.beginning())
        streams = (sys.stdout, sys.stderr)
        self._live = _Live(
            get_renderable=self._draw,
            console=self._console,
            transient=True,
            refresh_per_second=FRAMES,
            redirect_stdout=sys.stdout is not None and sys.stdout.isatty(),
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)
        self._redirect_logs(streams)

    def update(self, state: LoopState) -> None:
        assert self._board is not None
        self._board.take(state)
        self._keep(self._board.ended(state))

    def _keep(self, epoch: dict[str, str] | None) -> None:
        if epoch is not None:
            self._facts(summary(epoch))

    def line(self, text: str) -> None:
        self._print(Text(text))

    def _facts(self, facts: Sequence[str]) -> None:
        self._print(*flow([Text(facts[0])], facts[1:], self._console.width, INDENT))

    def _print(self, *lines: Text) -> None:
        with suppress(OSError, ValueError):  # a terminal that has gone ends the display, never the run
            self._console.print(*lines, sep="\n")

    def close(self) -> None:
        for handler, stream in self._handlers:
            handler.setStream(stream)
        self._handlers = []
        if self._live is not None:
            with suppress(OSError, ValueError):
                self._live.stop()
            self._live = None
        assert self._board is not None
        self._keep(self._board.rest())
        self._facts(self._board.ending())

    def _redirect_logs(self, streams: tuple[Any, Any]) -> None:
        """Have log handlers that were made before write above the live lines, not into them."""
        by_stream = dict(zip(map(id, streams), (sys.stdout, sys.stderr), strict=True))
        for handler in _stream_handlers():
            stream = handler.stream
            if id(stream) in by_stream and by_stream[id(stream)] is not stream:
                handler.setStream(by_stream[id(stream)])
                self._handlers.append((handler, stream))

    def _draw(self) -> Group:
        assert self._board is not None
        frame, width = self._board.frame(), self._console.width
        lines = [*flow([Text(fact, "bold") for fact in frame.title[:1]], frame.title[1:], width, 0)]
        ascii_only = not (self._console.encoding or "").lower().startswith("utf")
        for row in frame.rows:
            lines += _row(row, width, ascii_only)
        lines += flow([Text(frame.calls[0])], frame.calls[1:], width, 0)
        if frame.trouble:
            lines += [Text(frame.trouble, "yellow", no_wrap=True, overflow="ellipsis")]
        return Group(*lines)


class _Live(Live):
    """A live area that a lost terminal ends without noise."""

    def refresh(self) -> None:
        with suppress(OSError, ValueError):
            super().refresh()


def flow(head: Sequence[Text], facts: Sequence[str], width: int, indent: int) -> Iterator[Text]:
    """Yield lines of at most `width` columns: the head, then the facts, none of which is broken.

    >>> [line.plain for line in flow([Text("train")], ["loss 0.5", "accuracy 0.75"], 16, 2)]
    ['train  loss 0.5', '  accuracy 0.75']
    """
    line = Text(no_wrap=True, overflow="ellipsis")
    for part in [*head, *map(Text, facts)]:
        if line.cell_len > indent and line.cell_len + len(GAP) + part.cell_len > width:
            yield line
            line = Text(" " * indent, no_wrap=True, overflow="ellipsis")
            line.append_text(part)
        else:
            line.append(GAP if line.cell_len else "")
            line.append_text(part)
    yield line


def _row(row: ProgressRow, width: int, ascii_only: bool) -> list[Text]:
    """Return a phase in one line, or its facts below its bar."""
    head = _head(row, width, ascii_only)
    lines = list(flow([head], row.facts, width, INDENT))
    if len(lines) == 1:
        return lines
    return [head, *flow([Text(" " * (INDENT - len(GAP)))], row.facts, width, INDENT)]


def _head(row: ProgressRow, width: int, ascii_only: bool) -> Text:
    """Return a phase's name, bar and count."""
    head = Text(f"{row.name:{INDENT}}")
    count = f" {row.count}"
    if row.total:
        columns = min(max(BAR[0], width // 3), BAR[1])
        full = min(columns, columns * row.done // row.total)
        done, rest = ("#", "-") if ascii_only else ("━", "─")
        head.append(done * full, "green" if full == columns else "cyan")
        head.append(rest * (columns - full), "dim")
    else:
        count = count.lstrip()
    return head.append(count)


def _stream_handlers() -> list[Any]:
    names = list(logging.root.manager.loggerDict)
    loggers = [logging.root, *(logging.root.manager.loggerDict[name] for name in names)]
    handlers = {id(handler): handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    return [handler for handler in handlers.values() if isinstance(handler, logging.StreamHandler)]


# Plain progress: lines with the time, for logs, pipes and CI.


SHORTEST: Final = 10.0
LONGEST_SILENCE: Final = 300.0
"""Seconds between two lines on how far it is."""
SHARE: Final = 0.02
"""Of the time that a run has taken, for which the log is silent: a night is some hundred lines."""


@final
class PlainScreen:
    """Writes to standard error; one that is closed or full ends the lines, never the run."""

    def __init__(self) -> None:
        self._board: Board | None = None
        self._ticker: Ticker | None = None
        self._told = 0.0

    def open(self, board: Board) -> None:
        self._board = board
        self.line(", ".join(board.beginning()))
        self._ticker = Ticker(self._tick, 1.0)

    def update(self, state: LoopState) -> None:
        assert self._board is not None
        self._board.take(state)
        self._keep(self._board.ended(state))

    def _keep(self, epoch: dict[str, str] | None) -> None:
        if epoch is not None:
            self.line(", ".join(summary(epoch)))

    def line(self, text: str) -> None:
        self._told = time.monotonic()
        now = datetime.now().astimezone()
        stream = sys.stderr
        with suppress(OSError, ValueError, AttributeError):
            encoding = stream.encoding or "utf-8"
            shown = f"{now:%Y-%m-%d %H:%M:%S}  {text}\n".encode(encoding, "replace").decode(encoding)
            stream.write(shown)
            stream.flush()

    def close(self) -> None:
        assert self._board is not None
        if self._ticker is not None:
            self._ticker.stop()
        self._keep(self._board.rest())
        self.line(", ".join(self._board.ending()))

    def _tick(self) -> None:
        assert self._board is not None
        silent = time.monotonic() - self._told
        if silent >= min(max(SHORTEST, SHARE * self._board.seconds), LONGEST_SILENCE):
            self.line(one_line(self._board.frame()))


def one_line(frame: Frame) -> str:
    """Return all of a frame in one line."""
    rows = [", ".join([f"{row.name} {row.count}", *row.facts]) for row in frame.rows]
    parts = [", ".join(frame.title), *rows, ", ".join(frame.calls)]
    return "; ".join(parts) + (f"; {frame.trouble}" if frame.trouble else "")


# Notebook progress: HTML under the cell, updated in place; it needs no widgets.


PERIOD: Final = 0.5
"""Seconds between two updates."""
KEPT: Final = 50
"""Newest epochs and messages that are shown."""
_CELL: Final = "font:inherit;padding:0 1.2em 0 0;text-align:left;white-space:nowrap"


@final
class NotebookScreen:
    """One output of the cell, from its start on; what the program prints comes as further output below it.

    Without HTML, such as in a text export, it is a text.
    """

    def __init__(self) -> None:
        self._board: Board | None = None
        self._handle: Any = None
        self._ticker: Ticker | None = None
        self._epochs: list[dict[str, str]] = []
        self._lines: list[str] = []
        self._shown = ""

    def open(self, board: Board) -> None:
        from IPython import display

        show: Any = display.display  # it has no types
        self._board = board
        self._lines.append(", ".join(board.beginning()))
        self._handle = show(self._bundle(), raw=True, display_id=True)
        self._ticker = Ticker(self._show, PERIOD)

    def update(self, state: LoopState) -> None:
        assert self._board is not None
        self._board.take(state)
        self._keep(self._board.ended(state))

    def _keep(self, epoch: dict[str, str] | None) -> None:
        if epoch is not None:
            self._epochs = [*self._epochs, epoch][-KEPT:]

    def line(self, text: str) -> None:
        self._lines = [self._lines[0], *[*self._lines[1:], text][-KEPT:]]

    def close(self) -> None:
        if self._ticker is not None:
            self._ticker.stop()
        assert self._board is not None
        self._keep(self._board.rest())
        self.line(", ".join(self._board.ending()))
        self._show(ended=True)

    def _show(self, *, ended: bool = False) -> None:
        bundle = self._bundle(ended=ended)
        if bundle["text/html"] != self._shown:
            self._shown = bundle["text/html"]
            with suppress(Exception):  # a kernel that shuts down ends the display, never the run
                self._handle.update(bundle, raw=True)

    def _bundle(self, *, ended: bool = False) -> dict[str, str]:
        assert self._board is not None
        frame = None if ended else self._board.frame()
        text = [self._lines[0], *(", ".join(summary(epoch)) for epoch in self._epochs), *self._lines[1:]]
        text += [] if frame is None else [one_line(frame)]
        return {"text/html": html(frame, self._lines, self._epochs), "text/plain": "\n".join(text)}


def html(frame: Frame | None, lines: list[str], epochs: list[dict[str, str]]) -> str:
    """Return all as HTML, every text escaped; `frame` is None once the run has ended.

    >>> html(None, ["a < b"], [])
    '<div style="line-height:1.5"><div>a &lt; b</div></div>'
    """
    parts = [f"<div>{escape(lines[0])}</div>"]
    parts += [_table(epochs)] if epochs else []
    if frame is not None:
        parts.append(f"<div><b>{escape(frame.title[0])}</b>&ensp;{_facts(frame.title[1:])}</div>")
        parts += [
            f"<table>{''.join(map(_notebook_row, frame.rows))}</table>",
            f"<div>{_facts(frame.calls)}</div>",
        ]
        parts += [f"<div><i>{escape(frame.trouble)}</i></div>"] if frame.trouble else []
    parts += [_notebook_line(line) for line in lines[1:]]
    return f'<div style="line-height:1.5">{"".join(parts)}</div>'


def _notebook_line(text: str) -> str:
    if "\n" in text:  # a tree or a table
        return f'<pre style="line-height:1.2">{escape(text)}</pre>'
    return f"<div>{escape(text)}</div>"


def _facts(facts: list[str]) -> str:
    return "&ensp;".join(map(escape, facts))


def _notebook_row(row: ProgressRow) -> str:
    bar = "" if not row.total else f'<progress value="{row.done}" max="{row.total}"></progress>'
    return f"<tr>{_cells([escape(row.name), bar, escape(row.count), _facts(row.facts)])}</tr>"


def _table(epochs: list[dict[str, str]]) -> str:
    names = list(dict.fromkeys(name for epoch in epochs for name in epoch))
    rows = [_cells([escape(epoch.get(name, "")) for name in names]) for epoch in epochs]
    head = _cells([f"<b>{escape(name)}</b>" for name in names])
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in [head, *rows])}</table>"


def _cells(contents: list[str]) -> str:
    return "".join(f'<td style="{_CELL}">{content}</td>' for content in contents)
