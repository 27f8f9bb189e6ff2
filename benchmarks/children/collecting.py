"""Collecting: what garbage collection takes, which grows with all that lives in the process."""

from __future__ import annotations

import gc
import time
from typing import Any, Self


class Collecting:
    """Sums the CPU seconds of the collections within its block, whatever thread they fall on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since = 0.0

    def __enter__(self) -> Self:
        gc.callbacks.append(self._note)
        return self

    def __exit__(self, *error: object) -> None:
        gc.callbacks.remove(self._note)

    def _note(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._since = time.thread_time()
        else:
            self.seconds += time.thread_time() - self._since
