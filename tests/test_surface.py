"""The public names, and what importing them costs and does."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import types
from pathlib import Path

import pytest

import afnio

ROOT = Path(__file__).parents[1]

SURFACE = {
    "afnio": """Variable Parameter no_grad enable_grad set_grad_enabled is_grad_enabled bind scope resolve run
        to_thread set_sync_mode tolerate Limits Pending set_backward_model_client get_backward_model_client save load
        autodiff bridge cognitive models optim stats tellurio testing trainer utils errors""",
    "afnio.stats": "Paired mean_interval paired_interval power wilson",
    "afnio.bridge": "client sync_client transport installed url register",
    "afnio.autodiff": """Variable backward grad Function Context Feedback bind
        no_grad enable_grad set_grad_enabled is_grad_enabled""",
    "afnio.cognitive": """Module Parameter ModuleDict ChatCompletion ExactMatchEvaluator DeterministicEvaluator
        LMJudgeEvaluator Sequential ModuleList functional Completion Score Judgement""",
    "afnio.cognitive.functional": """add sum split chat_completion exact_match_evaluator
        deterministic_evaluator lm_judge_evaluator""",
    "afnio.optim": "Optimizer TGD Demos reduce tgd Change",
    "afnio.models": """ChatClient ChatModel ChatRequest ChatResponse ToolCall Usage set_backward_model_client
        get_backward_model_client""",
    "afnio.models.openai": "AsyncOpenAI AsyncAzureOpenAI",
    "afnio.testing": "Provider ScriptedClient SimulatedLM",
    "afnio.tellurio": "init Run log suppress_variable_notifications configure_logging",
    "afnio.trainer": "Trainer Callback EarlyStopping LengthWatch StopTraining",
    "afnio.utils.data": """Dataset IterableDataset DataLoader Sampler BatchSampler SequentialSampler RandomSampler
        WeightedRandomSampler""",
    "afnio.utils.datasets": "FacilitySupport TREC",
    "afnio.utils.agents": "SentimentAnalyzer",
}


@pytest.mark.parametrize("package", SURFACE)
def test_the_names_that_users_know_are_there(package):
    """Under the package that documents them."""
    module = importlib.import_module(package)
    assert [name for name in SURFACE[package].split() if not hasattr(module, name)] == []


def test_all_is_complete_and_sorted():
    """Every public name of `afnio` is in `__all__`, and can be imported. Packages have no place there."""
    assert sorted(afnio.__all__) == list(afnio.__all__)
    assert [name for name in afnio.__all__ if getattr(afnio, name, None) is None] == []
    public = {
        name
        for name, value in vars(afnio).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert public - set(afnio.__all__) - {"annotations", "TYPE_CHECKING"} == set()
    packages = {
        name for name in SURFACE["afnio"].split() if isinstance(getattr(afnio, name), types.ModuleType)
    }
    assert set(SURFACE["afnio"].split()) - set(afnio.__all__) == packages


def test_a_star_import_brings_the_names():
    """Lazy ones too."""
    names: dict[str, object] = {}
    exec("from afnio import *", names)
    assert set(afnio.__all__) <= set(names)


@pytest.mark.parametrize(
    "module",
    ["models.openai", "runtime.events", "utils.agents", "utils.data", "utils.datasets"],
)
def test_modules_are_attributes(module: str):
    """After `import afnio` alone, as a user writes `afnio.utils.data.DataLoader`."""
    code = f"import afnio; print(afnio.{module}.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout == f"afnio.{module}\n", done.stderr


def test_what_is_not_there_is_an_attribute_error():
    """As of any module."""
    with pytest.raises(AttributeError, match="module 'afnio' has no attribute 'trainable'"):
        _ = afnio.trainable


_PROBE = """
import dataclasses, json, logging, os, sys, threading, time
started = time.process_time()
for number in range(40):
    dataclasses.make_dataclass(f"Reference{number}", [(f"field{n}", int, n) for n in range(8)], frozen=True)
reference = time.process_time() - started
opened, files = set(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else set(), []
def audit(event, args):
    if event == "open" and isinstance(args[0], str) and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        files.append(args[0])
started = time.process_time()
if WATCH:
    sys.addaudithook(audit)
import afnio
seconds = time.process_time() - started
left = set(os.listdir("/proc/self/fd")) - opened if opened else set()
print(json.dumps({
    "seconds": seconds,
    "reference": reference,
    "modules": [m for m in BARRED if m in sys.modules],
    "threads": threading.active_count(),
    "files": [f for f in files if not f.endswith(".pyc") and "__pycache__" not in f],
    "descriptors": len([fd for fd in left if os.path.exists(f"/proc/self/fd/{fd}")]),
    "handlers": len(logging.getLogger().handlers) + len(logging.getLogger("afnio").handlers),
    "level": logging.getLogger("afnio").level,
}))
"""
BARRED = [
    "openai",
    "aiohttp",
    "pydantic",
    "structlog",
    "sqlite3",
    "httpx2",
    "rich",
    "trio",
    "tenacity",
    "tornado",
    "aiolimiter",
    "importlib.metadata",
    "statistics",
    "tomllib",
    "zipfile",
    "afnio.cognitive._archive",
    "afnio.optim",
    "ray",
    "dask",
    "distributed",
    "loky",
    "cloudpickle",
    "multiprocessing",
    "concurrent.futures.process",
    "afnio.ray",
    "afnio.runtime._executors",
    "afnio.testing",
    "afnio.tellurio",
    "afnio.trainer",
]


def probe(watch: bool) -> dict:
    code = _PROBE.replace("WATCH", str(watch)).replace("BARRED", repr(BARRED))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.nightly
def test_importing_is_quick():
    """CPU time, best of five: 0.15 s on a quiet machine.

    A busy one takes several times as long for everything. Forty dataclasses, made just before, show how much.
    """
    probes = [probe(watch=False) for _ in range(5)]
    print(f"import afnio: {min(one['seconds'] for one in probes) * 1000:.0f} ms")
    assert min(one["seconds"] / max(one["reference"], 0.033) for one in probes) <= 8


def test_importing_does_nothing():
    """No heavy library, no thread, no file, no logging."""
    found = probe(watch=True)
    del found["seconds"], found["reference"]
    assert found == {
        "modules": [], "threads": 1, "files": [], "descriptors": 0, "handlers": 0, "level": 0,
    }  # fmt: skip
