"""Circuit: opens after twenty failures in a row, is tried by one call at a time, is given up after ten minutes."""

from __future__ import annotations

import math

from afnio.runtime.circuit import FIRST_PROBE, GIVES_UP, LAST_PROBE, OPENS_AFTER, Circuit


def opened() -> Circuit:
    circuit = Circuit()
    circuit.succeeded(0.0)
    for _ in range(OPENS_AFTER):
        circuit.failed(0.0, probe=False)
    assert circuit.opened_at == 0.0
    return circuit


def test_opens_after_failures_in_a_row() -> None:
    """A success in between starts the count anew."""
    circuit = Circuit()
    circuit.succeeded(0.0)
    for turn in range(3 * OPENS_AFTER):
        if turn % (OPENS_AFTER - 1) == 0:
            circuit.succeeded(0.0)
        assert not circuit.failed(0.0, probe=False)
    assert circuit.wait(0.0) == 0


def test_none_before_the_first_answer() -> None:
    """A wrong URL has no circuit: its calls fail by themselves."""
    circuit = Circuit()
    assert not any(circuit.failed(0.0, probe=False) for _ in range(100))
    assert circuit.wait(0.0) == 0


def test_one_probe_at_a_time() -> None:
    """While one is under way nobody else goes; its success opens the way for all."""
    circuit = opened()
    assert FIRST_PROBE == circuit.wait(0.0)
    assert circuit.send()
    assert math.inf == circuit.wait(FIRST_PROBE)
    assert 5.0 == circuit.succeeded(5.0)
    assert (0, False) == (circuit.wait(5.0), circuit.send())


def test_probes_get_rarer() -> None:
    """Each failed probe doubles the pause, up to half a minute."""
    circuit, pauses = opened(), []
    for _ in range(7):
        circuit.send()
        circuit.failed(0.0, probe=True)
        pauses.append(circuit.wait(0.0))
    assert [2, 4, 8, 16, LAST_PROBE, LAST_PROBE, LAST_PROBE] == pauses


def test_a_cancelled_probe_blocks_nobody() -> None:
    """The next call may probe at once."""
    circuit = opened()
    circuit.send()
    circuit.released(probe=True)
    assert 0 == circuit.wait(FIRST_PROBE)


def test_given_up() -> None:
    """After ten minutes of failed probes nobody should wait any longer."""
    circuit = opened()
    assert [False, True] == [circuit.given_up(now) for now in (GIVES_UP - 1, GIVES_UP)]
