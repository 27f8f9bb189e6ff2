"""Notes: questions about houses, and a heap of notes of which some answer them; all made up.

An answer takes three steps: retrieve the notes on the topic, go by the most recent, and say "unknown"
where no note answers. Each is told by the prompt of one step, and in each variant one prompt doesn't.
"""

from __future__ import annotations

import random

PLACES = ("Elm House", "Cedar House", "Birch Court", "Maple Lodge", "Willow Hall", "Aspen Court")
TOPICS = ("opening time", "phone extension", "alarm code", "number of lifts", "floor area", "boiler model")

UNTOLD = {
    "retrieve": "List the notes that help to answer the question.",
    "draft": "Answer the question from the retrieved notes.",
    "judge": "Judge the draft and give the final answer.",
}
PROMPTS = {
    "retrieve": f"{UNTOLD['retrieve']} Take only notes whose topic matches the question as well as the place.",
    "draft": f"{UNTOLD['draft']} Go by the most recent note where several answer.",
    "judge": f'{UNTOLD["judge"]} Say "unknown" where no retrieved note answers the question.',
}


def make_notes(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Return `count` questions, each with its notes and the answer.

    >>> make_notes(1, seed=0)[0][0].startswith("What is the ")
    True
    """
    rng = random.Random(seed)
    return [_item(rng) for _ in range(count)]


def _item(rng: random.Random) -> tuple[str, str, str]:
    place, topic = rng.choice(PLACES), rng.choice(TOPICS)
    question = f"What is the {topic} of {place}?"
    others = [other for other in TOPICS if other != topic]
    facts = [(place, other, rng.randint(2015, 2024)) for other in rng.sample(others, 2)]
    facts += [(rng.choice([p for p in PLACES if p != place]), topic, rng.randint(2015, 2024))]
    kind = rng.choice(("one", "two", "two", "none"))
    years = sorted(rng.sample(range(2015, 2025), {"one": 1, "two": 2, "none": 0}[kind]))
    facts += [(place, topic, year) for year in years]
    rng.shuffle(facts)
    lines, answer = [], "unknown"
    for number, (where, what, year) in enumerate(facts, start=1):
        value = str(rng.randint(100, 9999))
        lines.append(f"[{number}] {where}, {what}, {year}: {value}")
        if (where, what) == (place, topic) and year == years[-1]:
            answer = value
    return question, "\n".join(lines), answer
