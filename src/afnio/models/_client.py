"""ChatClient: what a provider is to Afnio; write `send` and the rest works."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Self, final

from afnio.errors import FinalModelError, TransientModelError
from afnio.models._messages import ChatRequest, ChatResponse, Message
from afnio.models._prices import governed_price
from afnio.runtime._call import ATTEMPT_DEADLINE, Call, Codec, perform
from afnio.runtime._kernel import Job, Launch, Slot, current_job
from afnio.runtime._limits import Account, Limits, give_limits
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Pending, check_blocking
from afnio.runtime.events import Usage, unheard

CODEC: Final = Codec(
    encode=lambda response: response.model_dump_json().encode(),
    decode=ChatResponse.model_validate_json,
    reusable=lambda response: response.complete,
    recount=lambda response, usage: response.model_copy(update={"usage": usage}),
)
"""How replies are kept in a journal, and given other counts."""


class ChatClient(ABC):
    """A chat model behind an account: `send` is one attempt; limits, retries, counting are the engine's.

    Args:
        account: whose limits its calls count against.
        limits: limits of that account; those given last hold for all of its clients.
        timeout: seconds that one attempt may take.
    """

    def __init__(
        self, account: Account, *, limits: Limits | None = None, timeout: float = ATTEMPT_DEADLINE
    ) -> None:
        self.account = account
        self.limits = limits
        if limits is not None:
            give_limits(account, limits)
        self.timeout = timeout
        self.json_schema = True
        """Whether the endpoint takes `json_schema` response formats; learnt from its refusals."""
        self.variant = ""
        """What this client adds to each request that may change the reply, such as headers, as one text; part
        of the request's key. Where it may hold secrets, make it a digest."""
        self._counted: dict[str, tuple[int, Usage]] = {}

    @abstractmethod
    async def send(self, request: ChatRequest) -> ChatResponse:
        """Send `request` once, on the runtime's loop, and return the reply.

        Raises:
            TransientModelError: where another attempt may help.
            FinalModelError: where it would not.
        """

    def count_tokens(self, request: ChatRequest) -> int:
        """Return the tokens of the prompt, as far as they can be known before it is sent.

        This estimate reserves room under a limit of tokens and is corrected by what the reply says was
        used. It takes a token for every four bytes of UTF-8, and four for each message: about right for
        English, too many rather than too few for other languages. Override it with your model's tokenizer
        where that is too coarse.
        """
        return sum(4 - -len(_text(message).encode("utf-8", "replace")) // 4 for message in request.messages)

    @property
    def provider(self) -> str:
        return type(self).__name__

    @final
    async def complete(self, job: Job, request: ChatRequest, purpose: str) -> ChatResponse:
        """Carry out one call for a lane's job; on the runtime's loop.

        Args:
            purpose: the phase that the call belongs to: forward, backward, step, ….
        """
        rehearsed = rehearsal.get()
        if rehearsed is not None:
            return rehearsed.answer(self, job, request, purpose)
        runtime = job.launch.runtime
        call = Call(
            address=job.call_address(purpose),
            scope=job.launch.scope.path,
            key=request.key(self.account.url, self.variant),
            plain_key=request.key(self.account.url) if self.variant else None,
            deterministic=request.params.get("temperature") == 0,
            codec=CODEC,
            account=self.account,
            model=request.model,
            purpose=purpose,
            attempt=lambda: self.send(request),
            deadline=self.timeout,
            depth=job.launch.depth,
            prompt_tokens=self.count_tokens(request),
            max_output=request.max_output,
            price=await governed_price(request.model, self.account.url),
            site=(job.launch.line, job.part),
            request=request,
            node=job.launch.address,
            lane=job.lane,
            count=self._count,
        )
        return await perform(runtime, call)

    def _count(self, purpose: str, usage: Usage) -> None:
        calls, total = self._counted.get(purpose, (0, Usage()))
        self._counted[purpose] = (calls + 1, total + usage)

    @final
    @folding
    def chat(self, *, messages: Sequence[Message], model: str, **completion_args: Any) -> ChatResponse:
        """Ask once and wait for the reply."""
        check_blocking()  # before the call is launched, which somebody would pay for
        return self._launch(messages, model, completion_args).wait()

    @final
    @folding
    async def achat(self, *, messages: Sequence[Message], model: str, **completion_args: Any) -> ChatResponse:
        """Ask once; from asyncio or trio."""
        return await self._launch(messages, model, completion_args)

    def _launch(
        self, messages: Sequence[Message], model: str, completion_args: dict[str, Any]
    ) -> Pending[ChatResponse]:
        request = ChatRequest.build(messages, model=model, **completion_args)
        launch = Launch("chat")
        slot = Slot(launch)

        async def body(job: Job, values: list[Any]) -> list[ChatResponse]:
            return [await self.complete(job, request, "chat")]

        launch.add(body, [], [slot])
        launch.start()
        return Pending(slot, lambda response: response)

    def get_usage(self) -> dict[str, Any]:
        """Return the calls and tokens of this client, in all and for each phase."""
        counted = dict(self._counted)  # a copy, as the runtime's thread goes on counting
        calls, total = sum(calls for calls, _ in counted.values()), Usage()
        for _, usage in counted.values():
            total += usage
        phases = {phase: {"calls": calls, **_tokens(usage)} for phase, (calls, usage) in counted.items()}
        return {"calls": calls, **_tokens(total), "phases": phases}

    def clear_usage(self) -> None:
        self._counted = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the client itself: copies of an agent share its connections and its account."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} can't be pickled, as it holds a key and connections; give it to the agent's forward "
            "as an argument, or make it where it is used"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.account.url!r})"


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content or ())


def _tokens(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


# Rehearsal: a program carried out with made-up replies, to see which calls it makes. Nothing is sent.


CHARACTERS_PER_TOKEN: Final = 4
"""About right for English."""
LENGTHS: Final = {"backward": 100, "step": 400, "reduce": 300}
"""Tokens of a made-up text by purpose: what critics, optimizers and reductions usually write."""
USUAL: Final = 100
"""Of the other purposes, where the reply is free text."""
SHORT: Final = 10
"""Of a text in a JSON reply of those."""
_DEEP: Final = 8
"""Levels of a schema that are followed; one that refers to itself has no end."""


@final
@dataclass(frozen=True, slots=True)
class Rehearsed:
    """A call that would have been made.

    Attributes:
        stage: what `stage` was where it was launched.
        lane: the sample's index, None where there is one value only.
        prompt_tokens: as the client counts them.
        output_tokens: of the made-up reply, a guess.
    """

    stage: str
    purpose: str
    model: str
    account: Account
    lane: int | None
    prompt_tokens: int
    output_tokens: int


@final
@dataclass(slots=True)
class Rehearsal:
    """The calls of a block, in the order in which they were made."""

    calls: list[Rehearsed] = field(default_factory=list)

    def answer(self, client: ChatClient, job: Job, request: ChatRequest, purpose: str) -> ChatResponse:
        """Note a call and make up its reply: JSON in the schema that it asks for, else a text."""
        length = LENGTHS.get(purpose)
        # No two alike, as equal feedback counts once.
        text = f"made-up reply {len(self.calls) + 1}"
        wanted = request.params.get("response_format") or {}
        schema = (wanted.get("json_schema") or {}).get("schema")
        if schema is not None:
            content = json.dumps(instance(schema, _filled(text, length or SHORT)))
        elif wanted.get("type") == "json_object":
            content = "{}"
        else:
            content = _filled(text, length or USUAL)
        tokens = max(1, len(content) // CHARACTERS_PER_TOKEN)
        tokens = min(tokens, request.max_output or tokens)
        usage = Usage(client.count_tokens(request), tokens)
        self.calls.append(
            Rehearsed(
                stage.get(), purpose, request.model, client.account, job.lane, usage.prompt_tokens, tokens
            )
        )
        return ChatResponse(content=content, finish_reason="stop", model=request.model, usage=usage)


stage: Final[ContextVar[str]] = ContextVar("afnio_rehearsal_stage", default="")
"""What the calls that are launched here belong to, for those who want to tell them apart."""

rehearsal: Final[ContextVar[Rehearsal | None]] = ContextVar("afnio_rehearsal", default=None)
"""Answers what is launched in its context, instead of a provider."""


@contextmanager
def rehearsing() -> Iterator[Rehearsal]:
    """Have calls that are launched in the block answered by made-up replies; nobody is told or warned.

    >>> from afnio.testing import ScriptedClient
    >>> with rehearsing() as found:
    ...     reply = ScriptedClient("never sent").chat(messages=[{"role": "user", "content": "Hi"}], model="m")
    >>> found.calls[0].model
    'm'
    """
    made = Rehearsal()
    token = rehearsal.set(made)
    # It stays: another rehearsal may be under way when this one ends.
    logging.getLogger("afnio").addFilter(_unrehearsed)
    try:
        with unheard():
            yield made
    finally:
        rehearsal.reset(token)


def instance(
    schema: Mapping[str, Any], text: str, root: Mapping[str, Any] | None = None, level: int = 0
) -> Any:
    """Return a value that fits a JSON schema, with `text` for its strings.

    >>> instance({"type": "object", "properties": {"label": {"enum": ["a", "b"]}, "why": {"type": "string"}}}, "…")
    {'label': 'a', 'why': '…'}
    """
    root = schema if root is None else root
    if "$ref" in schema:
        schema = _referred(schema["$ref"], root)
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    for several in ("anyOf", "oneOf", "allOf"):
        if schema.get(several):
            return instance(schema[several][0], text, root, level + 1)
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if level > _DEEP:
        return None
    if kind == "object" or "properties" in schema:
        return {
            name: instance(part, text, root, level + 1) for name, part in schema.get("properties", {}).items()
        }
    if kind == "array":
        return _items(schema, text, root, level)
    plain: dict[Any, Any] = {
        "string": text, "integer": schema.get("minimum", 0), "number": schema.get("minimum", 0.0), "boolean": False,
    }  # fmt: skip
    return plain.get(kind)


def _items(schema: Mapping[str, Any], text: str, root: Mapping[str, Any], level: int) -> list[Any]:
    """Return as many entries as are asked for; where an entry's field is a choice, each choice in turn."""
    entries = [
        instance(schema.get("items") or {}, text, root, level + 1)
        for _ in range(max(1, schema.get("minItems", 1)))
    ]
    properties = (schema.get("items") or {}).get("properties", {})
    for name, part in properties.items():
        for entry, choice in zip(entries, part.get("enum", ()), strict=False):
            entry[name] = choice
    return entries


def _referred(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        found = found.get(part, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) else {}


def _filled(text: str, tokens: int) -> str:
    characters = max(len(text), tokens * CHARACTERS_PER_TOKEN)
    return (text + " and so on" * (characters // len(" and so on") + 1))[:characters]


def _unrehearsed(record: logging.LogRecord) -> bool:
    return rehearsal.get() is None


# ChatModel: a client together with the arguments that every call of it gets.


@final
@dataclass(frozen=True, slots=True)
class ChatModel:
    """A client and the arguments of its calls, the model's name among them."""

    client: ChatClient
    completion_args: Mapping[str, Any]

    async def complete(
        self, messages: Sequence[Message], purpose: str, *, job: Job | None = None, **defaults: Any
    ) -> ChatResponse:
        """Make one call, on the runtime's loop.

        Args:
            purpose: the call's name in addresses, usage and traces, such as "step".
            job: the lane that the call belongs to. By default that of the running `Optimizer.propose` or `reduce`.
            **defaults: arguments that the model's own override.

        Raises:
            RuntimeError: without a job, outside an optimizer's methods.
        """
        request = ChatRequest.build(messages, **{**defaults, **self.completion_args})
        return await self.client.complete(job or current_job(), request, purpose)

    def count_tokens(self, text: str) -> int:
        """Return how many tokens `text` is, as the client estimates it; without what a message adds to it."""
        name = str(self.completion_args.get("model"))
        sizes = [
            self.client.count_tokens(ChatRequest(name, ({"role": "user", "content": content},)))
            for content in (text, "")
        ]
        return sizes[0] - sizes[1]

    def get_provider(self) -> str:
        return self.client.provider

    def get_usage(self) -> dict[str, Any]:
        return self.client.get_usage()

    def clear_usage(self) -> None:
        self.client.clear_usage()


# Once: a client that tries a call one time, for who wants to know rather than to have.


@final
class Once(ChatClient):
    """Another client's attempts, of which no call makes a second one; on the same account."""

    def __init__(self, client: ChatClient) -> None:
        super().__init__(client.account, timeout=client.timeout)
        self._client = client

    async def send(self, request: ChatRequest) -> ChatResponse:
        try:
            return await self._client.send(request)
        except TransientModelError as error:
            raise FinalModelError(str(error), status=error.status) from error
