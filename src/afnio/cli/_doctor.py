"""`afnio doctor`: check that Afnio can work on this machine and with an endpoint.

It looks at the installation and the folder of runs, then sends the endpoint a few short calls and reports its
latency, whether it follows a JSON schema, and the rate limits in its headers. A finding is "ok", "note" (works, but
read this) or "failed"; one failed finding makes the exit code 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

if TYPE_CHECKING:
    from afnio.models.openai import AsyncOpenAI


PACKAGES: Final = ("openai", "aiohttp", "anyio", "pydantic")
EXTRAS: Final = {
    "prices": "genai-prices", "keyring": "keyring", "mlflow": "mlflow-skinny", "opentelemetry": "opentelemetry-api",
    "studio": "starlette",
}  # fmt: skip
DEADLINE: Final = 60.0
"""Seconds for one call."""
PREFERRED: Final = ("gpt-4.1-nano", "gpt-4o-mini")
SCHEMA: Final = {
    "type": "json_schema",
    "json_schema": {
        "name": "afnio_doctor",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"answer": {"type": "string"}},
            "required": ["answer"],
            "additionalProperties": False,
        },
    },
}

Verdict = Literal["ok", "note", "failed"]


class Finding(NamedTuple):
    """A check and its result; `figures` are for `--json`."""

    check: str
    verdict: Verdict
    text: str
    figures: dict[str, Any]


def doctor_main(argv: Sequence[str]) -> int:
    """Run the command. Return 0 if every check passed, otherwise 1."""
    parser = argparse.ArgumentParser(
        prog="afnio doctor",
        description="Check this machine, and send an endpoint a few short calls. Providers may bill them.",
    )
    parser.add_argument("--base-url", help="the endpoint (default: OPENAI_BASE_URL, or OpenAI's)")
    parser.add_argument("--model", help="the model (default: a small one from the endpoint's list)")
    parser.add_argument("--calls", type=int, default=3, help="calls to measure the latency with (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    if options.calls < 1:
        parser.error(f"--calls must be at least 1 (got {options.calls})")
    from afnio.runtime._callables import run

    findings = [_environment(), _folder(), *run(_endpoint(options.base_url, options.model, options.calls))]
    healthy = all(finding.verdict != "failed" for finding in findings)
    if options.json:
        checks = {f.check: {"verdict": f.verdict, "text": f.text, **f.figures} for f in findings}
        sys.stdout.write(json.dumps({"healthy": healthy, "checks": checks}, indent=1) + "\n")
    else:
        for finding in findings:
            sys.stdout.write(f"{finding.verdict:<7} {finding.check:<12} {finding.text}\n")
    return 0 if healthy else 1


def _environment() -> Finding:
    from afnio import __version__

    versions = {name: _version(name) for name in PACKAGES}
    extras = {extra: _version(package) for extra, package in EXTRAS.items()}
    there = [extra for extra, version in extras.items() if version]
    text = (
        f"Afnio {__version__}, Python {platform.python_version()} on {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} cores, extras: {', '.join(there) or 'none'}"
    )
    figures = {
        "afnio": __version__,
        "python": platform.python_version(),
        "packages": versions,
        "extras": extras,
    }
    return Finding("environment", "ok", text, figures)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _folder() -> Finding:
    folder = Path(os.environ.get("AFNIO_HOME") or ".afnio").absolute()
    nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if os.access(nearest, os.W_OK):
        return Finding("runs", "ok", f"go to {folder}", {"folder": str(folder)})
    text = f"can't be written to {folder}; set AFNIO_HOME to a folder that you can write to"
    return Finding("runs", "note", text, {"folder": str(folder)})


async def _endpoint(base_url: str | None, model: str | None, calls: int) -> list[Finding]:
    from afnio.errors import AfnioError
    from afnio.models.openai import AsyncOpenAI, endpoint_url, key_source

    try:
        url = endpoint_url(base_url)
        client = AsyncOpenAI(base_url=base_url, timeout=DEADLINE)
        model = model or _chosen(await client.list_models())
        figures = {"base_url": url, "model": model, "key": key_source(base_url)}
        findings = await _asked(client, model, calls)
    except (AfnioError, ValueError) as error:
        return [Finding("endpoint", "failed", str(error), {})]
    return [
        Finding("endpoint", "ok", f"{url} answers as {model}, key from {figures['key']}", figures),
        *findings,
    ]


def _chosen(models: Sequence[str]) -> str:
    if not models:
        raise ValueError("the endpoint lists no models; choose one with --model")
    return next((name for name in PREFERRED if name in models), models[0])


async def _asked(client: AsyncOpenAI, model: str, calls: int) -> list[Finding]:
    """Send a few calls, one after the other. A failed call isn't retried: its error is what the user needs to see."""
    from afnio.models._client import Once
    from afnio.runtime.events import LimitsLearnt, subscribed

    learnt: list[LimitsLearnt] = []
    once = Once(client)
    question = [{"role": "user", "content": "Say hello."}]
    with subscribed(lambda event: learnt.append(event) if isinstance(event, LimitsLearnt) else None):
        seconds = []
        for _ in range(calls):
            started = time.monotonic()
            await once.achat(messages=question, model=model)
            seconds.append(time.monotonic() - started)
        schema = await _schema(once, model)
    middle, worst = statistics.median(seconds), max(seconds)
    latency = Finding(
        "latency",
        "ok",
        f"median {middle:.2f} s, slowest {worst:.2f} s, of {calls} calls",
        {"median": middle, "worst": worst, "calls": calls},
    )
    return [latency, schema, _limits(learnt)]


async def _schema(once: Any, model: str) -> Finding:
    from afnio.errors import ModelError

    question = [{"role": "user", "content": 'Answer with a JSON object: {"answer": "yes"}.'}]
    try:
        reply = await once.achat(messages=question, model=model, response_format=SCHEMA)
        held = isinstance(json.loads(reply.content or "").get("answer"), str)
        why = "" if held else "the reply doesn't match the schema"
    except ModelError as error:
        held, why = False, f"refused ({error.status})"
    except (ValueError, AttributeError):
        held, why = False, "the reply isn't a JSON object"
    if held:
        return Finding("json_schema", "ok", "is supported", {"supported": True})
    text = f"is not supported: {why}; Afnio will ask for JSON in the prompt instead"
    return Finding("json_schema", "note", text, {"supported": False})


def _limits(learnt: Sequence[Any]) -> Finding:
    if not learnt:
        text = "the endpoint reports none; pass yours: limits=afnio.Limits(…)"
        return Finding("limits", "note", text, {"requests": None, "tokens": None})
    requests, tokens = learnt[-1].requests, learnt[-1].tokens
    parts = [f"{value:,.0f} {name}" for name, value in (("requests", requests), ("tokens", tokens)) if value]
    return Finding(
        "limits", "ok", f"{' and '.join(parts)} per minute", {"requests": requests, "tokens": tokens}
    )
