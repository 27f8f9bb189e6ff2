"""What the tests of the bridge share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from kit.endpoint import Endpoint


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back off for milliseconds, so that retries don't slow the tests down."""
    monkeypatch.setattr("afnio.runtime._call.BACKOFF_FIRST", 0.001)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    async with Endpoint() as found:
        yield found
