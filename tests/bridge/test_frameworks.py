"""Frameworks, each in an environment of its own: 400 lanes, never more than 20 requests at once, all of them replayed.

The environments are made in the user's cache folder, and kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from kit.endpoint import Endpoint

import afnio

ENGINE = [
    "aiohttp>=3.14.4,<4", "aiolimiter>=1.2,<2", "anyio>=4.10,<5", "jinja2>=3.1.5,<4", "pydantic>=2.10,<3",
    "rich>=13.9,<16", "structlog>=24.4,<27", "tenacity>=9.0,<10",
]  # fmt: skip
OPENAI_3 = [
    "openai>=3.3,<4",
    "pydantic-ai-slim[openai]",
    "openai-agents",
    "langchain-openai",
    "langgraph",
    "anthropic",
]
OPENAI_2 = ["openai>=2,<3", "llama-index-llms-openai", "smolagents[openai]"]
PYTEST = [
    "pytest>=8.3", "pytest-asyncio>=1.0", "pytest-timeout>=2.3", "blockbuster>=1.5.23", "hypothesis>=6.130",
    "looptime>=0.4", "prometheus-client>=0.20,<1", "psutil>=6", "trio>=0.27", "trustme>=1.2",
]  # fmt: skip
GOOGLE = ["google-genai", "openai>=3.3,<4"]
CREWAI = ["crewai[anthropic]"]
AG2 = ["ag2[openai]"]
LITELLM = ["litellm"]
HOME_MADE = ["requests", "boto3"]
ROOT = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afnio" / "frameworks"
LANES = int(os.environ.get("AFNIO_LANES", "400"))

FRAMEWORKS = [
    ("openai_sdk", OPENAI_3, 1),
    ("anthropic", OPENAI_3, 1),
    ("pydantic_ai", OPENAI_3, 1),
    ("openai_agents", OPENAI_3, 2),
    ("langgraph", OPENAI_3, 5),
    ("openai_sdk", OPENAI_2, 1),
    ("llama_index", OPENAI_2, 1),
    ("llama_index_streams", OPENAI_2, 1),
    ("smolagents", OPENAI_2, 1),
    ("crewai", CREWAI, 1),
    ("crewai_anthropic", CREWAI, 1),
    ("ag2", AG2, 1),
    ("litellm_router", LITELLM, 1),
    ("plain_requests", HOME_MADE, 1),
    ("plain_aiohttp", HOME_MADE, 1),
    ("boto3_bedrock", HOME_MADE, 1),
    ("genai", GOOGLE, 1),
    ("genai_async", GOOGLE, 1),
]


async def environment(requirements: list[str]) -> Path:
    """Return the interpreter of an environment with these packages and what the engine needs."""
    wanted = [*ENGINE, *requirements]
    name = hashlib.sha256(json.dumps([sys.version, wanted]).encode()).hexdigest()[:12]
    folder = CACHE / name
    python = folder / "bin" / "python"
    done = folder / "done"
    if not done.exists():
        await anyio.run_process([sys.executable, "-m", "venv", str(folder)])
        await anyio.run_process([str(python), "-m", "pip", "install", "--quiet", *wanted])
        done.touch()
    return python


@pytest.mark.nightly
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("name", "requirements", "calls"), FRAMEWORKS, ids=lambda value: str(value)[:12])
async def test_a_framework(name: str, requirements: list[str], calls: int, tmp_path: Path) -> None:
    python = await environment(requirements)
    async with Endpoint(latency=0.02) as endpoint:
        command = [str(python), str(Path(__file__).with_name("agents_of.py")), name]
        command += [endpoint.url, str(tmp_path / "calls.journal"), str(LANES)]
        source = str(Path(afnio.__file__).parents[1])
        env = {
            **os.environ,
            "PYTHONPATH": source,
            "PYTHONDONTWRITEBYTECODE": "1",
            "OTEL_SDK_DISABLED": "true",
            "CREWAI_DISABLE_TELEMETRY": "true",
        }
        first = await ran(command, env)
        assert first["paid"] == first["ledger"] == len(of_a_model(endpoint)) == LANES * calls
        assert endpoint.peak <= 20
        second = await ran(command, env)
        assert len(of_a_model(endpoint)) == LANES * calls  # it sent nothing
    assert (second["paid"], second["replayed"]) == (0, LANES * calls)
    assert first["outputs"] == second["outputs"]
    assert second["said"] == first["said"] == []


@pytest.mark.nightly
@pytest.mark.timeout(1200)
async def test_native_clients_with_the_oldest_openai() -> None:
    """Its HTTP library is httpx, and that of openai 3 is httpx2."""
    (oldest,) = re.findall(r'"openai>=([\d.]+),', (ROOT / "pyproject.toml").read_text())
    python = await environment([f"openai~={oldest}.0", *PYTEST])
    files = [
        f"tests/models/test_{name}.py" for name in ("azure", "hostile_replies", "openai", "raw", "traces")
    ]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ["PYTHONPATH"]])}
    done = await anyio.run_process(
        [str(python), "-m", "pytest", "-q", *files], cwd=ROOT, env=env, check=False
    )
    assert done.returncode == 0, done.stdout.decode()[-3000:]


def of_a_model(endpoint: Endpoint) -> list[str]:
    """Return the paths of the requests that cost money. CrewAI also has Anthropic count tokens, which is free."""
    return [asked.path for asked in endpoint.asked if not asked.path.endswith("/count_tokens")]


async def ran(command: list[str], env: dict[str, str]) -> dict[str, Any]:
    done = await anyio.run_process(command, env=env, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return found
