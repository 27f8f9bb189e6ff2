"""How many samples may fail."""

from __future__ import annotations

from fractions import Fraction

import pytest

import afnio
import afnio.cognitive as cog
from afnio.errors import BatchError, FinalModelError
from afnio.runtime._callables import quorum_holds
from afnio.testing import ScriptedClient


def test_a_quorum_that_is_met_exactly_holds() -> None:
    """For every whole percentage of a hundred, whatever its product with floats is; one less doesn't."""
    for percent in range(1, 101):
        assert quorum_holds(percent, 100, percent / 100)
        assert not quorum_holds(percent - 1, 100, percent / 100)
    for share in (0.9, 0.95, 0.99, 1 / 3):
        for present in range(1, 1000):
            least = -(-Fraction(share).limit_denominator(1000) * present // 1)
            assert quorum_holds(int(least), present, share)
            assert not quorum_holds(int(least) - 1, present, share)


@pytest.mark.parametrize("failing", [45, 46])
def test_a_batch_is_read_at_its_quorum(failing: int) -> None:
    """55 of 100 samples are 55 %, though 0.55 * 100 is more than 55 in floats; 54 are too few."""

    def reply(request):
        number = int(request.messages[0]["content"])
        return FinalModelError("no") if number < failing else "yes"

    messages = [{"role": "user", "content": [afnio.Variable("{n}", role="number")]}]
    with afnio.tolerate(quorum=0.55):
        inputs = {"n": [str(number) for number in range(100)]}
        pred = cog.functional.chat_completion(ScriptedClient(reply), messages, inputs, model="m")
        if failing == 45:
            assert pred.data.count("yes") == 55
        else:
            with pytest.raises(BatchError, match="46 of 100 samples"):
                pred.data
