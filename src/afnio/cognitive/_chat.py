"""ChatCompletion: the op that asks a model, once for each sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, final

from afnio.autodiff._function import Arguments, Context, Function, Later, stack
from afnio.autodiff._variable import Variable
from afnio.cognitive._critic import criticize
from afnio.cognitive._template import check_inputs, check_messages, rendered
from afnio.models._backward_model import get_backward_model_client
from afnio.models._client import ChatClient, ChatModel
from afnio.models._messages import ChatResponse, check_completion_args, response_format
from afnio.runtime._kernel import Job, Slot
from afnio.runtime._waiting import wait


@final
class Completion(Variable):
    """What a ChatCompletion returns: `data` is the reply's text; `response` all of the reply."""

    __slots__ = ("_contexts", "_replies")

    _contexts: Sequence[Context]
    _replies: Sequence[Slot]

    @property
    def response(self) -> Any:
        """The `ChatResponse`, with tool calls and usage; for a batch a list. Waits; None where there is none.

        It is what the model replied, also where `data` has been assigned since.
        """
        wait(self._replies)
        found: list[ChatResponse | None] = [getattr(ctx, "reply", None) for ctx in self._contexts]
        return found if self._batch else found[0]


@final
class ChatCompletion(Function):
    """Fill the messages with a sample's inputs, ask the model, return its text.

    Its backward makes one call of the backward model for each sample that has feedback, for all of the
    texts that want some.
    """

    @classmethod
    def apply(
        cls,
        forward_model_client: ChatClient,
        messages: Sequence[Mapping[str, Any]],
        inputs: Mapping[str, Any] | None = None,
        **completion_args: Any,
    ) -> Completion:
        """Launch one call for each sample and return the replies at once.

        Args:
            forward_model_client: whom to ask.
            messages: `{"role": str, "content": [Variable, …]}` each; `{name}` in a text is filled.
            inputs: for each name a str, a list of str (a batch), or a Variable.
            **completion_args: `model`, and whatever else the provider takes.

        Raises:
            TypeError, ValueError: for arguments that can't work.
            TemplateError: if inputs and placeholders don't fit.
        """
        if not isinstance(forward_model_client, ChatClient):
            raise TypeError(
                f"ChatCompletion takes a model client (got {forward_model_client!r}); make one with "
                "afnio.models.openai.AsyncOpenAI()"
            )
        check_messages(messages)
        check_completion_args(**completion_args)
        variables = input_variables(inputs)
        check_inputs(messages, list(variables))
        if "response_format" in completion_args:
            completion_args["response_format"] = response_format(completion_args["response_format"])
        completion: Completion = super().apply(
            [{"role": message["role"], "content": list(message["content"])} for message in messages],
            variables,
            model=ChatModel(forward_model_client, completion_args),
        )
        return completion

    @classmethod
    def output_roles(cls, arguments: Arguments) -> Sequence[str]:
        parts = [part.role for message in arguments.args[0] for part in message["content"] if part.role]
        return [f"reply to {', '.join(dict.fromkeys(parts))}" if parts else "reply"]

    @classmethod
    def wrap(cls, outputs: list[Variable], contexts: Sequence[Context]) -> Completion:
        (output,) = outputs
        assert isinstance(output, Completion)
        output._contexts, output._replies = contexts, output._slots
        return output

    @classmethod
    def variable_type(cls, number: int) -> type[Variable]:
        return Completion

    @classmethod
    async def run_forward(cls, job: Job, ctx: Context, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        messages, values = args
        check_texts(values)
        sent = rendered(messages, values)
        reply = await kwargs["model"].complete(sent, "forward", job=job)
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
    """Raise for inputs of one sample that are no texts, so that a model can't read them."""
    for name, value in values.items():
        if isinstance(value, list):
            raise TypeError(
                f"input {name!r} is a list in this sample ({value!r:.60}), and a model reads text; join it "
                "first, with variable.map"
            )


def _shown(reply: ChatResponse) -> str:
    """Return the reply as the critic is to see it, tool calls too."""
    calls = [json.dumps({"tool": c.name, "arguments": c.arguments}) for c in reply.tool_calls]
    return "\n".join([*([reply.content] if reply.content else []), *calls])
