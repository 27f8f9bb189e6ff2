"""What the tests of models share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off for milliseconds, so that retries don't slow the tests down."""
    monkeypatch.setattr("afnio.runtime._call.BACKOFF_FIRST", 0.001)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
