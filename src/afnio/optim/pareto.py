"""Pool: candidates with their scores on every validation sample, and those that are best on some.

Source: Agrawal et al., "GEPA: Reflective Prompt Evolution Can Outperform Reinforcement Learning",
arXiv:2507.19457, algorithm 2.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final


@final
@dataclass(frozen=True, slots=True)
class Member:
    """A candidate in the pool.

    Attributes:
        number: unique within the optimizer.
        parents: the members that it was made from; none for a start.
        values: one for each parameter.
        scores: one for each validation sample, None where it failed.
    """

    number: int
    parents: tuple[int, ...]
    values: tuple[Any, ...]
    scores: tuple[float | None, ...]

    @property
    def mean(self) -> float:
        """Over the samples that didn't fail."""
        present = [score for score in self.scores if score is not None]
        return math.fsum(present) / len(present) if present else -math.inf


@final
class Pool:
    """All candidates that made it through validation, oldest first.

    >>> pool = Pool()
    >>> pool.add(Member(0, (), ("a",), (1.0, 0.0, 0.0)))
    >>> pool.add(Member(1, (0,), ("b",), (0.0, 1.0, 1.0)))
    >>> pool.add(Member(2, (0,), ("c",), (0.0, 0.0, 1.0)))
    >>> pool.front, pool.best.number
    ({0: 1, 1: 2}, 1)
    """

    def __init__(self) -> None:
        self.members: list[Member] = []

    def add(self, member: Member) -> None:
        self.members.append(member)

    def find(self, values: Sequence[Any]) -> Member | None:
        """Return the member with these values."""
        return next((member for member in self.members if member.values == tuple(values)), None)

    def __getitem__(self, number: int) -> Member:
        return next(member for member in self.members if member.number == number)

    @property
    def best(self) -> Member:
        """The member with the highest mean, the oldest of equals."""
        return max(self.members, key=lambda member: (member.mean, -member.number))

    @property
    def front(self) -> dict[int, int]:
        """For the members that no others make superfluous, on how many samples each is among the best.

        A member is superfluous if on each sample on which it is among the best another one is too that is not
        superfluous itself; members with low means are tried first.
        """
        leaders = self._leaders()
        kept = dict.fromkeys(member.number for member in self.members)
        for member in sorted(self.members, key=lambda m: (m.mean, -m.number)):
            mine = [found for found in leaders if member.number in found]
            if all(any(other in kept for other in found if other != member.number) for found in mine):
                del kept[member.number]
        if not kept:  # no validation sample has a score of anybody
            kept = {self.best.number: None}
        return {number: sum(number in found for found in leaders) for number in kept}

    def _leaders(self) -> list[list[int]]:
        """Return for each sample who is best on it."""
        leaders: list[list[int]] = []
        for sample in range(len(self.members[0].scores)):
            scores = [(m.number, score) for m in self.members if (score := m.scores[sample]) is not None]
            top = max((score for _, score in scores), default=0.0)
            leaders.append([number for number, score in scores if score == top])
        return [found for found in leaders if found]

    def parent(self, draw: random.Random) -> Member:
        """Draw a member of the front, in proportion to the samples on which it is among the best."""
        front = self.front
        numbers = list(front)
        return self[draw.choices(numbers, [front[number] or 1 for number in numbers])[0]]

    def ancestors(self, number: int) -> list[int]:
        """Return a member's parents and theirs, oldest first."""
        found: dict[int, None] = {}
        ahead = list(self[number].parents)
        while ahead:
            ancestor = ahead.pop()
            if ancestor not in found:
                found[ancestor] = None
                ahead += self[ancestor].parents
        return sorted(found)

    def state_dict(self) -> list[dict[str, Any]]:
        """Return all members as JSON could hold them."""
        return [
            {
                "number": m.number,
                "parents": list(m.parents),
                "values": list(m.values),
                "scores": list(m.scores),
            }
            for m in self.members
        ]

    def load_state_dict(self, state: Sequence[Mapping[str, Any]]) -> None:
        self.members = [
            Member(m["number"], tuple(m["parents"]), tuple(m["values"]), tuple(m["scores"])) for m in state
        ]
