"""Callbacks: a program's own code in the Trainer's loop.

A callback is any object with some of the `on_…` methods of `Callback`, or a function that gets the Trainer after each
epoch. `Callbacks` calls them in order, `def` hooks in a worker thread.
An error in a callback is logged once. It ends the training only if the callback is `critical`: a broken plot must not
cost a night of calls.

`EarlyStopping` and `LengthWatch` are ready-made.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal, final

from afnio.cognitive._module import Module
from afnio.errors import AfnioError, BudgetExceeded, JournalError
from afnio.runtime._callables import to_thread
from afnio.runtime._waiting import scope

HOOKS: Final = (
    "on_fit_start", "on_fit_end", "on_train_epoch_start", "on_train_epoch_end", "on_train_batch_start",
    "on_train_batch_end", "on_validation_start", "on_validation_end", "on_test_start", "on_test_end",
    "on_predict_start", "on_predict_end", "on_exception",
)  # fmt: skip


class StopTraining(AfnioError):  # noqa: N818 - a requested end, not an error
    """Raised by a callback or a step to end the fit after recording, without an error."""


@contextmanager
def stopping(trainer: Any) -> Iterator[None]:
    """Stop the training of `trainer` if the block raises `StopTraining`."""
    try:
        yield
    except StopTraining as error:
        trainer.stop(str(error) or "a callback asked for it")


class Callback:
    """A base class with all hooks. Any object with some of these methods works too; they may be `async def`.

    A hook gets the Trainer and the agent, which it may annotate as it likes. `on_train_batch_start` gets the batch and
    its index too, `on_train_batch_end` the batch's metrics before these, `on_exception` the exception. Validation
    overlaps with training: `on_validation_end` is called after the step that follows, unless `needs_validation`. It
    isn't called for a pass that was cut short because too many samples failed.

    Attributes:
        needs_validation: if True, the next step waits for the validation pass and this callback. Set it if the callback
            may stop the training.
        critical: if True, an error of this callback ends the training. Others' errors are reported once.
    """

    needs_validation: bool = False
    critical: bool = False

    def on_fit_start(self, trainer: Any, agent: Module) -> Any: ...
    def on_fit_end(self, trainer: Any, agent: Module) -> Any: ...
    def on_train_epoch_start(self, trainer: Any, agent: Module) -> Any: ...
    def on_train_epoch_end(self, trainer: Any, agent: Module) -> Any: ...
    def on_train_batch_start(self, trainer: Any, agent: Module, batch: Any, batch_idx: int) -> Any: ...
    def on_train_batch_end(
        self, trainer: Any, agent: Module, metrics: Mapping[str, float], batch: Any, batch_idx: int
    ) -> Any: ...
    def on_validation_start(self, trainer: Any, agent: Module) -> Any: ...
    def on_validation_end(self, trainer: Any, agent: Module) -> Any: ...
    def on_test_start(self, trainer: Any, agent: Module) -> Any: ...
    def on_test_end(self, trainer: Any, agent: Module) -> Any: ...
    def on_predict_start(self, trainer: Any, agent: Module) -> Any: ...
    def on_predict_end(self, trainer: Any, agent: Module) -> Any: ...
    def on_exception(self, trainer: Any, agent: Module, exception: BaseException) -> Any: ...


@final
class Callbacks:
    """The callbacks of a Trainer. Calls their hooks in order.

    Functions are called with the Trainer at the end of each epoch, after its validation.
    """

    def __init__(self, callbacks: Any) -> None:
        wanted = [] if callbacks is None else callbacks
        self._all: list[Any] = list(wanted) if isinstance(wanted, Sequence) else [wanted]
        for callback in self._all:
            if not callable(callback) and not any(hasattr(callback, hook) for hook in HOOKS):
                raise TypeError(f"a callback is a function or has an on_… method (got {callback!r})")
            if isinstance(callback, type):
                raise TypeError(
                    f"a callback is an object (got the class {callback.__name__}); write {callback.__name__}()"
                )
        self._reported: set[tuple[int, str]] = set()

    @property
    def needs_validation(self) -> bool:
        """True if the next step must wait for the validation pass in flight."""
        return any(getattr(callback, "needs_validation", False) is True for callback in self._all)

    async def call(self, hook: str, trainer: Any, agent: Module, *args: Any) -> None:
        """Call one hook of all callbacks, in order. A `def` runs in a worker thread, where it may read values."""
        for number, callback in enumerate(self._all):
            function = getattr(callback, hook, None)
            if function is not None and getattr(type(callback), hook, None) is not getattr(Callback, hook):
                await self._call(number, hook, callback, function, trainer, agent, *args)

    async def epoch_ended(self, trainer: Any) -> None:
        """Call the callbacks that are functions."""
        for number, callback in enumerate(self._all):
            if _is_function(callback):
                await self._call(number, "epoch_ended", callback, callback, trainer)

    async def _call(self, number: int, hook: str, callback: Any, function: Any, *args: Any) -> None:
        try:
            # A separate scope: calls of the callback must not shift the addresses of others in the journal.
            async with scope(name=f"callback {number} {hook}"):
                if inspect.iscoroutinefunction(function):
                    await function(*args)
                else:
                    result = await to_thread(function, *args)
                    if inspect.iscoroutine(result):
                        await result
        except (StopTraining, BudgetExceeded, JournalError):
            raise
        except Exception:
            if getattr(callback, "critical", False):
                raise
            if (number, hook) not in self._reported:
                self._reported.add((number, hook))
                logging.getLogger("afnio").exception(
                    "callback %s failed in %s; training goes on, and further failures there are not reported",
                    _name(callback),
                    hook,
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the states of the callbacks that have one, by position and class."""
        return {
            self._key(number): callback.state_dict()
            for number, callback in enumerate(self._all)
            if callable(getattr(callback, "state_dict", None))
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the states of `state_dict`. Callbacks that were added or removed since then are skipped."""
        for number, callback in enumerate(self._all):
            load = getattr(callback, "load_state_dict", None)
            if callable(load) and self._key(number) in state:
                load(state[self._key(number)])

    def _key(self, number: int) -> str:
        return f"{number} {type(self._all[number]).__name__}"


def _is_function(callback: Any) -> bool:
    return callable(callback) and not any(hasattr(callback, hook) for hook in HOOKS)


def _name(callback: Callable[..., Any] | object) -> str:
    return str(getattr(callback, "__name__", type(callback).__name__))


@final
class EarlyStopping(Callback):
    """Stop after `patience` validation passes in a row without a better value.

    The training waits for a validation pass only if that pass may be the last one.

    Args:
        monitor: the metric, such as "val_accuracy"; by default the Trainer's.
        patience: passes without improvement that end the training, at least 1.
        min_delta: what an improvement must exceed.
        mode: "max" or "min"; by default the Trainer's.
        stopping_threshold: a value that is good enough to stop at.

    >>> EarlyStopping("val_accuracy", patience=2).needs_validation
    False
    """

    def __init__(
        self,
        monitor: str | None = None,
        patience: int = 3,
        min_delta: float = 0.0,
        mode: Literal["min", "max"] | None = None,
        stopping_threshold: float | None = None,
    ) -> None:
        if not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be a number of validation passes, 1 or more (got {patience!r})")
        if mode not in (None, "min", "max"):
            raise ValueError(f"mode must be 'max' or 'min' (got {mode!r})")
        self.monitor = monitor
        self.patience = patience
        self.min_delta = abs(min_delta)
        self.mode = mode
        self.stopping_threshold = stopping_threshold
        self.best: float | None = None
        self.waited = 0

    @property
    def needs_validation(self) -> bool:  # type: ignore[override]
        """True if the next pass may end the training."""
        return self.stopping_threshold is not None or (
            self.best is not None and self.waited >= self.patience - 1
        )

    def on_validation_end(self, trainer: Any, agent: Module) -> None:
        if trainer.stage != "fit":  # `trainer.validate` decides nothing
            return
        monitor, mode = self.monitor or trainer.monitor, self.mode or trainer.mode
        value = trainer.metrics.get(monitor)
        if value is None or math.isnan(value):
            names = ", ".join(sorted(trainer.metrics))
            raise ValueError(f"EarlyStopping finds no metric {monitor!r} (there are: {names})")
        sign = 1 if mode == "max" else -1
        if self.best is None or sign * (value - self.best) > self.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        self._decide(trainer, value)

    def on_fit_start(self, trainer: Any, agent: Module) -> None:
        """End a resumed training immediately if it had ended before."""
        if self.best is not None:
            self._decide(trainer, self.best)

    def _decide(self, trainer: Any, value: float) -> None:
        monitor, good = self.monitor or trainer.monitor, self.stopping_threshold
        sign = 1 if (self.mode or trainer.mode) == "max" else -1
        if good is not None and sign * (value - good) >= 0:
            trainer.stop(f"{monitor} has reached {value:g}, and {good:g} was asked for")
        elif self.waited >= self.patience:
            trainer.stop(f"{monitor} has not improved on {self.best:g} in {self.waited} validation passes")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


@final
class LengthWatch(Callback):
    """Watch the length of every parameter after each step.

    Args:
        max_tokens: the longest text that is fine, with a token counted for every four bytes of UTF-8.
        action: "warn" logs a warning once for each parameter, "stop" ends the training.

    >>> LengthWatch(max_tokens=500).lengths
    {}
    """

    def __init__(self, max_tokens: int = 2000, action: Literal["warn", "stop"] = "warn") -> None:
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise ValueError(f"max_tokens must be a number of tokens, 1 or more (got {max_tokens!r})")
        if action not in ("warn", "stop"):
            raise ValueError(f"action must be 'warn' or 'stop' (got {action!r})")
        self.max_tokens = max_tokens
        self.action = action
        self.lengths: dict[str, int] = {}
        self._warned: list[str] = []

    def on_train_batch_end(
        self, trainer: Any, agent: Module, metrics: Mapping[str, float], batch: Any, batch_idx: int
    ) -> None:
        for name, parameter in agent.named_parameters():
            length = -(-len(str(parameter.data).encode("utf-8", "replace")) // 4)
            self.lengths[name] = length
            if length <= self.max_tokens:
                continue
            text = (
                f"parameter {name} has grown to about {length} tokens, more than max_tokens={self.max_tokens}"
            )
            if self.action == "stop":
                trainer.stop(text)
            elif name not in self._warned:
                self._warned.append(name)
                logging.getLogger("afnio").warning("%s", text)

    def state_dict(self) -> dict[str, Any]:
        return {"lengths": dict(self.lengths), "told": list(self._warned)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lengths, self._warned = dict(state["lengths"]), list(state["told"])
