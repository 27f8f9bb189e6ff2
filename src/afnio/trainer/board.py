"""Board: what a display of a run shows, as texts without a layout."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import final

from afnio.runtime._admission import on_wire
from afnio.runtime._budget import Budget, current_budgets
from afnio.runtime._kernel import current_runtime
from afnio.trainer.pace import Pace
from afnio.trainer.quantities import clock, metrics, money, number, short
from afnio.trainer.state import LoopState, Phase, Plan
from afnio.trainer.traffic import Traffic


@final
@dataclass(frozen=True, slots=True)
class Row:
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
    rows: list[Row]
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
            rows = [self._row(state) for state in states] or [Row(self._first(), 0, self.plan.samples)]
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

    def _row(self, state: LoopState) -> Row:
        rate = self._samples[state.phase].rate
        facts = [] if rate is None or state.samples == state.total else [f"{rate:,.1f} samples/s"]
        values = metrics(state.train if state.phase == "train" else state.val)
        facts += [f"{name} {text}" for name, text in values.items()]
        if state.failed:
            facts.append(f"{state.failed:,} failed")
        return Row(state.phase, state.samples, state.total, facts)

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
