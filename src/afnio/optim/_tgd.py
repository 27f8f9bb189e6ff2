"""TGD, textual gradient descent: a model rewrites each parameter after reading its feedback.

Source: Yuksekgonul et al., "TextGrad: Automatic 'Differentiation' via Text", arXiv:2406.07496.

For one parameter, a step does this:

1. `reduce` cuts the feedback down to `feedback_tokens`. Feedback that fits is shown unchanged, without a call.
2. `rewrite` fills the prompt (`afnio.optim.prompts`): the text, its constraints, the feedback, and earlier values with
   their feedback (momentum).
3. The model answers with a new text. If the checks object (a lost placeholder, too long, copied from a sample, a
   validator), the model gets their reasons and a second try. If that fails too, the parameter keeps its value.
4. `remember` adds the old value and its feedback to the momentum buffer.

`tgd` is one such step as a function. Its caller holds the gradients and buffers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, final

from afnio.autodiff._variable import Variable, gradient
from afnio.cognitive._prompts import complete_json, json_object, unescape, unfenced
from afnio.cognitive._reduction import BUDGET, QUORUM, Reduction, reduce_feedback
from afnio.cognitive._template import check_inputs, check_messages, fill, rendered
from afnio.errors import ReplyError
from afnio.models._client import ChatClient, ChatModel
from afnio.models._messages import check_completion_args
from afnio.optim._checks import WORDS, check, words_in
from afnio.optim._optimizer import Change, Evidence, Gathered, Optimizer, launch_step
from afnio.optim._prompts import TGD_SCHEMA, tgd_sections, wording
from afnio.runtime._kernel import Launch, current_job
from afnio.runtime._waiting import Pending

Messages = Sequence[Mapping[str, Any]]

SECTIONS: Final = ("role", "variable", "constraints", "history", "feedback")
"""Placeholders that `messages` may use, in addition to those of `inputs`."""
LEAST_FEEDBACK: Final = 200
"""Lowest `feedback_tokens`. A summary in fewer tokens would have no content."""
_LEAST: Final = {"feedback_tokens": LEAST_FEEDBACK, "per_failure": 1, "leak_words": 4}


class TGD(Optimizer):
    """Textual gradient descent.

    Args:
        params: parameters, or dicts with "params" and options for that group.
        model_client: the client that proposes.
        messages: your own prompt. Its texts may use `{role}`, `{variable}`, `{constraints}`, `{history}`,
            `{feedback}`, and the names of `inputs`.
        inputs: values for further placeholders of `messages`.
        constraints: rules in words that every value must obey.
        momentum: the number of updates that the proposer sees, this one included.
        feedback_tokens: tokens of feedback that one prompt shows. More is summed up first (`optim.reduce`), by the same
            model. None shows all.
        per_failure: feedback texts taken from each kind of similar failure. None takes all.
        leak_words: length in words from which a passage counts as copied from the instructions or from training
            samples (`optim.leaks`). None doesn't look for copies.
        **completion_args: `model`, and any other argument of the provider.

    Raises:
        TypeError, ValueError: for options that can't work.

    >>> import afnio
    >>> from afnio.testing import ScriptedClient
    >>> prompt = afnio.Parameter("Answer the question.", role="system prompt")
    >>> prompt.append_grad(afnio.Variable("The reply was too long."))
    >>> optimizer = TGD([prompt], ScriptedClient({"value": "Answer in one sentence."}), model="m")
    >>> _ = optimizer.step()
    >>> prompt.data
    'Answer in one sentence.'
    """

    def __init__(
        self,
        params: Iterable[Variable] | Iterable[dict[str, Any]],
        model_client: ChatClient,
        messages: Messages | None = None,
        inputs: Mapping[str, Any] | None = None,
        constraints: Sequence[str | Variable] | None = None,
        momentum: int = 0,
        *,
        feedback_tokens: int | None = BUDGET,
        per_failure: int | None = None,
        leak_words: int | None = WORDS,
        **completion_args: Any,
    ) -> None:
        defaults = {
            "model_client": model_client,
            "messages": messages,
            "inputs": inputs,
            "constraints": _listed(constraints),
            "momentum": momentum,
            "feedback_tokens": feedback_tokens,
            "per_failure": per_failure,
            "leak_words": leak_words,
            "completion_args": completion_args,
        }
        super().__init__(params, defaults)

    def add_param_group(self, group: dict[str, Any]) -> None:
        if isinstance(group, dict) and "constraints" in group:
            group = {**group, "constraints": _listed(group["constraints"])}
        _check_options({**self.defaults, **group} if isinstance(group, dict) else self.defaults)
        super().add_param_group(group)

    async def reduce(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
    ) -> Reduced:
        return await reduce(
            gradients,
            ChatModel(options["model_client"], options["completion_args"]),
            role=parameter.role,
            value=str(value),
            max_tokens=options["feedback_tokens"],
            per_failure=options["per_failure"],
        )

    async def propose(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
    ) -> Change:
        return await rewrite(parameter, value, gradients, self._history(parameter, options), options)

    def _history(self, parameter: Variable, options: Mapping[str, Any]) -> list[Any]:
        buffer, momentum = self.state[parameter].setdefault("momentum_buffer", []), options["momentum"]
        # The current update counts as one of the `momentum` ones.
        return list(buffer)[-(momentum - 1) :] if momentum > 1 else []

    def remember(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
    ) -> None:
        buffer, momentum = self.state[parameter].setdefault("momentum_buffer", []), options["momentum"]
        if momentum > 0:
            buffer.append((Variable(value, parameter.role), [_lighter(gradient) for gradient in gradients]))
            del buffer[:-momentum]


def _listed(constraints: Any) -> list[str | Variable]:
    """Return constraints as a list. A single text is refused, because its letters would become the constraints."""
    if isinstance(constraints, str | Variable):
        raise TypeError(
            f"constraints must be a list of texts or Variables (got {constraints!r}); write [...]"
        )
    return list(constraints or ())


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise for options that can't work, on the line that gives them."""
    if not isinstance(options["model_client"], ChatClient):
        raise TypeError(f"model_client must be a model client (got {options['model_client']!r})")
    momentum = options["momentum"]
    if isinstance(momentum, bool) or not isinstance(momentum, int) or momentum < 0:
        raise ValueError(f"momentum must be a number of updates, 0 or more (got {momentum!r})")
    for name, least in _LEAST.items():
        number = options[name]
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise ValueError(f"{name} must be a number from {least}, or None (got {number!r})")
    for constraint in options["constraints"]:
        if not isinstance(constraint, str | Variable):
            raise TypeError(f"a constraint must be a text or a Variable (got {constraint!r})")
    check_completion_args(**options["completion_args"])
    if options["messages"] is not None:
        check_messages(options["messages"])
        inputs = list(options["inputs"] or ())
        used = "".join(str(part.data) for message in options["messages"] for part in message["content"])
        check_inputs(options["messages"], [*inputs, *(name for name in SECTIONS if f"{{{name}}}" in used)])


# Reducing feedback, for any optimizer.


async def reduce(
    gradients: Sequence[Variable],
    model: ChatModel,
    *,
    role: str = "",
    value: str = "",
    max_tokens: int | None = BUDGET,
    per_failure: int | None = None,
    quorum: float = QUORUM,
) -> Reduced:
    """Sum up gradients that have more than `max_tokens` tokens. Return them unchanged if they fit.

    Similar failures are grouped, and a concurrent tree of calls sums the groups up. Each gradient that it returns makes
    one point, with the provenance of all the gradients behind it. Use it in an optimizer's `propose` or `reduce`: its
    calls get the step's address and priority, and the purpose "reduce".

    Args:
        gradients: gradients of one parameter, each one text.
        model: the model that sums up.
        role, value: those of the parameter, for the prompt.
        max_tokens: tokens of feedback to return at most. None never sums up.
        per_failure: gradients taken from each group of similar failures. None takes all.
        quorum: the fraction of the gradients that must have been read if calls fail.

    Returns:
        A list of gradients. `gathered` is the number before, and `reduction` says which of them is behind each.

    Raises:
        BatchError: if calls failed and fewer gradients than the quorum are left.

    >>> import afnio
    >>> from afnio.testing import ScriptedClient
    >>> class Joined(afnio.optim.Optimizer):
    ...     async def propose(self, parameter, value, gradients, options):
    ...         model = afnio.models.ChatModel(options["client"], {"model": "any"})
    ...         points = await afnio.optim.reduce(gradients, model, value=value, max_tokens=300)
    ...         after = " ".join([value, *(point.data for point in points)])
    ...         return afnio.optim.Change(parameter.role, value, after, len(gradients))
    >>> prompt = afnio.Parameter("Answer.")
    >>> for number in range(60):
    ...     prompt.append_grad(afnio.Variable(f"Reply {number} was too long."))
    >>> client = ScriptedClient({"points": [{"point": "Be brief.", "sources": [1, 2, 3]}]})
    >>> _ = Joined([prompt], {"client": client}).step()
    >>> prompt.data
    'Answer. Be brief.'
    """
    texts = [str(entry.data) for entry in gradients]
    reduction = await reduce_feedback(
        current_job(),
        texts,
        [entry.provenance for entry in gradients],
        model,
        role=role,
        value=value,
        max_tokens=max_tokens,
        per_failure=per_failure,
        quorum=quorum,
    )
    points: list[Variable] = []
    for point in reduction.points:
        first = point.sources[0]
        if len(point.sources) == 1 and point.text == texts[first]:
            points.append(gradients[first])  # unchanged, so keep the object
        else:
            trail = [entry for source in point.sources for entry in gradients[source].provenance]
            points.append(gradient(point.text, role, trail))
    return Reduced(points, len(gradients), reduction)


@final
class Reduced(list[Variable]):
    """Gradients after `reduce`: a list of them, each with the provenance of the gradients behind it.

    Attributes:
        gathered: the number of gradients before.
        reduction: how they were reduced. Its points name the gradients behind each, by number.
    """

    def __init__(self, gradients: Iterable[Variable], gathered: int, reduction: Reduction) -> None:
        super().__init__(gradients)
        self.gathered = gathered
        self.reduction = reduction


def gathered_of(gradients: Sequence[Variable]) -> int:
    """Return how many gradients there were before they were reduced."""
    return gradients.gathered if isinstance(gradients, Reduced) else len(gradients)


# Rewriting one text: the prompt, the reply, and a second try if the checks object.


async def rewrite(
    parameter: Variable,
    value: Any,
    gradients: Sequence[Variable],
    history: Sequence[tuple[Any, Sequence[Any]]],
    options: Mapping[str, Any],
) -> Change:
    """Ask the model for a better value. If the checks object twice, the change keeps the value and has the reasons.

    Args:
        gradients: the feedback to show, reduced.
        history: earlier values, oldest first, each with its feedback.
        options: those of `TGD`.
    """
    role = parameter.role
    if not isinstance(value, str):
        raise TypeError(f"a value that TGD rewrites must be a text (got {value!r} for {role!r})")
    model = ChatModel(options["model_client"], options["completion_args"])
    constraints = _constraints(parameter, options)
    messages = _messages(role, value, gradients, history, options, constraints, model)
    count = gathered_of(gradients)
    evidence = tuple(Evidence(str(entry.data), entry.provenance) for entry in gradients)

    async def ask(messages: list[dict[str, Any]]) -> tuple[str, str, list[str]]:
        reply = str(await complete_json(model, current_job(), messages, TGD_SCHEMA, "step"))
        proposed = value_in(reply)
        # The prompt escapes tags in the value, and models repeat them escaped. Undo that, unless the value itself
        # has escaped tags.
        if "&lt;" not in value:
            proposed = unescape(proposed)
        reasons = await check(
            parameter,
            value,
            proposed,
            count_tokens=model.count_tokens,
            gradients=gradients,
            instructions=_instructions(options),
            allowed=constraints,
            leak_words=options["leak_words"],
        )
        return proposed, reply, reasons

    proposed, reply, reasons = await ask(messages)
    if reasons:
        objection = wording("tgd.objection").replace("{reasons}", "; ".join(reasons))
        again = [{"role": "assistant", "content": reply}, {"role": "user", "content": objection}]
        proposed, _, reasons = await ask([*messages, *again])
    if reasons:
        logging.getLogger("afnio").warning(
            "the proposal for %r was not taken, as %s; the parameter keeps its value",
            role,
            "; ".join(reasons),
        )
        return Change(role, value, value, count, "; ".join(reasons), evidence)
    return Change(role, value, proposed, count, None, evidence)


def _constraints(parameter: Variable, options: Mapping[str, Any]) -> list[str]:
    constraints = [_text_of(constraint) for constraint in options["constraints"]]
    most = getattr(parameter, "max_tokens", None)
    if most is not None:
        constraints.append(f"At most {most} tokens, about {words_in(most)} words.")
    return constraints


def _instructions(options: Mapping[str, Any]) -> list[str]:
    """Return the instructions in the prompt, without the data that is filled in."""
    if options["messages"] is None:
        return [wording("tgd.system"), wording("tgd.objection")]
    texts = [_text_of(part) for message in options["messages"] for part in message["content"]]
    return [*texts, wording("tgd.objection")]


def _messages(
    role: str,
    value: str,
    gradients: Sequence[Variable],
    history: Sequence[tuple[Any, Sequence[Any]]],
    options: Mapping[str, Any],
    constraints: list[str],
    model: ChatModel,
) -> list[dict[str, Any]]:
    limit = options["feedback_tokens"]
    share = None if limit is None else limit // max(len(history), 1)
    sections = tgd_sections(
        role=role,
        value=value,
        constraints=constraints,
        history=[
            (_text_of(past), _fitting([_text_of(g) for g in feedback], share, model))
            for past, feedback in history
        ],
        feedback=[_text_of(gradient) for gradient in gradients],
        **_summary(gradients),
    )
    if options["messages"] is None:
        user = "\n".join(part for line in wording("tgd.user").splitlines() if (part := fill(line, sections)))
        return [{"role": "system", "content": wording("tgd.system")}, {"role": "user", "content": user}]
    inputs = {name: _text_of(entry) for name, entry in (options["inputs"] or {}).items()}
    plain = [
        {"role": message["role"], "content": [_text_of(part) for part in message["content"]]}
        for message in options["messages"]
    ]
    return rendered(plain, {**sections, **inputs})


def _summary(gradients: Sequence[Variable]) -> dict[str, Any]:
    """Return the counts that a prompt shows with summed up feedback. Empty if all feedback is shown."""
    if not isinstance(gradients, Reduced):
        return {}
    reduction = gradients.reduction
    if not reduction.calls and len(gradients) == gradients.gathered:
        return {}
    return {
        "samples": [len(point.sources) for point in reduction.points],
        "failures": [(failure.name, len(failure.members)) for failure in reduction.mistakes],
        "left_out": len(reduction.failed) + len(reduction.capped),
    }


def _fitting(texts: list[str], limit: int | None, model: ChatModel) -> list[str]:
    """Return the first texts that fit `limit` tokens, at least one.

    Summed up feedback is ordered by the number of samples behind it, so the first texts are the weightiest.
    """
    if limit is None:
        return texts
    left, kept = limit, 0
    for text in texts:
        left -= model.count_tokens(text)
        if left < 0 and kept:
            break
        kept += 1
    return texts[:kept]


_OBJECT: Final = re.compile(r'(?:```\w*\s*)?\{\s*(?:"|\}|$)')
"""The start of a JSON object. A prompt that starts with a placeholder doesn't match."""


def value_in(reply: str) -> str:
    """Return the value that a reply proposes. A reply that isn't JSON is the value itself.

    >>> value_in('Here it is: {"value": "Be brief."}'), value_in("{question} Be brief.")
    ('Be brief.', '{question} Be brief.')

    Raises:
        ReplyError: for a JSON object that is cut off, or has no text as its "value".
    """
    text = unfenced(reply)
    try:
        answer = json_object(text)
    except ValueError:
        answer = {}
    value = answer.get("value")
    if not _OBJECT.match(text):
        return value if isinstance(value, str) and len(answer) == 1 else text
    if not isinstance(value, str):
        raise ReplyError(
            f'the optimizer\'s reply is cut off or has no text as its "value" (it starts {reply[:80]!r}); '
            "raise max_completion_tokens"
        )
    return value


def _text_of(value: Any) -> str:
    return str(value.data) if isinstance(value, Variable) else str(value)


def _lighter(entry: Variable) -> Variable:
    """Return a gradient without its samples' inputs. No later step reads them, and every checkpoint would hold them."""
    trail = entry.provenance
    if not any(isinstance(sample, dict) and "inputs" in sample for sample in trail):
        return entry
    role = entry.role.removeprefix("feedback to ")
    lighter = [{name: value for name, value in sample.items() if name != "inputs"} for sample in trail]
    return gradient(entry.data, role, lighter)


# One step as a function.


def tgd(
    params: Sequence[Variable],
    grads: Sequence[Sequence[Variable]],
    momentum_buffer_list: Sequence[list[Any]],
    model_client: ChatClient,
    messages: Messages | None = None,
    inputs: Mapping[str, Any] | None = None,
    constraints: Sequence[str | Variable] | None = None,
    momentum: int = 0,
    *,
    feedback_tokens: int | None = BUDGET,
    per_failure: int | None = None,
    leak_words: int | None = WORDS,
    **completion_args: Any,
) -> Pending[list[Change]]:
    """Rewrite `params` in place, each by its list in `grads`, and update their momentum buffers in place.

    See `afnio.optim.TGD` for the other arguments. Launches, and waits where a blocking wait is allowed.

    Raises:
        ValueError: if `params`, `grads` and `momentum_buffer_list` differ in length.

    >>> import afnio
    >>> from afnio.testing import ScriptedClient
    >>> prompt = afnio.Parameter("Answer.", role="prompt")
    >>> client = ScriptedClient({"value": "Answer briefly."})
    >>> (change,) = tgd([prompt], [[afnio.Variable("Too long.")]], [[]], client, model="m").wait()
    >>> change.before, prompt.data
    ('Answer.', 'Answer briefly.')
    """
    if not len(params) == len(grads) == len(momentum_buffer_list):
        raise ValueError(
            f"params, grads and momentum_buffer_list must have equal lengths (got {len(params)}, {len(grads)}, "
            f"{len(momentum_buffer_list)})"
        )
    # Given as a group, because a plain list of parameters must not be empty, and here there may be nothing to do.
    optimizer = TGD(
        [{"params": list(params)}],
        model_client,
        messages,
        inputs,
        constraints,
        momentum,
        feedback_tokens=feedback_tokens,
        per_failure=per_failure,
        leak_words=leak_words,
        **completion_args,
    )
    for parameter, buffer in zip(params, momentum_buffer_list, strict=True):
        optimizer.state[parameter]["momentum_buffer"] = buffer
    by_position = {
        at: Gathered((), partial(list, gradients)) for at, gradients in enumerate(grads) if gradients
    }
    end = launch_step(Launch("tgd"), "tgd", params, optimizer._lanes(by_position))
    return Pending(end, list).wait_if_allowed()
