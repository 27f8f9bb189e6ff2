"""`afnio.batch_api`: calls by a provider's batch API, what goes wrong with it, and what it costs."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import anthropic
import anyio
import openai
import pytest
from aiohttp import web
from runtime.parcels.programs import PRICES

import afnio
import afnio.cognitive as cog
import afnio.tellurio as te
from afnio import bridge
from afnio.cli._other import batches_main
from afnio.errors import ModelError, RunStoppedError, UnreachableError
from afnio.models._batch_apis import OpenAIBatches
from afnio.models.openai import AsyncOpenAI
from afnio.runtime import _batch_api, _parcels
from afnio.testing import Batches, Provider, ScriptedClient

KEY = "k-0123456789"


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls and waits are short, and prices are known."""
    prices = tmp_path / "prices.toml"
    prices.write_text(PRICES)
    monkeypatch.setenv("AFNIO_PRICES", str(prices))
    for name, seconds in {"GRACE": 0.2, "POLL_FIRST": 0.02, "BACKOFF_MAX": 0.2, "FIRST_CONTACT": 0.3}.items():
        monkeypatch.setattr(_parcels, name, seconds)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


def provider(
    lm: Callable[[Any], str] = lambda request: request["messages"][-1]["content"], **options: Any
) -> Provider:
    return Provider(lm=lm, batches=Batches(**{"seconds": 0.05, "validating": 0.0, **options}))


async def ask(url: str, words: list[str], *, key: str = KEY, uncut: bool = False, **args: Any) -> list[Any]:
    """Return the texts of the replies, or the errors."""
    limit = {} if uncut else {"max_completion_tokens": 10}
    client = AsyncOpenAI(api_key=key, base_url=url)
    replies: list[Any] = [None] * len(words)

    async def one(place: int, word: str) -> None:
        try:
            reply = await client.achat(
                messages=[{"role": "user", "content": word}], model="m", **limit, **args
            )
            replies[place] = str(reply)
        except ModelError as error:
            replies[place] = error

    async with anyio.create_task_group() as tasks:
        for place, word in enumerate(words):
            tasks.start_soon(one, place, word)
    return replies


async def by_batch(
    path: Path,
    url: str,
    words: list[str],
    *,
    key: str = KEY,
    max_cost: Any = None,
    uncut: bool = False,
    **options: Any,
) -> tuple[list[Any], Any]:
    """Ask within a block, and return the replies and the budget's ledger."""
    with afnio.budget(max_cost=max_cost) as budget:
        async with afnio.journal(path):
            with afnio.batch_api(**{"linger": 0.1, "least": 2, **options}):
                replies = await ask(url, words, key=key, uncut=uncut)
    return replies, budget.ledger


def words(count: int) -> list[str]:
    return [f"word {number}" for number in range(count)]


def counts(found: Provider) -> tuple[int, int, int]:
    """Return the lines that were paid for, those paid again, and the calls that were live."""
    stats = found.stats()
    return stats["batches"]["paid"], stats["batches"]["paid_twice"], stats["requests"]


def answered(replies: list[Any]) -> int:
    return sum(isinstance(reply, str) for reply in replies)


def invoice(found: Provider) -> Decimal:
    """Return what the provider charges, in dollars: the prices above are a tenth of a cent per token."""
    stats = found.stats()
    batches = stats["batches"]
    live = 1000 * stats["prompt_tokens"] + 2000 * stats["completion_tokens"]
    return Decimal(live + 500 * batches["prompt_tokens"] + 1000 * batches["completion_tokens"]) / 1_000_000


# What it is for


async def test_calls_go_together_at_half_the_price(path: Path) -> None:
    """The journal answers them in the next run, and no file is left beside it."""
    async with provider() as found:
        replies, ledger = await by_batch(path, found.base_url, words(20), max_cost=10)
        again, nothing = await by_batch(path, found.base_url, words(20), max_cost=10)
        sizes, paid = found.stats()["batches"]["sizes"], counts(found)
        charged = invoice(found)
    assert replies == again == words(20)
    assert (sizes, paid) == ([20], (20, 0, 0))
    assert {item.client.partition("#")[2] for item in ledger.items} == {"batch"}
    assert ledger.total.cost == nothing.total.cost == charged
    assert sorted(path.parent.glob("run.journal.*.*")) == []


async def test_a_run_that_began_live_goes_on_by_batch(path: Path) -> None:
    """And one that began by batch goes on live: the request's key and address are the same."""
    async with provider() as found:
        async with afnio.journal(path):
            first = await ask(found.base_url, words(5))
        second, _ = await by_batch(path, found.base_url, words(9))
        async with afnio.journal(path):
            third = await ask(found.base_url, words(9))
        assert counts(found) == (4, 0, 5)
    assert (first, second, third) == (words(5), words(9), words(9))


async def test_models_have_their_own_batches(path: Path) -> None:
    async with provider() as found, afnio.journal(path):
        client = AsyncOpenAI(api_key=KEY, base_url=found.base_url)
        with afnio.batch_api(linger=0.1, least=1):
            async with anyio.create_task_group() as tasks:
                for number in range(6):
                    ask = {"messages": [{"role": "user", "content": str(number)}], "model": f"m{number % 2}"}
                    tasks.start_soon(lambda asked: client.achat(**asked), ask)
        assert found.stats()["batches"]["sizes"] == [3, 3]


async def test_equal_calls_of_a_launch_share_a_line(path: Path) -> None:
    """At temperature 0. Those of another launch have another one."""
    async with provider() as found:
        client = AsyncOpenAI(api_key=KEY, base_url=found.base_url)
        messages = [{"role": "user", "content": [afnio.Variable("{word}")]}]
        with afnio.budget(max_cost=10) as budget:
            async with afnio.journal(path):
                with afnio.batch_api(linger=0.1, least=1):
                    launches = [
                        cog.functional.chat_completion(
                            client,
                            messages,
                            {"word": ["same"] * 3},
                            model="m",
                            temperature=0,
                            max_completion_tokens=9,
                        )
                        for _ in range(2)
                    ]
                    for launch in launches:
                        await launch
        assert (counts(found), budget.ledger.total.cost) == ((2, 1, 0), invoice(found))
        assert [launch.data for launch in launches] == [["same"] * 3] * 2


@pytest.mark.parametrize("api", ["chat", "responses", "embeddings"])
async def test_requests_of_the_sdk(path: Path, api: str) -> None:
    """Also if their JSON has several lines, and their own timeout is shorter than the batch's."""
    async with provider(seconds=0.5) as found, afnio.journal(path):
        client = openai.AsyncOpenAI(
            api_key=KEY, base_url=found.base_url, timeout=0.2, max_retries=0, http_client=bridge.client()
        )
        got = []

        async def one(word: str) -> None:
            if api == "chat":
                reply = await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": word}]
                )
                got.append(reply.choices[0].message.content)
            elif api == "responses":
                got.append((await client.responses.create(model="m", input=word)).output_text)
            else:
                got.append(len((await client.embeddings.create(model="m", input=word)).data))

        async with client, anyio.create_task_group() as tasks:
            with afnio.batch_api(linger=0.1, least=1):
                for word in words(4):
                    tasks.start_soon(one, word)
        assert (found.stats()["batches"]["sizes"], counts(found)) == ([4], (4, 0, 0))
    assert sorted(got) == ([1] * 4 if api == "embeddings" else words(4))


async def test_anthropics_messages(path: Path) -> None:
    """The address of the results that the provider names is on another host, and isn't followed."""
    async with provider() as found:
        got: list[str] = []
        for _ in range(2):
            async with afnio.journal(path):
                url = found.base_url.removesuffix("/v1")
                client = anthropic.AsyncAnthropic(api_key=KEY, base_url=url, http_client=bridge.client())

                async def one(word: str, client: Any = client) -> None:
                    asked = [{"role": "user", "content": word}]
                    reply = await client.messages.create(model="m", max_tokens=9, messages=asked)
                    got.append(reply.content[0].text)

                async with client, anyio.create_task_group() as tasks:
                    with afnio.batch_api(linger=0.1, least=1):
                        for word in words(3):
                            tasks.start_soon(one, word)
        assert (found.stats()["batches"]["sizes"], counts(found)) == ([3], (3, 0, 0))
    assert sorted(got) == sorted(words(3) * 2)


async def test_displays_show_what_waits(path: Path) -> None:
    """First the calls that are collected, then what the provider has done of their batch."""
    shown = set()
    async with provider(seconds=0.5) as found, anyio.create_task_group() as tasks:

        async def watch() -> None:
            while True:
                shown.add(str(afnio.runtime.places()))
                await anyio.sleep(0.01)

        tasks.start_soon(watch)
        await by_batch(path, found.base_url, words(20))
        tasks.cancel_scope.cancel()
    assert any("m by batch: 20 calls wait, not sent yet" in text for text in shown)
    sent = "m by batch: 20 calls wait, 0 of 20 done in 1 batch, the oldest for 0 min"
    assert any(sent in text for text in shown)  # executors of other tests may be shown, too
    assert "by batch" not in str(afnio.runtime.places())


async def test_a_run_s_page_shows_what_waits(tmp_path: Path) -> None:
    """Hours of waiting are healthy, so it says for how long the oldest batch has been there."""
    async with (
        provider(seconds=600.0) as found,
        te.init("me", "emails", dir=tmp_path) as run,
        afnio.scope() as scope,
    ):
        client = AsyncOpenAI(api_key=KEY, base_url=found.base_url)
        with afnio.batch_api(linger=0.1, least=1):
            for word in words(12):
                asked = {"messages": [{"role": "user", "content": [afnio.Variable(word)]}], "model": "m"}
                cog.functional.chat_completion(client, inputs=None, **asked)
        page = tmp_path / "report.html"
        command = [
            sys.executable,
            "-m",
            "afnio.cli",
            "report",
            run.name,
            "--dir",
            str(tmp_path),
            "-o",
            str(page),
        ]
        cells: list[str] = []
        while cells[1:3] != ["12", "1"]:  # until the batch is sent
            await anyio.sleep(0.5)
            await anyio.run_process(command)
            rows = re.findall(r"<h2>Batches</h2>.*?<tbody>.*?<tr>(.*?)</tr>", page.read_text(), re.DOTALL)
            cells = [
                re.sub(r"<.*?>", "", one).strip() for one in re.findall(r"<td.*?</td>", "".join(rows[:1]))
            ]
        scope.cancel()
    assert (cells[0].split(), cells[1:5]) == (["m", found.base_url], ["12", "1", "12", "0"])


# What goes live


async def test_few_calls_go_live(path: Path) -> None:
    async with provider() as found:
        replies, _ = await by_batch(path, found.base_url, words(7), least=8)
        assert (replies, counts(found)) == (words(7), (0, 0, 7))


async def test_serving_calls_go_live(path: Path) -> None:
    async with provider() as found:
        with afnio.priority("serving"):
            replies, _ = await by_batch(path, found.base_url, words(3))
        assert (replies, counts(found)) == (words(3), (0, 0, 3))


async def test_a_client_without_batch_api_says_so_once(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process says it once, and another test may have been first.
    monkeypatch.setattr("afnio.runtime._limits._warned_of", set())
    client = ScriptedClient(["one", "two"])
    async with afnio.journal(path):
        with afnio.batch_api():
            for _ in range(2):
                await client.achat(messages=[{"role": "user", "content": "hello"}], model="m")
    said = [record.message for record in caplog.records if "at the full price" in record.message]
    assert (len(client.requests), len(said)) == (2, 1)


async def test_an_endpoint_without_batch_api_says_so_once(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with provider(offered=False) as found:
        replies, _ = await by_batch(path, found.base_url, words(4))
        more, _ = await by_batch(path.with_name("other"), found.base_url, words(4))
        assert counts(found) == (0, 0, 8)
    said = [record.message for record in caplog.records if "has no batch API" in record.message]
    assert (replies, more, len(said)) == (words(4), words(4), 1)


async def test_without_a_journal_nothing_is_sent() -> None:
    async with provider() as found:
        with afnio.batch_api():
            (error,) = await ask(found.base_url, ["one"])
        assert ("must have a journal" in str(error), counts(found)) == (True, (0, 0, 0))


@pytest.mark.parametrize(
    "options",
    [
        {"max_wait": "soon"},
        {"max_wait": 0},
        {"linger": -1},
        {"least": "8"},
        {"retries": None},
        {"late": "never"},
    ],
)
def test_bad_arguments(options: Any) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(options))} must be"):
        afnio.batch_api(**options)


# Lines that fail


@pytest.mark.parametrize("fault", ["expired", "error", "limited", "timeout"])
async def test_lines_that_were_not_carried_out(path: Path, fault: str) -> None:
    """They are sent again, and cost nothing; what three batches didn't carry out goes live, or fails."""
    async with provider(faults={fault: 0.5}) as found:
        replies, ledger = await by_batch(path, found.base_url, words(40), max_cost=10, late="live")
        paid, twice, live = counts(found)
        assert (replies, paid + live, twice) == (words(40), 40, 0)
        assert ledger.total.cost == invoice(found)
    assert live > 0


async def test_late_calls_fail_with_the_reason(path: Path) -> None:
    async with provider(faults={"expired": 1.0}) as found:
        replies, ledger = await by_batch(path, found.base_url, words(3), retries=1, max_cost=10)
        assert (found.stats()["batches"]["sizes"], counts(found)) == ([3, 3], (0, 0, 0))
    assert all("in 2 batches (batch_expired)" in str(reply) for reply in replies)
    assert ledger.total.cost == 0


@pytest.mark.parametrize("fault", ["missing", "garbled"])
async def test_lines_that_were_paid_for_and_never_came(path: Path, fault: str) -> None:
    """They are charged at their reserve, as unknown, and counted so in the journal, too."""
    async with provider(faults={fault: 0.3}) as found:
        replies, ledger = await by_batch(path, found.base_url, words(30), max_cost=10, retries=9)
        paid, twice, live = counts(found)
        _, resumed = await by_batch(path, found.base_url, words(30), max_cost=10)
    assert (replies, live) == (words(30), 0)
    assert twice == paid - 30 == ledger.total.unknown == resumed.total.unknown
    assert twice > 0
    assert ledger.total.cost == resumed.total.cost


async def test_lines_come_twice_and_in_any_order(path: Path) -> None:
    async with provider(faults={"doubled": 0.5}) as found:
        replies, ledger = await by_batch(path, found.base_url, words(30), max_cost=10)
        assert (replies, counts(found), ledger.total.cost) == (words(30), (30, 0, 0), invoice(found))


async def test_a_call_that_is_refused_fails_alone(path: Path) -> None:
    """With the provider's sentence."""
    async with provider() as found, afnio.journal(path):
        client = openai.AsyncOpenAI(api_key=KEY, base_url=found.base_url, http_client=bridge.client())
        errors = []

        async def bad() -> None:
            try:
                await client.chat.completions.create(model="m", messages=[{"content": "no role"}])  # type: ignore[list-item]
            except openai.BadRequestError as error:
                errors.append(error)

        async with client, anyio.create_task_group() as tasks:
            with afnio.batch_api(linger=0.1, least=1):
                tasks.start_soon(bad)
                replies = await ask(found.base_url, words(3))
        assert (replies, counts(found)) == (words(3), (3, 0, 0))
        assert found.stats()["batches"]["sizes"] == [4]
    assert "must have a role" in str(errors[0])


@pytest.mark.parametrize("named", [True, False])
async def test_a_line_that_fails_its_whole_batch(path: Path, named: bool) -> None:
    """Its call fails, and the others go again: all together if the line is named, else in halves."""
    async with provider(bad="word 3", named=named) as found:
        replies, _ = await by_batch(path, found.base_url, words(8))
        sizes, paid = found.stats()["batches"]["sizes"], counts(found)
    assert [reply for reply in replies if isinstance(reply, str)] == [
        word for word in words(8) if word != "word 3"
    ]
    assert "refused the call in a batch (Invalid value.)" in str(replies[3])
    assert (sizes, paid) == ([8, 7] if named else [8, 4, 4, 2, 2, 1, 1], (7, 0, 0))


# Queues


@pytest.mark.parametrize("when", ["early", "late"])
async def test_a_full_queue(path: Path, when: str) -> None:
    """Batches become as small as the queue, and wait for their turn."""
    async with provider(queue=250, queue_full=when) as found:
        replies, ledger = await by_batch(path, found.base_url, words(40), max_cost=10)
        assert (replies, counts(found), ledger.total.cost) == (words(40), (40, 0, 0), invoice(found))


@pytest.mark.parametrize("when", ["early", "late"])
async def test_a_queue_that_is_too_small_for_a_call(path: Path, when: str) -> None:
    """The call fails with the provider's sentence. It isn't tried until the end of max_wait."""
    async with provider(queue=1, queue_full=when) as found:
        replies, _ = await by_batch(path, found.base_url, ["x" * 200] * 3)
        assert counts(found) == (0, 0, 0)
    assert all("Limit: 1 enqueued tokens" in str(reply) for reply in replies)


# The connection


@pytest.mark.parametrize("step", ["upload", "create", "poll", "content"])
@pytest.mark.parametrize("kind", ["lost", "refused"])
async def test_answers_that_get_lost(path: Path, step: str, kind: str) -> None:
    """What was carried out, though its answer got lost, is found before it is done again."""
    async with provider(**{kind: {step: 2}}) as found:
        replies, ledger = await by_batch(path, found.base_url, words(6), max_cost=10)
        stats = found.stats()["batches"]
        assert (replies, counts(found), ledger.total.cost) == (words(6), (6, 0, 0), invoice(found))
    assert stats["sizes"] == [6]


async def test_a_list_that_lags(path: Path) -> None:
    """Within the grace period, a batch that isn't listed may exist all the same."""
    async with provider(lost={"create": 1}, lag=0.1) as found:
        replies, _ = await by_batch(path, found.base_url, words(6))
        assert (replies, counts(found), found.stats()["batches"]["sizes"]) == (words(6), (6, 0, 0), [6])


async def test_a_provider_that_is_dead_for_a_while(path: Path) -> None:
    async with provider(seconds=0.3) as found:

        async def die() -> None:
            while not found.stats()["batches"]["sizes"]:
                await anyio.sleep(0.01)
            found.change_batches(dead=True)
            await anyio.sleep(0.5)
            found.change_batches(dead=False)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(die)
            replies, _ = await by_batch(path, found.base_url, words(6))
        assert (replies, counts(found), found.stats()["batches"]["sizes"]) == (words(6), (6, 0, 0), [6])


@pytest.mark.parametrize("stage", ["upload", "create", "status", "results", "cancel"])
async def test_a_provider_that_is_dead_at_a_stage(
    path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """For many back-offs: nothing is lost, and nothing is paid twice. A cancellation is sent until it has arrived."""
    monkeypatch.setattr(_parcels, "CANCELLING", 5.0)
    began, plain = anyio.Event(), getattr(OpenAIBatches, stage)
    async with provider(seconds=60.0 if stage == "cancel" else 0.1) as found:

        async def begun(self: OpenAIBatches, *arguments: Any) -> Any:
            if not began.is_set():
                found.change_batches(dead=True)
                began.set()
            return await plain(self, *arguments)

        def asked() -> int:
            return sum(found.stats()["batches"]["asked"].values())

        async def revive() -> None:
            await began.wait()
            before = asked()
            while asked() < before + 6:
                await anyio.sleep(0.01)
            found.change_batches(dead=False)

        monkeypatch.setattr(OpenAIBatches, stage, begun)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(revive)
            max_wait = 0.5 if stage == "cancel" else "24h"
            replies, _ = await by_batch(path, found.base_url, words(6), max_wait=max_wait, late="live")
        stats, (paid, twice, live) = found.stats()["batches"], counts(found)
    assert replies == words(6)
    assert (paid + live, twice) == (6, 0)
    assert stats["states"] == ["cancelled" if stage == "cancel" else "completed"]


@pytest.mark.parametrize("earlier", ["a batch of an earlier program", "a live call"])
async def test_a_dead_host_that_was_reached_before(
    path: Path, monkeypatch: pytest.MonkeyPatch, earlier: str
) -> None:
    """It is waited for, and not given up after some seconds as a wrong URL is."""
    stage = "status" if "batch" in earlier else "upload"
    refused, plain = iter(range(9)), getattr(OpenAIBatches, stage)

    async def unreachable(self: OpenAIBatches, *arguments: Any) -> Any:
        if next(refused, None) is not None:
            raise UnreachableError("connection refused")
        return await plain(self, *arguments)

    async with provider(seconds=1.0) as found:
        await (leave(path, found.base_url, words(6)) if stage == "status" else ask(found.base_url, ["live"]))
        monkeypatch.setattr(OpenAIBatches, stage, unreachable)
        replies, _ = await by_batch(path, found.base_url, words(6))
        assert (replies, counts(found)[:2]) == (words(6), (6, 0))


async def test_a_host_that_was_never_reached(path: Path) -> None:
    replies, ledger = await by_batch(path, "http://127.0.0.1:9/v1", words(3), max_cost=10)
    assert ["can't reach http://127.0.0.1:9/v1" in str(reply) for reply in replies] == [True] * 3
    assert ledger.total.cost == 0


async def test_a_key_that_is_refused(path: Path) -> None:
    async with Provider(api_key="another", batches=Batches()) as found:
        replies, ledger = await by_batch(path, found.base_url, words(3), max_cost=10)
    assert [reply.status for reply in replies] == [401] * 3
    assert ledger.total.cost == 0


# Waiting too long


@pytest.mark.parametrize("late", ["fail", "live"])
async def test_max_wait(path: Path, late: str) -> None:
    """The batch is cancelled, and what it has done is read: nothing is paid twice."""
    async with provider(seconds=20.0) as found:
        replies, ledger = await by_batch(
            path, found.base_url, words(40), max_wait=1.5, late=late, max_cost=10
        )
        paid, twice, live = counts(found)
        assert (found.stats()["batches"]["states"], twice) == (["cancelled"], 0)
        assert ledger.total.cost == invoice(found)
    assert 0 < paid < 40
    assert (answered(replies), live) == ((40, 40 - paid) if late == "live" else (paid, 0))


async def test_max_wait_while_calls_are_collected(path: Path) -> None:
    async with provider() as found:
        replies, _ = await by_batch(path, found.base_url, words(3), max_wait=0.2, linger=60, late="live")
        assert (replies, counts(found)) == (words(3), (0, 0, 3))


# Leaving


async def leave(path: Path, url: str, asked: list[str], **options: Any) -> Any:
    """Start a run by batch, and cancel it once its batch goes on."""
    with afnio.budget(max_cost=10) as budget:
        with anyio.move_on_after(20) as scope:
            async with afnio.journal(path):
                with afnio.batch_api(linger=0.1, least=1, **options):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(ask, url, asked)
                        while not any(group.parcels[0].remote for group in _open_groups()):
                            await anyio.sleep(0.01)
                        scope.cancel()
    return budget.ledger


def _open_groups() -> list[Any]:
    depots = [one for one in afnio.runtime.current_runtime().resources() if isinstance(one, _parcels.Depot)]
    return [group for depot in depots for group in depot.groups.values() if group.parcels]


async def test_a_run_that_is_left_gets_its_replies_later(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The batch goes on, and one line says so."""
    async with provider(seconds=1.0) as found:
        await leave(path, found.base_url, words(6))
        said = [record.message for record in caplog.records if "goes on at" in record.message]
        replies, ledger = await by_batch(path, found.base_url, words(6), max_cost=10)
        assert (replies, counts(found), ledger.total.cost) == (words(6), (6, 0, 0), invoice(found))
    text = f"batch_0 goes on at {found.base_url} with 6 calls; start the program again to get their replies"
    assert said == [text]


async def test_a_pause_sends_no_batch_and_takes_what_comes(path: Path, tmp_path: Path) -> None:
    """The calls of a batch that runs get their replies; those that are collected go after the pause."""
    got: list[Any] = []

    async def first(url: str) -> None:
        got.extend(await ask(url, words(4)))

    async with provider(seconds=0.5) as found, te.init("me", "emails", dir=tmp_path) as run:
        async with afnio.journal(path), anyio.create_task_group() as tasks:
            with afnio.batch_api(linger=0.1, least=2):
                tasks.start_soon(first, found.base_url)
                while not any(group.parcels[0].remote for group in _open_groups()):
                    await anyio.sleep(0.01)
                run.pause()
                async with anyio.create_task_group() as later:
                    later.start_soon(ask, found.base_url, words(9)[4:])
                    while not got:
                        await anyio.sleep(0.01)
                    assert (got, counts(found)) == (words(4), (4, 0, 0))
                    run.resume()
    assert counts(found)[:2] == (9, 0)


async def test_a_stop_at_once_leaves_a_batch_to_the_next_start(path: Path, tmp_path: Path) -> None:
    async with provider(seconds=1.0) as found:
        with pytest.raises(ExceptionGroup) as caught:
            async with te.init("me", "emails", dir=tmp_path) as run, afnio.journal(path):
                with afnio.batch_api(linger=0.1, least=2):
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(ask, found.base_url, words(6))
                        while not any(group.parcels[0].remote for group in _open_groups()):
                            await anyio.sleep(0.01)
                        run.stop(now=True)
        assert caught.value.split(RunStoppedError)[1] is None
        replies, _ = await by_batch(path, found.base_url, words(6))
        assert (replies, counts(found)) == (words(6), (6, 0, 0))


async def test_files_of_an_open_batch_are_private(path: Path) -> None:
    async with provider(seconds=0.1) as found:
        await leave(path, found.base_url, words(6))
        async with afnio.journal(path):
            with afnio.batch_api(linger=0.1, least=1):
                assert await ask(found.base_url, words(2)) == words(2)
                (file,) = path.parent.glob("run.journal.*.results")
                assert stat.S_IMODE(file.stat().st_mode) == 0o600
        replies, _ = await by_batch(path, found.base_url, words(6))
        assert (replies, counts(found)) == (words(6), (6, 0, 0))
    assert sorted(path.parent.glob("run.journal.*.*")) == []


async def test_lines_that_nobody_asks_for_are_counted_once(path: Path) -> None:
    """A call that asks for one later isn't charged again."""
    async with provider(seconds=0.1) as found:
        await leave(path, found.base_url, words(6))
        for count, counted in ((2, 2), (2, 6), (6, 6), (6, 6)):
            replies, ledger = await by_batch(path, found.base_url, words(count), max_cost=10)
            assert replies == words(count)
            assert 6 * ledger.total.cost == counted * invoice(found)
        assert counts(found) == (6, 0, 0)
    assert sorted(path.parent.glob("run.journal.*.*")) == []


async def test_a_changed_program_finds_its_lines_by_what_was_asked(path: Path) -> None:
    """As it finds its replies: where an address asks something else, calls are matched by their requests."""
    async with provider(seconds=0.1) as found:
        async with afnio.journal(path):
            assert await ask(found.base_url, ["first"]) == ["first"]
        await leave(path, found.base_url, ["first", *words(4)])
        replies, _ = await by_batch(path, found.base_url, ["new", *words(4)], least=1)
        assert replies == ["new", *words(4)]
        stats = found.stats()["batches"]
    assert stats["paid_twice"] == 0


async def test_a_continued_run_counts_half_prices_as_half(path: Path) -> None:
    """Its spending is the provider's invoice, to the cent, although the first program was cut off."""
    async with provider(seconds=0.5) as found:
        async with afnio.journal(path):
            await ask(found.base_url, words(2))
        await leave(path, found.base_url, words(8))
        _, ledger = await by_batch(path, found.base_url, words(8), max_cost=10)
        _, again = await by_batch(path, found.base_url, words(8), max_cost=10)
        assert ledger.total.cost == again.total.cost == invoice(found)
        assert counts(found) == (6, 0, 2)


async def test_a_batch_of_another_key_is_not_ours_and_not_gone(path: Path) -> None:
    async with provider(seconds=0.1) as found:
        await leave(path, found.base_url, words(4))
        replies, _ = await by_batch(path, found.base_url, words(4), key="another-0123456789")
        assert all("belongs to another key" in str(reply) for reply in replies)
        again, _ = await by_batch(path, found.base_url, words(4))
        assert (again, counts(found)) == (words(4), (4, 0, 0))


async def test_a_batch_that_was_deleted_is_sent_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with provider(seconds=0.1) as found:
        await leave(path, found.base_url, words(4))
        found._batches._batches["batch_0"].key = "deleted"
        replies, _ = await by_batch(path, found.base_url, words(4))
        assert replies == words(4)
    assert "knows the batch batch_0 no longer; its 4 calls are charged as unknown" in caplog.text


async def test_a_full_disk_at_the_plan(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is sent."""

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_parcels, "write_lines", full)
    async with provider() as found:
        with pytest.raises(ExceptionGroup) as caught:
            async with afnio.journal(path):
                with afnio.batch_api(linger=0.1, least=1):
                    await ask(found.base_url, words(3))
        assert (counts(found), found.stats()["batches"]["asked"]) == ((0, 0, 0), {})
    assert "No space left on device" in repr(caught.value)


# Hostile results


def spoil(found: Provider, change: Callable[[bytes], bytes]) -> None:
    """Change the results of each batch once they are there."""
    batches = found._batches
    finish = batches._finish

    def spoiled(batch: Any, state: str) -> None:
        finish(batch, state)
        name = f"{batch.id}-output"
        owner, body = batches._files[name]
        batches._files[name] = owner, change(body)

    batches._finish = spoiled  # type: ignore[method-assign]


HOSTILE = [
    b'{"custom_id": "of-others", "response": {"status_code": 200, "body": {}}}',
    b'{"custom_id": "", "response": {"status_code": 200, "body": {}}}',
    b'{"custom_id": [], "response": {"status_code": 200, "body": {}}}',
    b'{"custom_id": null}',
    b"\0\0\0\0",
    b"\xff\xfe",
    b"[" * 100_000,
    b"[]",
    b'"text"',
    b"1e999999999",
    b"",
    b"\r",
]


async def test_lines_that_are_none_of_ours(path: Path) -> None:
    """They change nothing, before our own lines and between them."""
    async with provider() as found:
        spoil(found, lambda body: b"\n".join([*HOSTILE, *body.splitlines(), *HOSTILE]))
        replies, ledger = await by_batch(path, found.base_url, words(6), max_cost=10)
        assert (replies, counts(found), ledger.total.cost) == (words(6), (6, 0, 0), invoice(found))


async def test_a_line_that_is_too_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It counts as garbled: its call is charged as unknown, and asked again: alone, so it goes live."""
    monkeypatch.setattr(_batch_api, "MOST_LINE", 4_000)
    async with provider(lm=lambda request: "x" * 9_000 if "word 2" in str(request) else "yes") as found:
        replies, ledger = await by_batch(path, found.base_url, words(4), retries=1, max_cost=100, uncut=True)
        assert (replies, counts(found)) == (["yes", "yes", "x" * 9_000, "yes"], (4, 0, 1))
    assert ledger.total.unknown == 1


async def test_results_that_are_too_large(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls fail with a sentence, and the batch stays open: nothing is lost."""
    async with provider() as found:
        with monkeypatch.context() as patched:
            patched.setattr(_batch_api, "MOST_RESULTS", 200)
            replies, _ = await by_batch(path, found.base_url, words(6))
        assert all("sent results of more than 200 bytes" in str(reply) for reply in replies)
        again, _ = await by_batch(path, found.base_url, words(6))
        assert (again, counts(found)) == (words(6), (6, 0, 0))


async def test_a_redirect_is_not_followed(path: Path) -> None:
    """The key would go to the other host. The batch stays open."""
    elsewhere = web.Response(status=302, headers={"location": "https://elsewhere.example/file"})

    async def redirect(request: web.Request, key: str) -> web.Response:
        return elsewhere

    found = provider()
    found._batches._content = redirect  # type: ignore[method-assign]
    async with found:
        replies, _ = await by_batch(path, found.base_url, words(3))
    assert all(
        "a redirect to https://elsewhere.example/file, which is not followed" in str(reply)
        for reply in replies
    )


async def test_a_key_in_the_results_is_masked(path: Path) -> None:
    async with provider(lm=lambda request: f"your key is {KEY}") as found:
        replies, _ = await by_batch(path, found.base_url, words(3), uncut=True)
    assert replies == ["your key is <api key>"] * 3
    assert KEY.encode() not in b"".join(one.read_bytes() for one in path.parent.iterdir() if one.is_file())


# Budgets


async def test_a_budget_that_pays_for_a_part_at_a_time(path: Path) -> None:
    """What a batch gives back pays for the next one. None has one call, and the limit holds."""
    async with provider() as found:
        replies, ledger = await by_batch(path, found.base_url, words(200), max_cost="1.0", least=8)
        sizes = found.stats()["batches"]["sizes"]
        assert (answered(replies), ledger.total.cost) == (200, invoice(found))
    assert sizes[0] > sizes[1]
    assert (len(sizes) <= 6, min(sizes) >= 8) == (True, True)
    assert ledger.total.cost <= 1


# Interrupts


def test_the_first_interrupt_stops_a_program_that_waits_for_a_batch(tmp_path: Path) -> None:
    """To end gently may take hours then. Without a batch, a study's first one is gentle."""
    source = tmp_path / "program.py"
    source.write_text(INTERRUPTED)
    said = {}
    for by in ("batch", "wire"):
        done = subprocess.run(
            [sys.executable, "-W", "error", source, by],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        said[by] = done.stdout.split(), done.stderr.partition(" goes on at ")[0].split()[-1:]
    assert said == {"batch": (["stopped"], ["batch_0"]), "wire": (["gently", "stopped"], [])}


INTERRUPTED = """
import os, signal, sys, threading, time
import anyio, afnio
from afnio.models.openai import AsyncOpenAI
from afnio.runtime import _batch_api, _parcels
from afnio.runtime._blocking import run_blocking
from afnio.testing import Batches, Provider
from contextlib import nullcontext

_parcels.POLL_FIRST = 0.05
by_batch = sys.argv[1] == "batch"

async def main(url):
    client = AsyncOpenAI(api_key="k-0123456789", base_url=url)
    async with afnio.journal("run.journal"):
        with afnio.batch_api(linger=0.1, least=1) if by_batch else nullcontext():
            await client.achat(messages=[{"role": "user", "content": "hello"}], model="m")

def interrupt(provider):
    def waiting():
        stats = provider.stats()
        return stats["batches"]["asked"].get("poll") if by_batch else stats["attempts"]
    while not waiting():
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
    if not by_batch:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

with Provider.process(reply="yes", latency=30.0, batches=Batches(seconds=30.0)) as provider:
    threading.Thread(target=interrupt, args=(provider,), daemon=True).start()
    try:
        run_blocking(lambda: main(provider.base_url), "fit", gently=lambda: print("gently", flush=True))
    except KeyboardInterrupt:
        print("stopped")
"""


# The command line


async def test_batches_are_listed_cancelled_and_fetched(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fetched results answer the program after the provider has deleted them."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    async def command(name: str) -> str:
        assert await anyio.to_thread.run_sync(batches_main, [name, str(path)]) == 0
        return capsys.readouterr().out.partition(" old: ")[2].strip()

    async with provider(seconds=1.0) as found:
        await leave(path, found.base_url, words(4))
        assert "it goes on" in await command("list")
        assert "it goes on" in await command("fetch")
        await anyio.sleep(1.2)
        assert await command("list") == "it has ended, 4 of 4 done"
        assert "its results are in run.journal." in await command("fetch")
        found._batches._batches.clear()
        replies, ledger = await by_batch(path, found.base_url, words(4), max_cost=10)
        assert (replies, counts(found), ledger.total.cost) == (words(4), (4, 0, 0), invoice(found))
        await anyio.to_thread.run_sync(batches_main, ["list", str(path)])
        assert capsys.readouterr().out == "no batch is open\n"


async def test_a_batch_is_cancelled_by_a_command(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it has done is read by the program, and the rest is sent again."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    async with provider(seconds=2.0) as found:
        await leave(path, found.base_url, words(40))
        await anyio.sleep(0.5)
        await anyio.to_thread.run_sync(batches_main, ["cancel", str(path)])
        replies, _ = await by_batch(path, found.base_url, words(40))
        states = found.stats()["batches"]["states"]
        assert (replies, counts(found), states) == (words(40), (40, 0, 0), ["cancelled", "completed"])
    assert "it is being cancelled" in capsys.readouterr().out


def test_a_journal_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = batches_main(["list", str(tmp_path / "none")])
    assert (code, "there is no journal" in capsys.readouterr().err) == (1, True)
