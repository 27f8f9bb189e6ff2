"""The collector's thresholds: raised for calls in flight, restored after, and never taken from the program."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

SETUP = """
import gc, os, threading
import afnio
from afnio.runtime import _kernel
from afnio.runtime._loop import MOST, RARE

before = gc.get_threshold()

def calls(number):
    "Return the thresholds while `number` calls are open."
    runtime, found, turn = _kernel.current_runtime(), [], threading.Event()
    runtime.post(runtime.count_open, number)
    runtime.post(lambda: found.append(gc.get_threshold()))
    runtime.post(runtime.count_open, -number)
    runtime.post(turn.set)
    assert turn.wait(60)
    return found[0]
"""


def script(body: str) -> None:
    source = SETUP + textwrap.dedent(body)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], capture_output=True, text=True, check=False, timeout=60
    )
    assert (run.returncode, run.stderr) == (0, "")


def test_thresholds_follow_the_open_calls() -> None:
    """Few calls leave `RARE` as it is, many raise the first threshold, and the end of each restores."""
    script(
        """
        assert calls(3) == RARE
        first, second, third = calls(300)
        assert first == 2 * RARE[0] and first * second == RARE[0] * RARE[1] and third == RARE[2]
        assert gc.get_threshold() == RARE
        afnio.runtime.close()
        assert gc.get_threshold() == before
        assert calls(3) == RARE  # in a new runtime
        """
    )


@pytest.mark.parametrize(
    "own",
    [
        pytest.param("gc.set_threshold(1234, 5, 6)", id="before the first launch"),
        pytest.param("calls(1); gc.set_threshold(1234, 5, 6)", id="while the runtime runs"),
    ],
)
def test_the_program_s_own_thresholds_stay(own: str) -> None:
    """Thresholds that the program has set are neither raised nor restored."""
    script(
        f"""
        {own}
        assert calls(300) == (1234, 5, 6)
        afnio.runtime.close()
        assert gc.get_threshold() == (1234, 5, 6)
        """
    )


def test_a_library_s_passing_thresholds() -> None:
    """Thresholds that something sets for a while and puts back are followed again afterwards."""
    script(
        """
        calls(1)
        kept = gc.get_threshold()
        gc.set_threshold(1234, 5, 6)
        assert calls(300) == (1234, 5, 6)
        gc.set_threshold(*kept)
        assert calls(300)[0] == 2 * RARE[0]
        afnio.runtime.close()
        assert gc.get_threshold() == before
        """
    )


def test_disabled_stays_disabled() -> None:
    """A program that has disabled the collector keeps it disabled."""
    script("gc.disable(); calls(300); afnio.runtime.close(); assert not gc.isenabled()")


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_a_forked_child_gets_its_own() -> None:
    """A child starts with Python's thresholds, and its own runtime raises them."""
    script(
        """
        calls(3)
        child = os.fork()
        if not child:
            right = gc.get_threshold() == before and calls(3) == RARE
            afnio.runtime.close()
            os._exit(0 if right and gc.get_threshold() == before else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert gc.get_threshold() == RARE
        """
    )


def test_garbage_of_the_program_is_bounded() -> None:
    """Cycles that the program leaves behind are collected while thousands of calls are open."""
    script(
        """
        from afnio.runtime._loop import Collector
        import weakref
        busy = Collector()
        busy.follow(1_000_000)
        class Node: pass
        alive, most = weakref.WeakSet(), 0
        for _ in range(3 * MOST * RARE[0] // 4):
            node = Node()
            node.self = node
            alive.add(node) if _ % 1000 == 0 else None
            most = max(most, len(alive))
        assert most * 1000 <= MOST * RARE[0]
        """
    )
