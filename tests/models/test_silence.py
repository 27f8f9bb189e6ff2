"""Silence: when an account that sends no reply is told of, by virtual time."""

from __future__ import annotations

import anyio
import pytest

from afnio.errors import TransientModelError
from afnio.models._transport import Silence

URL = "http://host/v1"


async def attempt(watch: Silence, seconds: float, *, fails: bool = False) -> None:
    with watch:
        await anyio.sleep(seconds)
        if fails:
            raise TransientModelError("reset")


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage().partition(", the last")[0] for record in caplog.records]


@pytest.mark.looptime
async def test_told_once_until_a_reply(caplog: pytest.LogCaptureFixture) -> None:
    """After 30 s, for all calls; attempts that run out of time end no silence."""
    watch = Silence(URL)
    for _ in range(3):
        with anyio.move_on_after(600):
            async with anyio.create_task_group() as tasks:
                for _ in range(5):
                    tasks.start_soon(attempt, watch, 700)
    assert told(caplog) == [f"{URL} has sent no reply for 30 s (calls waiting: 5"]


@pytest.mark.looptime
async def test_a_slow_model_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """Its next calls are given twice the time that its reply took, then it is told again."""
    watch = Silence(URL)
    for _ in range(5):
        await attempt(watch, 45)
    assert told(caplog) == [f"{URL} has sent no reply for 30 s (calls waiting: 1"]
    await attempt(watch, 100)
    assert told(caplog)[1] == f"{URL} has sent no reply for 90 s (calls waiting: 1"
    await attempt(watch, 9000)
    await attempt(watch, 9000)
    assert told(caplog)[3] == f"{URL} has sent no reply for 600 s (calls waiting: 1"


@pytest.mark.looptime
@pytest.mark.parametrize("fails", [False, True])
async def test_an_account_that_answers_is_told_nothing(caplog: pytest.LogCaptureFixture, fails: bool) -> None:
    """However long it is busy, and if a call hangs among others; an error is an answer, too."""
    watch = Silence(URL)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(attempt, watch, 900)
        for _ in range(40):
            try:
                await attempt(watch, 20, fails=fails)
            except TransientModelError:
                continue
        tasks.cancel_scope.cancel()
    assert told(caplog) == []


@pytest.mark.looptime
async def test_an_idle_account_is_told_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """The time without calls is no silence."""
    watch = Silence(URL)
    for _ in range(3):
        await attempt(watch, 20)
        await anyio.sleep(1000)
    assert told(caplog) == []
