"""Budgets through real clients: what is sent, what waits, what is refused, what a resumed run still has."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from kit.virtual import virtual_runtime

import afnio
import afnio.cognitive as cog
from afnio.errors import BudgetExceeded, FinalModelError, TransientModelError, UnknownPriceError
from afnio.models import ChatResponse, Usage
from afnio.testing import ScriptedClient

ASK = {"messages": [{"role": "user", "content": "x" * 40}], "model": "m"}


def reply(text: str = "hi", tokens: int = 10) -> ChatResponse:
    return ChatResponse(content=text, finish_reason="stop", usage=Usage(tokens, tokens))


def test_calls() -> None:
    """The call after the last one allowed raises, says what was spent, and isn't sent."""
    client = ScriptedClient(reply())
    with afnio.budget(max_calls=3) as budget:
        for _ in range(3):
            client.chat(**ASK)
        with pytest.raises(BudgetExceeded, match="max_calls=3") as caught:
            client.chat(**ASK)
    assert len(client.requests) == 3
    assert (caught.value.ledger.total.calls, budget.ledger.total.usage.total_tokens) == (3, 60)
    client.chat(**ASK)


def test_a_batch_stops_at_the_budget() -> None:
    """Of a batch that is too large for the budget just what fits is sent; the others fail, and aren't scored."""
    client = ScriptedClient(reply(), latency=0.01)
    messages = [{"role": "user", "content": [afnio.Variable("{x}")]}]
    with afnio.budget(max_calls=5), afnio.tolerate(quorum=0.1):
        pred = cog.functional.chat_completion(client, messages, {"x": [str(n) for n in range(20)]}, model="m")
        score, _ = cog.functional.exact_match_evaluator(pred, ["hi"] * 20)
        assert score.data == 5
        assert score.samples.count(None) == 15
    assert len(client.requests) == 5


def test_tokens_are_never_passed_when_the_maximum_is_given() -> None:
    """With max_completion_tokens in each request the limit holds, whatever is in flight."""
    client = ScriptedClient(reply(tokens=14), latency=0.01)
    messages = [{"role": "user", "content": [afnio.Variable("{x}")]}]
    with afnio.budget(max_tokens=200) as budget:
        pred = cog.functional.chat_completion(
            client, messages, {"x": ["x" * 40] * 50}, model="m", max_completion_tokens=14, temperature=1
        )
        assert 0 < len(pred.errors) < 50
    assert 150 < budget.ledger.total.usage.total_tokens <= 200


def test_retries_count() -> None:
    """An attempt that failed was on the wire: it counts as a call."""
    script = iter(
        [TransientModelError("reset", status=500), TransientModelError("reset", status=500), reply()]
    )
    client = ScriptedClient(lambda request: next(script))
    with afnio.budget(max_calls=2), pytest.raises(BudgetExceeded):
        client.chat(**ASK)
    assert len(client.requests) == 2


def test_nested_budgets_both_count() -> None:
    """The inner block stops first, the outer one counts what it spent."""
    client = ScriptedClient(reply())
    with afnio.budget(max_calls=3) as outer:
        with afnio.budget(max_calls=2), pytest.raises(BudgetExceeded, match="max_calls=2"):
            for _ in range(9):
                client.chat(**ASK)
        client.chat(**ASK)
        with pytest.raises(BudgetExceeded, match="max_calls=3"):
            client.chat(**ASK)
    assert outer.ledger.total.calls == 3


def test_unknown_price(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Dollars can't be limited for a model without a price; with one in the user's file they are."""
    from afnio.models import _prices

    _prices._price_of.cache_clear()
    _prices._looked_up.clear()
    client = ScriptedClient(reply())
    with afnio.budget(max_cost=1.0), pytest.raises(UnknownPriceError, match="AFNIO_PRICES"):
        client.chat(**ASK)
    assert client.requests == []
    file = tmp_path / "prices.toml"
    file.write_text('[[price]]\nmodel = "m"\ninput = 1000\noutput = 2000\n')
    monkeypatch.setenv("AFNIO_PRICES", str(file))
    _prices._price_of.cache_clear()
    _prices._looked_up.clear()
    with afnio.budget(max_cost=0.08) as budget, pytest.raises(BudgetExceeded, match=r"max_cost=0\.08"):
        for _ in range(9):
            client.chat(**ASK, max_completion_tokens=10)
    assert 0.0 < float(budget.ledger.total.cost or 0) <= 0.08
    _prices._price_of.cache_clear()
    _prices._looked_up.clear()


def test_a_resumed_run_has_what_is_left(tmp_path: Path) -> None:
    """Replies from the journal are free, and what they had cost before still counts."""
    client = ScriptedClient(lambda request: reply(request.messages[0]["content"]))

    def program(calls: int) -> int:
        with afnio.budget(max_calls=4) as budget, afnio.journal(tmp_path / "j"):
            for number in range(calls):
                client.chat(messages=[{"role": "user", "content": f"{number}"}], model="m")
        return budget.ledger.total.calls

    assert program(3) == 3
    assert program(4) == 4
    assert len(client.requests) == 4
    with pytest.raises(BudgetExceeded):
        program(5)
    assert len(client.requests) == 4


def test_a_cancelled_call_is_unknown(tmp_path: Path) -> None:
    """A call that was cut off on the wire counts at its reserve, in the budget and in the journal."""
    asked = threading.Event()

    async def never(request: Any) -> str:
        asked.set()
        await anyio.sleep_forever()
        return ""

    async def main() -> Any:
        client = ScriptedClient(never)
        with afnio.budget(max_tokens=10_000) as budget:
            async with afnio.journal(tmp_path / "j"):
                with anyio.move_on_after(0.05):
                    await client.achat(**ASK, max_completion_tokens=100)
        return budget.ledger.total

    total = anyio.run(main)
    assert asked.is_set()
    assert (total.unknown, total.reserved.completion_tokens) == (1, 100)
    from afnio.runtime._journal import Journal

    stat = Journal.stat(tmp_path / "j").total
    assert (stat.unknown, stat.reserved.completion_tokens) == (1, 100)


def test_time_ends_what_is_on_the_wire(tmp_path: Path) -> None:
    """A call that hangs is cut off when the time is over, and counts as unknown, in the journal too."""
    client = ScriptedClient("late", latency=1000.0)
    with virtual_runtime() as clock, afnio.budget(max_seconds=3, max_tokens=1000) as budget:
        with (
            afnio.journal(tmp_path / "j"),
            pytest.raises(BudgetExceeded, match="max_seconds=3 are over .* 1 attempts .1 unknown.") as caught,
        ):
            client.chat(**ASK, max_completion_tokens=100)
        assert 2.5 < clock.now < 3.5
    total = budget.ledger.total
    assert (caught.value.limit, total.unknown, total.reserved.completion_tokens) == ("max_seconds", 1, 100)
    assert client._open == 0
    from afnio.runtime._journal import Journal

    assert (Journal.stat(tmp_path / "j").total.calls, Journal.stat(tmp_path / "j").total.unknown) == (0, 1)


@pytest.mark.parametrize("temperature", [0, 1])
def test_time_ends_calls_that_queue(temperature: int) -> None:
    """One on the wire, one in the queue, one between two attempts: all end when the time is over."""

    async def play(request: Any) -> str:
        if request.messages[0]["content"] == "busy":
            raise TransientModelError("busy", retry_after=1000.0)
        await anyio.sleep(1000.0)
        return ""

    client = ScriptedClient(play, limits=afnio.Limits(max_in_flight=1))
    messages = [{"role": "user", "content": [afnio.Variable("{x}")]}]
    words = ["busy", "wire", "queue"]
    with afnio.budget():  # looks the price up, so that the lanes below go in their order
        ScriptedClient("yes").chat(**ASK)
    with virtual_runtime() as clock, afnio.budget(max_seconds=3) as budget:
        pred = cog.functional.chat_completion(
            client, messages, {"x": words}, model="m", temperature=temperature
        )
        assert [type(error) for error in pred.errors.values()] == [BudgetExceeded] * 3
        assert clock.now < 3.5
    assert (budget.ledger.total.attempts, budget.ledger.total.unknown) == (2, 2)


def test_final_failures_are_refunded() -> None:
    """A call that was refused costs no tokens, and counts as an attempt."""
    client = ScriptedClient(FinalModelError("no", status=400))
    with afnio.budget(max_tokens=1_000) as budget:
        for _ in range(3):
            with pytest.raises(FinalModelError):
                client.chat(**ASK)
    assert (budget.ledger.total.attempts, budget.ledger.total.usage.total_tokens) == (3, 0)
