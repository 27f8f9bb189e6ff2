"""The page "I have an agent already": its blocks for other frameworks and languages, in an environment of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from afnio.testing import Provider

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "any-agent.md").read_text()
BLOCK = re.compile(r"^``` \{ \.(?:python|js) \.(\w+) \}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
(SETUP,) = re.findall(r"^```python\n(.*?settings = .*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[:1]
FRAMEWORKS = [code for kind, code in BLOCK.findall(PAGE) if kind == "framework"]
SCRIPT, NODE = (code for kind, code in BLOCK.findall(PAGE) if kind == "node")
PACKAGES = ("pydantic-ai-slim[openai]", "openai-agents", "langgraph", "langchain-openai")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "afnio" / "frameworks"
TOLD = """
import json
print(json.dumps([result.verdict, result.calls, result.changed]))
"""

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        "AFNIO_DATA" not in os.environ,
        reason="e-mails: a network, or facility_support.json in AFNIO_DATA",
    ),
]


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with the frameworks. It is made once and kept."""
    found = CACHE / "bin" / "python"
    if not (CACHE / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(CACHE)], check=True)
        done = subprocess.run(
            [str(found), "-m", "pip", "install", "--quiet", str(ROOT), *PACKAGES],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            pytest.skip(f"the frameworks can't be installed: {done.stderr.strip().splitlines()[-1]}")
        (CACHE / ".installed").touch()
    return found


def ran(python: Path | str, code: str, folder: Path) -> tuple[str, int, bool, dict[str, int]]:
    """Run the page's first block and another one; return verdict, calls, if the prompt changed, and calls by kind."""
    (folder / "program.py").write_text(SETUP + code + TOLD)
    with Provider.process() as provider:
        done = subprocess.run(
            [str(python), "program.py"],
            cwd=folder,
            env={
                **os.environ,
                "OPENAI_BASE_URL": provider.base_url,
                "OPENAI_API_KEY": "any",
                "PYTHONPATH": str(ROOT / "src"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        kinds = provider.stats()["by_kind"]
    assert done.returncode == 0, done.stderr
    verdict, calls, changed = json.loads(done.stdout.splitlines()[-1])
    return verdict, calls, changed, kinds


@pytest.mark.parametrize("code", FRAMEWORKS, ids=["pydantic-ai", "openai-agents", "langgraph"])
def test_framework(code: str, python: Path, tmp_path: Path) -> None:
    """The agent stays as it is, and learns: every call goes through the engine."""
    verdict, calls, changed, _ = ran(python, code, tmp_path)
    assert re.search(r"\(95 %: .*\) on \d+ held-out rows\.", verdict)
    assert changed
    assert 200 < calls <= 600


@pytest.mark.skipif(shutil.which("node") is None, reason="node isn't installed")
def test_node(tmp_path: Path) -> None:
    """A process for each row, and its calls are counted and criticized."""
    (tmp_path / "agent.mjs").write_text(SCRIPT)
    _, calls, _, kinds = ran(sys.executable, NODE, tmp_path)
    assert 40 < calls <= 600
    assert kinds["editor"] > 0
    assert sum(kinds.values()) == calls
