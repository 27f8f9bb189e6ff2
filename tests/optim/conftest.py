"""What the tests of optimizers share."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import afnio
import afnio.cognitive as cog


@pytest.fixture
def learned() -> Callable[..., cog.Parameter]:
    """Make a Parameter that has gathered feedback."""

    def make(text: str = "old", *feedback: str, role: str = "prompt") -> cog.Parameter:
        parameter = cog.Parameter(text, role=role)
        for entry in feedback or ("be brief",):
            parameter.append_grad(afnio.Variable(entry, role=f"feedback to {role}"))
        return parameter

    return make
