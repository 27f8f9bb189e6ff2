"""How much memory the test process has used."""

from __future__ import annotations

import resource
import sys


def peak() -> int:
    """Return the most that it had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
