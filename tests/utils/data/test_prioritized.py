"""PrioritizedSampler: what went wrong comes again, repeatably, and resumes exactly."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from afnio.utils.data import BatchSampler, DataLoader, PrioritizedSampler


def test_without_scores_all_are_drawn_alike():
    """Every sample counts as wrong until it is known."""
    sampler = PrioritizedSampler(range(10), num_samples=5000, seed=1)
    counts = Counter(sampler)
    assert 10 == len(counts)
    assert all(400 < count < 600 for count in counts.values())


@pytest.mark.parametrize(
    ("alpha", "floor", "ratio"), [(1.0, 0.1, 11.0), (0.5, 0.1, 11**0.5), (0.0, 0.1, 1.0)]
)
def test_hard_samples_come_more_often(alpha, floor, ratio):
    """In the ratio of their errors to the power of alpha."""
    sampler = PrioritizedSampler(range(2), num_samples=40_000, alpha=alpha, floor=floor, seed=1)
    sampler.update([1.0, 0.0], indices=[0, 1])
    counts = Counter(sampler)
    assert ratio == pytest.approx(counts[1] / counts[0], rel=0.1)


def test_scores_belong_to_samples_in_the_order_in_which_they_were_handed_out():
    """Batch by batch; a failed one changes nothing."""
    loader = DataLoader(range(6), sampler=PrioritizedSampler(range(6), seed=2), batch_size=2)
    seen = {}
    for batch in loader:
        scores = [index / 10 for index in batch]
        loader.sampler.update(scores)
        seen.update(zip(batch, scores, strict=True))
    assert [seen.get(index, 0.0) for index in range(6)] == loader.sampler.scores
    before = list(loader.sampler.scores)
    loader.sampler.update([None, None], indices=[0, 1])
    assert before == loader.sampler.scores


def run(loader, batches, score):
    """Go through the loader and return what it handed out."""
    seen = []
    while len(seen) < batches:
        for batch in loader:
            seen.append(list(batch))
            loader.sampler.update([score(index) for index in batch])
            if len(seen) == batches:
                break
        else:
            continue
        break
    return seen


def made(seed):
    return DataLoader(range(9), sampler=PrioritizedSampler(range(9), floor=0.01, seed=seed), batch_size=2)


@pytest.mark.parametrize("stop", [1, 4, 5, 7, 12])
def test_a_run_resumes_exactly(stop):
    """Also in the middle of an epoch, whose scores count in the next one; the state is JSON."""

    def score(index):
        return float(index % 3 > 0)

    whole = run(made(7), 17, score)
    first = made(7)
    iterator, seen = iter(first), []
    while len(seen) < stop:
        batch = next(iterator, None)
        if batch is None:
            iterator = iter(first)
            continue
        seen.append(list(batch))
        first.sampler.update([score(index) for index in batch])
    again = made(None)
    again.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert whole == seen + run(again, 17 - stop, score)
    assert whole != run(made(7), 17, lambda index: 0.0)


def test_a_batch_sampler_hands_on_what_was_learned():
    """The loader's state in the middle of an epoch has the scores, whoever makes the batches."""

    def loader():
        return DataLoader(range(6), batch_sampler=BatchSampler(PrioritizedSampler(range(6), seed=1), 2))

    first, again = loader(), loader()
    batch = next(iter(first))
    first.batch_sampler.sampler.update([1.0] * len(batch))
    again.load_state_dict(first.state_dict())
    assert first.batch_sampler.sampler.scores == again.batch_sampler.sampler.scores
    assert sum(again.batch_sampler.sampler.scores) > 0


def test_the_sampler_alone_resumes_too():
    """Without a loader, between two samples and between two epochs."""
    sampler = PrioritizedSampler(range(5), seed=3)
    iterator = iter(sampler)
    taken = [next(iterator) for _ in range(3)]
    sampler.update([1.0, 0.5, 0.0])
    other = PrioritizedSampler(range(5))
    other.load_state_dict(sampler.state_dict())
    assert list(iterator) == list(other)
    assert 3 == len(taken)
    assert list(sampler) == list(other)


def test_without_a_seed_one_is_drawn(monkeypatch):
    """By the operating system, outside a run; the state has it."""
    monkeypatch.setattr(random.SystemRandom, "getrandbits", lambda self, bits: 5)
    drawn = list(PrioritizedSampler(range(20)))
    assert list(PrioritizedSampler(range(20), seed=5)) == drawn


def test_all_right_and_empty():
    """With nothing to replay all are drawn alike; of nothing, nothing."""
    sampler = PrioritizedSampler(range(3), num_samples=60, floor=0.0, seed=0)
    sampler.update([1.0] * 3, indices=[0, 1, 2])
    assert 3 == len(Counter(sampler))
    assert [] == list(PrioritizedSampler([]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: PrioritizedSampler("ab", num_samples=0), r"num_samples must .*got 0"),
        (lambda: PrioritizedSampler("ab", alpha=2), r"alpha must .*got 2"),
        (lambda: PrioritizedSampler("ab", floor=-1), r"floor must .*got -1"),
        (lambda: PrioritizedSampler("ab").update([1.0]), r"each of the 0 samples .*got 1"),
        (lambda: PrioritizedSampler("ab").update(["x"], indices=[0]), r"a score must .*got 'x'"),
        (
            lambda: PrioritizedSampler("ab").load_state_dict(PrioritizedSampler("abc").state_dict()),
            r"must have 2 scores.*got 3",
        ),
    ],
)
def test_what_cannot_work_is_refused(make, words):
    """With the value and the fix."""
    with pytest.raises(ValueError, match=words):
        make()
