"""Momentum: which earlier values, with their feedback, a proposer is reminded of.

Sampled momentum is after Ding et al., "Scaling Textual Gradients via Sampling-Based Momentum" (TSGD-M,
arXiv:2506.00400): instead of all of the last values a few are drawn, without replacement, by the Gumbel-top-k
trick. There the weights are decayed minibatch accuracies. Here a value weighs decay^age / (1 + n) for the n
gradients that it received: samples that succeeded send none, so with batches of one size n counts its
failures, and no call is made to find out.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from typing import Any

from afnio.autodiff._variable import Variable
from afnio.autodiff._variable import gradient as gradient_of

Buffer = list[Any]
"""Of the last updates `(value before, [gradients])`, oldest first."""


def remember(buffer: Buffer, before: Variable, gradients: Sequence[Variable], momentum: int) -> None:
    """Add one update to the window of the last `momentum` ones, in place."""
    if momentum > 0:
        buffer.append((before, [_lighter(gradient) for gradient in gradients]))
        del buffer[:-momentum]


def window(buffer: Sequence[Any], momentum: int) -> list[Any]:
    """Return the updates before this one, of a window in which this one counts."""
    return list(buffer)[-(momentum - 1) :] if momentum > 1 else []


def sampled(
    past: Sequence[Any], sizes: Sequence[int], count: int, decay: float, draw: random.Random
) -> list[Any]:
    """Return `count` of the past updates, oldest first.

    Args:
        sizes: how many gradients each received.
        decay: how much less an update weighs than the one after it, from 0 to 1.

    >>> sampled(["old", "bad", "new"], [1, 900, 1], 2, 0.9, random.Random(0))
    ['old', 'new']
    """
    keys = []
    for place, size in enumerate(sizes):
        age = len(past) - 1 - place
        weight = age * math.log(decay) if decay else (0.0 if age == 0 else -math.inf)
        gumbel = -math.log(-math.log(draw.random() or 5e-324))
        keys.append((weight - math.log1p(size) + gumbel, place))
    return [past[place] for _, place in sorted(heapq.nlargest(count, keys), key=lambda key: key[1])]


def _lighter(gradient: Variable) -> Variable:
    """Return a gradient without its samples' inputs, which no later step needs and every checkpoint would hold."""
    trail = gradient.provenance
    if not any(isinstance(entry, dict) and "inputs" in entry for entry in trail):
        return gradient
    role = gradient.role.removeprefix("feedback to ")
    return gradient_of(
        gradient.data, role, [{k: v for k, v in entry.items() if k != "inputs"} for entry in trail]
    )
