"""What a user sets to run an example against a server of theirs."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from afnio.testing import Provider


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    with Provider.process(latency=0.02) as provider:
        yield {**os.environ, "OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "sk-test"}
