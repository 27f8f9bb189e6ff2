"""What the tests of models share."""

from __future__ import annotations

import pytest

from afnio.runtime import _retries


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off for milliseconds, so that all attempts are over at once."""
    monkeypatch.setattr(_retries, "BACKOFF_FIRST", 0.001)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
