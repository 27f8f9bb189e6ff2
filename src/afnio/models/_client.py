"""ChatClient: a chat model at a provider. Write its `send`, and the engine does the rest.

`send` is one attempt: it sends a request and returns the reply, or raises an error that can be retried or not. The
queue, rate limits, retries, journal, budgets and counting are the engine's, the same for every provider.
`ChatClient.complete` is the bridge: it describes a request to the engine as a `Call`.

    ChatClient   one account at one provider
    ChatModel    a client with the arguments of its calls, for critics and optimizers
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, final

from afnio.errors import AfnioError
from afnio.models._messages import ChatRequest, ChatResponse, Message, ToolCall
from afnio.models._prices import governed_prices
from afnio.models._trace import CHAT_PATH, current_trace, in_attempt, rehearsal
from afnio.runtime._batch_api import Batched, ParcelPlan, goes_live, wanted_parcel
from afnio.runtime._call import ATTEMPT_DEADLINE, Call, Codec, attempt_deadline, perform
from afnio.runtime._kernel import Job, Launch, Slot, current_job, current_scope
from afnio.runtime._limits import Account, Limits, give_limits
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Pending, active_journal, check_blocking
from afnio.runtime.events import Usage

if TYPE_CHECKING:
    from afnio.runtime._journal import Journal


def _encode(response: ChatResponse) -> bytes:
    from pydantic_core import to_json

    usage = response.usage
    fields = {
        "content": response.content,
        "tool_calls": [{"id": c.id, "name": c.name, "arguments": c.arguments} for c in response.tool_calls],
        "finish_reason": response.finish_reason,
        "model": response.model,
        "id": response.id,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "cached_tokens": usage.cached_tokens,
            "reasoning_tokens": usage.reasoning_tokens,
        },
    }
    if response.service_tier:
        fields["service_tier"] = response.service_tier
    # Without `limits`: they belong to the moment, not to the reply.
    try:
        return to_json(fields)
    except ValueError:  # half a character, which only an escape can express
        return json.dumps(fields, separators=(",", ":")).encode()


def _decode(payload: bytes) -> ChatResponse:
    fields = json.loads(payload)
    calls = tuple(ToolCall(**call) for call in fields["tool_calls"])
    return ChatResponse(**{**fields, "tool_calls": calls, "usage": Usage(**fields["usage"])})


# How a journal stores replies, and how the engine corrects their usage.
CODEC: Final = Codec(
    encode=_encode,
    decode=_decode,
    reusable=lambda response: response.complete,
    recount=lambda response, usage: replace(response, usage=usage),
)


class ChatClient(ABC):
    """A chat model at a provider. Subclass it and write `send`.

    Args:
        account: the account whose limits its calls share.
        limits: the account's limits. The newest ones apply to all of its clients.
        timeout: the longest duration of one attempt, in seconds.

    >>> from afnio.runtime import Account
    >>> class Echo(ChatClient):
    ...     async def send(self, request):
    ...         return ChatResponse(content=request.messages[-1]["content"])
    >>> str(Echo(Account("echo://", "")).chat(messages=[{"role": "user", "content": "Hi"}], model="m"))
    'Hi'
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
        """False once the endpoint has refused a `json_schema` response format."""
        self.variant = ""
        """Everything that this client adds to a request and that may change the reply, such as headers, as one
        text. It is a part of the request's key. Make it a digest if it may contain secrets."""
        self._counted: dict[str, tuple[int, Usage]] = {}

    @abstractmethod
    async def send(self, request: ChatRequest) -> ChatResponse:
        """Send `request` once and return the reply. The engine calls it on the runtime's loop.

        Raises:
            TransientModelError: if another attempt may succeed.
            FinalModelError: if it would fail the same way.
        """

    def count_tokens(self, request: ChatRequest) -> int:
        """Return an estimate of the prompt's tokens.

        The engine reserves them under token limits and corrects them by the usage in the reply. The default is one
        token for every four bytes of UTF-8 and four for each message: about right for English, too many for most
        other languages. Override it with your model's tokenizer if that is too coarse.
        """
        return sum(4 - -_size(_text(message)) // 4 for message in request.messages)

    def with_defaults(self, request: ChatRequest) -> ChatRequest:
        """Return the request with the client's own defaults. They are part of its key."""
        return request

    def batched(
        self, request: ChatRequest, plan: ParcelPlan, journal: Journal
    ) -> Batched[ChatResponse] | None:
        """Return how a request goes by the provider's batch API, or None if it has none."""
        return None

    def _batched(self, request: ChatRequest) -> Batched[ChatResponse] | None:
        wanted = wanted_parcel()
        if wanted is None:
            return None
        batched = self.batched(request, *wanted)
        if batched is None:
            goes_live(self.account.url, f"{self.provider} has no batch API here")
        return batched

    @property
    def provider(self) -> str:
        return type(self).__name__

    @property
    def price_url(self) -> str:
        """The endpoint whose prices hold."""
        return self.account.url

    def prefix(self, request: ChatRequest) -> int:
        """Return a hash of the prompt's beginning, by which replicas are chosen; 0 without replicas."""
        return 0

    @final
    async def complete(
        self, job: Job, request: ChatRequest, purpose: str, *, made_for: Job | None = None
    ) -> ChatResponse:
        """Make one call for a lane's job, on the runtime's loop.

        Args:
            purpose: forward, backward, step, ….
            made_for: the job whose sample the call is recorded with, if not `job`.

        Raises:
            ModelError: if the call failed permanently.
            BudgetExceeded: if a budget can't pay for it.
            JournalError: if the journal can't record it.
        """
        request = self.with_defaults(request)
        trace = current_trace.get()
        if trace is None:
            return await self._perform(job, request, purpose, made_for or job)
        traced = trace.begin(CHAT_PATH, request.body, request.model, purpose)
        try:
            response = await self._perform(job, request, purpose, made_for or job)
        except AfnioError as error:
            trace.note(error)
            raise
        if traced is not None:
            traced.reply = response.body
        return response

    async def _perform(self, job: Job, request: ChatRequest, purpose: str, made_for: Job) -> ChatResponse:
        node, lane = made_for.sample
        rehearsed = rehearsal.get()
        if rehearsed is not None:
            wanted = request.params.get("response_format") or {}
            return rehearsed.make_up(
                model=request.model,
                account=self.account,
                purpose=purpose,
                lane=lane,
                prompt_tokens=self.count_tokens(request),
                max_output=request.max_output,
                schema=(wanted.get("json_schema") or {}).get("schema"),
                any_json=wanted.get("type") == "json_object",
                params=request.params,
            )
        price, tier_prices = await governed_prices(request.model, self.price_url)
        runtime = job.launch.runtime
        # Lanes of a launch may share a reply at temperature 0. A single job has nobody to share with.
        shares = request.params.get("temperature") == 0 and len(job.launch.jobs) > 1
        call = Call(
            address=job.call_address(purpose),
            scope=job.launch.scope.matched_in,
            key=self._key(request, wanted=shares or active_journal.get() is not None),
            codec=CODEC,
            account=self.account,
            model=request.model,
            purpose=purpose,
            attempt=lambda: self._attempt(request),
            deadline=attempt_deadline(self.timeout, request.params.get("service_tier")),
            depth=job.launch.depth,
            prompt_tokens=self.count_tokens(request),
            max_output=request.max_output,
            price=price,
            tier_prices=tier_prices,
            site=(job.launch.line, job.part),
            prefix=self.prefix(request),
            request=request,
            node=node,
            lane=lane,
            count=self._count,
            shared=job.launch.shared if shares else None,
            batched=self._batched(request),
        )
        return await perform(runtime, call)

    async def _attempt(self, request: ChatRequest) -> ChatResponse:
        token = in_attempt.set(True)
        try:
            return await self.send(request)
        finally:
            in_attempt.reset(token)

    def _key(self, request: ChatRequest, *, wanted: bool) -> str:
        """Return the key of a request, or an empty text if nothing asks for it.

        A long prompt's digest costs as much as the rest of its call.
        """
        _ = request.encoded  # in any case: half a character must fail here, before anything is reserved
        return request.key(self.account.url, self.variant) if wanted else ""

    def _count(self, purpose: str, usage: Usage) -> None:
        calls, total = self._counted.get(purpose, (0, Usage()))
        self._counted[purpose] = (calls + 1, total + usage)

    @final
    @folding
    def chat(self, *, messages: Sequence[Message], model: str, **completion_args: Any) -> ChatResponse:
        """Make one call, and block this thread until its reply is there. `achat` is the same to be awaited.

        A `def` that an op runs in a worker thread may call it, too.

        Raises:
            BlockingReadError: on an event loop; write `await client.achat(…)` there.
            ModelError: if the call failed permanently.
        """
        check_blocking(call=True)  # before the launch, so that a mistake costs nothing
        pending = self._launch(messages, model, completion_args)
        pending.wait_for_call()
        return pending.wait()

    @final
    @folding
    async def achat(self, *, messages: Sequence[Message], model: str, **completion_args: Any) -> ChatResponse:
        """Make one call and await its reply, on asyncio or trio."""
        return await self._launch(messages, model, completion_args)

    def _launch(
        self, messages: Sequence[Message], model: str, completion_args: dict[str, Any]
    ) -> Pending[ChatResponse]:
        request = ChatRequest.build(messages, model=model, **completion_args)
        # A call inside an agent's function is one of its sample's.
        trace, outer = current_trace.get(), current_scope().job
        purpose = "chat" if trace is None else trace.purpose
        launch = Launch("chat")
        slot = Slot(launch)

        async def body(job: Job, values: list[Any]) -> list[ChatResponse]:
            return [await self.complete(job, request, purpose, made_for=outer)]

        launch.add(body, [], [slot])
        launch.start()
        return Pending(slot, lambda response: response)

    def get_usage(self) -> dict[str, Any]:
        """Return the client's calls and tokens: totals, and under "phases" those of each purpose."""
        counted = dict(self._counted)  # a copy: the runtime's thread keeps counting
        calls, total = sum(calls for calls, _ in counted.values()), Usage()
        for _, usage in counted.values():
            total += usage
        phases = {phase: {"calls": calls, **_tokens(usage)} for phase, (calls, usage) in counted.items()}
        return {"calls": calls, **_tokens(total), "phases": phases}

    def clear_usage(self) -> None:
        self._counted = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return the client itself, so that copies of an agent share its connections and account."""
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} can't be pickled because it has a key and connections; pass it to the agent's forward "
            "as an argument, or make it where it is used"
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.account.url!r})"


def _text(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text") or "") for part in content or ())


def _size(text: str) -> int:
    """Return the bytes of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _tokens(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }


@dataclass(frozen=True, slots=True)
class ChatModel:
    """A client, and the arguments of its calls.

    Attributes:
        completion_args: with "model" among them.
    """

    client: ChatClient
    completion_args: Mapping[str, Any]

    async def ask(
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
        """Return the client's estimate of the tokens of `text`, without those that a message adds."""
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
