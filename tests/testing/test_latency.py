"""Latencies belong to a request and its attempt, and have the shape that was asked for."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnio.testing import Latency
from afnio.testing.provider import request_digest

REQUESTS = [request_digest(b"%d" % number) for number in range(4000)]
positive = st.floats(1e-6, 1e6)


def sample(latency: Latency, seed: int = 7, attempt: int = 1) -> list[float]:
    return [latency.seconds(seed, request, attempt) for request in REQUESTS]


def test_a_constant_is_the_same_for_all():
    """No draw at all."""
    assert set(sample(Latency.constant(0.2))) == {0.2}


def test_a_lognormal_has_its_median_and_sigma():
    """By their logarithms, which are normal."""
    logs = [math.log(seconds) for seconds in sample(Latency.lognormal(0.2, 1.0))]
    assert statistics.median(logs) == pytest.approx(math.log(0.2), abs=0.08)
    assert statistics.stdev(logs) == pytest.approx(1.0, abs=0.05)


def test_a_pareto_has_a_floor_a_ceiling_and_its_tail():
    """With alpha 1 a share of 1/x takes x times the floor or longer."""
    found = sample(Latency.pareto(0.1, 1.0, 50.0))
    assert 0.1 <= min(found) < 0.101
    assert max(found) == 50.0
    assert sum(seconds >= 1.0 for seconds in found) / len(found) == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize("shape", ["lognormal:0.2,1.0", "pareto:0.1,1.5"])
def test_seed_request_and_attempt_each_change_it(shape):
    """And nothing else does."""
    latency = Latency.parse(shape)
    assert sample(latency) == sample(Latency.parse(shape))
    drawn = [sample(latency), sample(latency, seed=8), sample(latency, attempt=2)]
    assert len({tuple(numbers) for numbers in drawn}) == 3
    assert len(set(drawn[0])) > 3900


@pytest.mark.parametrize("text", ["lognormal:1,1000", "pareto:1,1e-300,5", "lognormal:0,1", "pareto:1,1e300"])
def test_extreme_shapes_stay_numbers(text):
    """Also where the exact one is more than a float can hold."""
    found = sample(Latency.parse(text))
    assert all(math.isfinite(seconds) and seconds >= 0 for seconds in found)


@given(st.integers(), st.binary(), st.integers(1))
def test_every_draw_gives_a_number(seed, body, attempt):
    """A draw of exactly 0 or 1 would have no logarithm and no normal quantile."""
    for shape in ("lognormal:1,1", "pareto:1,1,1e9"):
        seconds = Latency.parse(shape).seconds(seed, request_digest(body), attempt)
        assert math.isfinite(seconds)
        assert seconds > 0


@given(
    st.one_of(
        st.builds(Latency.constant, st.floats(0, 1e6)),
        st.builds(Latency.lognormal, positive, st.floats(0, 10)),
        st.builds(Latency.pareto, positive, positive, positive),
    )
)
def test_its_text_names_it(latency):
    """So that it can be handed to another process."""
    assert Latency.parse(str(latency)) == latency == Latency.of(latency)


def test_seconds_alone_are_a_constant():
    """As a number or as text."""
    assert Latency.of(0.5) == Latency.of("0.5") == Latency.parse("constant:0.5")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uniform:1,2", "shape must be one of"),
        ("0.2,1", "must have 1 numbers"),
        ("lognormal:0.2", "must have 2 numbers"),
        ("lognormal:fast,1", "must be a number, or"),
        ("-1", "must be finite and positive"),
        ("nan", "must be finite and positive"),
        ("pareto:0.1,0", "must be finite and positive"),
        ("", "must be a number, or"),
    ],
)
def test_what_is_no_latency_is_refused(text, said):
    """With the text in the sentence."""
    with pytest.raises(ValueError, match=said) as refused:
        Latency.parse(text)
    assert text.rpartition(":")[2].partition(",")[0] in str(refused.value)
