"""What runs where: executors and replicas, in `places()`, in a stream's snapshot, and in the Trainer's display."""

from __future__ import annotations

import io
import multiprocessing
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from kit import errands

import afnio
import afnio.cognitive as cog
from afnio.errors import WorkerLostError
from afnio.models.openai import AsyncOpenAI
from afnio.runtime import places
from afnio.testing import Provider
from afnio.trainer import Trainer


def shown_pool() -> ProcessPoolExecutor:
    """Make a pool that no other test has, so that its figures are known."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


WORKERS = afnio.Workers(shown_pool, max_in_flight=2)
NOBODY = "http://127.0.0.1:9/v1"


class Held(cog.Module):
    """Waits for a file, in a worker."""

    def forward(self, path: str) -> Any:
        return afnio.Variable(path).map(errands.wait_for, executor=WORKERS)


def test_the_snapshot_of_a_stream(tmp_path: Path) -> None:
    """A stream tells how far it is, and what runs where."""
    paths = [str(tmp_path / str(number)) for number in range(4)]
    stream = Held().stream(paths, max_pending=4)
    Path(paths[0]).touch()
    assert next(stream).value == paths[0]
    line = r"1 rows taken, 3 pending, [\d.]+ rows/s; .*\bshown_pool \(processes\): 1 worker, \d running"
    assert re.match(line, str(stream.snapshot()))
    for path in paths:
        Path(path).touch()
    assert [result.value for result in stream] == paths[1:]
    assert "shown_pool (processes): 1 worker, 0 running" in str(stream.snapshot())


class Agent(cog.Module):
    """Asks a replica, and scores in a worker."""

    def __init__(self, client: AsyncOpenAI, paths: Sequence[str]) -> None:
        super().__init__()
        self.client, self.paths = client, list(paths)
        self.template = afnio.Variable("{text}", role="template")
        self.chat, self.score = cog.ChatCompletion(), cog.DeterministicEvaluator()

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        messages = [{"role": "user", "content": [self.template]}]
        replies = self.chat(self.client, messages, inputs={"text": batch[0]}, model="m")
        return self.score(replies, self.paths, held_match, "match", executor=WORKERS)


def held_match(prediction: str, path: str) -> bool:
    return bool(errands.wait_for(path))


def test_the_display_of_a_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for the executor, and one for the replicas, of which one is out."""
    paths = [str(tmp_path / str(number)) for number in range(4)]

    class Log(io.StringIO):
        def write(self, text: str) -> int:
            if re.search(r"shown_pool \(processes\): 1 worker, 2 running, 2 waiting", text):
                for path in paths:
                    Path(path).touch()
            return super().write(text)

    log = Log()
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr("afnio.trainer._progress._SILENCE", (0.0, 0.0))
    with Provider.process() as provider:
        client = AsyncOpenAI(base_url=[NOBODY, provider.base_url], name="shown", api_key="any")
        trainer = Trainer(
            default_root_dir=tmp_path, enable_checkpointing=False, enable_agent_summary=False, seed=1
        )
        trainer.test(Agent(client, paths), [(["a", "b", "c", "d"], ["a"] * 4)])
    place = re.escape(provider.base_url.split("/")[2])
    held = next(line for line in log.getvalue().splitlines() if "2 waiting" in line)
    assert re.search(
        r"; shown_pool \(processes\): 1 worker, 2 running, 2 waiting"
        rf"; shown: 127\.0\.0\.1:9 out, {place} 0 in flight"
        r"; http://127\.0\.0\.1:9/v1 is left out, others take its calls: can't reach",
        held,
    )


@pytest.mark.nightly
def test_a_lost_worker_is_counted() -> None:
    """For each lane that it had."""
    before = sum(one.lost for one in places().executors)
    with pytest.raises(WorkerLostError):
        _ = afnio.Variable(-1).map(errands.poison, executor=WORKERS).data
    assert sum(one.lost for one in places().executors) - before >= 3
    assert re.search(r"shown_pool \(processes\): 1 worker, 0 running, \d+ lost", str(places()))
