"""Generators: the process's random generators, as plain data, so that a run goes on with them as they were."""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Mapping
from typing import Any


def seed_all(seed: int) -> None:
    """Seed Python's generator, and NumPy's if the program uses it."""
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)


def generators_state() -> dict[str, Any]:
    """Return where the generators stand.

    >>> state = generators_state()
    >>> first = random.random()
    >>> restore_generators(state)
    >>> first == random.random()
    True
    """
    version, words, gauss = random.getstate()
    state: dict[str, Any] = {"python": [version, array("I", words).tobytes().hex(), gauss]}
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        kind, keys, position, has_gauss, cached = numpy.random.get_state()
        state["numpy"] = [kind, keys.tobytes().hex(), int(position), int(has_gauss), float(cached)]
    return state


def restore_generators(state: Mapping[str, Any]) -> None:
    """Have the generators stand where `generators_state` found them."""
    if "python" in state:
        version, words, gauss = state["python"]
        random.setstate((version, tuple(array("I", bytes.fromhex(words))), gauss))
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy" in state:
        kind, keys, position, has_gauss, cached = state["numpy"]
        words = numpy.frombuffer(bytes.fromhex(keys), dtype=numpy.uint32)
        numpy.random.set_state((kind, words, position, has_gauss, cached))
