"""The demo against the bundled provider: its figures, its file, and what must not reach or stop it."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from pathlib import Path

import pytest
from demo.process import Demo, needs_data

pytestmark = [needs_data, pytest.mark.slow]
LINE = re.compile(r"^baseline (\d+)/68 final (\d+)/68$", re.MULTILINE)


def test_it_prints_and_keeps_figures_that_agree(demo: Demo, folder: Path):
    done = demo()
    assert (done.returncode, done.stderr) == (0, "")
    found = LINE.search(done.stdout)
    assert found is not None
    baseline, final = map(int, found.groups())
    assert "SIMULATED" in done.stdout
    assert "unpriced" in done.stdout
    assert "\x1b" not in done.stdout

    # The README shows this very run.
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (block,) = re.findall(r"```\n(phase .*?)```", readme, re.DOTALL)
    for line in block.splitlines():
        assert line in done.stdout.splitlines()

    # The last line names the run as a page, which has it all.
    assert "The run as a page: demo.html" == done.stdout.splitlines()[-1]
    page = (folder / "demo.html").read_text()
    assert "epoch 5/validation" in page
    assert "match by overlap" in page

    figures = json.loads((folder / "demo.json").read_text())
    assert (figures["baseline"]["correct"], figures["final"]["correct"]) == (baseline, final)
    assert final > baseline
    # More than chance: the intervals don't even touch.
    assert figures["baseline"]["interval_95"][1] < figures["final"]["interval_95"][0]
    assert figures["simulated"] is True
    assert figures["cost"] is None
    assert figures["data"] == {"name": "FacilitySupport", "train": 66, "validation": 66, "test": 68}
    assert figures["wall_seconds"] < 60
    assert {"forward", "backward", "step"} <= set(figures["phases"])
    # Messages that the sampler drew twice into a batch are one call, as temperature 0 is asked for.
    assert 2 * 68 + 6 * 66 < figures["phases"]["forward"]["calls"] <= 2 * 68 + 6 * 66 + 5 * 66
    # Only wrong answers are criticized, each in one call.
    assert figures["phases"]["backward"]["calls"] == figures["feedback"]["wrong_answers"]
    for line in figures["prompt"]["after"].splitlines()[1:]:
        assert f"+ {line}" in done.stdout


def test_the_test_messages_choose_nothing(demo: Demo, folder: Path):
    demo("--messages", "12", "--epochs", "2")
    figures = json.loads((folder / "demo.json").read_text())
    counts = [epoch["validation"]["correct"] for epoch in figures["history"]]
    assert figures["chosen_epoch"] == counts.index(max(counts))
    assert figures["prompt"]["after"] == figures["history"][figures["chosen_epoch"]]["prompt"]


def test_the_same_seed_gives_the_same_figures(demo: Demo, folder: Path):
    runs = []
    for _ in range(2):
        assert demo("--messages", "20", "--epochs", "2").returncode == 0
        figures = json.loads((folder / "demo.json").read_text())
        runs.append({name: figures[name] for name in ("baseline", "final", "history", "prompt", "feedback")})
    assert runs[0] == runs[1]


def test_nothing_of_the_user_redirects_a_call(demo: Demo, folder: Path):
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
    )
    assert done.returncode == 0, done.stderr
    assert "sk-of-the-user" not in done.stdout + (folder / "demo.json").read_text()


def test_the_run_is_recorded_where_it_says(demo: Demo, folder: Path):
    done = demo("--messages", "4", "--epochs", "1")
    found = re.search(r"^Recorded as run (\S+) in (\S+)$", done.stdout, re.MULTILINE)
    assert found is not None
    store = sqlite3.connect(folder / found[2])
    try:
        assert store.execute("SELECT name, status FROM runs").fetchall() == [(found[1], "COMPLETED")]
    finally:
        store.close()


def test_an_ascii_terminal_can_show_it(demo: Demo):
    done = demo("--messages", "4", "--epochs", "1", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


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
