"""Schedulers of an optimizer's `lr`, with PyTorch's names and numbers.

`lr` is the number of candidates that a step tries (`EditTGD`), so a schedule decides when to search wide and when to
search narrow. On its way `lr` may be a fraction; the optimizer rounds it. Call `scheduler.step()` after
`optimizer.step()`, once an epoch or once a step.

>>> import afnio
>>> from afnio.testing import ScriptedClient
>>> prompt = afnio.Parameter("Answer.", role="prompt")
>>> optimizer = afnio.optim.EditTGD(
...     [prompt], ScriptedClient([]), lambda batch: [0.0] * len(batch), ["a", "b"], lr=12, model="m")
>>> scheduler = CosineAnnealingLR(optimizer, T_max=4, eta_min=2)
>>> for _ in range(4):
...     scheduler.step()
...     print(round(scheduler.get_last_lr()[0], 3))
10.536
7.0
3.464
2.0
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, final

from afnio.optim._optimizer import Optimizer

__all__ = ["ConstantLR", "CosineAnnealingLR", "LRScheduler", "ReduceLROnPlateau"]


class LRScheduler:
    """Base class: sets each group's `lr` from the number of steps so far. A subclass writes `get_lr`.

    Args:
        optimizer: Its groups must have an `lr`.
        last_epoch: The number of the last step, when a schedule is continued without its state. -1 starts it, and notes
            each group's `lr` as its `initial_lr`.

    Raises:
        TypeError: for an optimizer without `lr`.
        ValueError: if `last_epoch` isn't -1 and a group has no `initial_lr`.
    """

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self.optimizer = _with_lr(optimizer)
        for number, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", group["lr"])
            elif "initial_lr" not in group:
                raise ValueError(
                    f"group {number} must have an initial_lr to continue at last_epoch={last_epoch}; start with -1"
                )
        self.base_lrs: list[float] = [float(group["initial_lr"]) for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        self._last_lr: list[float] = []
        self.step()

    def get_lr(self) -> list[float]:
        """Return each group's `lr` for `last_epoch`."""
        raise NotImplementedError

    def step(self) -> None:
        """Set each group's `lr` for the next step."""
        self.last_epoch += 1
        for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
            group["lr"] = lr
        self._last_lr = [float(group["lr"]) for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """Return each group's `lr` as the last step set it."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the optimizer, as JSON can hold it."""
        return {name: value for name, value in vars(self).items() if name != "optimizer"}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore `state_dict()`, and each group's `lr`."""
        vars(self).update(state_dict)
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr

    @property
    def _now(self) -> list[float]:
        return [float(group["lr"]) for group in self.optimizer.param_groups]


@final
class ConstantLR(LRScheduler):
    """Multiply `lr` by `factor` for the first `total_iters` steps.

    Args:
        factor: From 0 to 1.
        total_iters: The number of steps.

    Raises:
        ValueError: for another factor.
    """

    def __init__(
        self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5, last_epoch: int = -1
    ) -> None:
        if not 0 <= factor <= 1:
            raise ValueError(f"factor must be from 0 to 1 (got {factor!r})")
        self.factor = factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        if self.last_epoch == 0:
            return [lr * self.factor for lr in self._now]
        if self.last_epoch != self.total_iters:
            return self._now
        return [
            lr * (1.0 / self.factor) if self.factor else base
            for lr, base in zip(self._now, self.base_lrs, strict=True)
        ]


@final
class CosineAnnealingLR(LRScheduler):
    r"""Lower `lr` along half a cosine from its start to `eta_min` in `T_max` steps, then raise it again.

    After Loshchilov and Hutter, "SGDR", arXiv:1608.03983, without the restarts.

    Args:
        T_max: The number of steps down.
        eta_min: The lowest `lr`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int,  # noqa: N803 - PyTorch's name
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if isinstance(T_max, bool) or not isinstance(T_max, int) or T_max < 1:
            raise ValueError(f"T_max must be a number of steps, 1 or more (got {T_max!r})")
        self.T_max = T_max
        self.eta_min = eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        # PyTorch's recursion from the `lr` before. Where nothing else changes `lr`, it is the closed form
        # eta_min + (base - eta_min) * (1 + cos(pi * t / T_max)) / 2.
        t, most, least = self.last_epoch, self.T_max, self.eta_min
        if t == 0:
            return self._now
        if (t - 1 - most) % (2 * most) == 0:
            up = (1 - math.cos(math.pi / most)) / 2
            return [lr + (base - least) * up for lr, base in zip(self._now, self.base_lrs, strict=True)]
        ratio = (1 + math.cos(math.pi * t / most)) / (1 + math.cos(math.pi * (t - 1) / most))
        return [ratio * (lr - least) + least for lr in self._now]


@final
class ReduceLROnPlateau:
    """Multiply `lr` by `factor` when a metric hasn't improved for `patience` steps.

    Args:
        optimizer: Its groups must have an `lr`.
        mode: "min" if the metric should fall, "max" if it should rise.
        factor: Below 1.
        patience: The number of steps without an improvement that are allowed.
        threshold: The least change that counts as an improvement.
        threshold_mode: "rel" takes `threshold` as a fraction of the best value, "abs" as a difference.
        cooldown: The number of steps after a reduction in which none is counted.
        min_lr: The lowest `lr`, one for all groups or a list of one for each.
        eps: A smaller reduction isn't made.

    Raises:
        TypeError, ValueError: for arguments that can't work.

    >>> import afnio
    >>> from afnio.testing import ScriptedClient
    >>> optimizer = afnio.optim.EditTGD(
    ...     [afnio.Parameter("a")], ScriptedClient([]), lambda batch: [0.0], ["a", "b"], lr=8, model="m")
    >>> scheduler = ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=1, min_lr=1)
    >>> for accuracy in (0.5, 0.6, 0.6, 0.6, 0.6):
    ...     scheduler.step(accuracy)
    >>> scheduler.get_last_lr()
    [4.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float | list[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if not factor < 1:
            raise ValueError(f"factor must be below 1 (got {factor!r})")
        if mode not in ("min", "max"):
            raise ValueError(f"mode must be 'min' or 'max' (got {mode!r})")
        if threshold_mode not in ("rel", "abs"):
            raise ValueError(f"threshold_mode must be 'rel' or 'abs' (got {threshold_mode!r})")
        groups = len(_with_lr(optimizer).param_groups)
        lowest = list(min_lr) if isinstance(min_lr, list | tuple) else [float(min_lr)] * groups
        if len(lowest) != groups:
            raise ValueError(
                f"min_lr must be one number, or one for each of {groups} groups (got {len(lowest)})"
            )
        self.optimizer = optimizer
        self.mode, self.factor, self.patience = mode, factor, patience
        self.threshold, self.threshold_mode = threshold, threshold_mode
        self.cooldown, self.min_lrs, self.eps = cooldown, lowest, eps
        self.last_epoch = 0
        self.best = _WORST[mode]
        self.num_bad_epochs = 0
        self.cooldown_counter = 0
        self._last_lr = [float(group["lr"]) for group in optimizer.param_groups]

    def step(self, metrics: Any) -> None:
        """Note the metric of one step. Lower `lr` if it has stayed on a plateau."""
        current = float(getattr(metrics, "data", metrics))
        self.last_epoch += 1
        if self._is_better(current):
            self.best, self.num_bad_epochs = current, 0
        else:
            self.num_bad_epochs += 1
        if self.in_cooldown:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            for group, lowest in zip(self.optimizer.param_groups, self.min_lrs, strict=True):
                lr = max(group["lr"] * self.factor, lowest)
                if group["lr"] - lr > self.eps:
                    group["lr"] = lr
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        self._last_lr = [float(group["lr"]) for group in self.optimizer.param_groups]

    @property
    def in_cooldown(self) -> bool:
        return self.cooldown_counter > 0

    def get_last_lr(self) -> list[float]:
        """Return each group's `lr` as the last step set it."""
        return list(self._last_lr)

    def _is_better(self, value: float) -> bool:
        return _BETTER[self.mode, self.threshold_mode](value, self.best, self.threshold)

    def state_dict(self) -> dict[str, Any]:
        """Return everything but the optimizer, as JSON can hold it; `best` is None before the first step."""
        state = {name: value for name, value in vars(self).items() if name != "optimizer"}
        return {**state, "best": self.best if math.isfinite(self.best) else None}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore `state_dict()`, and each group's `lr`."""
        best = state_dict["best"]
        vars(self).update({**state_dict, "best": _WORST[state_dict["mode"]] if best is None else best})
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


_WORST: Final[dict[str, float]] = {"min": math.inf, "max": -math.inf}
_BETTER: Final[dict[tuple[str, str], Callable[[float, float, float], bool]]] = {
    ("min", "rel"): lambda value, best, threshold: value < best * (1.0 - threshold),
    ("min", "abs"): lambda value, best, threshold: value < best - threshold,
    ("max", "rel"): lambda value, best, threshold: value > best * (threshold + 1.0),
    ("max", "abs"): lambda value, best, threshold: value > best + threshold,
}


def _with_lr(optimizer: Any) -> Optimizer:
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be an Optimizer (got {optimizer!r})")
    for group in optimizer.param_groups:
        if "lr" not in group:
            raise TypeError(
                f"a scheduler needs an optimizer with an lr, such as EditTGD (got {type(optimizer).__name__})"
            )
    return optimizer
