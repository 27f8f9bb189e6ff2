"""The examples as a user runs them, offline: each as a program of its own in its folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, cwd: Path = EXAMPLES) -> str:
    environment = {n: v for n, v in os.environ.items() if not n.startswith("OPENAI_")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_own_data(tmp_path: Path) -> None:
    """Twenty rows of a CSV, from any working folder: rows that it was not trained on get better."""
    before, after = map(int, re.search(r"before (\d)/8, after (\d)/8", run("own_data", tmp_path)).groups())
    assert before + 3 <= after
    assert len((EXAMPLES / "messages.csv").read_text().splitlines()) == 21


def test_retrieval() -> None:
    """Two stages with learnable prompts: feedback goes through the one into the other's, and helps."""
    shown = run("retrieval")
    right = [int(count) for count in re.findall(r"epoch \d: (\d)/6 right", shown)]
    assert right[0] < right[-1]
    assert "answer: 3 gradients" in shown


def test_judge_tuning() -> None:
    """The judge agrees with people after its prompt was told what they say."""
    assert re.findall(r"agrees with people on (\d)/4", run("judge_tuning")) == ["2", "4"]


def test_tool_agent() -> None:
    """Tools are called, their errors come back as results, and the wrong answer leads to a new prompt."""
    shown = run("tool_agent")
    assert "12 * 7 + 5? 89 (expected 89, score 1)" in shown
    assert "(3 + 4) * 6? 42 (expected 42, score 1)" in shown
    assert "1 / 0? error: division by zero (expected undefined, score 0)" in shown
    assert '"undefined"' in shown.splitlines()[-1]


@pytest.mark.parametrize("asked", ["again", "never"])
async def test_tool_agent_stops_after_its_rounds(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that always wants a tool gets no tools in the last round."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import tool_agent

    from afnio.models import ChatRequest, ChatResponse, ToolCall
    from afnio.testing import ScriptedClient

    def script(request: ChatRequest) -> str | ChatResponse:
        if asked == "never" or "tools" not in request.params:
            return "done"
        call = ToolCall(id="1", name="calculate", arguments='{"expression": "2 ** 3"}')
        return ChatResponse(content=None, tool_calls=(call,), finish_reason="tool_calls", model="m")

    client = ScriptedClient(script)
    reply = await tool_agent.ToolAgent()(client, "?")
    assert ("done", tool_agent.ROUNDS if asked == "again" else 1) == (reply.data, len(client.requests))
    if asked == "again":
        assert "only numbers and + - * / are known" in client.requests[1].messages[-1]["content"]


def test_custom_function() -> None:
    """Labels come out of JSON replies; feedback passes through."""
    shown = run("custom_function")
    assert "['neutral', 'neutral', 'neutral'] 1/3" in shown
    assert "['positive', 'negative', 'neutral'] 3/3" in shown


def test_custom_optimizer() -> None:
    """Lessons are added to the prompt, and help."""
    shown = run("custom_optimizer")
    assert re.findall(r"(\d)/2 right", shown) == ["0", "2"]
    assert shown.count("Lessons so far:") == 1


def test_custom_provider() -> None:
    """A refusal is tried again by the engine; tokens are counted by the provider's own rule."""
    shown = run("custom_provider")
    assert "4/4 right" in shown
    assert "1 refusal, 20 tokens" in shown


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cells run in a kernel; what is kept in the file has no outputs."""
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    book = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    assert [cell for cell in book.cells if cell.get("outputs")] == []
    nbclient.NotebookClient(
        book, timeout=60, kernel_name="python3", resources={"metadata": {"path": str(EXAMPLES)}}
    ).execute()
    shown = json.dumps([cell.get("outputs") for cell in book.cells])
    assert "1/3 right" in shown
    assert "3/3 right" in shown
