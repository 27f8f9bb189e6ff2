"""Outcomes: what each ending of an attempt means for the money, the request, its tokens and the account's health."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio
import pytest
from runtime.budgets import PRICE, FakeRuntime

from afnio.errors import (
    BudgetExceeded,
    FinalModelError,
    ModelError,
    RateLimitedError,
    TransientModelError,
    UnreachableError,
)
from afnio.runtime import Account, Budget, Limits, budget
from afnio.runtime import _call as path
from afnio.runtime._admission import Admitter
from afnio.runtime._call import Call, Codec, perform
from afnio.runtime._limits import give_limits
from afnio.runtime._replicas import admitter
from afnio.runtime._spending import Spent
from afnio.runtime.events import Usage

PROMPT, OUTPUT = 100, 50
RESERVED = Usage(PROMPT, OUTPUT)


class Reply:
    limits = None
    service_tier = ""

    def __init__(self, usage: Usage) -> None:
        self.usage = usage


class Runtime(FakeRuntime):
    def count_open(self, change: int) -> None:
        return


def transient(status: int | None) -> ModelError:
    return TransientModelError("no", status=status)


def final(status: int | None) -> ModelError:
    return FinalModelError("no", status=status)


def made(attempt: Callable[[], Any], name: str) -> Call[Reply]:
    account = Account(f"outcome://{name}", "s")
    give_limits(account, Limits(max_in_flight=1, requests_per_minute=60_000, tokens_per_minute=1_000_000))
    codec: Codec[Reply] = Codec(
        encode=lambda reply: b"",
        decode=lambda payload: Reply(RESERVED),
        reusable=lambda reply: True,
        recount=lambda reply, usage: reply,
    )
    return Call(
        address="scope/1/forward",
        scope="scope",
        key="c0ffee",
        codec=codec,
        account=account,
        model="m",
        purpose="forward",
        attempt=attempt,
        deadline=600.0,
        prompt_tokens=PROMPT,
        max_output=OUTPUT,
        price=PRICE,
    )


@pytest.fixture(autouse=True)
def one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(path, "ATTEMPTS", 1)
    monkeypatch.setattr(path, "REFUSED_FOR", 0.0)


def money(spent: Spent) -> str:
    if spent.attempts == 0:
        return "not sent"
    if spent.unknown:
        assert spent.reserved == RESERVED
        return "reserve"
    return "used" if spent.calls else "free"


def health(admit: Admitter) -> str:
    circuit = admit.health.circuit
    return "alive" if circuit.answered else "failing" if circuit.failures else "neither"


def counted(admit: Admitter) -> tuple[int, float]:
    return admit._given.requests_sent, admit._given.tokens_sent


FREE, KEPT = 0, PROMPT + OUTPUT


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RateLimitedError("slow", status=429), ("free", 0, FREE, "alive")),
        (RateLimitedError("slow"), ("free", 0, FREE, "alive")),  # a client without statuses
        (final(429), ("free", 1, FREE, "alive")),  # the account is out of quota
        *[(final(status), ("free", 1, FREE, "alive")) for status in (400, 401, 403, 404, 413, 422)],
        *[(transient(status), ("free", 1, FREE, "failing")) for status in (409, 425)],
        (transient(408), ("reserve", 1, FREE, "failing")),
        (final(499), ("reserve", 1, FREE, "alive")),
        *[(transient(status), ("free", 1, KEPT, "failing")) for status in (500, 503, 520, 522, 529, 599)],
        (final(500), ("free", 1, KEPT, "alive")),
        *[(transient(status), ("reserve", 1, KEPT, "failing")) for status in (502, 504, 524, 200, None)],
        *[(final(status), ("reserve", 1, KEPT, "alive")) for status in (200, 301, 502, None)],
        (RuntimeError("a bug in a client"), ("reserve", 1, KEPT, "neither")),
    ],
    ids=lambda case: (
        f"{type(case).__name__}-{getattr(case, 'status', '')}" if isinstance(case, Exception) else ""
    ),
)
async def test_errors(error: Exception, expected: tuple[Any, ...]) -> None:
    """Each status means one thing for all who count."""

    async def attempt() -> Reply:
        raise error

    runtime, call = Runtime(), made(attempt, f"{type(error).__name__}-{getattr(error, 'status', '')}")
    with budget() as spending, pytest.raises(type(error)):
        await perform(runtime, call)  # type: ignore[arg-type]
    admit = admitter(runtime, call.account)  # type: ignore[arg-type]
    assert expected == (money(spending.ledger.total), *counted(admit), health(admit))


@pytest.mark.looptime
async def test_a_host_that_was_never_reached() -> None:
    """Nothing is known of the attempt, so it is kept at its reserve."""

    async def attempt() -> Reply:
        raise UnreachableError("refused")

    runtime, call = Runtime(), made(attempt, "unreachable")
    with budget() as spending, pytest.raises(UnreachableError):
        await perform(runtime, call)  # type: ignore[arg-type]
    total, admit = spending.ledger.total, admitter(runtime, call.account)  # type: ignore[arg-type]
    assert total.attempts == total.unknown == counted(admit)[0] == 2 * path.ATTEMPTS
    assert ("failing", KEPT * total.attempts) == (health(admit), counted(admit)[1])


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (Usage(90, 7), ("used", 1, 90 + OUTPUT, "alive")),
        (Usage(), ("reserve", 1, KEPT, "alive")),  # the reply has no counts
    ],
)
async def test_replies(usage: Usage, expected: tuple[Any, ...]) -> None:
    """What was used counts; under a token limit the longest reply that was asked for, as providers count it."""

    async def attempt() -> Reply:
        return Reply(usage)

    runtime, call = Runtime(), made(attempt, f"reply-{usage.total_tokens}")
    with budget() as spending:
        await perform(runtime, call)  # type: ignore[arg-type]
    admit = admitter(runtime, call.account)  # type: ignore[arg-type]
    assert expected == (money(spending.ledger.total), *counted(admit), health(admit))


@pytest.mark.looptime
@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        ("deadline", ("reserve", 1, KEPT, "failing")),
        ("cancelled", ("reserve", 1, KEPT, "neither")),
        ("budget", ("reserve", 1, KEPT, "neither")),
        ("queued", ("not sent", 0, FREE, "neither")),
    ],
)
async def test_cut_off(ending: str, expected: tuple[Any, ...]) -> None:
    """What is cut off on the wire may have been answered and billed; what is cut off in the queue wasn't sent."""
    runtime, call = Runtime(), made(anyio.sleep_forever, ending)
    admit = admitter(runtime, call.account)  # type: ignore[arg-type]
    admit.in_flight = int(ending == "queued")
    seconds = {"budget": 5.0}.get(ending)
    with budget(max_seconds=seconds) as spending, anyio.move_on_after(1_000 if ending == "deadline" else 10):
        with pytest.raises(ModelError if ending == "deadline" else BaseException):
            await perform(runtime, call)  # type: ignore[arg-type]
    assert expected == (money(spending.ledger.total), *counted(admit), health(admit))


@pytest.mark.looptime
async def test_a_budget_whose_time_ends_in_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was admitted too late isn't sent, and costs nothing."""

    async def attempt() -> Reply:
        raise AssertionError("not reached")

    runtime, call = Runtime(), made(attempt, "late")
    monkeypatch.setattr(Budget, "check_time", out_of_time)
    with budget() as spending, pytest.raises(BudgetExceeded):
        await perform(runtime, call)  # type: ignore[arg-type]
    admit = admitter(runtime, call.account)  # type: ignore[arg-type]
    assert (money(spending.ledger.total), *counted(admit), health(admit)) == ("not sent", 0, FREE, "neither")
    assert (admit.in_flight, spending.balance.open) == (0, 0)


def out_of_time(spending: Budget) -> None:
    """Raise in the second check: the first one is made before the call queues."""
    if spending.balance.open:
        raise BudgetExceeded(
            "late", limit="max_seconds", value=1, spent=1, reserved=0, ledger=spending.ledger
        )
