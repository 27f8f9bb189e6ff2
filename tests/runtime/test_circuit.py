"""Circuit: opens when 20 of 22 requests fail, is tried by one call at a time, is given up after ten minutes."""

from __future__ import annotations

import heapq
import math
import random

import pytest

from afnio.runtime._health import BLOCK, FIRST_PROBE, GIVES_UP, LAST_PROBE, OPENS_AFTER, Circuit


def opened() -> Circuit:
    circuit = Circuit()
    circuit.succeeded(0, 0.0)
    for number in range(1, OPENS_AFTER + 1):
        circuit.failed(number, 0.0, probe=False)
    assert circuit.opened_at == 0.0
    return circuit


def opens(
    share: float, *, failing: float, answering: float, in_flight: int = 256, requests: int = 4_000
) -> int | None:
    """Send requests, a share of which fail, so many at once; return after how many ended ones the circuit opens."""
    draw, circuit = random.Random(1), Circuit()
    circuit.succeeded(0, 0.0)
    under_way: list[tuple[float, int, bool]] = []

    def send(number: int, now: float) -> None:
        circuit.send(number)
        fails = draw.random() < share
        due = now + (failing if fails else answering) * draw.uniform(0.9, 1.1)
        heapq.heappush(under_way, (due, number, fails))

    for number in range(1, in_flight + 1):
        send(number, 0.0)
    for ended in range(requests):
        now, number, fails = heapq.heappop(under_way)
        if not fails:
            circuit.succeeded(number, now)
        elif circuit.failed(number, now, probe=False):
            return ended + 1
        send(ended + in_flight + 1, now)
    return None


@pytest.mark.parametrize(("failing", "answering"), [(0.002, 0.2), (0.2, 0.2), (5.0, 0.2)])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_random_failures_open_nothing(share: float, failing: float, answering: float) -> None:
    """However much quicker or slower they are than replies."""
    assert opens(share, failing=failing, answering=answering) is None


@pytest.mark.parametrize("failing", [0.002, 5.0])
@pytest.mark.parametrize("in_flight", [1, 64, 256])
def test_an_outage_opens_it(failing: float, in_flight: int) -> None:
    """After some 20 failures, quick or slow ones."""
    ended = opens(1.0, failing=failing, answering=0.2, in_flight=in_flight)
    assert ended is not None
    assert OPENS_AFTER <= ended <= 10 * BLOCK


def test_what_it_was_opened_by() -> None:
    """The failures and the requests sent that they were among are known."""
    circuit = Circuit()
    circuit.send(0)
    circuit.succeeded(0, 0.0)
    for number in range(1, OPENS_AFTER + 1):
        circuit.send(number)
        circuit.failed(number, 0.0, probe=False)
    assert circuit.opened_by == (OPENS_AFTER, OPENS_AFTER + 1)


def test_late_failures_of_an_outage_that_is_over() -> None:
    """They open nothing: what was sent after them was answered."""
    circuit = Circuit()
    circuit.succeeded(0, 0.0)
    circuit.succeeded(10 * BLOCK, 1.0)
    assert not any(circuit.failed(number, 2.0, probe=False) for number in range(1, 10 * BLOCK))


def test_none_before_the_first_answer() -> None:
    """A wrong URL has no circuit: its calls fail by themselves."""
    circuit = Circuit()
    assert not any(circuit.failed(number, 0.0, probe=False) for number in range(100))
    assert circuit.wait(0.0) == 0


def test_one_probe_at_a_time() -> None:
    """While one is under way nobody else goes; its success opens the way for all."""
    circuit = opened()
    assert circuit.wait(0.0) == FIRST_PROBE
    assert circuit.send(30)
    assert math.inf == circuit.wait(FIRST_PROBE)
    assert circuit.succeeded(30, 5.0) == 5.0
    assert (circuit.wait(5.0), circuit.send(31)) == (0, False)


def test_probes_get_rarer() -> None:
    """Each failed probe doubles the pause, up to half a minute."""
    circuit, pauses = opened(), []
    for number in range(30, 37):
        circuit.send(number)
        circuit.failed(number, 0.0, probe=True)
        pauses.append(circuit.wait(0.0))
    assert pauses == [2, 4, 8, 16, LAST_PROBE, LAST_PROBE, LAST_PROBE]


def test_a_cancelled_probe_blocks_nobody() -> None:
    """The next call may probe at once."""
    circuit = opened()
    circuit.send(30)
    circuit.released(probe=True)
    assert circuit.wait(FIRST_PROBE) == 0


def test_given_up() -> None:
    """After ten minutes of failed probes nobody should wait any longer."""
    circuit = opened()
    assert [circuit.given_up(now) for now in (GIVES_UP - 1, GIVES_UP)] == [False, True]
