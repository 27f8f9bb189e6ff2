"""The demo against the bundled provider: its figures, its page, and what must not reach or stop it."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from demo.process import Demo, needs_data

import afnio

pytestmark = [needs_data, pytest.mark.slow]
LINE = re.compile(r"^baseline (\d+)/68 final (\d+)/68$", re.MULTILINE)
PROMPT = re.compile(r"^The prompt, (.*):\n((?:  .*\n)+)", re.MULTILINE)
INTERVAL = re.compile(r"95 % interval ([\d.]+) to ([\d.]+) %")


def calls(output: str) -> dict[str, int]:
    """The calls of each phase."""
    return {
        name: int(count)
        for name, count in re.findall(r"^(forward|backward|step) +(\d+)", output, re.MULTILINE)
    }


def checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Those of the epochs, in order."""
    return [afnio.load(path) for path in sorted(folder.rglob("epoch-*"))]


def test_it_trains_and_reports(demo: Demo, folder: Path):
    done = demo()
    assert done.returncode == 0, done.stderr
    found = LINE.search(done.stdout)
    assert found is not None
    baseline, final = map(int, found.groups())
    assert final > baseline
    # More than chance: the intervals don't even touch.
    (_, highest), (lowest, _) = INTERVAL.findall(done.stdout)
    assert float(highest) < float(lowest)
    assert "SIMULATED" in done.stdout
    assert "unpriced (simulated)" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr

    # The documentation shows this very run.
    shown = (Path(__file__).parents[2] / "docs" / "demo.md").read_text()
    (block,) = re.findall(r"```\n(Gate: .*?)```", shown, re.DOTALL)
    for line in block.splitlines():
        assert line in done.stdout.splitlines()

    # The last line names the run as a page, which has it all.
    assert done.stdout.splitlines()[-1] == "The run as a page: demo.html"
    page = (folder / "demo.html").read_text()
    prompt = PROMPT.search(done.stdout)
    assert prompt is not None
    assert prompt[2].splitlines()[-1].strip()[:40].replace('"', "&#34;") in page

    # Messages that the sampler drew twice into a batch are one call, as temperature 0 is asked for.
    counts = calls(done.stdout)
    looks = 2 * 68 + 2 * 33 + 5 * 33  # the tests, the gate, the validation after each epoch
    assert looks < counts["forward"] <= looks + 5 * 66
    assert re.search(r"^Gate: the result is kept: .* on 33 held-out rows ", done.stdout, re.MULTILINE)
    assert len("\n".join(line[2:] for line in prompt[2].splitlines())) <= 1000
    # Only wrong answers are criticized, each in one call.
    steps = [entry for entry in checkpoints(folder)[-1]["history"] if entry["kind"] == "step"]
    scores = [entry["metrics"]["score"] for entry in steps]
    assert counts["backward"] == sum(samples - right for right, samples, _ in scores)

    # The Trainer's own progress is on standard error, with the time.
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in done.stderr.splitlines())
    assert "epoch 5/5" in done.stderr


def test_the_test_messages_choose_nothing(demo: Demo, folder: Path):
    """The best epoch of the validation is chosen, and the gate decides if it stays; the same seed does the same."""
    done = demo("--messages", "24", "--epochs", "2")
    found = checkpoints(folder)
    scores = [one["metrics"]["val_score"] for one in found]
    best = scores.index(max(scores))
    prompt = PROMPT.search(done.stdout)
    assert prompt is not None
    if "Gate: the start is kept" in done.stdout:
        assert prompt[1].startswith("unchanged")
    else:
        assert prompt[1].startswith(f"after epoch {best + 1}")
        kept = found[best]["agent_state_dict"]["sentiment_task"]
        assert [f"  {line}" for line in str(getattr(kept, "data", kept)).splitlines()] == prompt[
            2
        ].splitlines()
    assert result(demo("--messages", "24", "--epochs", "2")) == result(done)


def result(done: subprocess.CompletedProcess[str]) -> str:
    """What it ends with, but for the time."""
    assert done.returncode == 0, done.stderr
    return re.sub(r"time [\d.]+ s", "", done.stdout[done.stdout.index("The prompt") :])


def test_nothing_of_the_user_redirects_or_stops_it(demo: Demo, folder: Path):
    """Keys, proxies and an ASCII terminal; with few messages there is no gate; the run is where it says."""
    nowhere = "http://127.0.0.1:9"
    done = demo(
        "--messages",
        "4",
        "--epochs",
        "1",
        OPENAI_BASE_URL=nowhere,
        OPENAI_API_KEY="sk-of-the-user",
        OPENAI_ORG_ID="organization",
        HTTP_PROXY=nowhere,
        http_proxy=nowhere,
        ALL_PROXY=nowhere,
        no_proxy="example.org",
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0, done.stderr
    assert "sk-of-the-user" not in done.stdout + done.stderr
    assert "Gate: none, too few messages" in done.stdout
    recorded = re.search(r"^Recorded as run (\S+) in (\S+)$", done.stdout, re.MULTILINE)
    assert recorded is not None
    with closing(sqlite3.connect(folder / recorded[2])) as store:
        runs = store.execute("SELECT name, status FROM runs").fetchall()
    assert runs == [(recorded[1], "COMPLETED")]


def test_without_data_it_says_where_to_put_them(demo: Demo, tmp_path: Path):
    nowhere = "http://127.0.0.1:9"
    done = demo(AFNIO_DATA=str(tmp_path), https_proxy=nowhere, PIP_INDEX_URL=nowhere, PIP_RETRIES="0")
    assert done.returncode == 1
    assert "AFNIO_DATA" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused_before_the_work(demo: Demo, folder: Path):
    folder.chmod(0o555)
    done = demo()
    assert done.returncode == 2
    assert str(folder) in done.stderr
