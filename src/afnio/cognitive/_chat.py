"""The chat op: fills messages with a sample's inputs, asks a model, and returns the text of its reply.

Each sample is one job, so its call starts as soon as its own inputs have arrived, and a failed call fails its sample
alone. Backward is one call of the backward model for each sample with feedback; it covers all texts of the prompt at
the same time, since the critic must weigh them against each other.

The arguments are checked in `afnio.cognitive.functional.chat_completion`, at the user's line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, final

from afnio.autodiff._function import Arguments, Context, Function, Later, Op
from afnio.autodiff._ops import stack
from afnio.autodiff._variable import Variable
from afnio.cognitive._critic import criticize
from afnio.cognitive._template import check_messages, rendered
from afnio.models._backward_model import get_backward_model_client
from afnio.models._client import ChatClient, ChatModel
from afnio.models._messages import ChatResponse, check_completion_args, response_format
from afnio.runtime._kernel import Job, Slot
from afnio.runtime._waiting import wait


@final
class Completion(Variable):
    """The output of a chat: `data` is the reply's text, `response` the whole reply."""

    __slots__ = ("_contexts", "_replies")

    _contexts: Sequence[Context]
    _replies: Sequence[Slot]

    @property
    def response(self) -> Any:
        """The `ChatResponse`, with tool calls and usage; for a batch a list. Waits; None for a call that failed.

        Assigning `data` doesn't change it.
        """
        wait(self._replies)
        found: list[ChatResponse | None] = [getattr(ctx, "reply", None) for ctx in self._contexts]
        return found if self._batch else found[0]


@final
class ChatCompletion(Function):
    """The op behind `chat_completion`; its arguments are the messages, the inputs by name, and `model`."""

    @classmethod
    def output_roles(cls, arguments: Arguments) -> Sequence[str]:
        parts = [part.role for message in arguments.args[0] for part in message["content"] if part.role]
        return [f"reply to {', '.join(dict.fromkeys(parts))}" if parts else "reply"]

    @classmethod
    def wrap(cls, outputs: list[Variable], op: Op) -> Completion:
        (output,) = outputs
        assert isinstance(output, Completion)
        output._contexts, output._replies = op.contexts, output._slots
        return output

    @classmethod
    def variable_type(cls, number: int) -> type[Variable]:
        return Completion

    @classmethod
    async def run_forward(cls, job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        messages, values = args
        check_texts(values)
        sent = rendered(messages, values)
        reply = await kwargs["model"].ask(sent, "forward", job=job)
        ctx.reply = reply
        if any(ctx.wanted):
            ctx.sent = sent
        return str(reply)

    @classmethod
    def check_backward(cls, ctx: Context) -> None:
        get_backward_model_client()

    @classmethod
    def run_backward(cls, job: Job, ctx: Context) -> Later:
        values = ctx.lane_values()
        (_, inputs), _ = ctx.arguments.fill(values)
        return partial(
            criticize,
            job,
            ctx,
            get_backward_model_client(),
            values=values,
            inputs=inputs,
            sent=ctx.sent,
            reply=_shown(ctx.reply),
            reply_format=ctx.arguments.kwargs["model"].completion_args.get("response_format"),
            feedback=ctx.feedback[0],
            wanted=ctx.wanted,
        )


def prepared(
    op: str, client: Any, messages: Any, completion_args: dict[str, Any]
) -> tuple[list[dict[str, Any]], ChatModel]:
    """Check the arguments of an op that asks a model; return its own copy of the messages, and the model to ask."""
    if not isinstance(client, ChatClient):
        raise TypeError(
            f"{op} takes a model client (got {client!r}); make one with afnio.models.openai.AsyncOpenAI()"
        )
    check_messages(messages)
    check_completion_args(**completion_args)
    if "response_format" in completion_args:
        completion_args["response_format"] = response_format(completion_args["response_format"])
    copied = [{"role": message["role"], "content": list(message["content"])} for message in messages]
    return copied, ChatModel(client, completion_args)


def input_variables(inputs: Mapping[str, Any] | None) -> dict[str, Variable]:
    """Return the inputs as Variables: a str or number is shared, a list of them is a batch."""
    if inputs is None:
        return {}
    if not isinstance(inputs, Mapping):
        raise TypeError(f"inputs must be a dict of names and values (got {inputs!r})")
    variables: dict[str, Variable] = {}
    for name, value in inputs.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(f"the name of an input must be an identifier (got {name!r})")
        if isinstance(value, Variable):
            variables[name] = value
        elif isinstance(value, list) and value and all(isinstance(item, Variable) for item in value):
            variables[name] = stack(value)
        else:
            variables[name] = Variable(value, role=name)
        for slot in variables[name].cell()[0]:
            check_texts({name: slot.outcome})
    return variables


def check_texts(values: Mapping[str, Any]) -> None:
    """Raise for inputs of one sample that a model can't read."""
    for name, value in values.items():
        if isinstance(value, list):
            raise TypeError(
                f"input {name!r} must be a text in each sample (got {value!r:.60}); join the list first, with "
                "variable.map"
            )


def _shown(reply: ChatResponse) -> str:
    """Return the reply for the critic: its text, and its tool calls as JSON."""
    calls = [json.dumps({"tool": c.name, "arguments": c.arguments}) for c in reply.tool_calls]
    return "\n".join([*([reply.content] if reply.content else []), *calls])
