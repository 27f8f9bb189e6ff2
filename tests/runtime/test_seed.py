"""Seeds for samplers that were given none."""

from __future__ import annotations

from afnio.runtime._settings import draw_seed, seed_source
from afnio.utils.data import RandomSampler


def test_seeds_come_from_the_operating_system_by_default() -> None:
    """Two seeds differ and are not negative."""
    first, second = draw_seed(), draw_seed()
    assert first != second
    assert min(first, second) >= 0


def test_a_context_can_bring_its_own_source() -> None:
    """A sampler without a seed takes it from the context's source, at its first iteration."""
    sampler = RandomSampler(range(50))
    with seed_source.override(lambda name: 7):
        epoch = list(sampler)
    assert epoch == list(RandomSampler(range(50), seed=7))
    assert seed_source.get() is None
