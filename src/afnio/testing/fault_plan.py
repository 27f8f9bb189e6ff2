"""FaultPlan: how often which faults happen, fixed for each attempt of each request."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Final, Self, final

from afnio.testing.draw import draw
from afnio.testing.fault_kind import GROUPS, KINDS, FaultKind

_SLACK: Final = 1e-9
"""What a sum of shares may exceed one by: floats add up no better."""


@final
class FaultPlan:
    """Draws a fault, or none, for each attempt of each request by a hash of the two.

    So a request meets the same fate on the same attempt, whatever arrives before it.

    Args:
        shares: the probability of each kind; a group, `transient`, `silent`, `final` or `odd`, shares
            its probability out evenly among its kinds.
        in_a_row: at most so many faults one after the other for one request; None sets no bound.
        retry_after: seconds that a 429 asks to wait.
        drip: seconds that a dripping reply takes.

    >>> plan = FaultPlan({"reset": 0.05, "transient": 0.15}, in_a_row=3)
    >>> round(plan.shares["reset"], 2)
    0.06
    """

    def __init__(
        self,
        shares: Mapping[str, float],
        *,
        in_a_row: int | None = None,
        retry_after: float = 0.1,
        drip: float = 1.0,
    ) -> None:
        if in_a_row is not None and in_a_row < 1:
            raise ValueError(f"in_a_row [{in_a_row}] is below 1; raise it, or give no faults.")
        if retry_after < 0 or drip < 0:
            raise ValueError(f"retry_after [{retry_after}] and drip [{drip}] are seconds; give none below 0.")
        self.shares: Mapping[str, float] = _spread(shares)
        self.in_a_row = in_a_row
        self.retry_after = retry_after
        self.drip = drip
        self._total = sum(self.shares.values())
        self._bounds = list(zip(accumulate(self.shares.values()), self.shares, strict=True))

    @classmethod
    def of(cls, given: str | Mapping[str, float] | FaultPlan | None) -> FaultPlan | None:
        """Return a plan that is given as a text for `parse`, as shares, or as itself."""
        if given is None or isinstance(given, FaultPlan):
            return given
        return cls.parse(given) if isinstance(given, str) else cls(given)

    @classmethod
    def parse(cls, text: str, **options: Any) -> Self:
        """Return the plan that a text such as `reset:0.05,html:0.05` names; options as of the class."""
        shares: dict[str, float] = {}
        for entry in text.split(","):
            name, _, share = entry.strip().partition(":")
            try:
                shares[name] = shares.get(name, 0.0) + float(share)
            except ValueError:
                raise ValueError(f"The fault [{entry}] has no probability; write it as reset:0.05.") from None
        return cls(shares, **options)

    def __str__(self) -> str:
        return ",".join(f"{name}:{share!r}" for name, share in self.shares.items())

    def fate(self, seed: int, request: str, attempt: int) -> FaultKind | None:
        """Return what goes wrong with one attempt of the request with that digest."""
        kind = self._drawn(seed, request, attempt)
        if kind is None or self.in_a_row is None:
            return kind
        # Of a run of draws that are faults every (in_a_row + 1)-th is let off. Looked up anew each
        # time, so that nothing needs to be kept for a request.
        start = attempt - 1
        while start > 0 and (self._total >= 1 or self._drawn(seed, request, start) is not None):
            start = 0 if self._total >= 1 else start - 1
        return kind if (attempt - start) % (self.in_a_row + 1) else None

    def _drawn(self, seed: int, request: str, attempt: int) -> FaultKind | None:
        share = draw(seed, "fault", request, attempt)
        if share >= self._total:
            return None
        for bound, name in self._bounds:
            if share < bound:
                return KINDS[name]
        return None


def _spread(shares: Mapping[str, float]) -> dict[str, float]:
    spread: dict[str, float] = {}
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"The fault [{name}] has the probability [{share}]; give one from 0 to 1.")
        if name not in GROUPS and name not in KINDS:
            raise ValueError(f"The fault [{name}] is unknown; take some of {[*GROUPS, *KINDS]}.")
        kinds = GROUPS.get(name, (name,))
        for kind in kinds:
            spread[kind] = spread.get(kind, 0.0) + share / len(kinds)
    if sum(spread.values()) > 1 + _SLACK:
        raise ValueError(f"The faults add up to [{sum(spread.values()):g}]; keep them to 1 together.")
    return spread
