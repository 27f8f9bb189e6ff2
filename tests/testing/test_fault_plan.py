"""A plan gives the same attempt of the same request the same fate, as often as its shares say."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afnio.testing import FaultPlan
from afnio.testing.provider import request_digest

TRANSIENT, SILENT, FINAL, ODD = (FaultPlan.GROUPS[name] for name in ("transient", "silent", "final", "odd"))
REQUESTS = [request_digest(b"%d" % number) for number in range(10_000)]


def names(plan: FaultPlan, request: str, attempts: int, seed: int = 7) -> list[str | None]:
    kinds = [plan.fate(seed, request, attempt) for attempt in range(1, attempts + 1)]
    return [None if kind is None else kind.name for kind in kinds]


def longest_run(fates: list[str | None]) -> int:
    runs = "".join("." if fate is None else "x" for fate in fates).split(".")
    return max(map(len, runs))


def test_kinds_come_as_often_as_their_shares_say():
    """Within four standard deviations, at 10,000 requests."""
    plan = FaultPlan({"reset": 0.05, "html": 0.2, "length": 0.01})
    found = Counter(kind.name for request in REQUESTS if (kind := plan.fate(7, request, 1)))
    assert set(found) == {"reset", "html", "length"}
    for name, share in plan.shares.items():
        assert found[name] / 10_000 == pytest.approx(share, abs=4 * (share / 10_000) ** 0.5)


def test_a_group_shares_out_its_probability():
    """And adds to what a kind has of its own."""
    plan = FaultPlan({"final": 0.2, "length": 0.1})
    assert plan.shares["content-filter"] == pytest.approx(0.2 / len(FINAL))
    assert plan.shares["length"] == pytest.approx(0.1 + 0.2 / len(FINAL))
    assert sum(plan.shares.values()) == pytest.approx(0.3)


def test_every_kind_is_in_one_group():
    """A share of each group is a share of every kind, once."""
    kinds = [*TRANSIENT, *SILENT, *FINAL, *ODD]
    assert len(kinds) == len(set(kinds))
    assert FaultPlan.GROUPS.keys() == {"transient", "silent", "final", "odd"}
    assert FaultPlan(dict.fromkeys(FaultPlan.GROUPS, 0.25)).shares.keys() == set(kinds)


def test_transient_faults_are_known_soon():
    """None of them waits for the client's deadline, which may be ten minutes."""
    assert SILENT == ("hang",)
    assert not {*FaultPlan({"transient": 1.0}).shares} & {*SILENT}


def test_all_shares_together_leave_nothing_whole():
    """At 1 every attempt goes wrong."""
    assert None not in names(FaultPlan({"transient": 1.0}), REQUESTS[0], 300)
    assert set(names(FaultPlan({}), REQUESTS[0], 300)) == {None}


@given(st.integers(), st.binary(), st.sampled_from([0.2, 0.6, 0.95, 1.0]), st.integers(1, 4))
def test_at_most_so_many_in_a_row(seed, body, share, most):
    """What is let off is let off because of its row, and nothing else is touched."""
    request = request_digest(body)
    free = names(FaultPlan({"transient": share}), request, 40, seed)
    bound = names(FaultPlan({"transient": share}, in_a_row=most), request, 40, seed)
    assert longest_run(bound) <= most
    for attempt, (was, now) in enumerate(zip(free, bound, strict=True)):
        if now != was:
            assert now is None
            assert None not in bound[attempt - most : attempt]


@given(st.data(), st.sampled_from([None, 2]))
def test_no_order_of_arrival_changes_a_fate(data, most):
    """Nothing is kept between requests."""
    asked = [(request, attempt) for request in REQUESTS[:6] for attempt in (1, 2, 3)]
    plan = FaultPlan({"transient": 0.5}, in_a_row=most)
    expected = {pair: plan.fate(7, *pair) for pair in asked}
    shuffled = data.draw(st.permutations(asked))
    assert {pair: plan.fate(7, *pair) for pair in shuffled} == expected


def test_the_seed_changes_fates():
    """Another seed, another run."""
    plan = FaultPlan({"transient": 0.5})
    assert names(plan, REQUESTS[0], 50, seed=1) != names(plan, REQUESTS[0], 50, seed=2)


def test_its_text_names_it():
    """So that it can be handed to another process."""
    plan = FaultPlan.parse("reset:0.05, transient:0.2,reset:0.01", in_a_row=2, drip=3.0)
    again = FaultPlan.parse(str(plan))
    assert again.shares == plan.shares
    assert plan.shares["reset"] == pytest.approx(0.06 + 0.2 / len(TRANSIENT))
    assert FaultPlan.of(plan) is plan
    assert FaultPlan.of(None) is None
    assert FaultPlan.of("reset:0.1").shares == FaultPlan.of({"reset": 0.1}).shares


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FaultPlan.parse("reset"), r"must have a probability.*got 'reset'"),
        (lambda: FaultPlan.parse(""), r"must have a probability.*got ''"),
        (lambda: FaultPlan.parse("resett:0.1"), r"must be one of .*got 'resett'"),
        (lambda: FaultPlan({"reset": 1.1}), r"got 1.1"),
        (lambda: FaultPlan({"reset": float("nan")}), r"got nan"),
        (lambda: FaultPlan({"reset": 0.6, "html": 0.6}), r"add up to at most 1 \(got 1.2"),
        (lambda: FaultPlan({}, in_a_row=0), r"in_a_row must .*got 0"),
        (lambda: FaultPlan({}, drip=-1), r"drip must .*and -1"),
    ],
)
def test_what_is_no_plan_is_refused(make, said):
    """With the value in the sentence."""
    with pytest.raises(ValueError, match=said):
        make()
