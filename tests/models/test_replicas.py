"""Replicas behind one client: shares, deaths, limits, and a run that continues elsewhere."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import kit
import pytest

import afnio
import afnio.cognitive as cog
from afnio.errors import FinalModelError, ProviderDownError
from afnio.models.openai import AsyncOpenAI
from afnio.runtime.events import CallEnded
from afnio.testing import Provider

NOBODY = "http://127.0.0.1:9/v1"


@pytest.fixture
def replicas(request: pytest.FixtureRequest) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        yield [stack.enter_context(Provider.process(latency=0.02)) for _ in range(2)]


def client(*urls: str, name: str | None = "group", **options: Any) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=list(urls), name=name, api_key="any", **options)


def ask(lm: AsyncOpenAI, texts: list[str]) -> cog.Completion | Any:
    template = afnio.Variable("{text}", role="input")
    return cog.functional.chat_completion(
        lm, [{"role": "user", "content": [template]}], {"text": texts}, model="m"
    )


def texts(count: int) -> list[str]:
    return [f"text {number}" for number in range(count)]


@pytest.mark.parametrize(
    ("count", "in_flight", "most"),
    [
        (300, 10, 1.5),
        pytest.param(2_000, 64, 1.10, marks=pytest.mark.nightly),
        pytest.param(2_000, 10, 1.15, marks=pytest.mark.nightly),
    ],
)
def test_even_shares(replicas: list[Any], count: int, in_flight: int, most: float) -> None:
    """Calls with one prefix are shared evenly, saturated or not. Each event names the replica."""
    limits = afnio.Limits(max_in_flight=in_flight)
    lm = client(*(replica.base_url for replica in replicas), name=f"even {count} {in_flight}", limits=limits)
    with kit.events(CallEnded) as ended:
        assert ask(lm, texts(count)).data == texts(count)
    shares = [replica.stats()["requests"] for replica in replicas]
    assert sum(shares) == count
    assert max(shares) <= most * min(shares)
    assert {replica.base_url: share for replica, share in zip(replicas, shares, strict=True)} == Counter(
        event.account for event in ended
    )
    assert max(replica.stats()["peak_in_flight"] for replica in replicas) <= in_flight


def test_one_dead_from_the_start(replicas: list[Any]) -> None:
    """It never answered, and no call is lost; each goes there once at most."""
    lm = client(NOBODY, replicas[0].base_url, name="one dead")
    with kit.events(CallEnded) as ended:
        assert ask(lm, texts(300)).data == texts(300)
    assert replicas[0].stats()["requests"] == 300
    assert max(event.attempts for event in ended) <= 2


@pytest.mark.parametrize("count", [600, pytest.param(2_000, marks=pytest.mark.nightly)])
def test_one_killed_in_mid_batch_and_restarted(count: int) -> None:
    """None is lost, and the restarted one gets calls again."""
    with Provider.process(latency=0.02) as well, provider() as (first, url):
        lm = client(url, well.base_url, name=f"killed {count}", limits=afnio.Limits(max_in_flight=8))
        batch = ask(lm, texts(count))
        port = url.rpartition(":")[2].partition("/")[0]

        async def kill_and_restart() -> None:
            while well.stats()["requests"] < 100:
                await anyio.sleep(0.01)
            first.send_signal(signal.SIGKILL)
            first.wait()

        anyio.run(kill_and_restart)
        with provider("--port", port) as (_, again):
            assert again == url
            assert batch.data == texts(count)


@contextmanager
def provider(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "afnio.cli", "provider", "--latency", "0.02", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        line = process.stdout.readline()
        yield process, "http" + line.partition("http")[2].split('"')[0].strip()
        process.stdin.close()


def test_all_dead() -> None:
    """The calls end after some seconds, with one that names what can't be reached."""
    lm = client(NOBODY, "http://127.0.0.1:10/v1", name="all dead")
    with pytest.raises(ProviderDownError, match="can't reach http://127.0.0.1"):
        lm.chat(messages=[{"role": "user", "content": "Hi"}], model="m")


def test_a_run_continues_on_other_machines(tmp_path: Path, replicas: list[Any]) -> None:
    """The name is in the journal, not the URLs; its records name the replica that answered."""
    path = tmp_path / "calls.journal"
    with afnio.journal(path):
        lm = client(*(replica.base_url for replica in replicas), name="moves")
        before = ask(lm, texts(20)).data
    stat = subprocess.run(
        [sys.executable, "-m", "afnio.cli", "journal", "stat", str(path), "--json"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert all(replica.base_url in stat for replica in replicas)
    del lm
    with afnio.journal(path):
        assert ask(client(NOBODY, "http://127.0.0.1:10/v1", name="moves"), texts(20)).data == before


async def errors_of_four(lm: AsyncOpenAI) -> list[FinalModelError]:
    """Make four calls at a time."""
    errors: list[FinalModelError] = []

    async def call() -> None:
        try:
            await lm.achat(messages=[{"role": "user", "content": "Hi"}], model="m")
        except FinalModelError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(call)
    return errors


async def test_a_replica_with_other_models() -> None:
    """The error says which replica it was, and what replicas must have in common."""
    async with Provider(models=["m"]) as one, Provider(models=["other"]) as two:
        lm = client(one.base_url, two.base_url, name="differ", limits=afnio.Limits(max_in_flight=1))
        errors = await errors_of_four(lm)
        assert errors
        assert all("does not exist" in str(error) for error in errors)
        said = ["".join([str(error), *getattr(error, "__notes__", ())]) for error in errors]
        assert all(two.base_url in text for text in said)
        assert all("replicas, which must serve" in text or "replicas must serve" in text for text in said)


async def test_a_replica_without_a_model_that_another_has() -> None:
    """Once that is known, it is one sentence. The group's models are those that all have."""
    async with Provider(models=["m", "n"]) as one, Provider(models=["n"]) as two:
        lm = client(one.base_url, two.base_url, name="one has it", limits=afnio.Limits(max_in_flight=1))
        assert await lm.list_models() == ["n"]
        for _ in range(2):
            errors = await errors_of_four(lm)
        text = rf"replicas must serve the same models \(got .* replies as 'm' .*start {two.base_url} with that model"
        assert errors
        assert all(re.match(text, str(error)) for error in errors)
    async with Provider(models=["m"]) as one, Provider(models=["n"]) as two:
        lm = client(one.base_url, two.base_url, NOBODY, name="nothing in common")
        with pytest.raises(FinalModelError, match="got m from .*, n from .*start them with one name"):
            await lm.list_models()


def test_wrong_groups() -> None:
    """Each mistake is named at the constructor."""
    with pytest.raises(ValueError, match="at least one"):
        client(name=None)
    with pytest.raises(ValueError, match="twice"):
        client(NOBODY, NOBODY + "/", name=None)
    with pytest.raises(ValueError, match="name must come with a list"):
        AsyncOpenAI(base_url=NOBODY, name="one", api_key="any")
    first = client(NOBODY, name=None)
    with pytest.raises(ValueError, match="must have a name of their own"):
        client("http://127.0.0.1:10/v1", name=None)
    assert first.replicas == [NOBODY]
    assert client(NOBODY, name=None).replicas == [NOBODY]
