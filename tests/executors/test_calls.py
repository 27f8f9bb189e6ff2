"""Language model calls that lanes make in workers: they go through the driver, and nothing is paid twice."""

from __future__ import annotations

import copy
import functools
import multiprocessing
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import anyio
import kit
import pytest
from kit import errands
from kit.endpoint import Endpoint

import afnio
from afnio.errors import BatchError
from afnio.runtime.events import CallEnded
from afnio.testing import ScriptedClient

WORKERS = functools.partial(ProcessPoolExecutor, 2, mp_context=multiprocessing.get_context("spawn"))


@pytest.fixture
async def endpoint(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Endpoint]:
    async with Endpoint() as found:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{found.url}/v1")
        yield found


@pytest.mark.parametrize(
    "ask", [errands.ask, errands.ask_later, errands.ask_natively, errands.ask_by_aiohttp]
)
async def test_calls_of_a_worker_belong_to_their_lane(
    endpoint: Endpoint, ask: Callable[..., Any], tmp_path: Path
) -> None:
    call = functools.partial(ask, f"{endpoint.url}/v1")
    with kit.events(CallEnded) as seen:
        for _ in range(2):  # the second time from the journal
            async with afnio.journal(tmp_path / "calls.journal"):
                found = await afnio.Variable(["a", "b", "c", "d"]).map(call, executor=WORKERS)
                assert found.data == ["A", "B", "C", "D"]
    assert len(seen) == len(endpoint.asked) == 4
    assert {event.lane for event in seen} == {0, 1, 2, 3}
    assert endpoint.asked[0].headers["authorization"] == "Bearer any-key-0123"


async def test_a_block_in_a_worker_adds_no_second_engine(endpoint: Endpoint) -> None:
    """The driver has the limits, the retries and the journal, so the worker's engine takes no request."""
    call = functools.partial(errands.ask_twice_in_a_block, f"{endpoint.url}/v1")
    with anyio.fail_after(40):
        found = await afnio.Variable(["a"]).map(call, executor=WORKERS)
        assert found.data == ["200 200"]
    assert len(endpoint.asked) == 2


async def test_clients_without_a_base_url_and_other_libraries_read_the_environment(
    endpoint: Endpoint,
) -> None:
    for ask in (errands.ask_by_environment, functools.partial(errands.ask, None)):
        found = await afnio.Variable(["a", "b", "c", "d"]).map(ask, executor=WORKERS)
        assert found.data == ["A", "B", "C", "D"]
    assert len(endpoint.asked) == 8


async def test_a_budget_holds_for_calls_of_workers(endpoint: Endpoint) -> None:
    call = functools.partial(errands.ask, f"{endpoint.url}/v1")
    with afnio.budget(max_calls=2), pytest.raises(BatchError, match="max_calls=2"):
        _ = (await afnio.Variable(["a", "b", "c"]).map(call, executor=WORKERS)).data
    assert len(endpoint.asked) == 2


@pytest.mark.parametrize("journaled", [False, pytest.param(True, marks=pytest.mark.nightly)])
async def test_a_lost_worker_pays_for_nothing_twice(
    endpoint: Endpoint, journaled: bool, tmp_path: Path
) -> None:
    endpoint.latency = 0.2
    call = functools.partial(errands.ask_and_die, f"{endpoint.url}/v1", str(tmp_path))

    async def watch() -> None:
        while len(endpoint.asked) < 2:
            await anyio.sleep(0.01)
        (tmp_path / "asked").touch()

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        async with afnio.journal(tmp_path / "calls.journal") if journaled else nullcontext():
            found = await afnio.Variable(["x"]).map(call, executor=WORKERS)
            assert found.data == ["SAME SAME X"]
    assert [asked.body["messages"][0]["content"] for asked in endpoint.asked] == ["same", "same", "x"]


async def test_the_critic_reads_the_calls_that_an_agent_makes_in_a_worker(endpoint: Endpoint) -> None:
    critic = ScriptedClient(lambda request: "no JSON")  # what it is asked matters here
    afnio.set_backward_model_client(critic, completion_args={"model": "b"})
    agent = afnio.cognitive.Agent(errands.agent, prompts={"system": "Be brief:"}, executor=WORKERS)
    copied = copy.deepcopy(agent)  # as `afnio.optimize` does
    found = copied(["a", "b"], url=f"{endpoint.url}/v1")
    assert (await found).data == ["BE BRIEF: A", "BE BRIEF: B"]
    with pytest.raises(BatchError, match="what agent gets must be picklable .*lock"):
        _ = (await copied([{"guard": threading.Lock()}], url="")).data
    with pytest.raises(BatchError):
        await found.backward(afnio.Variable(["wrong", "wrong"]))
    assert "Be brief: a" in str(critic.requests[0].messages)
    assert "BE BRIEF: A" in str(critic.requests[0].messages)
