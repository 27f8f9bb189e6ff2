"""A Phoenix server reads the spans: calls, tool calls and scores as its own, and no token twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit.environments import interpreter

import afnio

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(900)]
PACKAGES = ("arize-phoenix==20.26.1", "opentelemetry-exporter-otlp-proto-http")

PROGRAM = """
import sys
import afnio
import afnio.cognitive as cog
from afnio.models import ChatResponse, ToolCall, Usage
from afnio.tellurio.sinks.opentelemetry import OpenTelemetrySink
from afnio.testing import ScriptedClient
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{sys.argv[1]}/v1/traces")))
call = ToolCall(id="c1", name="weather", arguments='{"city": "Paris"}')
reply = ChatResponse(content=None, tool_calls=(call,), finish_reason="tool_calls", usage=Usage(100, 7))
for _ in range(2):
    with OpenTelemetrySink(provider, content=True), afnio.journal("calls"):
        ScriptedClient(reply).chat(messages=[{"role": "user", "content": "Weather?"}], model="m")
with OpenTelemetrySink(provider):
    _, explanation = cog.functional.exact_match_evaluator(afnio.Variable(["good"]), ["bad"])
    explanation.data
provider.shutdown()
"""


@pytest.fixture
def phoenix(tmp_path: Path) -> Iterator[str]:
    """The address of a server with a database of its own."""
    with socket.socket() as one, socket.socket() as other:
        ports = []
        for free in (one, other):
            free.bind(("127.0.0.1", 0))
            ports.append(str(free.getsockname()[1]))
    env = {
        **os.environ, "PHOENIX_WORKING_DIR": str(tmp_path / "phoenix"), "PHOENIX_HOST": "127.0.0.1",
        "PHOENIX_PORT": ports[0], "PHOENIX_GRPC_PORT": ports[1], "PHOENIX_TELEMETRY_ENABLED": "false",
    }  # fmt: skip
    command = [str(interpreter("phoenix", *PACKAGES)), "-m", "phoenix.server.main", "serve"]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{ports[0]}"
    try:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and server.poll() is None:
            try:
                if httpx.get(f"{url}/healthz", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        else:
            pytest.fail((tmp_path / "log").read_text()[-2000:])
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def spans_at(url: str, count: int) -> list[dict[str, Any]]:
    """Return the server's spans, once it has read as many; it stores them after it has accepted them."""
    deadline = time.monotonic() + 60
    while True:
        found = httpx.get(f"{url}/v1/projects/default/spans", params={"limit": 100}, trust_env=False).json()
        spans: list[dict[str, Any]] = found.get("data", [])
        if len(spans) >= count or time.monotonic() > deadline:
            return spans
        time.sleep(0.2)


def test_phoenix_reads_a_resumed_run(phoenix: str, tmp_path: Path) -> None:
    path = str(Path(afnio.__file__).parents[1])
    command = [str(interpreter("phoenix", *PACKAGES)), "-c", PROGRAM, phoenix]
    env = {**os.environ, "PYTHONPATH": path, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    subprocess.run(command, cwd=tmp_path, env=env, check=True)
    # run, journal, chat and the call, twice; then run, sample and evaluator
    spans = spans_at(phoenix, 11)
    assert len(spans) == 11
    (call,) = (span["attributes"] for span in spans if span["span_kind"] == "LLM")
    tokens = [span["attributes"].get("llm.token_count.total", 0) for span in spans]
    assert sum(tokens) == call["llm.token_count.total"] == 107
    asked = "llm.output_messages.0.message.tool_calls.0.tool_call.function"
    assert (call[f"{asked}.name"], call[f"{asked}.arguments"]) == ("weather", '{"city": "Paris"}')
    events = [event for span in spans for event in span["events"]]
    assert [event["name"] for event in events] == ["gen_ai.evaluation.result"]
    assert events[0]["attributes"]["gen_ai.evaluation.score.value"] == 0.0
    # Phoenix's export gives the input of the call back.
    (tmp_path / "spans.json").write_text(json.dumps({"data": spans}))
    rows, _ = afnio.traces.read(tmp_path / "spans.json")
    assert [row["inputs"] for row in rows] == ["Weather?"]
