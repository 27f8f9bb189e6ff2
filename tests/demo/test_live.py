"""The demo with --live: nobody is billed without having agreed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from demo.process import Demo, needs_data

from afnio.testing import Provider

pytestmark = needs_data


def test_without_a_terminal_nothing_is_called(demo: Demo, folder: Path):
    with Provider.process() as provider:
        done = demo("--live", "--model", "m", OPENAI_API_KEY="k", OPENAI_BASE_URL=provider.base_url)
        assert provider.stats()["requests"] == 0
    assert done.returncode == 2
    assert "--yes" in done.stderr
    assert "train forward" in done.stdout
    assert "forward calls more" in done.stdout
    assert not (folder / "demo.html").exists()


def test_typing_yes_into_a_pipe_is_no_agreement(demo: Demo):
    with Provider.process() as provider:
        done = demo(
            "--live", "--model", "m", "--base-url", provider.base_url, typed="y\n", OPENAI_API_KEY="k"
        )
        assert provider.stats()["requests"] == 0
    assert done.returncode == 2


def test_a_key_in_the_environment_alone_calls_nobody(demo: Demo):
    with Provider.process() as provider:
        done = demo("--messages", "4", "--epochs", "1", OPENAI_API_KEY="k", OPENAI_BASE_URL=provider.base_url)
        assert provider.stats()["requests"] == 0
    assert done.returncode == 0, done.stderr


def test_without_a_key_it_names_the_variable(demo: Demo):
    done = demo("--live", "--yes")
    assert done.returncode == 2
    assert "OPENAI_API_KEY" in done.stderr


def test_an_endpoint_of_your_own_needs_a_model(demo: Demo):
    done = demo("--live", "--yes", "--base-url", "http://127.0.0.1:9/v1", OPENAI_API_KEY="k")
    assert done.returncode == 2
    assert "--model" in done.stderr


def test_options_of_the_endpoint_need_live(demo: Demo):
    done = demo("--base-url", "http://127.0.0.1:9/v1")
    assert done.returncode == 2
    assert "add --live" in done.stderr


@pytest.mark.slow
def test_agreed_beforehand_it_runs_within_the_estimate(demo: Demo):
    models = ["--model", "student", "--backward-model", "critic", "--optim-model", "optimizer"]
    small = ["--messages", "10", "--epochs", "2", "--batch-size", "5", "--max-in-flight", "4"]
    with Provider.process(api_key="sk-secret", latency=0.01) as provider:
        variables = {"OPENAI_API_KEY": "sk-secret", "OPENAI_BASE_URL": provider.base_url}
        done = demo("--live", "--yes", *models, *small, **variables)
        stats = provider.stats()
    assert done.returncode == 0, done.stderr
    assert "SIMULATED" not in done.stdout
    assert "backward: critic" in done.stdout
    counts = [
        int(count) for count in re.findall(r"^(?:forward|backward|step) +(\d+)", done.stdout, re.MULTILINE)
    ]
    assert sum(counts) == stats["requests"]
    assert stats["peak_in_flight"] <= 4
    # Low and high of the training's calls, then those around it.
    (high,) = re.findall(r"^all +\d+ to (\d+)", done.stdout, re.MULTILINE)
    (around,) = re.findall(r"at most (\d+) forward calls more", done.stdout)
    assert sum(counts) <= int(high) + int(around)
    assert "sk-secret" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_wrong_key_is_one_sentence(demo: Demo):
    with Provider.process(api_key="right") as provider:
        done = demo(
            "--live", "--yes", "--model", "m", "--base-url", provider.base_url, OPENAI_API_KEY="wrong"
        )
    assert done.returncode == 1
    assert "answered 401" in done.stderr
    assert "Traceback" not in done.stderr
