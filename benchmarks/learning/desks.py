"""Desks: messages about made-up parts, each for one of several desks; two harder tasks.

Both are made by the same rules from a seed:

* Each desk has some part names of its own, and all share forty names that mean nothing. A message mentions two names of
  its desk and four that mean nothing, in any order. Three messages in ten also mention a name of another desk.
* `many labels`: sixteen desks with five names each. The names alone are longer than a prompt of 1,000 characters, so it
  must be chosen which of them are worth their room.
* `conflict`: four desks with eight names each. In training and validation 30 % of the expected answers name another
  desk, drawn for each message. Those of the test are right. So a method must not believe every sample.

The untrained student answers with the first desk. No lexicon has these names, so the simulated critic claims long words
of the message, of which a third tells the desk.
"""

from __future__ import annotations

import random

DESKS = (
    "accounts",
    "archive",
    "canteen",
    "cellar",
    "cleaning",
    "fleet",
    "garden",
    "heating",
    "keys",
    "legal",
    "lifts",
    "mail",
    "parking",
    "roof",
    "security",
    "stores",
)
_STARTS = (
    "bal",
    "cor",
    "del",
    "fen",
    "gar",
    "hol",
    "jun",
    "kel",
    "lum",
    "mor",
    "nev",
    "pol",
    "ras",
    "tal",
    "vor",
)
_MIDDLES = ("a", "e", "i", "o", "u", "ami", "eri", "olu")
_ENDS = ("ndex", "rtal", "ston", "vick", "lder", "mbot", "sker", "nium")
_FRAMES = (
    "We ask about {} and {}, then {} and {}, also {} and {}.",
    "The {} by the {} is due, as is {}; see {}, {} and {}.",
    "Can you get {} and {} to us? Not {}, {}, {} or {}.",
)
_SHARED, _OTHERS, _MISLEADS = 40, 4, 0.3


def make_desks(
    count: int, seed: int, desks: int, names: int, wrong: float = 0.0, right_from: int = 0
) -> list[tuple[str, str]]:
    """Return `count` messages, each with its desk.

    Args:
        desks: how many desks there are.
        names: how many part names each of them has.
        wrong: the share of expected answers that name another desk.
        right_from: from this message on every answer is right.

    >>> message, desk = make_desks(1, seed=0, desks=4, names=8)[0]
    >>> desk in DESKS
    True
    """
    rng = random.Random(seed)
    parts = [start + middle + end for start in _STARTS for middle in _MIDDLES for end in _ENDS]
    drawn = rng.sample(parts, desks * names + _SHARED)
    own = {desk: drawn[n * names : (n + 1) * names] for n, desk in enumerate(DESKS[:desks])}
    shared = drawn[desks * names :]
    made = []
    for number in range(count):
        desk = rng.choice(DESKS[:desks])
        said = rng.sample(own[desk], 2) + rng.sample(shared, _OTHERS)
        other = rng.choice([name for name in own if name != desk])
        if rng.random() < _MISLEADS:
            said[-1] = rng.choice(own[other])
        rng.shuffle(said)
        message = rng.choice(_FRAMES).format(*said)
        made.append((message, other if number < right_from and rng.random() < wrong else desk))
    return made
