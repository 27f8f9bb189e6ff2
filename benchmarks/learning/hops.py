"""Hops: questions whose answer takes two facts, of which the first names what the second is about; all made up.

For a real model only: the simulated one has no rule for it. Each question comes with ten facts in any order. Two of
them answer it; the others are about other people, houses and years, so that one hop alone finds a plausible answer.
"""

from __future__ import annotations

import random

PEOPLE = (
    "Ada Brook",
    "Ben Carver",
    "Cleo Dunn",
    "Dev Ellis",
    "Eva Frost",
    "Finn Gale",
    "Gia Hart",
    "Hal Iles",
)
HOUSES = ("Elm House", "Cedar House", "Birch Court", "Maple Lodge", "Willow Hall", "Aspen Court")
MACHINES = ("boiler", "lift", "server room", "generator", "cold store", "printer")
START = {
    "find": "Say which fact helps to answer the question.",
    "answer": "Answer the question.",
}


def make_hops(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Return `count` questions, each with its facts and the answer.

    >>> question, facts, answer = make_hops(1, seed=0)[0]
    >>> answer in facts
    True
    """
    rng = random.Random(seed)
    return [_item(rng) for _ in range(count)]


def _item(rng: random.Random) -> tuple[str, str, str]:
    homes = dict(zip(rng.sample(MACHINES, 5), rng.sample(HOUSES, 5), strict=True))
    older, newer = rng.sample(PEOPLE, 5), rng.sample(PEOPLE, 5)
    machine = rng.choice(list(homes))
    facts = [f"The {one} stands in {house}." for one, house in homes.items()]
    keepers = {}
    for house, person, later in zip(homes.values(), older, newer, strict=True):
        keepers[house] = later
        facts.append(f"{house} was kept by {person} until 2019, and by {later} since.")
    rng.shuffle(facts)
    question = f"Who keeps the house with the {machine} today?"
    return question, "\n".join(facts), keepers[homes[machine]]
