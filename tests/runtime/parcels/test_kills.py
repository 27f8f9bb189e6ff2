"""A program that is killed anywhere finds its batches again: nothing is paid twice, and the books are right."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from runtime.parcels.programs import POINTS, end, leftovers, run, spent

from afnio.testing import Batches, Provider

QUICK = [
    ("openai", "1", "planned"),
    ("openai", "0", "accepted"),
    ("openai", "0", "read 3"),
    ("anthropic", "1", "accepted"),
]
ALL = [
    (api, temperature, point) for api in ("openai", "anthropic") for temperature in "10" for point in POINTS
]
CASES = [
    pytest.param(*case, marks=() if case in QUICK else pytest.mark.nightly)
    for case in ALL
    if case[0] == "openai" or case[2] != "upload"
]
COUNT = 60


@pytest.mark.parametrize(("api", "temperature", "point"), CASES)
def test_a_killed_program_pays_once(tmp_path: Path, api: str, temperature: str, point: str) -> None:
    """At every point, for equal calls that share a line (temperature 0 of a native client) and those that don't."""
    shares = api == "openai" and temperature == "0"
    with Provider.process(reply="yes", batches=Batches(seconds=0.3, validating=0.05)) as provider:
        killed, _ = run(tmp_path, provider.base_url, api, temperature, point, str(COUNT))
        again, said = run(tmp_path, provider.base_url, api, temperature, "", str(COUNT))
        paid = provider.stats()["batches"]
        third, _ = run(tmp_path, provider.base_url, api, temperature, "", str(COUNT))
        after = provider.stats()["batches"]
    lines = COUNT // 2 if shares else COUNT
    assert (killed, again, third) == (-9, 0, 0), said
    assert (
        paid["paid"] == after["paid"] == lines
    )  # each of the 30 requests once, or twice where they share nothing
    assert set(paid["paid_by_request"].values()) == {lines // (COUNT // 2)}
    assert paid["sizes"] == [lines]
    assert end(tmp_path)["replies"] == ["yes"] * COUNT
    # Our books are the provider's.
    assert spent(tmp_path) == (lines, paid["prompt_tokens"], paid["completion_tokens"])
    cents = 500 * paid["prompt_tokens"] + 1000 * paid["completion_tokens"]
    assert Decimal(end(tmp_path)["cost"]) == Decimal(cents) / 1_000_000
    assert leftovers(tmp_path) == []
