"""ChatClient: what a provider is to Afnio; write `send` and the rest works."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Final, NoReturn, Self, final

from afnio.models.rehearsal import rehearsal
from afnio.models.request import ChatRequest, Message
from afnio.models.response import ChatResponse
from afnio.models.spending import governed_price
from afnio.runtime._call import ATTEMPT_DEADLINE, Call, Codec, perform
from afnio.runtime._kernel import Job, Launch, Slot
from afnio.runtime._limits import Account, Limits, give_limits
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Work, check_blocking
from afnio.runtime.events import Usage

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
    ) -> Work[ChatResponse]:
        request = ChatRequest.build(messages, model=model, **completion_args)
        launch = Launch("chat")
        slot = Slot(launch)

        async def body(job: Job, values: list[Any]) -> list[ChatResponse]:
            return [await self.complete(job, request, "chat")]

        launch.add(body, [], [slot])
        launch.start()
        return Work(slot, lambda response: response)

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
