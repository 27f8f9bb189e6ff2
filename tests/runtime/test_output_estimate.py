"""OutputEstimate: a running 90th percentile for each purpose and model."""

from __future__ import annotations

import random
from typing import Any

import afnio
from afnio.runtime import current_runtime
from afnio.runtime._limits import DEFAULT_OUTPUT, KEPT, OutputEstimate
from afnio.runtime._replicas import admitter
from afnio.testing import ScriptedClient


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
    assert [
        estimate.tokens(purpose, model)
        for purpose, model in (("backward", "m"), ("forward", "m"), ("forward", "n"))
    ] == [900, 3, DEFAULT_OUTPUT]


def test_old_replies_are_forgotten() -> None:
    """The estimate follows a prompt that has changed."""
    estimate = OutputEstimate()
    for length in [1_000] * KEPT + [10] * KEPT:
        estimate.observe("forward", "m", length)
    assert estimate.tokens("forward", "m") == 10


def test_nodes_are_apart() -> None:
    """A drafter's long replies say nothing about a judge's; a node that is new is like the others."""
    estimate = OutputEstimate()
    for length in range(10):
        estimate.observe("forward", "m", 900 + length, site="draft")
        estimate.observe("forward", "m", 3, site="judge")
    sites = ("draft", "judge", "new")
    assert [estimate.tokens("forward", "m", site=site) for site in sites] == [908, 3, 908 - 1]


def test_calls_say_which_node_they_are_of() -> None:
    """By the line that launches them, which is the same in the next step."""
    client = ScriptedClient(lambda request: "word " * (200 if "long" in str(request.messages) else 1))

    def ask(text: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [afnio.Variable(text)]}]

    for _ in range(2):
        long = afnio.cognitive.functional.chat_completion(client, ask("long"), model="m")
        short = afnio.cognitive.functional.chat_completion(client, ask("short"), model="m")
    assert len(long.data) > len(short.data)
    seen = admitter(current_runtime(), client.account).output._seen
    lengths = {site[0].number: newest for (_, _, site), (newest, _) in seen.items() if site is not None}
    first, second = (list(lengths[number]) for number in sorted(lengths))
    assert (first, second) == ([250] * 2, [2] * 2)
