"""OutputEstimate: a running 90th percentile for each purpose and model."""

from __future__ import annotations

import random

from afnio.runtime.output_estimate import DEFAULT_OUTPUT, KEPT, OutputEstimate


def test_ninetieth_percentile() -> None:
    """Nine of ten replies fit the reservation."""
    draw, estimate = random.Random(0), OutputEstimate()
    lengths = [int(draw.lognormvariate(5, 1)) for _ in range(KEPT)]
    for length in lengths:
        estimate.observe("forward", "m", length)
    fitting = sum(length <= estimate.tokens("forward", "m") for length in lengths)
    assert 0.9 <= fitting / KEPT <= 0.91


def test_purposes_and_models_are_apart() -> None:
    """A critic's long replies say nothing about a classifier's."""
    estimate = OutputEstimate()
    estimate.observe("backward", "m", 900)
    estimate.observe("forward", "m", 3)
    assert [900, 3, DEFAULT_OUTPUT] == [
        estimate.tokens(purpose, model)
        for purpose, model in (("backward", "m"), ("forward", "m"), ("forward", "n"))
    ]


def test_old_replies_are_forgotten() -> None:
    """The estimate follows a prompt that has changed."""
    estimate = OutputEstimate()
    for length in [1_000] * KEPT + [10] * KEPT:
        estimate.observe("forward", "m", length)
    assert 10 == estimate.tokens("forward", "m")
