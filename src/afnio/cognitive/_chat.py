"""The chat op: fills messages with a sample's inputs, asks a model, and returns the text of its reply.

Each sample is one job, so its call starts as soon as its own inputs have arrived, and a failed call fails its sample
alone. The arguments are checked in `afnio.cognitive.functional.chat_completion`, at the user's line.

Its backward is the critic, which turns feedback on the reply into feedback on the texts that produced it. It is one
call of the backward model for one sample. All texts that want feedback are in it, because the critic must weigh them
against each other. They have short ids (v1, v2, …), and the reply is a JSON object with a text for each id. A text
without need for change gets an empty one, and sends no feedback. If a text is shared by many consumers it may have more
feedback than one prompt should show; that is summed up first.

`criticize` shows the critic one conversation, that of an op that asked a model. `criticize_trace` shows it all calls
that a user's function made (`_transcript.py`), so that it can find the one where it went wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, final

from afnio.autodiff._function import Arguments, Context, Function, LaneFeedback, Later, Op
from afnio.autodiff._graph import Feedback
from afnio.autodiff._ops import stack
from afnio.autodiff._variable import Variable
from afnio.cognitive._prompts import Prompted, ask, critic_messages, critic_schema, trace_messages, wording
from afnio.cognitive._reduction import reduce_feedback
from afnio.cognitive._template import as_text, check_messages, rendered
from afnio.cognitive._transcript import Transcript, shortened
from afnio.models._backward_model import get_backward_model_client
from afnio.models._client import ChatClient, ChatModel
from afnio.models._messages import ChatResponse, check_completion_args, response_format
from afnio.models._trace import Trace
from afnio.runtime._callables import call_in_node
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
        replies: list[ChatResponse | None] = [getattr(ctx, "reply", None) for ctx in self._contexts]
        return replies if self._batch else replies[0]


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


async def criticize(
    job: Job,
    ctx: Context,
    model: ChatModel,
    *,
    values: Sequence[Any],
    inputs: Mapping[str, Any],
    sent: Sequence[Mapping[str, Any]],
    reply: str,
    reply_format: Any,
    feedback: Sequence[Feedback],
    wanted: Sequence[bool],
) -> LaneFeedback:
    """Return feedback for each Variable of an op that called a model, None for those without.

    Args:
        values: the value of each Variable in this lane.
        inputs: the values that the messages were filled with, by name; they become part of the provenance.
        sent: the messages after filling.
        feedback: of the consumers of the reply.
        wanted: which Variables want feedback.
    """
    if not any(entry.text for entry in feedback):
        return [None] * len(wanted)
    indices = [index for index, want in enumerate(wanted) if want]
    names = {f"v{number}": index for number, index in enumerate(indices, start=1)}
    messages = critic_messages(
        variables=[(name, ctx.input_roles[index], str(values[index])) for name, index in names.items()],
        conversation=[(message["role"], as_text(message["content"])) for message in sent],
        reply=reply,
        edited=_edited(feedback, reply),
        reply_format=reply_format,
        feedback=await _readable(job, model, ctx, feedback, reply),
    )
    provenance = _provenance(ctx, feedback, inputs, reply)
    return await _ask(job, model, messages, names, values, provenance, wanted)


async def criticize_trace(
    job: Job,
    ctx: Context,
    model: ChatModel,
    *,
    trace: Trace | None,
    values: Sequence[Any],
    names: Mapping[int, str],
    output: Any,
    feedback: Sequence[Feedback],
    wanted: Sequence[bool],
) -> LaneFeedback:
    """Return feedback for each Variable of an op that ran a user's function, None for those without.

    Args:
        trace: the language model calls that the function made; None if they weren't recorded.
        values, names: the value and the name of each Variable in this lane, names by number.
        output: what the function returned.
        feedback, wanted: as in `criticize`.
    """
    if not any(entry.text for entry in feedback):
        return [None] * len(wanted)
    indices = [index for index, want in enumerate(wanted) if want]
    ids = {f"v{number}": index for number, index in enumerate(indices, start=1)}
    texts = {index: str(values[index]) for index in indices}
    recorded = [] if trace is None else trace.calls
    read = partial(Transcript.of, recorded, list(texts.values()), model.count_tokens)
    # A long trace takes some milliseconds to read, in which the loop would stand still.
    shown: Transcript = await call_in_node(job, read) if len(recorded) > FEW else read()
    inputs = {
        names.get(index, f"input {index + 1}"): value
        for index, value in enumerate(values)
        if index not in texts
    }
    returned = written(output)
    messages = trace_messages(
        variables=[
            Prompted(
                name, ctx.input_roles[index], names.get(index, ""), shown.seen_in[texts[index]], texts[index]
            )
            for name, index in ids.items()
        ],
        inputs=_unseen(inputs, shown, model.count_tokens),
        calls=shown.calls,
        skipped=shown.skipped,
        output=shortened(returned, LONGEST_INPUT, model.count_tokens),
        edited=_edited(feedback, returned),
        feedback=await _readable(job, model, ctx, feedback, returned),
    )
    provenance = _provenance(ctx, feedback, inputs, returned)
    return await _ask(job, model, messages, ids, values, provenance, wanted)


# Calls of a trace that are read on the loop.
FEW: Final = 4
# Tokens of an agent's input, or of its output, that the critic reads in addition to the calls.
LONGEST_INPUT: Final = 2_000


def _unseen(inputs: Mapping[str, Any], shown: Transcript, count: Callable[[str], int]) -> dict[str, str]:
    """Return the inputs that no call shows, as texts."""
    texts = {name: written(value) for name, value in inputs.items()}
    return {
        name: shortened(text, LONGEST_INPUT, count)
        for name, text in texts.items()
        if not shown.has(text.strip())
    }


def written(value: Any) -> str:
    """Return a value as a text for a prompt."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)


async def _ask(
    job: Job,
    model: ChatModel,
    messages: list[dict[str, str]],
    names: Mapping[str, int],
    values: Sequence[Any],
    provenance: tuple[Mapping[str, Any], ...],
    wanted: Sequence[bool],
) -> LaneFeedback:
    """Ask the critic about the texts that `names` has the numbers of."""

    def parse(answer: Mapping[str, Any]) -> LaneFeedback:
        texts = _by_name(answer["feedback"], list(names))
        feedback: list[Feedback | None] = [None] * len(wanted)
        for name, index in names.items():
            feedback[index] = (
                Feedback(texts[name], values[index], provenance) if texts[name].strip() else None
            )
        return feedback

    return await ask(
        model,
        job,
        messages,
        schema=critic_schema(tuple(names)),
        parse=parse,
        repair=wording("critic.repair"),
        purpose="backward",
    )


async def _readable(
    job: Job, model: ChatModel, ctx: Context, feedback: Sequence[Feedback], reply: str
) -> list[str]:
    """Return the texts of the feedback, summed up if they are too many for one prompt."""
    texts = [entry.text for entry in feedback]
    if len(texts) < 2:
        return texts
    provenances = [entry.provenance for entry in feedback]
    reduction = await reduce_feedback(job, texts, provenances, model, role=ctx.output_roles[0], value=reply)
    return [point.text for point in reduction.points]


def _provenance(
    ctx: Context, feedback: Sequence[Feedback], inputs: Mapping[str, Any], reply: str
) -> tuple[Mapping[str, Any], ...]:
    """Return the provenance of the feedback, extended by the inputs of this op."""
    provenance = [entry for f in feedback for entry in f.provenance]
    if not provenance and inputs:  # feedback from a seed has no provenance yet
        provenance = [{"sample": ctx.lane, "prediction": reply}]
    return tuple({**entry, "inputs": dict(inputs)} for entry in provenance)


def _by_name(entries: Any, names: Sequence[str]) -> dict[str, str]:
    """Return the text for each name. If names are missing in the reply, the order of its entries decides."""
    if isinstance(entries, str) and len(names) == 1:
        return {names[0]: entries}
    if isinstance(entries, Mapping):
        entries = [{"variable": name, "text": text} for name, text in entries.items()]
    if not isinstance(entries, list) or not all(isinstance(entry, Mapping) for entry in entries):
        raise ValueError('"feedback" must be a list of objects')
    texts = {str(entry.get("variable")): entry["text"] for entry in entries}
    if not all(name in texts for name in names):
        if len(entries) != len(names):
            raise ValueError(f'"feedback" must have one entry for each of {", ".join(names)}')
        texts = {name: entry["text"] for name, entry in zip(names, entries, strict=True)}
    if not all(isinstance(texts[name], str) for name in names):
        raise ValueError('every "text" must be a string')
    return {name: texts[name] for name in names}


def _edited(feedback: Sequence[Feedback], reply: str) -> list[str]:
    """Return the texts that consumers saw instead of the reply, each once: edited or mapped values."""
    seen = [str(entry.seen) for entry in feedback if entry.seen is not None]
    return [text for text in dict.fromkeys(seen) if text != reply]
