"""`afnio doctor`: check that Afnio can work on this machine and with an endpoint.

It looks at the installation and the folder of runs, then sends the endpoint a few short calls and reports its
latency, whether it follows a JSON schema, and the rate limits in its headers. Of several endpoints, the replicas of one
client, it asks each by itself: one that is dead or different would be hidden behind the others. A finding is "ok",
"note" (works, but read this) or "failed"; one failed finding makes the exit code 1.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from afnio.cli._parser import Parser, say, say_next

if TYPE_CHECKING:
    from afnio.models.openai import AsyncOpenAI


PACKAGES: Final = ("openai", "aiohttp", "anyio", "pydantic")
EXTRAS: Final = {
    "prices": "genai-prices", "keyring": "keyring", "mlflow": "mlflow-skinny", "opentelemetry": "opentelemetry-api",
    "studio": "starlette",
}  # fmt: skip
# Seconds for one call.
DEADLINE: Final = 60.0
# Seconds by which a replica's clock may differ.
CLOCK: Final = 5.0
HELLO: Final = [{"role": "user", "content": "Say hello."}]
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
    parser = Parser(
        prog="afnio doctor",
        description="Check this machine, and send an endpoint a few short calls. Providers may bill them.",
    )
    parser.add_argument(
        "--base-url",
        action="append",
        help="the endpoint (default: OPENAI_BASE_URL, or OpenAI's); once for each replica",
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help="its key; - reads it from standard input (default: OPENAI_API_KEY)"
    )
    parser.add_argument("--model", help="the model (default: a small one from the endpoint's list)")
    parser.add_argument("--calls", type=int, default=3, help="calls to measure the latency with (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    if options.calls < 1:
        parser.error(f"--calls must be at least 1 (got {options.calls})")
    from afnio.runtime._callables import run

    urls = options.base_url or [None]
    key = sys.stdin.readline().strip() if options.api_key == "-" else options.api_key
    asked = _replicas if len(urls) > 1 else _endpoint
    findings = [_environment(), _folder(), *run(asked(urls, key, options.model, options.calls))]
    healthy = all(finding.verdict != "failed" for finding in findings)
    if options.json:
        report = {f.check: {"verdict": f.verdict, "text": f.text, **f.figures} for f in findings}
        sys.stdout.write(json.dumps({"healthy": healthy, "checks": report}, indent=1) + "\n")
    else:
        say("\n".join(f"{finding.verdict:<7} {finding.check:<12} {finding.text}" for finding in findings))
        if healthy:
            say_next({"afnio evaluate --help": "score an agent of yours on rows"})
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


async def _endpoint(
    urls: Sequence[str | None], key: str | None, model: str | None, calls: int
) -> list[Finding]:
    from afnio.errors import AfnioError
    from afnio.models.openai import AsyncOpenAI, endpoint_url, key_source

    (base_url,) = urls
    try:
        url = endpoint_url(base_url)
        client = AsyncOpenAI(base_url=base_url, api_key=key, timeout=DEADLINE)
        model = model or _chosen(await client.list_models())
        figures = {"base_url": url, "model": model, "key": "--api-key" if key else key_source(base_url)}
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


async def _replicas(urls: Sequence[str], key: str | None, model: str | None, calls: int) -> list[Finding]:
    """Ask each replica for its models, and then each that is there as the same model."""
    from afnio.errors import AfnioError
    from afnio.models.openai import AsyncOpenAI, check_same_models

    findings: dict[str, Finding] = {}
    clients: dict[str, AsyncOpenAI] = {}
    models: dict[str, list[str]] = {}
    clocks: dict[str, float | None] = {}
    names = {url: f"replica {number}" for number, url in enumerate(urls, 1)}
    if len(names) < len(urls):
        return [Finding("replicas", "failed", "--base-url must have each replica once; leave one out", {})]
    for url in urls:
        try:
            clients[url] = AsyncOpenAI(base_url=url, api_key=key, timeout=DEADLINE)
            asked = time.time()
            models[url], headers = await clients[url].listed_models()
            clocks[url] = _ahead(headers.get("date"), (asked + time.time()) / 2)
        except (AfnioError, ValueError) as error:
            text = f"{error}; calls go to the others until it is back"
            findings[url] = Finding(names[url], "failed", text, {"base_url": url})
    common: Finding | None = None
    try:
        if models:
            check_same_models(models)
            shared = [name for name in models[min(models)] if all(name in each for each in models.values())]
            model = model or _chosen(shared)
    except (AfnioError, ValueError) as error:
        common = Finding("replicas", "failed", str(error), {"models": models})
    for url, served in models.items():
        findings[url] = await _replica(names[url], clients[url], url, served, model, clocks[url], calls)
    if common is None:
        healthy = [url for url in urls if findings[url].verdict != "failed"]
        verdict: Verdict = "ok" if len(healthy) == len(urls) else "failed"
        text = f"{len(healthy)} of {len(urls)} answer" + (f" as {model}" if healthy else "")
        common = Finding("replicas", verdict, text, {"model": model, "healthy": len(healthy)})
    return [*(findings[url] for url in urls), common]


async def _replica(
    check: str,
    client: AsyncOpenAI,
    url: str,
    served: Sequence[str],
    model: str | None,
    ahead: float | None,
    calls: int,
) -> Finding:
    """Send one replica a few calls."""
    from afnio.errors import AfnioError

    figures: dict[str, Any] = {"base_url": url, "models": list(served), "clock_ahead": ahead}
    names = ", ".join(served[:3]) or "nothing"
    if model is None:
        return Finding(check, "note", f"{url} serves {names}; it was asked nothing", figures)
    if model not in served:
        text = f"{url} must serve {model} (got {names}); start it with that model, or leave it out"
        return Finding(check, "failed", text, figures)
    try:
        seconds = await _timed(client, model, calls)
    except AfnioError as error:
        return Finding(check, "failed", f"{error}; see what its server logs", figures)
    middle, worst = statistics.median(seconds), max(seconds)
    figures |= {"median": middle, "worst": worst, "calls": calls}
    text = f"{url} answers as {model}, median {middle:.2f} s, slowest {worst:.2f} s"
    if ahead is not None and abs(ahead) > CLOCK:
        side = "ahead" if ahead > 0 else "behind"
        text += f"; its clock is {abs(ahead):,.0f} s {side}, so a date in retry-after is wrong: set it by NTP"
        return Finding(check, "note", text, figures)
    return Finding(check, "ok", text, figures)


def _ahead(date: str | None, now: float) -> float | None:
    """Return the seconds by which a server's clock is ahead; None if it doesn't say its time.

    >>> _ahead("Thu, 01 Jan 1970 00:01:00 GMT", 50.0), _ahead(None, 50.0), _ahead("soon", 50.0)
    (10.0, None, None)
    """
    try:
        return None if date is None else parsedate_to_datetime(date).timestamp() - now
    except ValueError:
        return None


def _once(client: AsyncOpenAI) -> Any:
    """Return a client of the same account whose calls make a single attempt: the first error is what matters here."""
    from afnio.errors import FinalModelError, TransientModelError
    from afnio.models import ChatClient, ChatRequest, ChatResponse

    class Once(ChatClient):
        async def send(self, request: ChatRequest) -> ChatResponse:
            try:
                return await client.send(request)
            except TransientModelError as error:
                raise FinalModelError(str(error), status=error.status, limits=error.limits) from error

    return Once(client.account, timeout=client.timeout)


async def _timed(client: AsyncOpenAI, model: str, calls: int) -> list[float]:
    """Return the seconds of a few calls. A failed one isn't retried: its error is what the user needs to see."""
    once, seconds = _once(client), []
    for _ in range(calls):
        started = time.monotonic()
        await once.achat(messages=HELLO, model=model)
        seconds.append(time.monotonic() - started)
    return seconds


async def _asked(client: AsyncOpenAI, model: str, calls: int) -> list[Finding]:
    """Send a few calls, one after the other."""
    from afnio.runtime.events import LimitsLearnt, subscribed

    learnt: list[LimitsLearnt] = []
    with subscribed(lambda event: learnt.append(event) if isinstance(event, LimitsLearnt) else None):
        seconds = await _timed(client, model, calls)
        schema = await _schema(_once(client), model)
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
