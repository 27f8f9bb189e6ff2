from __future__ import annotations

import pytest
from hosts.network import is_possible


@pytest.fixture(scope="session")
def namespaces() -> None:
    if not is_possible():
        pytest.skip("needs root, for network namespaces")
