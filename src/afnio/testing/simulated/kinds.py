"""Kinds: which everyday things are fruits, vegetables, animals or instruments, and how many are meant."""

from __future__ import annotations

import re
from typing import Final


def _listed(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NUMBERS: Final = _listed(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
)

KINDS: Final[dict[str, frozenset[str]]] = {
    "fruits": frozenset(
        _listed("""apple apricot banana blackberry blueberry cherry fig grape grapefruit kiwi lemon lime mango melon
        nectarine orange papaya peach pear pineapple plum raspberry strawberry""")
    ),
    "vegetables": frozenset(
        _listed("""artichoke asparagus broccoli cabbage carrot cauliflower celery cucumber garlic leek lettuce onion
        potato pumpkin radish spinach turnip yam zucchini""")
    ),
    "animals": frozenset(
        _listed("""bear bird cat chicken cow crocodile dog donkey duck fish frog goat goose hen horse lion mouse
        monkey parrot pig rabbit rat sheep snail snake spider tiger turkey""")
    ),
    "musical instruments": frozenset(
        _listed("""accordion bassoon cello clarinet drum flute guitar harmonica harp oboe piano saxophone trombone
        trumpet tuba violin viola""")
    ),
}


def quantity(part: str) -> int:
    """Return how many things a part of a list means.

    >>> quantity(" four stoves"), quantity("a bed")
    (4, 1)
    """
    words = re.findall(r"\w+", part.lower())
    return next((_NUMBERS.index(word) for word in words if word in _NUMBERS), 1)


def is_of_kind(part: str, kind: str) -> bool:
    """Return whether a part of a list names a thing of that kind; everything is an object.

    >>> is_of_kind("two blackberries", "fruits"), is_of_kind("a bed", "fruits"), is_of_kind("a bed", "objects")
    (True, False, True)
    """
    known = KINDS.get(kind)
    if known is None:
        return True
    return any(_singular(word) in known for word in re.findall(r"\w+", part.lower()))


def _singular(word: str) -> str:
    for ending, instead in (("ies", "y"), ("oes", "o"), ("ches", "ch"), ("shes", "sh"), ("s", "")):
        if word.endswith(ending):
            return word[: -len(ending)] + instead
    return {"mice": "mouse", "geese": "goose"}.get(word, word)
