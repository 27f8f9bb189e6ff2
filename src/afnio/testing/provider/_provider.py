"""Provider: an OpenAI-compatible endpoint on a local socket, for tests, demos and benchmarks.

Mocked HTTP hides most of what goes wrong between a program and a provider: 429s with a time to wait, replies that end
early, connections that are reset, answers that never come. This provider is a real HTTP server (`aiohttp.web`), so a
client meets all of that through its own sockets. A request takes this path:

1. `Provider` matches the path (OpenAI's or Azure's) and checks the API key.
2. `ChatService` parses the body, counts it in the ledger, and asks for a fault: first the `fault` function, then the
   `FaultPlan`. Both depend on the request and its attempt alone, so a seeded run meets the same faults in any order.
3. The account's `Quota` admits it, or it gets a 429 with the time to wait.
4. After the latency the LM replies, or the fault is sent in place of the reply (`Fault.send`).

`Provider.process()` runs the same in a separate process, so that its CPU time isn't the client's. One core serves about
5,000 requests a second, more than twice the rate of the fastest client in benchmarks/calls.py. `ProviderOptions` are
its options as command-line arguments, and `ProviderProcess` is the parent's side of it:

    afnio provider --latency lognormal:0.2,1.0 --faults transient:0.2 --seed 7

The process prints one JSON line with its `base_url`, and ends when its standard input ends: so it can't outlive the
program that started it, even if that is killed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, Final, Self, final
from urllib.parse import urlsplit

from aiohttp import web

from afnio.testing.provider._batches import Batches, BatchService, as_chat, from_chat
from afnio.testing.provider._faults import (
    ApiError,
    Fault,
    FaultPlan,
    Latency,
    Occasion,
    completion,
    prompt_tokens,
    read_request,
    reply_limit,
    response,
)
from afnio.testing.provider._quota import Accounts, ProviderLedger, Quota, QuotaError
from afnio.testing.simulated._language import kind_of
from afnio.testing.simulated._lm import FixedReply, SimulatedLM
from afnio.testing.simulated._student import request_digest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Collection, Mapping, Sequence
    from types import TracebackType

    from afnio.testing.provider._faults import FaultKind


LM = Callable[[dict[str, Any]], str | dict[str, Any]]
FaultHook = Callable[[dict[str, Any], int], Fault | None]

# Bytes of a request body; a larger one gets a 413.
MAX_BODY: Final = 64 * 1024 * 1024
# Where each path is served: at the root, as OpenAI does, and as Azure does for an account and for a
# deployment.
_PREFIXES: Final = ("", "/v1", "/openai", "/openai/deployments/{deployment}")
# Seconds that a handler gets to end after its connection was closed.
_SHUTDOWN: Final = 1.0


class Provider:
    """Serves chat completions to any number of connections, on the paths of OpenAI and of Azure.

    >>> import asyncio
    >>> async def main():
    ...     async with Provider(latency="lognormal:0.01,1", faults={"reset": 0.1}) as provider:
    ...         return provider.stats()["requests"]
    >>> asyncio.run(main())
    0

    Args:
        latency: seconds between a request and its reply, or a distribution of them.
        api_key: the key that requests must carry; any key by default.
        models: the models that exist; any name by default.
        lm: maps a request to the text of its reply, or to a dict that is sent as JSON, or with "tool_calls" as the
            message itself; `SimulatedLM()` by default.
        fault: called with each request and its index, from 0; returns a `Fault` to send without latency, or None.
        faults: the probability of each kind of fault; see `FaultPlan`.
        quota: the limits of each API key; see `Quota`.
        batches: how the batch APIs behave; see `Batches`.
        seed: seed of latencies and faults.
        window: seconds of the windows in `stats`, if there is no quota; 60 by default.
        port: 0 picks a free one.

    Raises:
        ValueError: for a window that isn't above 0, or an invalid latency or fault.
        OSError: on entering, if the port is taken.
    """

    def __init__(
        self,
        *,
        latency: float | str | Latency = 0.0,
        api_key: str | None = None,
        models: Sequence[str] | None = None,
        lm: LM | None = None,
        fault: FaultHook | None = None,
        faults: str | Mapping[str, float] | FaultPlan | None = None,
        quota: Quota | None = None,
        batches: Batches | None = None,
        seed: int = 0,
        window: float | None = None,
        port: int = 0,
    ) -> None:
        window = quota.window if quota is not None else MINUTE if window is None else window
        if window <= 0:
            raise ValueError(f"window must be above 0 seconds (got {window})")
        self._service = ChatService(
            lm=lm if lm is not None else SimulatedLM(seed=seed),
            models=models,
            latency=Latency.of(latency),
            faults=FaultPlan.of(faults),
            fault=fault,
            quota=quota,
            seed=seed,
            window=window,
        )
        self._batches = BatchService(
            Batches() if batches is None else batches,
            seed=seed,
            answer=self._service.batched,
            authorize=self._authorize,
        )
        self._api_key = api_key
        self._models = models
        self._port = port
        self._runner: web.AppRunner | None = None

    @staticmethod
    def process(
        *,
        latency: float | str | Latency = 0.0,
        api_key: str | None = None,
        reply: str | None = None,
        lm: str | None = None,
        context: int | None = None,
        faults: str | Mapping[str, float] | FaultPlan | None = None,
        quota: Quota | None = None,
        batches: Batches | None = None,
        seed: int = 0,
        window: float | None = None,
        port: int = 0,
    ) -> ProviderProcess:
        """Return a provider that runs in its own process while the `with` block lasts.

        Args:
            latency, api_key, faults, quota, batches, seed, window, port: as for `Provider`.
            reply: a fixed reply instead of the simulated LM.
            lm: a subclass of `SimulatedLM` as "module:class"; the process makes it with `seed`.
            context: the number of characters that the simulated LM reads of each text.

        Raises:
            RuntimeError: on entering the block, if the process doesn't start.
        """
        options = ProviderOptions(
            latency=Latency.of(latency),
            api_key=api_key,
            reply=reply,
            lm=lm,
            context=context,
            faults=FaultPlan.of(faults),
            quota=quota,
            batches=batches,
            seed=seed,
            window=window,
            port=port,
        )
        return ProviderProcess(options)

    async def __aenter__(self) -> Self:
        # Without handler_cancellation a request whose client has gone would count as in flight until its latency ends.
        self._runner = web.AppRunner(
            self._application(), access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN
        )
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=4096).start()
        except OSError:
            await self._runner.cleanup()
            raise
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._runner is not None
        assert self._runner.server is not None
        # Close all connections first: cleanup() would wait for requests that hang.
        for connection in self._runner.server.connections:
            connection.force_close()
        await self._runner.cleanup()

    @property
    def base_url(self) -> str:
        """The URL for a client's `base_url`."""
        return f"http://127.0.0.1:{self._port}/v1"

    def stats(self) -> dict[str, Any]:
        """Return counts of everything so far: chat requests, kinds, faults, 429s, windows, attempts, tokens.

        `worst_window` is the worst of all sliding windows. It counts refused requests too, and tokens as a quota does.
        `windows` are consecutive, from the first request on. The keys of `attempts` are `request_digest`s of bodies.
        `batches` counts what the batch APIs did, and what was paid for there.
        """
        return {**self._service.ledger.stats(), "batches": self._batches.stats()}

    def change_batches(self, **options: Any) -> None:
        """Change some options of `batches` from now on."""
        self._batches.change(**options)

    def scale_quota(self, factor: float) -> None:
        """Multiply the limits of all accounts by `factor` from now on."""
        try:
            self._service.scale_quota(factor)
        except ApiError as error:
            raise ValueError(str(error)) from None

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors_as_json])
        for prefix in _PREFIXES:
            app.router.add_post(f"{prefix}/chat/completions", self._chat)
            app.router.add_get(f"{prefix}/models", self._list_models)
            app.router.add_get(f"{prefix}/health", _health)
            app.router.add_get(f"{prefix}/stats", self._stats)
            app.router.add_post(f"{prefix}/admin/quota", self._change_quota)
            app.router.add_post(f"{prefix}/admin/batches", self._change_batches)
            app.router.add_routes(self._batches.routes(prefix))
            for name in ("responses", "embeddings", "messages"):
                app.router.add_post(f"{prefix}/{name}", self._chat)
        return app

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        index = self._service.ledger.enter()
        asked = {}
        if not request.path.endswith("/chat/completions"):
            asked = json.loads(body)
            body = json.dumps(as_chat(request.path, asked)).encode()
        try:
            answer = await self._service.answer(request, body, self._authorize(request), index)
            if (
                asked
                and isinstance(answer, web.Response)
                and answer.status == 200
                and isinstance(answer.body, bytes)
            ):
                return _json(from_chat(request.path, asked, json.loads(answer.body)))
            return answer
        finally:
            self._service.ledger.leave()

    async def _list_models(self, request: web.Request) -> web.Response:
        self._authorize(request)
        names = self._models if self._models is not None else ["simulated"]
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "afnio"} for name in names]
        return _json({"object": "list", "data": models})

    async def _stats(self, request: web.Request) -> web.Response:
        return _json(self.stats())

    async def _change_quota(self, request: web.Request) -> web.Response:
        try:
            factor = float(json.loads(await _body(request))["scale"])
        except (ValueError, TypeError, KeyError):
            raise ApiError(400, 'The body must have a factor; send {"scale": 0.5}.') from None
        quota = self._service.scale_quota(factor)
        return _json({"requests": quota.requests, "tokens": quota.tokens, "window": quota.window})

    async def _change_batches(self, request: web.Request) -> web.Response:
        self.change_batches(**json.loads(await _body(request)))
        return _json({})

    def _authorize(self, request: web.Request) -> str:
        """Return the request's API key, in the header of OpenAI, Azure or Anthropic; a wrong one raises a 401."""
        key = request.headers.get("api-key") or request.headers.get("x-api-key")
        if key is None:
            key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._api_key is not None and key != self._api_key:
            # Don't repeat the key, as the real API doesn't: error bodies end up in logs.
            raise ApiError(401, "The API key is wrong; send the right one.", code="invalid_api_key")
        return key


@web.middleware
async def _errors_as_json(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Send errors in the API's form, aiohttp's own (404, 405, 413) too."""
    try:
        if request.path.startswith("/openai/") and not request.query.get("api-version"):
            raise ApiError(404, f"The Azure path {request.path} must have a version; add ?api-version=….")
        return await handler(request)
    except ApiError as error:
        return error.response()
    except web.HTTPException as error:
        sent = f"{request.method} {request.path}"
        reason = {
            404: f"Invalid URL ({sent}).",
            405: f"Method not allowed ({sent}); use {error.headers.get('allow')}.",
        }
        return ApiError(error.status, reason.get(error.status, error.text or error.reason)).response()


async def _body(request: web.Request) -> bytes:
    if (request.content_length or 0) > MAX_BODY:  # before waiting for the bytes
        raise ApiError(
            413, f"The request body must have at most {MAX_BODY} bytes (got {request.content_length})."
        )
    return await request.read()


async def _health(request: web.Request) -> web.Response:
    return _json({"status": "ok"})


def _json(body: object) -> web.Response:
    return response(200, json.dumps(body).encode())


@final
@dataclass(slots=True)
class _Chat:
    """A parsed request: its number, its prompt's tokens, which attempt it is, and the quota's headers."""

    request: dict[str, Any]
    index: int
    prompt_tokens: int
    attempt: int
    headers: Mapping[str, str] | None = None


@final
class ChatService:
    """Answers chat requests: counts, quota, fault, latency, reply.

    Args:
        lm: maps a request to its reply.
        models: the models that exist; None for any name.
        fault: asked for a fault before the plan.
    """

    def __init__(
        self,
        *,
        lm: LM,
        models: Collection[str] | None,
        latency: Latency,
        faults: FaultPlan | None,
        fault: FaultHook | None,
        quota: Quota | None,
        seed: int,
        window: float,
    ) -> None:
        self.ledger = ProviderLedger(window)
        self.accounts = Accounts(quota) if quota is not None else None
        self._lm = lm
        self._models = models
        self._latency = latency
        self._constant = latency.numbers[0] if latency.shape == "constant" else None
        self._plan = faults if faults is not None else FaultPlan({})
        self._hook = fault
        self._seed = seed
        self._refused: dict[str, int] = {}
        self._batched = 1_000_000

    async def answer(self, sent: web.Request, body: bytes, key: str, index: int) -> web.StreamResponse:
        """Return the response to a chat request, after its latency; some faults write to the connection themselves.

        Raises:
            ApiError: for a body that isn't a chat request, and for one that the quota refuses.
        """
        chat, name, cost = self._read(body, index)
        if self._hook is not None and (fault := self._hook(chat.request, index)) is not None:
            return await self._fail(fault, fault.name, chat, sent)
        kind = self._plan.fate(self._seed, name, chat.attempt) if self._plan.shares else None
        early = kind is not None and kind.at_the_gate
        if self.accounts is not None:
            chat.headers = self._admit(self.accounts, chat, name, key, None if early else cost)
        delay = self._constant
        if delay is None:
            delay = self._latency.seconds(self._seed, name, chat.attempt)
        if delay > 0 and not early:
            await asyncio.sleep(delay)
        try:
            if kind is None:
                return response(200, json.dumps(self._complete(chat)).encode(), chat.headers)
            fault = self._make(kind, chat)
        except Exception as error:  # the user's `lm` may raise anything; its client gets a 500
            message = f"The lm raised {error!r}."
            raise ApiError(500, message, kind="server_error", headers=chat.headers) from error
        return await self._fail(fault, kind.name, chat, sent)

    def batched(self, endpoint: str, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to a line of a batch, in its endpoint's form.

        Raises:
            ApiError: for a body that isn't a request.
        """
        body = json.dumps(as_chat(endpoint, asked)).encode()
        request = read_request(body, self._models)
        sampled = {"attempt": 1} if isinstance(self._lm, SimulatedLM) else {}
        index = self._batched = self._batched + 1
        reply, _ = completion(request, self._lm(request, **sampled), index, prompt_tokens(request))
        return from_chat(endpoint, asked, reply)

    def scale_quota(self, factor: float) -> Quota:
        """Multiply the limits of all accounts by `factor` from now on; return those of new accounts."""
        if self.accounts is None:
            raise ApiError(409, "The provider must have a quota to scale (it has none); start it with one.")
        if not 0 < factor < float("inf"):
            raise ApiError(400, f"The factor must be above 0 (got {factor}).")
        self.accounts.scale(factor, _now())
        return self.accounts.quota

    def _read(self, body: bytes, index: int) -> tuple[_Chat, str, int]:
        """Parse and count a request; return it with its digest and the tokens that a quota takes for it."""
        request = read_request(body, self._models)
        name, asked = request_digest(body), prompt_tokens(request)
        cost = asked + reply_limit(request)
        self.ledger.kinds[kind_of(request)] += 1
        # Attempts that the quota refused don't count: how many there are depends on the order of arrival, and the
        # fates of the others must not.
        attempt = self.ledger.read(name, cost, _now()) - self._refused.get(name, 0)
        return _Chat(request, index, asked, attempt), name, cost

    def _admit(
        self, accounts: Accounts, chat: _Chat, name: str, key: str, cost: int | None
    ) -> dict[str, str]:
        """Take a request and `cost` tokens (None: take nothing) from the account's quota; return its headers."""
        balance, now = accounts.balance(key, chat.request["model"]), _now()
        try:
            if cost is not None:
                balance.admit(cost, now)
        except QuotaError as refusal:
            self._refused[name] = self._refused.get(name, 0) + 1
            self.ledger.refuse(refusal.limit, now)
            headers = balance.headers(now) | refusal.headers()
            code = "rate_limit_exceeded"
            raise ApiError(429, str(refusal), kind=refusal.limit, code=code, headers=headers) from None
        return balance.headers(now)

    def _make(self, kind: FaultKind, chat: _Chat) -> Fault:
        return kind.make(Occasion(lambda: self._complete(chat), self._plan.retry_after, self._plan.drip))

    async def _fail(self, fault: Fault, name: str, chat: _Chat, sent: web.Request) -> web.StreamResponse:
        self.ledger.faults[name] += 1
        self.ledger.limited += fault.status == 429 and not (fault.close or fault.hang)
        return await fault.send(sent, chat.headers)

    def _complete(self, chat: _Chat) -> dict[str, Any]:
        # Only the simulated LM draws by attempt: a function of the user's gets the request alone.
        sampled = {"attempt": chat.attempt} if isinstance(self._lm, SimulatedLM) else {}
        reply = self._lm(chat.request, **sampled)
        body, tokens = completion(chat.request, reply, chat.index, chat.prompt_tokens)
        self.ledger.prompt_tokens += chat.prompt_tokens
        self.ledger.completion_tokens += tokens
        return body


def _now() -> float:
    return asyncio.get_running_loop().time()


# The same in a separate process: the parent's side, the options as arguments, and the process itself.


MINUTE: Final = 60.0


class ProviderProcess:
    """Runs `afnio provider` while its `with` block lasts.

    >>> from afnio.testing.provider._provider import ProviderOptions
    >>> with ProviderProcess(ProviderOptions(reply="ok")) as provider:
    ...     provider.stats()["requests"]
    0
    """

    def __init__(self, options: ProviderOptions) -> None:
        self._command = [sys.executable, "-m", "afnio.cli", "provider", *options.arguments()]
        self._process: subprocess.Popen[bytes] | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        # In a process group of its own: a terminal sends Ctrl-C to a whole group, and the provider must outlive it to
        # serve a program that is ending. It ends with its standard input.
        self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0
        )
        assert self._process.stdout is not None
        try:
            line = self._process.stdout.readline()
        except BaseException:  # Ctrl-C while it starts
            self._stop()
            raise
        if not line:
            code = self._stop()
            raise RuntimeError(
                f"the provider must print its address (got exit code {code} before it served); see stderr"
            )
        self.base_url = json.loads(line)["base_url"]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @property
    def pid(self) -> int:
        """The PID, for measuring the provider's CPU time."""
        if self._process is None:
            raise RuntimeError("the provider must be running (it isn't); enter its `with` block first")
        return self._process.pid

    def stats(self) -> dict[str, Any]:
        """Return the same counts as `Provider.stats`."""
        return self._ask("GET", "/stats")

    def scale_quota(self, factor: float) -> None:
        """Multiply the limits of all accounts by `factor` from now on."""
        self._ask("POST", "/admin/quota", json.dumps({"scale": factor}))

    def change_batches(self, **options: Any) -> None:
        """Change some options of `batches` from now on."""
        self._ask("POST", "/admin/batches", json.dumps(options))

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        # urllib would use a proxy from the environment.
        connection = HTTPConnection(urlsplit(self.base_url).netloc, timeout=30)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            answer: dict[str, Any] = json.load(response)
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(answer["error"]["message"])
        return answer

    def _stop(self) -> int:
        process, self._process = self._process, None
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()  # the process ends with its standard input
        try:
            return process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()
        finally:
            process.stdout.close()


@final
@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """The arguments of `Provider.process`.

    >>> ProviderOptions(seed=7).arguments()
    ['--port=0', '--latency=constant:0.0', '--seed=7']
    """

    port: int = 0
    latency: Latency = field(default_factory=lambda: Latency.constant(0.0))
    api_key: str | None = None
    reply: str | None = None
    lm: str | None = None
    context: int | None = None
    faults: FaultPlan | None = None
    quota: Quota | None = None
    batches: Batches | None = None
    seed: int = 0
    window: float | None = None

    @classmethod
    def parse(cls, argv: Sequence[str] | None, prog: str) -> ProviderOptions:
        """Return the options in command-line arguments. For wrong ones, print an error and exit, as argparse does."""
        parser = _parser(prog)
        args = parser.parse_args(argv)
        try:
            if args.lm is not None:
                resolve_name(args.lm)
            return cls(
                port=args.port,
                latency=Latency.parse(args.latency),
                api_key=args.api_key,
                reply=args.reply,
                lm=args.lm,
                context=args.context,
                faults=_plan(args),
                quota=_quota(args),
                batches=None if args.batches is None else Batches.parse(args.batches),
                seed=args.seed,
                window=args.window,
            )
        except (ValueError, TypeError, ImportError, AttributeError) as error:
            parser.error(str(error))

    def arguments(self) -> list[str]:
        """Return the command-line arguments from which `parse` makes these options."""
        options: dict[str, object] = {"port": self.port, "latency": self.latency, "seed": self.seed}
        options |= {"api-key": self.api_key, "reply": self.reply, "lm": self.lm, "context": self.context}
        options["window"] = self.window if self.quota is None else self.quota.window
        if self.faults is not None:
            plan = self.faults
            options |= {"faults": plan, "faults-in-a-row": plan.in_a_row}
            options |= {"retry-after": plan.retry_after, "drip": plan.drip}
        options["batches"] = self.batches
        flags = []
        if self.quota is not None:
            quota = self.quota
            options |= {"rpm": quota.requests, "tpm": quota.tokens, "quota-shape": quota.shape}
            options |= {"halve-after": quota.halve_after, "quota-retry-after": quota.retry_after}
            flags = ["--quota-per-model"] if quota.per_model else []
            flags += [] if quota.headers else ["--no-quota-headers"]
        return [f"--{name}={value}" for name, value in options.items() if value is not None] + flags


_EXAMPLE: Final = """\
example, a very bad endpoint that behaves the same at each start:
  %(prog)s --latency lognormal:0.2,1.0 --faults reset:0.05,html:0.05 --seed 7 \\
    --rpm 600 --tpm 100000 --window 2

kinds of faults:
"""


def _parser(prog: str) -> argparse.ArgumentParser:
    kinds = "".join(f"  {group}: {' '.join(names)}\n" for group, names in FaultPlan.GROUPS.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve OpenAI's chat completions API on this machine, with the limits and faults that you choose.",
        epilog=_EXAMPLE + kinds,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="0 takes a free port")
    add("--api-key", help="the key that requests must carry; any key by default")
    add("--reply", help="a fixed reply instead of the simulated LM")
    add("--lm", metavar="MODULE:CLASS", help="a subclass of SimulatedLM instead of it")
    add("--context", type=int, help="number of characters that the simulated LM reads of each text")
    add("--seed", type=int, default=0, help="seed of latencies and faults")
    add(
        "--batches", metavar="JSON", help="how the batch APIs behave, with the names of afnio.testing.Batches"
    )
    add(
        "--latency",
        default="0",
        help="seconds before each reply: 0.2, constant:0.2, lognormal:MEDIAN,SIGMA "
        "or pareto:LEAST,ALPHA[,MOST]",
    )
    faults = parser.add_argument_group("faults, drawn for each attempt of each request")
    add = faults.add_argument
    add(
        "--faults", metavar="KIND:SHARE,…", help="probability of each kind, or of a group of them (see below)"
    )
    add("--faults-in-a-row", type=int, metavar="N", help="the most faults in a row for one request")
    add("--retry-after", type=float, metavar="S", help="seconds that the drawn 429s ask to wait")
    add("--drip", type=float, metavar="S", help="seconds that a dripping reply takes")
    quota = parser.add_argument_group("quota, for each API key")
    add = quota.add_argument
    add("--rpm", type=int, metavar="N", help="requests in one window")
    add("--tpm", type=int, metavar="N", help="tokens in one window: prompt and max_completion_tokens")
    add(
        "--window",
        type=float,
        metavar="S",
        help="seconds of a window, for the quota and in /stats (default 60)",
    )
    add("--quota-shape", choices=("bucket", "sliding"), help="bucket takes a burst, sliding is strict")
    add("--quota-per-model", action="store_true", help="each model has a separate quota")
    add(
        "--quota-retry-after",
        type=float,
        metavar="S",
        help="seconds that a refusal asks to wait, instead of the true time",
    )
    add("--no-quota-headers", action="store_true", help="replies have no x-ratelimit headers")
    add(
        "--halve-after",
        type=int,
        metavar="N",
        help="the quota halves after N requests; at any time by "
        """POST /admin/quota {"scale": 0.5}""",
    )
    return parser


def _plan(args: argparse.Namespace) -> FaultPlan | None:
    if args.faults is None:
        if args.faults_in_a_row is not None or args.retry_after is not None or args.drip is not None:
            raise ValueError("--faults must be given with options of faults; give it, or leave them out")
        return None
    options = {"in_a_row": args.faults_in_a_row, "retry_after": args.retry_after, "drip": args.drip}
    return FaultPlan.parse(
        args.faults, **{name: value for name, value in options.items() if value is not None}
    )


def _quota(args: argparse.Namespace) -> Quota | None:
    if args.rpm is None and args.tpm is None:
        options = (args.quota_shape, args.halve_after, args.quota_retry_after)
        if any(value is not None for value in options) or args.quota_per_model or args.no_quota_headers:
            raise ValueError(
                "--rpm or --tpm must be given with options of a quota; give one, or leave them out"
            )
        return None
    return Quota(
        requests=args.rpm,
        tokens=args.tpm,
        window=MINUTE if args.window is None else args.window,
        shape=args.quota_shape or "bucket",
        halve_after=args.halve_after,
        per_model=args.quota_per_model,
        headers=not args.no_quota_headers,
        retry_after=args.quota_retry_after,
    )


def main(argv: Sequence[str]) -> None:
    """Serve a provider with these command-line arguments until standard input ends or Ctrl-C."""
    options = ProviderOptions.parse(argv, "afnio provider")
    _raise_file_limit()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(_provider(options)))


def _provider(options: ProviderOptions) -> Provider:
    context = {} if options.context is None else {"context": options.context}
    kind = SimulatedLM if options.lm is None else resolve_name(options.lm)
    lm = FixedReply(options.reply) if options.reply is not None else kind(**context, seed=options.seed)
    return Provider(
        port=options.port,
        latency=options.latency,
        api_key=options.api_key,
        lm=lm,
        faults=options.faults,
        quota=options.quota,
        batches=options.batches,
        seed=options.seed,
        window=options.window,
    )


async def _serve(provider: Provider) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        with contextlib.suppress(RuntimeError):  # the loop may have ended first
            loop.call_soon_threadsafe(ended.set)

    async with provider:
        sys.stdout.write(json.dumps({"base_url": provider.base_url}) + "\n")
        sys.stdout.flush()
        if _stdin_can_end():
            threading.Thread(target=watch, name="stdin", daemon=True).start()
        await ended.wait()


def _stdin_can_end() -> bool:
    """Return whether standard input is a parent's pipe or a terminal, not the /dev/null of a service."""
    try:
        return os.isatty(0) or not stat.S_ISCHR(os.fstat(0).st_mode)
    except OSError:
        return False


def _raise_file_limit() -> None:
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
