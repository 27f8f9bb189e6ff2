"""The batch APIs of the provider: OpenAI's files and batches, and Anthropic's message batches.

Nothing runs in the background: the state of a batch follows from the time that has passed, whenever it is asked for. So
it also works with a virtual clock. `Batches` says how long batches take and what goes wrong with them. The fate of a
line is drawn by a hash of the seed, its request and the number of the batch, so a run can be repeated.

Only lines that were carried out are paid for. `stats()["batches"]` counts them, and how often each request was paid.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Final, Literal, final

from aiohttp import web

from afnio.testing.provider._faults import ApiError
from afnio.testing.simulated._student import draw, request_digest

LINE_FAULTS: Final = ("expired", "error", "limited", "timeout", "missing", "garbled", "doubled")
_ENDPOINTS: Final = ("/v1/chat/completions", "/v1/responses", "/v1/embeddings")
_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")

# Returns the reply to a request for an endpoint; raises an `ApiError`.
Answer = Callable[[str, dict[str, Any]], dict[str, Any]]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """How a provider's batch API behaves.

    Attributes:
        seconds: until the last line of a batch is done; the others are done evenly before it.
        validating: seconds before that, in which a batch may still be refused.
        cancelling: seconds between a cancellation and its end.
        window: seconds after which a batch expires, with the lines that are done.
        queue: the most prompt tokens of all open batches of a model, or None.
        queue_full: a batch beyond that is refused at its creation ("early"), or fails afterwards ("late").
        lag: seconds until the list shows a new batch.
        faults: the probability of each fault of a line: "expired", "error" (500), "limited" (429), "timeout", and of
            lines that are paid for: "missing", "garbled", "doubled".
        bad: a request with this text fails its whole batch; "" for none.
        named: True if the refusal names the line.
        lost: how many answers get lost of each step, though it is carried out: "upload", "create", "poll", "list",
            "content", "cancel".
        refused: how many requests of each step get a 500.
        dead: True while every connection is reset.
        offered: False for a provider without batch APIs.

    Raises:
        ValueError: for an unknown fault.

    >>> Batches(seconds=2.0, faults={"expired": 0.5}).window
    86400.0
    """

    seconds: float = 0.2
    validating: float = 0.05
    cancelling: float = 0.05
    window: float = 86_400.0
    queue: int | None = None
    queue_full: Literal["early", "late"] = "late"
    lag: float = 0.0
    faults: Mapping[str, float] = field(default_factory=dict)
    bad: str = ""
    named: bool = True
    lost: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    dead: bool = False
    offered: bool = True

    def __post_init__(self) -> None:
        unknown = set(self.faults) - set(LINE_FAULTS)
        if unknown:
            raise ValueError(f"a fault must be one of {', '.join(LINE_FAULTS)} (got {sorted(unknown)})")

    @classmethod
    def parse(cls, text: str) -> Batches:
        """Return the options of a JSON object with the attributes' names."""
        return cls(**json.loads(text))

    def __str__(self) -> str:
        values = {part.name: getattr(self, part.name) for part in fields(self)}
        return json.dumps(values, default=dict)


@final
@dataclass(slots=True, eq=False)
class _Batch:
    id: str
    key: str
    number: int
    endpoint: str
    lines: list[dict[str, Any]]
    tokens: int
    began: float
    created: float
    metadata: Any = None
    input_file: str = ""
    state: str = "validating"
    cancelled: float | None = None
    done: int = 0
    errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> Any:
        return self.lines[0]["body"].get("model")


@final
class BatchService:
    """Answers the requests of both APIs.

    Args:
        answer: makes the replies.
        authorize: returns a request's API key.
    """

    def __init__(
        self, options: Batches, *, seed: int, answer: Answer, authorize: Callable[[web.Request], str]
    ) -> None:
        self.options = options
        self._seed = seed
        self._answer = answer
        self._authorize = authorize
        self._batches: dict[str, _Batch] = {}
        self._files: dict[str, tuple[str, bytes]] = {}
        self._paid: Counter[str] = Counter()
        self._tokens = [0, 0]
        self._asked: Counter[str] = Counter()

    def change(self, **options: Any) -> None:
        """Change the options from now on."""
        self.options = replace(self.options, **options)

    def stats(self) -> dict[str, Any]:
        """Return what was asked, made and paid for."""
        batches = self._batches.values()
        for batch in batches:
            self._advance(batch)
        return {
            "asked": dict(self._asked),
            "sizes": [len(batch.lines) for batch in batches],
            "states": [batch.state for batch in batches],
            "paid": self._paid.total(),
            "paid_twice": sum(count - 1 for count in self._paid.values()),
            "paid_by_request": dict(self._paid),
            "prompt_tokens": self._tokens[0],
            "completion_tokens": self._tokens[1],
        }

    def routes(self, prefix: str) -> list[web.RouteDef]:
        """Return the routes of both APIs below a prefix."""
        steps = [
            web.post(f"{prefix}/files", self._step("upload", self._upload)),
            web.get(f"{prefix}/files/{{id}}/content", self._step("content", self._content)),
        ]
        for base, create in (("batches", self._create), ("messages/batches", self._create_messages)):
            at = f"{prefix}/{base}"
            steps += [
                web.post(at, self._step("create", create)),
                web.get(at, self._step("list", self._list)),
                web.get(f"{at}/{{id}}", self._step("poll", self._poll)),
                web.post(f"{at}/{{id}}/cancel", self._step("cancel", self._cancel)),
                web.get(f"{at}/{{id}}/results", self._step("content", self._results)),
            ]
        return steps

    def _step(self, name: str, handle: Any) -> Any:
        async def handler(request: web.Request) -> web.StreamResponse:
            if not self.options.offered:
                raise ApiError(404, f"Invalid URL ({request.method} {request.path}).")
            self._asked[name] += 1
            if self.options.dead or self._used_up("refused", name):
                if self.options.dead and request.transport is not None:
                    request.transport.abort()
                raise ApiError(500, "The server had an error.", kind="server_error")
            response: web.StreamResponse = await handle(request, self._authorize(request))
            if self._used_up("lost", name) and request.transport is not None:
                request.transport.abort()
            return response

        return handler

    def _used_up(self, kind: str, name: str) -> bool:
        left = getattr(self.options, kind).get(name, 0)
        if left > 0:
            self.change(**{kind: {**getattr(self.options, kind), name: left - 1}})
        return bool(left > 0)

    # OpenAI

    async def _upload(self, request: web.Request, key: str) -> web.Response:
        form = await request.post()
        file = form.get("file")
        if form.get("purpose") != "batch" or not isinstance(file, web.FileField):
            raise ApiError(400, "The form must have purpose=batch and a file.")
        body = file.file.read()
        name = f"file-{len(self._files)}"
        self._files[name] = (key, body)
        return web.json_response({"id": name, "object": "file", "purpose": "batch", "bytes": len(body)})

    async def _content(self, request: web.Request, key: str) -> web.Response:
        owner, body = self._files.get(request.match_info["id"], ("", b""))
        if not body or owner != key:
            raise ApiError(404, "No such File object.")
        return web.Response(body=body, content_type="application/octet-stream")

    async def _create(self, request: web.Request, key: str) -> web.Response:
        asked = await request.json()
        owner, body = self._files.get(str(asked.get("input_file_id")), ("", b""))
        if owner != key or asked.get("endpoint") not in _ENDPOINTS or asked.get("completion_window") != "24h":
            raise ApiError(400, "The batch must have a file, an endpoint and completion_window=24h.")
        try:
            lines = [json.loads(line) for line in body.split(b"\n") if line]
        except ValueError:
            lines = [{"custom_id": "", "body": {}}]
        batch = self._made("batch", key, asked["endpoint"], lines)
        batch.metadata, batch.input_file = asked.get("metadata"), asked["input_file_id"]
        return web.json_response(self._shown(batch))

    # Anthropic

    async def _create_messages(self, request: web.Request, key: str) -> web.Response:
        asked = json.loads(await request.read())
        lines = [{"custom_id": one["custom_id"], "body": one["params"]} for one in asked["requests"]]
        ids = [line["custom_id"] for line in lines]
        if not lines or len(set(ids)) < len(ids) or not all(_ID.fullmatch(ident) for ident in ids):
            raise ApiError(400, "requests must have unique custom_ids of [a-zA-Z0-9_-], 64 at most.")
        return web.json_response(self._shown(self._made("msgbatch", key, "/v1/messages", lines)))

    async def _results(self, request: web.Request, key: str) -> web.Response:
        batch = self._batch(request, key)
        if batch.state != "ended":
            raise ApiError(404, "The batch has no results yet.", kind="not_found_error")
        return web.Response(body=self._files[f"{batch.id}-output"][1], content_type="application/x-jsonl")

    # Both

    def _made(self, kind: str, key: str, endpoint: str, lines: list[dict[str, Any]]) -> _Batch:
        tokens = sum(len(json.dumps(line["body"])) // 4 for line in lines)
        number = len(self._batches)
        now = asyncio.get_running_loop().time()
        batch = _Batch(f"{kind}_{number}", key, number, endpoint, lines, tokens, now, time.time())
        if self.options.queue_full == "early" and (full := self._full(batch)):
            raise ApiError(429, full, kind="tokens", code="token_limit_exceeded")
        self._batches[batch.id] = batch
        return batch

    def _full(self, batch: _Batch) -> str:
        limit = self.options.queue
        others = (one for one in self._batches.values() if one is not batch and one.model == batch.model)
        queued = sum(one.tokens for one in others if one.state in ("validating", "in_progress"))
        if limit is None or queued + batch.tokens <= limit:
            return ""
        return (
            f"Enqueued token limit reached for {batch.model} in organization org-simulated. Limit: {limit:,} enqueued "
            "tokens. Please try again once some in_progress batches have been completed."
        )

    def _batch(self, request: web.Request, key: str) -> _Batch:
        batch = self._batches.get(request.match_info["id"])
        if batch is None or batch.key != key:
            raise ApiError(404, "No such batch.", kind="not_found_error")
        self._advance(batch)
        return batch

    async def _poll(self, request: web.Request, key: str) -> web.Response:
        return web.json_response(self._shown(self._batch(request, key)))

    async def _cancel(self, request: web.Request, key: str) -> web.Response:
        batch = self._batch(request, key)
        if batch.state not in ("validating", "in_progress"):
            raise ApiError(409, f"A batch that is {batch.state} can't be cancelled.")
        batch.cancelled = asyncio.get_running_loop().time()
        return web.json_response(self._shown(batch))

    async def _list(self, request: web.Request, key: str) -> web.Response:
        anthropic = "/messages/" in request.path
        before = asyncio.get_running_loop().time() - self.options.lag
        mine = [
            batch
            for batch in reversed(self._batches.values())
            if batch.key == key and batch.id.startswith("msg") == anthropic and batch.began <= before
        ]
        after = request.query.get("after")
        names = [batch.id for batch in mine]
        rest = mine[names.index(after) + 1 :] if after in names else mine
        most = int(request.query.get("limit", 20))
        for batch in rest[:most]:
            self._advance(batch)
        shown = [self._shown(batch) for batch in rest[:most]]
        return web.json_response({"object": "list", "data": shown, "has_more": len(rest) > most})

    def _shown(self, batch: _Batch) -> dict[str, Any]:
        total = len(batch.lines)
        if batch.endpoint == "/v1/messages":
            ended = batch.state == "ended"
            counts = {"processing": total, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0}
            if ended:
                counts |= {"processing": 0, "succeeded": batch.done, "expired": total - batch.done}
            return {
                "id": batch.id,
                "type": "message_batch",
                "processing_status": "ended" if ended else "canceling" if batch.cancelled else "in_progress",
                "created_at": datetime.fromtimestamp(batch.created, UTC).isoformat(),
                "request_counts": counts,
                "results_url": f"https://elsewhere.example/{batch.id}" if ended else None,
            }
        files = {f"{kind}_file_id": f"{batch.id}-{kind}" for kind in ("output", "error")}
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": batch.endpoint,
            "input_file_id": batch.input_file,
            "completion_window": "24h",
            "status": "cancelling" if batch.cancelled and batch.state == "in_progress" else batch.state,
            "created_at": int(batch.created),
            "request_counts": {"total": total, "completed": batch.done, "failed": 0},
            "errors": {"object": "list", "data": batch.errors} if batch.errors else None,
            "metadata": batch.metadata,
            **{name: file if file in self._files else None for name, file in files.items()},
        }

    # The life of a batch

    def _advance(self, batch: _Batch) -> None:
        options, now = self.options, asyncio.get_running_loop().time()
        began = batch.began + options.validating
        if batch.state == "validating" and now >= began:
            batch.errors = self._invalid(batch)
            batch.state = "failed" if batch.errors else "in_progress"
        if batch.state != "in_progress":
            return
        ends = batch.began + options.window
        stops = ends if batch.cancelled is None else min(ends, batch.cancelled)
        share = (min(now, stops) - began) / options.seconds if options.seconds > 0 else 1.0
        batch.done = int(len(batch.lines) * min(1.0, max(0.0, share)))
        if batch.cancelled is not None and now >= batch.cancelled + options.cancelling:
            self._finish(batch, "cancelled")
        elif now >= ends:
            self._finish(batch, "expired")
        elif batch.done == len(batch.lines):
            self._finish(batch, "completed")

    def _invalid(self, batch: _Batch) -> list[dict[str, Any]]:
        invalid = []
        model, ids = batch.model, Counter(line["custom_id"] for line in batch.lines)
        for number, line in enumerate(batch.lines, 1):
            why = ""
            if line["custom_id"] == "" or ids[line["custom_id"]] > 1:
                why = "The line must be JSON with a custom_id of its own."
            elif line["body"].get("model") != model or line.get("url", batch.endpoint) != batch.endpoint:
                why = "The line must have the batch's model and endpoint."
            elif self.options.bad and self.options.bad in json.dumps(line["body"]):
                why = "Invalid value."
            if why:
                named = number if self.options.named else None
                invalid.append({"code": "invalid_request", "line": named, "message": why, "param": None})
        if not invalid and self.options.queue_full == "late" and (full := self._full(batch)):
            invalid.append({"code": "token_limit_exceeded", "line": None, "message": full, "param": None})
        return invalid[:100] if self.options.named else invalid[:1]

    def _finish(self, batch: _Batch, state: str) -> None:
        anthropic = batch.endpoint == "/v1/messages"
        output: list[str] = []
        errors: list[str] = []
        left = {"cancelled": "batch_cancelled", "expired": "batch_expired"}.get(state, "batch_expired")
        for number, line in enumerate(batch.lines):
            fault = self._fault(batch, line)
            if number >= batch.done or fault == "expired":
                errors.append(_line(anthropic, line, code=left))
                continue
            if fault in ("error", "limited", "timeout"):
                errors.append(_failed(anthropic, line, fault))
                continue
            try:
                reply = self._answer(batch.endpoint, line["body"])
            except ApiError as error:
                body = {"type": "error", **json.loads(error.body())}
                errors.append(_line(anthropic, line, status=error.status, body=body))
                continue
            except Exception:  # the user's `lm` may raise anything
                errors.append(_failed(anthropic, line, "error"))
                continue
            self._pay(line["body"], reply)
            if fault == "missing":
                continue
            text = _line(anthropic, line, status=200, body=reply)
            output.append(text[: len(text) // 2] if fault == "garbled" else text)
            if fault == "doubled":
                output.append(text)
        if anthropic:
            output, errors = output + errors, []
        for kind, lines in (("output", output), ("error", errors)):
            if lines or (anthropic and kind == "output"):
                # In another order than they were sent.
                lines.sort(key=lambda text: draw(self._seed, "order", text[:100], batch.number))
                self._files[f"{batch.id}-{kind}"] = (
                    batch.key,
                    "".join(f"{text}\n" for text in lines).encode(),
                )
        batch.state = "ended" if anthropic else state

    def _fault(self, batch: _Batch, line: dict[str, Any]) -> str:
        name = request_digest(json.dumps(line["body"]).encode())
        share = draw(self._seed, "line", name, batch.number)
        for kind, probability in self.options.faults.items():
            if share < probability:
                return kind
            share -= probability
        return ""

    def _pay(self, body: dict[str, Any], reply: dict[str, Any]) -> None:
        usage = reply.get("usage") or {}
        self._paid[request_digest(json.dumps(body).encode())] += 1
        self._tokens[0] += usage.get("prompt_tokens", usage.get("input_tokens", 0))
        self._tokens[1] += usage.get("completion_tokens", usage.get("output_tokens", 0))


def _failed(anthropic: bool, line: dict[str, Any], fault: str) -> str:
    if fault == "timeout":
        return _line(anthropic, line, code="request_timeout")
    status, kind = (500, "api_error") if fault == "error" else (429, "rate_limit_error")
    error = {"type": kind, "message": "It failed.", "param": None, "code": None}
    return _line(anthropic, line, status=status, body={"type": "error", "error": error})


def _line(
    anthropic: bool,
    line: dict[str, Any],
    *,
    status: int = 0,
    body: dict[str, Any] | None = None,
    code: str = "",
) -> str:
    """Return a line of the results: the response of a request, or why it wasn't carried out."""
    ident = line["custom_id"]
    if anthropic:
        result: dict[str, Any] = {"type": {"batch_cancelled": "canceled"}.get(code, "expired")}
        if body is not None:
            good = status == 200
            result = {"type": "succeeded", "message": body} if good else {"type": "errored", "error": body}
        return json.dumps({"custom_id": ident, "result": result})
    response = None if code else {"status_code": status, "request_id": "", "body": body}
    error = {"code": code, "message": "It wasn't carried out."} if code else None
    return json.dumps({"id": "", "custom_id": ident, "response": response, "error": error})


# The forms of other endpoints


def as_chat(endpoint: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return a request of another endpoint in the form of a chat completion's."""
    if endpoint.endswith("/chat/completions"):
        return body
    asked = body.get("input", "") if "input" in body else body.get("messages") or []
    if isinstance(asked, str) or not all(isinstance(part, dict) for part in asked):
        asked = [{"role": "user", "content": asked if isinstance(asked, str) else json.dumps(asked)}]
    messages = [{"role": one.get("role", "user"), "content": one.get("content", "")} for one in asked]
    if isinstance(body.get("system"), str):
        messages.insert(0, {"role": "system", "content": body["system"]})
    limit = body.get("max_output_tokens") or body.get("max_tokens")
    return {"model": body.get("model"), "messages": messages, **({"max_tokens": limit} if limit else {})}


def from_chat(endpoint: str, body: dict[str, Any], reply: dict[str, Any]) -> dict[str, Any]:
    """Return a chat completion in the form of another endpoint's reply."""
    usage, model = reply["usage"], body.get("model")
    choice = reply["choices"][0]
    text, used = (
        choice["message"]["content"],
        {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
        },
    )
    if endpoint.endswith("/messages"):
        stop = "max_tokens" if choice["finish_reason"] == "length" else "end_turn"
        content = [{"type": "text", "text": text}]
        head = {"id": reply["id"], "type": "message", "role": "assistant", "model": model}
        return {**head, "content": content, "stop_reason": stop, "stop_sequence": None, "usage": used}
    if endpoint.endswith("/responses"):
        part = {"type": "output_text", "text": text, "annotations": []}
        message = {
            "type": "message",
            "id": "msg",
            "role": "assistant",
            "status": "completed",
            "content": [part],
        }
        head = {"id": reply["id"], "object": "response", "created_at": reply["created"], "model": model}
        total = {**used, "total_tokens": sum(used.values())}
        return {**head, "status": "completed", "output": [message], "usage": total}
    if endpoint.endswith("/embeddings"):
        asked = body.get("input")
        count = len(asked) if isinstance(asked, list) else 1
        data = [{"object": "embedding", "index": index, "embedding": [0.1, 0.2]} for index in range(count)]
        tokens = {"prompt_tokens": usage["prompt_tokens"], "total_tokens": usage["prompt_tokens"]}
        return {"object": "list", "model": model, "data": data, "usage": tokens}
    return reply
