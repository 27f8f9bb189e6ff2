"""An OpenAI-compatible provider on a local socket, inside a loop or as a process of its own.

As a process it prints one JSON line with its `base_url` and ends when its standard input ends:

    python -m afnio.testing.provider --latency lognormal:0.2,1.0 --faults transient:0.2 --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any, Final, Self, final
from urllib.parse import parse_qs, urlsplit

from afnio.testing._draw import digest
from afnio.testing.provider._faults import GROUPS, ApiError, Fault, FaultKind, FaultPlan, Latency, Occasion
from afnio.testing.provider._quota import Accounts, ProviderLedger, Quota, QuotaError
from afnio.testing.provider._server import Connection
from afnio.testing.simulated._language import kind_of, text_of
from afnio.testing.simulated._lm import FixedReply, SimulatedLM

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from types import TracebackType

    from afnio.testing.provider._quota import Quota
    from afnio.testing.provider._server import HttpError, Request


__all__ = ["Fault", "Provider"]

MINUTE: Final = 60.0
_METHODS: Final = {
    "/chat/completions": "POST",
    "/models": "GET",
    "/health": "GET",
    "/stats": "GET",
    "/admin/quota": "POST",
}
_AZURE: Final = re.compile(r"/openai(/deployments/[^/]+)?(?=/)")


class Provider:
    """Serves chat completions to any number of connections, on the paths of OpenAI and of Azure.

    >>> async def main():
    ...     async with Provider(latency="lognormal:0.01,1", faults={"reset": 0.1}) as provider:
    ...         return provider.stats()["requests"]
    >>> asyncio.run(main())
    0

    Args:
        latency: seconds between a request and its reply, or a distribution of them.
        api_key: the key that requests must carry; None takes any.
        models: the models that exist; None takes any name.
        lm: maps a request to the text of its reply, or a dict that is sent as JSON; by default
            `SimulatedLM()`.
        fault: looks at each request and its index and says what goes wrong, at once, or None.
        faults: what goes wrong with which probability; see `FaultPlan`.
        quota: what each API key may send; see `Quota`.
        seed: of latencies and faults.
        window: seconds of the windows that `stats` counts; a quota's own, where there is one.
        port: 0 takes a free one.
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
        seed: int = 0,
        window: float | None = None,
        port: int = 0,
    ) -> None:
        window = quota.window if quota is not None else MINUTE if window is None else window
        if window <= 0:
            raise ValueError(f"A window of [{window}] seconds counts nothing; give one above 0.")
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
        self._api_key = api_key
        self._models = models
        self._port = port
        self._server: asyncio.Server | None = None
        self._connections: set[Connection] = set()

    @staticmethod
    def process(
        *,
        latency: float | str | Latency = 0.0,
        api_key: str | None = None,
        reply: str | None = None,
        context: int | None = None,
        faults: str | Mapping[str, float] | FaultPlan | None = None,
        quota: Quota | None = None,
        seed: int = 0,
        window: float | None = None,
        port: int = 0,
    ) -> ProviderProcess:
        """Return a provider that runs in its own process while the `with` block lasts.

        Args:
            reply: a fixed reply instead of the simulated LM.
            context: how many characters of each text the simulated LM reads.
        """

        options = ProviderOptions(
            latency=Latency.of(latency),
            api_key=api_key,
            reply=reply,
            context=context,
            faults=FaultPlan.of(faults),
            quota=quota,
            seed=seed,
            window=window,
            port=port,
        )
        return ProviderProcess(options)

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self._route, self._refuse, self._connections),
            "127.0.0.1",
            self._port,
            backlog=4096,
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._connections):
            connection.abort()
        # An aborted transport closes its socket in a later turn of the loop.
        await asyncio.gather(*(connection.closed for connection in list(self._connections)))
        await self._server.wait_closed()

    @property
    def base_url(self) -> str:
        """The URL that clients take as `base_url`."""
        return f"http://127.0.0.1:{self._port}/v1"

    def stats(self) -> dict[str, Any]:
        """Return what was seen so far: chat requests, kinds, faults, 429s, windows, attempts, tokens.

        `worst_window` slides and counts what came, refused or not, with tokens as a quota counts them;
        `windows` lie end to end from the first request on. `attempts` has the digest of each request.
        """
        return self._service.ledger.stats()

    def scale_quota(self, factor: float) -> None:
        """Multiply the limits of all accounts by `factor` from now on."""
        try:
            self._service.scale_quota(factor)
        except ApiError as error:
            raise ValueError(str(error)) from None

    def _refuse(self, error: HttpError, connection: Connection) -> None:
        connection.send(error.status, ApiError(error.status, str(error)).body())

    def _route(self, request: Request, connection: Connection) -> None:
        try:
            path = _plain_path(request)
            if path not in _METHODS:
                raise ApiError(404, f"Invalid URL [{request.method} {request.path}].")
            if request.method != _METHODS[path]:
                raise ApiError(405, f"Not allowed to [{request.method}] here; use {_METHODS[path]}.")
            if path == "/chat/completions":
                index = self._service.ledger.enter()
                connection.on_done = self._service.ledger.leave
                self._service.answer(request.body, self._authorize(request), index, connection)
                return
            if path == "/health":
                body: dict[str, Any] = {"status": "ok"}
            elif path == "/stats":
                body = self.stats()
            elif path == "/models":
                self._authorize(request)
                body = self._list_models()
            else:
                body = self._change_quota(request)
            connection.send(200, json.dumps(body).encode())
        except ApiError as error:
            connection.send(error.status, error.body())

    def _authorize(self, request: Request) -> str:
        key = request.headers.get("api-key")
        if key is None:
            key = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self._api_key is not None and key != self._api_key:
            # Like the real API, without the key that was sent: error bodies end up in logs.
            raise ApiError(401, "The API key is wrong; send the right one.", code="invalid_api_key")
        return key

    def _list_models(self) -> dict[str, Any]:
        names = self._models if self._models is not None else ["simulated"]
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "afnio"} for name in names]
        return {"object": "list", "data": models}

    def _change_quota(self, request: Request) -> dict[str, Any]:
        try:
            factor = float(json.loads(request.body)["scale"])
        except (ValueError, TypeError, KeyError):
            raise ApiError(400, 'The body names no factor; send {"scale": 0.5}.') from None
        quota = self._service.scale_quota(factor)
        return {"requests": quota.requests, "tokens": quota.tokens, "window": quota.window}


def _plain_path(request: Request) -> str:
    """Return the path as OpenAI has it; on Azure's a request must name the version of the API."""
    parts = urlsplit(request.path)
    azure = _AZURE.match(parts.path)
    if azure is None:
        return parts.path.removeprefix("/v1")
    if not parse_qs(parts.query).get("api-version"):
        raise ApiError(404, f"Resource not found [{parts.path}]; add ?api-version=….")
    return parts.path[azure.end() :]


# ChatService: what becomes of one chat completion request that has come in.


LM = Callable[[dict[str, Any]], str | dict[str, Any]]
FaultHook = Callable[[dict[str, Any], int], Fault | None]

_NO_FAULTS: Final = FaultPlan({})


@final
@dataclass(slots=True)
class _Chat:
    """One request under way."""

    request: dict[str, Any]
    index: int
    prompt_tokens: int
    attempt: int
    connection: Connection
    headers: Mapping[str, str] | None


@final
class ChatService:
    """Counts a request, holds it against the quota, draws its fault and its latency, and answers it.

    Args:
        lm: maps a request to its reply.
        models: the models that exist; None takes any name.
        fault: a function that says what goes wrong with a request, before the plan is asked.
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
        self._plan = faults if faults is not None else _NO_FAULTS
        self._hook = fault
        self._seed = seed
        self._refused: dict[str, int] = {}

    def answer(self, body: bytes, key: str, index: int, connection: Connection) -> None:
        """Answer the request in `body`, sent with that API key, now or later.

        Raises:
            ApiError: if the request is none.
        """
        request = read_request(body, self._models)
        asked, now, name = prompt_tokens(request), asyncio.get_running_loop().time(), digest(body)
        cost = asked + reply_limit(request)
        self.ledger.kinds[kind_of(request)] += 1
        # A request that the quota refuses doesn't use up an attempt's fate: how often that happens
        # hangs on the order of arrival.
        attempt = self.ledger.read(name, cost, now) - self._refused.get(name, 0)
        chat = _Chat(request, index, asked, attempt, connection, None)
        if self._hook is not None and (fault := self._hook(request, index)) is not None:
            self._apply(fault, fault.name, chat)
            return
        kind = self._plan.fate(self._seed, name, attempt) if self._plan.shares else None
        if self.accounts is not None and not self._admit(chat, name, key, cost, now, kind):
            return
        delay = self._constant
        if delay is None:
            delay = self._latency.seconds(self._seed, name, attempt)
        finish, rest = (self._reply, ()) if kind is None else (self._fail, (kind,))
        if delay > 0 and (kind is None or not kind.at_the_gate):
            connection.later(delay, finish, chat, *rest)
        else:
            finish(chat, *rest)

    def scale_quota(self, factor: float) -> Quota:
        """Multiply the limits of all accounts by `factor` from now on; returns those of new ones."""
        if self.accounts is None:
            raise ApiError(409, "The provider has no quota to scale; start it with one.")
        if not 0 < factor < float("inf"):
            raise ApiError(400, f"The factor [{factor}] can't scale a quota; give one above 0.")
        self.accounts.scale(factor, asyncio.get_running_loop().time())
        return self.accounts.quota

    def _admit(self, chat: _Chat, name: str, key: str, cost: int, now: float, kind: FaultKind | None) -> bool:
        assert self.accounts is not None
        balance = self.accounts.balance(key, chat.request["model"])
        if kind is None or not kind.at_the_gate:
            try:
                balance.admit(cost, now)
            except QuotaError as refusal:
                self._refused[name] = self._refused.get(name, 0) + 1
                self.ledger.refuse(refusal.limit, now)
                error = ApiError(429, str(refusal), kind=refusal.limit, code="rate_limit_exceeded")
                chat.connection.send(429, error.body(), balance.headers(now) | refusal.headers())
                return False
        chat.headers = balance.headers(now)
        return True

    def _reply(self, chat: _Chat) -> None:
        try:
            body = self._complete(chat)
        except Exception as error:  # a broken `lm` must not leave its client waiting
            self._send_broken(error, chat)
            return
        chat.connection.send(200, json.dumps(body).encode(), chat.headers)

    def _fail(self, chat: _Chat, kind: FaultKind) -> None:
        plan = self._plan
        try:
            fault = kind.make(Occasion(lambda: self._complete(chat), plan.retry_after, plan.drip))
        except Exception as error:
            self._send_broken(error, chat)
            return
        self._apply(fault, kind.name, chat)

    def _apply(self, fault: Fault, name: str, chat: _Chat) -> None:
        self.ledger.faults[name] += 1
        self.ledger.limited += fault.status == 429 and not (fault.close or fault.hang)
        fault.apply(chat.connection, chat.headers)

    def _complete(self, chat: _Chat) -> dict[str, Any]:
        # Only the simulated LM has moods: a function of the user's gets the request alone.
        sampled = {"attempt": chat.attempt} if isinstance(self._lm, SimulatedLM) else {}
        reply = self._lm(chat.request, **sampled)
        body, given = completion(chat.request, reply, chat.index, chat.prompt_tokens)
        self.ledger.prompt_tokens += chat.prompt_tokens
        self.ledger.completion_tokens += given
        return body

    @staticmethod
    def _send_broken(error: Exception, chat: _Chat) -> None:
        failure = ApiError(500, f"The lm raised [{error!r}].", kind="server_error")
        chat.connection.send(500, failure.body(), chat.headers)


# The bodies of the chat completions API: requests, replies, errors.


def count_tokens(text: str) -> int:
    """Return the number of tokens by this kit's rule: a quarter of the UTF-8 bytes, rounded up.

    >>> count_tokens("abcde")
    2
    """
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // 4)


def prompt_tokens(request: dict[str, Any]) -> int:
    """Return the tokens of all message texts of a checked request."""
    return sum(count_tokens(text_of(message)) for message in request["messages"])


def read_request(body: bytes, models: Collection[str] | None) -> dict[str, Any]:
    """Return the request in `body`, or raise the ApiError that the API would answer."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The request body is not valid JSON; send one JSON object.") from None
    if not isinstance(request, dict):
        raise ApiError(400, f"The body is a JSON [{type(request).__name__}]; send an object.")
    messages = request.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "The request has no [messages]; send a list of at least one message.")
    if not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        raise ApiError(400, "An entry of [messages] has no role; send objects with role and content.")
    if request.get("stream"):
        raise ApiError(400, "This provider cannot stream; leave out [stream] or set it to false.")
    model = request.get("model")
    if not isinstance(model, str) or not model:
        raise ApiError(400, "The request has no [model]; name one.")
    if models is not None and model not in models:
        raise ApiError(404, f"The model [{model}] does not exist.", code="model_not_found")
    return request


def reply_limit(request: dict[str, Any]) -> int:
    """Return the most tokens that the reply may have; 0 where the request sets no limit."""
    limit = request.get("max_completion_tokens") or request.get("max_tokens")
    return limit if isinstance(limit, int) and limit > 0 else 0


def completion(
    request: dict[str, Any], reply: str | dict[str, Any], index: int, asked: int
) -> tuple[dict[str, Any], int]:
    """Return the reply's body and its tokens; a dict is sent as its JSON.

    Args:
        asked: the request's `prompt_tokens`.
    """
    text = reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False)
    reason, limit = "stop", reply_limit(request)
    if limit and count_tokens(text) > limit:
        text, reason = text.encode()[: limit * 4].decode("utf-8", "ignore"), "length"
    given = count_tokens(text)
    body = {
        "id": f"chatcmpl-simulated-{index}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": request["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "finish_reason": reason,
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": asked,
            "completion_tokens": given,
            "total_tokens": asked + given,
        },
    }
    return body, given


# Options: what a provider in a process of its own is told, as a value and as command line arguments.


_EXAMPLE: Final = """\
example, an endpoint as bad as they get, the same one at each start:
  %(prog)s --latency lognormal:0.2,1.0 --faults reset:0.05,html:0.05 --seed 7 \\
    --rpm 600 --tpm 100000 --window 2

kinds of faults:
"""


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
    context: int | None = None
    faults: FaultPlan | None = None
    quota: Quota | None = None
    seed: int = 0
    window: float | None = None

    @classmethod
    def parse(cls, argv: Sequence[str] | None, prog: str) -> ProviderOptions:
        """Return the options that the arguments name; wrong ones end the process with a sentence."""
        parser = _parser(prog)
        args = parser.parse_args(argv)
        try:
            return cls(
                port=args.port,
                latency=Latency.parse(args.latency),
                api_key=args.api_key,
                reply=args.reply,
                context=args.context,
                faults=_plan(args),
                quota=_quota(args),
                seed=args.seed,
                window=args.window,
            )
        except ValueError as error:
            parser.error(str(error))

    def arguments(self) -> list[str]:
        """Return the arguments that `parse` makes these options from."""
        given: dict[str, object] = {"port": self.port, "latency": self.latency, "seed": self.seed}
        given |= {"api-key": self.api_key, "reply": self.reply, "context": self.context}
        given["window"] = self.window if self.quota is None else self.quota.window
        if self.faults is not None:
            plan = self.faults
            given |= {"faults": plan, "faults-in-a-row": plan.in_a_row}
            given |= {"retry-after": plan.retry_after, "drip": plan.drip}
        flags = []
        if self.quota is not None:
            quota = self.quota
            given |= {"rpm": quota.requests, "tpm": quota.tokens, "quota-shape": quota.shape}
            given |= {"halve-after": quota.halve_after, "quota-retry-after": quota.retry_after}
            flags = ["--quota-per-model"] if quota.per_model else []
            flags += [] if quota.headers else ["--no-quota-headers"]
        return [f"--{name}={value}" for name, value in given.items() if value is not None] + flags

    def provider(self) -> Provider:
        """Return the provider that they describe."""
        context = {} if self.context is None else {"context": self.context}
        return Provider(
            port=self.port,
            latency=self.latency,
            api_key=self.api_key,
            lm=FixedReply(self.reply) if self.reply is not None else SimulatedLM(**context, seed=self.seed),
            faults=self.faults,
            quota=self.quota,
            seed=self.seed,
            window=self.window,
        )


def _parser(prog: str) -> argparse.ArgumentParser:
    kinds = "".join(f"  {group}: {' '.join(names)}\n" for group, names in GROUPS.items())
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve OpenAI's chat completions on this machine, with limits and faults at wish.",
        epilog=_EXAMPLE + kinds,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--port", type=int, default=0, help="0 takes a free port")
    add("--api-key", help="the key that requests must carry; without it any will do")
    add("--reply", help="a fixed reply instead of the simulated LM")
    add("--context", type=int, help="how many characters of each text the simulated LM reads")
    add("--seed", type=int, default=0, help="of latencies and faults")
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
    add("--faults-in-a-row", type=int, metavar="N", help="at most so many in a row for one request")
    add("--retry-after", type=float, metavar="S", help="seconds that the drawn 429s ask to wait")
    add("--drip", type=float, metavar="S", help="seconds that a dripping reply takes")
    quota = parser.add_argument_group("quota, for each API key")
    add = quota.add_argument
    add("--rpm", type=int, metavar="N", help="requests in one window")
    add("--tpm", type=int, metavar="N", help="tokens in one window: prompt and max_completion_tokens")
    add("--window", type=float, metavar="S", help="seconds of a window, also of those in /stats (default 60)")
    add("--quota-shape", choices=("bucket", "sliding"), help="bucket takes a burst, sliding is strict")
    add("--quota-per-model", action="store_true", help="each model has a quota of its own")
    add(
        "--quota-retry-after",
        type=float,
        metavar="S",
        help="seconds that a refusal asks to wait, true or not",
    )
    add("--no-quota-headers", action="store_true", help="replies don't say what is left of it")
    add(
        "--halve-after",
        type=int,
        metavar="N",
        help="the quota halves after so many requests; at any time by "
        """POST /admin/quota {"scale": 0.5}""",
    )
    return parser


def _plan(args: argparse.Namespace) -> FaultPlan | None:
    if args.faults is None:
        if args.faults_in_a_row is not None or args.retry_after is not None or args.drip is not None:
            raise ValueError("Options of faults need [--faults]; give it, or leave them out.")
        return None
    given = {"in_a_row": args.faults_in_a_row, "retry_after": args.retry_after, "drip": args.drip}
    return FaultPlan.parse(args.faults, **{name: value for name, value in given.items() if value is not None})


def _quota(args: argparse.Namespace) -> Quota | None:
    if args.rpm is None and args.tpm is None:
        given = (args.quota_shape, args.halve_after, args.quota_retry_after)
        if any(value is not None for value in given) or args.quota_per_model or args.no_quota_headers:
            raise ValueError("Options of a quota need [--rpm] or [--tpm]; give one, or leave them out.")
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


# The provider as a process of its own, seen from its parent.


class ProviderProcess:
    """Runs `python -m afnio.testing.provider` while its `with` block lasts.

    >>> from afnio.testing.provider._provider import ProviderOptions
    >>> with ProviderProcess(ProviderOptions(reply="ok")) as provider:
    ...     provider.stats()["requests"]
    0
    """

    def __init__(self, options: ProviderOptions) -> None:
        self._command = [sys.executable, "-m", "afnio.testing.provider", *options.arguments()]
        self._process: subprocess.Popen[bytes] | None = None
        self.base_url = ""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(  # noqa: S603 - our own module, no shell
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._stop()
            raise RuntimeError(f"The provider ended with code [{code}] before it served; see stderr.")
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
        """The id of the process, for those who measure its CPU time."""
        if self._process is None:
            raise RuntimeError("The provider is not running; enter its `with` block first.")
        return self._process.pid

    def stats(self) -> dict[str, Any]:
        """Return the counts of the process, as `Provider.stats` does."""
        return self._ask("GET", "/stats")

    def scale_quota(self, factor: float) -> None:
        """Multiply the limits of all accounts by `factor` from now on."""
        self._ask("POST", "/admin/quota", json.dumps({"scale": factor}))

    def _ask(self, method: str, path: str, body: str | None = None) -> dict[str, Any]:
        # Not urllib: it would ask a proxy from the environment.
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


# The command that serves a provider while its standard input lasts.


def main(argv: Sequence[str] | None = None, *, prog: str = "python -m afnio.testing.provider") -> None:
    """Serve as the arguments say, until standard input ends or Ctrl-C."""
    options = ProviderOptions.parse(argv, prog)
    _raise_file_limit()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.provider()))


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
