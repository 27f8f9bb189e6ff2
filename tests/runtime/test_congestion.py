"""The congestion: calls of a context that had to wait, and no others."""

from __future__ import annotations

import afnio
from afnio.runtime._admission import Congestion, congestion
from afnio.testing import ScriptedClient

ASK = {"messages": [{"role": "user", "content": "Hi"}], "model": "m"}


async def ask(client, count):
    for work in [client._launch(**ASK, completion_args={}) for _ in range(count)]:
        await work


def counted(client, count):
    counting = Congestion()
    token = congestion.set(counting)
    try:
        afnio.run(ask(client, count))
    finally:
        congestion.reset(token)
    return counting


def test_calls_that_find_no_room_are_counted():
    """Three of four wait where one may be in flight; nobody where there is room; others aren't counted."""
    tight = counted(ScriptedClient("x", latency=0.01, limits=afnio.Limits(max_in_flight=1)), 4)
    assert (4, 3, True) == (tight.calls, tight.waited, tight.high)
    wide = counted(ScriptedClient("x"), 4)
    afnio.run(ask(ScriptedClient("x"), 4))
    assert (4, 0, False) == (wide.calls, wide.waited, wide.high)
    assert not Congestion().high


def test_replayed_calls_count_as_waiting(tmp_path):
    """Nothing is won by making calls ahead of them."""
    for replayed in (False, True):
        with afnio.journal(tmp_path / "calls.journal"):
            assert replayed == counted(ScriptedClient("x"), 4).high
