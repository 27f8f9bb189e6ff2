"""Sample keys: which samples of two runs are the same one, told by what they were made from."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from afnio.runtime.events import NodeLaunched
from afnio.tellurio.json_value import as_text

KEPT: Final = 200_000
"""Lanes that are remembered; the launches that need older ones have long been made."""

Leaves = frozenset[bytes]


class SampleKeys:
    """For each launch and lane the digests of the sample's own leaves: its inputs and its target.

    What a batch shares, such as a prompt, is no part of them; neither is a parameter. So the key of a
    sample is the same whatever the prompt is, and however many ops there are between.
    """

    def __init__(self) -> None:
        self._leaves: OrderedDict[str, list[Leaves]] = OrderedDict()
        self._kept = 0

    def add(self, event: NodeLaunched) -> None:
        """Remember what a launch was given."""
        if event.kind == "backward":
            return
        lanes: list[Leaves] = [frozenset()] * (1 if event.lanes is None else event.lanes)
        for entry in event.inputs:
            found: Sequence[Leaves] | None = None
            if entry.values is not None:
                found = [_leaf(value) for value in entry.values]
            elif entry.producer is not None:
                found = self._leaves.get(entry.producer)
            # One value for many lanes is shared by them.
            if found is not None and len(found) == len(lanes):
                lanes = [mine | theirs for mine, theirs in zip(lanes, found, strict=True)]
        self._leaves[event.address] = lanes
        self._kept += len(lanes)
        while self._kept > KEPT and len(self._leaves) > 1:
            self._kept -= len(self._leaves.popitem(last=False)[1])

    def key(self, node: str, lane: int | None) -> str | None:
        """The key of a launch's lane, None where it had no leaves of its own, or is long past."""
        lanes = self._leaves.get(node)
        leaves = None if lanes is None else lanes[lane or 0]
        return hashlib.blake2b(b"".join(sorted(leaves)), digest_size=8).hexdigest() if leaves else None


def _leaf(value: object) -> Leaves:
    if value is None:
        return frozenset()
    return frozenset((hashlib.blake2b(as_text(value).encode(), digest_size=8).digest(),))
