"""The example whose prompts change while it runs, as a real process: whole sets, and the last good one in trouble."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit.results import RESULT

from afnio.testing import Provider

pytest.importorskip("fastapi", reason="fastapi is not installed")
EXAMPLES = Path(__file__).parents[2] / "examples"


@contextmanager
def service(**environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start `examples/live_prompts.py` by uvicorn."""
    process = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "live_prompts:app", "--port", "0", "--host", "127.0.0.1"],
        cwd=EXAMPLES,
        env={**os.environ, "OPENAI_API_KEY": "any", "RELOAD_SECONDS": "0.02", **environment},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"running on (http://\S+)", line):
            return found[1]
    raise AssertionError("the service has ended")


def until(url: str, holds: Callable[[Any], bool]) -> Any:
    """Return the service's state as soon as something holds for it."""
    ends = time.monotonic() + 30
    while time.monotonic() < ends:
        state = httpx.get(f"{url}/state", trust_env=False).json()
        if holds(state):
            return state
    raise AssertionError(state)


def push(store: Path, text: str) -> None:
    replace(RESULT, prompts={"system": text}).push(f"folder:{store}", "sentiment")


def test_prompts_change_while_the_service_answers(tmp_path: Path) -> None:
    """A damaged store changes nothing but the state; the next good set is taken."""
    push(tmp_path, "Say the sentiment.")
    with (
        Provider.process() as provider,
        service(
            PROMPTS=f"folder:{tmp_path}", PROMPTS_NAME="sentiment", OPENAI_BASE_URL=provider.base_url
        ) as process,
    ):
        url = address(process)
        assert until(url, bool) == {"prompts": {"system": "Say the sentiment."}, "problem": None}
        push(tmp_path, "Say the sentiment: positive, neutral or negative.")
        until(url, lambda state: state["prompts"]["system"].endswith("negative."))
        (tmp_path / "sentiment" / "candidate.alias").write_text("none")
        broken = until(url, lambda state: state["problem"] is not None)
        assert broken["problem"].endswith("must be a version that Result.push wrote (got another)")
        assert broken["prompts"] == {"system": "Say the sentiment: positive, neutral or negative."}
        reply = httpx.get(f"{url}/answer", params={"text": "I am thrilled."}, trust_env=False).json()
        assert reply["reply"] in ("positive", "neutral", "negative")
        push(tmp_path, "Say it.")
        assert until(url, lambda state: state["problem"] is None) == {
            "prompts": {"system": "Say it."},
            "problem": None,
        }


def test_files_are_read_too() -> None:
    """Those of the folder that the example comes with."""
    with service() as process:
        assert until(address(process), bool)["prompts"]["system"].startswith("Say the sentiment: ")


def test_a_service_without_prompts_does_not_start(tmp_path: Path) -> None:
    with service(PROMPTS=f"folder:{tmp_path}", PROMPTS_NAME="sentiment") as process:
        assert process.stderr is not None
        assert "'sentiment' must have the alias 'candidate'" in process.stderr.read()
        assert process.wait(timeout=60) != 0
