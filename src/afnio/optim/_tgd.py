"""TGD: textual gradient descent, a rewrite of each parameter by a model that reads its feedback.

Source: Yuksekgonul et al., "TextGrad: Automatic 'Differentiation' via Text", arXiv:2406.07496.
"""

from __future__ import annotations

import heapq
import logging
import math
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, final

from afnio.autodiff._variable import Variable, gradient
from afnio.autodiff._variable import gradient as gradient_of
from afnio.cognitive._prompts import unescape
from afnio.cognitive._reduction import (
    BUDGET,
    QUORUM,
    Reduction,
    complete_json,
    json_object,
    reduce_feedback,
    unfenced,
)
from afnio.cognitive._template import check_inputs, check_messages, fill, rendered
from afnio.errors import ReplyError
from afnio.models._client import ChatClient, ChatModel
from afnio.models._messages import check_completion_args
from afnio.optim._checks import WORDS, check, words_in
from afnio.optim._optimizer import Acceptance, Change, Evidence, Gathered, Optimizer, launch_step
from afnio.optim._prompts import TGD_SCHEMA, tgd_sections, wording
from afnio.runtime._kernel import Launch, current_job
from afnio.runtime._settings import draw_seed
from afnio.runtime._tracebacks import folding
from afnio.runtime._waiting import Pending

LEAST_FEEDBACK: Final = 200
"""Tokens of feedback that a prompt must be allowed to show: below, no summary would say anything."""

Messages = Sequence[Mapping[str, Any]]


class TGD(Optimizer):
    """Textual gradient descent.

    Args:
        params: Parameters, or dicts of them with options of their own.
        model_client: who rewrites.
        messages: a prompt of your own; its texts may use `{role}`, `{variable}`, `{constraints}`,
            `{history}`, `{rejected}`, `{feedback}`, and the names of `inputs`.
        inputs: values for further placeholders of `messages`.
        constraints: what every value must obey, in words.
        momentum: how many of the last updates the proposer is shown, this one counted.
        momentum_samples: of the updates before this one draw so many instead of showing all (sampled momentum,
            see `afnio.optim._tgd`); newer ones and those with less feedback are likelier.
        momentum_decay: how much less an update weighs in that than the one after it.
        momentum_seed: of those draws; from the run by default.
        feedback_tokens: how much feedback one prompt shows. More is summed up first (`optim.reduce`), by this model;
            None shows all, however long.
        per_failure: of similar failures take so much feedback at most, and say of how many; None takes all.
        leak_words: words in a row that a value may not repeat of the instructions or of training examples, see
            `afnio.optim._checks`; None looks for none.
        accept: what decides whether a proposal becomes the value, such as `optim.Improves(...)`; all do by default.
        **completion_args: `model`, and whatever else the provider takes.
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
        momentum_samples: int | None = None,
        momentum_decay: float = 0.8,
        momentum_seed: int | None = None,
        feedback_tokens: int | None = BUDGET,
        per_failure: int | None = None,
        leak_words: int | None = WORDS,
        accept: Acceptance | None = None,
        **completion_args: Any,
    ) -> None:
        defaults = {
            "model_client": model_client,
            "messages": messages,
            "inputs": inputs,
            "constraints": listed(constraints),
            "momentum": momentum,
            "momentum_samples": momentum_samples,
            "momentum_decay": momentum_decay,
            "momentum_seed": momentum_seed,
            "feedback_tokens": feedback_tokens,
            "per_failure": per_failure,
            "leak_words": leak_words,
            "completion_args": completion_args,
        }
        super().__init__(params, defaults, accept)

    def add_param_group(self, group: dict[str, Any]) -> None:
        if isinstance(group, dict) and "constraints" in group:
            group = {**group, "constraints": listed(group["constraints"])}
        check_options({**self.defaults, **group} if isinstance(group, dict) else self.defaults)
        super().add_param_group(group)

    @folding
    def step(self, closure: Callable[[], Any] | None = None) -> Pending[Any]:
        for group in self.param_groups:
            if group["momentum_samples"] is not None and group["momentum_seed"] is None:
                # Here, in program order, so that a repeated run draws the same.
                group["momentum_seed"] = draw_seed()
        return super().step(closure)

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
        rejected = self.state[parameter].get("rejected", ())
        return await rewrite(
            parameter, value, gradients, self._history(parameter, options), options, rejected
        )

    def _history(self, parameter: Variable, options: Mapping[str, Any]) -> list[Any]:
        state = self.state[parameter]
        past = window(state.setdefault("momentum_buffer", []), options["momentum"])
        count = options["momentum_samples"]
        if count is None or len(past) <= count:
            return past
        sizes = state["momentum_sizes"][-len(past) :]
        draw = random.Random(f"{options['momentum_seed']}/{state['momentum_steps']}")
        return sampled(past, sizes, count, options["momentum_decay"], draw)

    def remember(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], options: Mapping[str, Any]
    ) -> None:
        state = self.state[parameter]
        buffer = state.setdefault("momentum_buffer", [])
        remember(buffer, Variable(value, parameter.role), gradients, options["momentum"])
        if options["momentum_samples"] is not None:
            # As long as the buffer, also where a options began to sample later.
            sizes = [len(said) for _, said in buffer[:-1]]
            known = state.get("momentum_sizes", [])[-len(sizes) :] if sizes else []
            sizes[len(sizes) - len(known) :] = known
            state["momentum_sizes"] = [*sizes, gathered_of(gradients)][-len(buffer) :]
            state["momentum_steps"] = state.get("momentum_steps", 0) + 1


def listed(constraints: Any) -> list[str | Variable]:
    """Return constraints as a list, refusing one text, whose letters would become the constraints."""
    if isinstance(constraints, str | Variable):
        raise TypeError(f"constraints is a list of texts or Variables (got {constraints!r}); write [...]")
    return list(constraints or ())


_LEAST: Final = {"momentum_samples": 1, "feedback_tokens": LEAST_FEEDBACK, "per_failure": 1, "leak_words": 4}


def check_options(options: Mapping[str, Any]) -> None:
    """Raise for options that can't work, at the line that gives them."""
    if not isinstance(options["model_client"], ChatClient):
        raise TypeError(f"model_client must be a model client (got {options['model_client']!r})")
    momentum = options["momentum"]
    if isinstance(momentum, bool) or not isinstance(momentum, int) or momentum < 0:
        raise ValueError(f"momentum must be a number of updates, 0 or more (got {momentum!r})")
    for name, least in _LEAST.items():
        number = options[name]
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise ValueError(f"{name} must be a number from {least}, or None (got {number!r})")
    decay = options["momentum_decay"]
    if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay <= 1:
        raise ValueError(f"momentum_decay must be from 0 to 1 (got {decay!r})")
    for constraint in options["constraints"]:
        if not isinstance(constraint, str | Variable):
            raise TypeError(f"a constraint is a text or a Variable (got {constraint!r})")
    check_completion_args(**options["completion_args"])
    if options["messages"] is not None:
        check_messages(options["messages"])
        inputs = list(options["inputs"] or ())
        used = "".join(str(part.data) for message in options["messages"] for part in message["content"])
        check_inputs(options["messages"], [*inputs, *(name for name in SECTIONS if f"{{{name}}}" in used)])


# Momentum: which earlier values, with their feedback, a proposer is reminded of.
#
# Sampled momentum is after Ding et al., "Scaling Textual Gradients via Sampling-Based Momentum" (TSGD-M,
# arXiv:2506.00400): instead of all of the last values a few are drawn, without replacement, by the Gumbel-top-k
# trick. There the weights are decayed minibatch accuracies. Here a value weighs decay^age / (1 + n) for the n
# gradients that it received: samples that succeeded send none, so with batches of one size n counts its
# failures, and no call is made to find out.


Buffer = list[Any]
"""Of the last updates `(value before, [gradients])`, oldest first."""


def remember(buffer: Buffer, before: Variable, gradients: Sequence[Variable], momentum: int) -> None:
    """Add one update to the window of the last `momentum` ones, in place."""
    if momentum > 0:
        buffer.append((before, [_lighter(gradient) for gradient in gradients]))
        del buffer[:-momentum]


def window(buffer: Sequence[Any], momentum: int) -> list[Any]:
    """Return the updates before this one, of a window in which this one counts."""
    return list(buffer)[-(momentum - 1) :] if momentum > 1 else []


def sampled(
    past: Sequence[Any], sizes: Sequence[int], count: int, decay: float, draw: random.Random
) -> list[Any]:
    """Return `count` of the past updates, oldest first.

    Args:
        sizes: how many gradients each received.
        decay: how much less an update weighs than the one after it, from 0 to 1.

    >>> sampled(["old", "bad", "new"], [1, 900, 1], 2, 0.9, random.Random(0))
    ['old', 'new']
    """
    keys = []
    for place, size in enumerate(sizes):
        age = len(past) - 1 - place
        weight = age * math.log(decay) if decay else (0.0 if age == 0 else -math.inf)
        gumbel = -math.log(-math.log(draw.random() or 5e-324))
        keys.append((weight - math.log1p(size) + gumbel, place))
    return [past[place] for _, place in sorted(heapq.nlargest(count, keys), key=lambda key: key[1])]


def _lighter(gradient: Variable) -> Variable:
    """Return a gradient without its samples' inputs, which no later step needs and every checkpoint would hold."""
    trail = gradient.provenance
    if not any(isinstance(entry, dict) and "inputs" in entry for entry in trail):
        return gradient
    role = gradient.role.removeprefix("feedback to ")
    return gradient_of(
        gradient.data, role, [{k: v for k, v in entry.items() if k != "inputs"} for entry in trail]
    )


# Rewrite: one proposal for one text, made from its feedback, checked, and repaired once.


SECTIONS: Final = ("role", "variable", "constraints", "history", "rejected", "feedback")
"""Placeholders that `messages` may use beside those of `inputs`."""

History = Sequence[tuple[Any, Sequence[Any]]]
"""Earlier values, oldest first, each with the feedback that it received."""

_OBJECT: Final = re.compile(r'(?:```\w*\s*)?\{\s*(?:"|\}|$)')
"""How a JSON object starts, and a prompt with a placeholder doesn't."""


async def rewrite(
    parameter: Variable,
    value: Any,
    gradients: Sequence[Variable],
    history: History,
    options: Mapping[str, Any],
    rejected: Sequence[Mapping[str, Any]] = (),
) -> Change:
    """Ask for a better value; a proposal that the checks refuse is repaired once, else the value stays.

    Args:
        gradients: as they are to be shown; what `reduce` returned.
        options: those of `TGD`.
        rejected: proposals that did not help before: "value", "score", "against".
    """
    role = parameter.role
    if not isinstance(value, str):
        raise TypeError(f"TGD rewrites texts (the value of {role!r} is {value!r})")
    model = ChatModel(options["model_client"], options["completion_args"])
    constraints = _constraints(parameter, options)
    messages = _messages(role, value, gradients, history, options, rejected, constraints, model)
    count = gathered_of(gradients)
    evidence = evidence_of(gradients)

    async def asked(messages: list[dict[str, Any]]) -> tuple[str, str, list[str]]:
        reply = str(await complete_json(model, current_job(), messages, TGD_SCHEMA, "step"))
        proposed = value_in(reply)
        if (
            "&lt;" not in value
        ):  # tags in the value were escaped for the prompt, and the model repeats them so
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

    proposed, reply, reasons = await asked(messages)
    if reasons:
        objection = wording("tgd.objection").replace("{reasons}", "; ".join(reasons))
        again = [{"role": "assistant", "content": reply}, {"role": "user", "content": objection}]
        proposed, _, reasons = await asked([*messages, *again])
    if reasons:
        logging.getLogger("afnio").warning(
            "the proposal for %r was not taken, as %s; the parameter keeps its value",
            role,
            "; ".join(reasons),
        )
        return Change(role, value, value, count, "; ".join(reasons), evidence)
    return Change(role, value, proposed, count, None, evidence)


def _constraints(parameter: Variable, options: Mapping[str, Any]) -> list[str]:
    constraints = [text_of(constraint) for constraint in options["constraints"]]
    most = getattr(parameter, "max_tokens", None)
    if most is not None:
        constraints.append(f"At most {most} tokens, about {words_in(most)} words.")
    return constraints


def _instructions(options: Mapping[str, Any]) -> list[str]:
    """Return what the proposer is told, without the data that is filled in."""
    if options["messages"] is None:
        return [wording("tgd.system"), wording("tgd.objection")]
    texts = [text_of(part) for message in options["messages"] for part in message["content"]]
    return [*texts, wording("tgd.objection")]


def _messages(
    role: str,
    value: str,
    gradients: Sequence[Variable],
    history: History,
    options: Mapping[str, Any],
    rejected: Sequence[Mapping[str, Any]],
    constraints: list[str],
    model: ChatModel,
) -> list[dict[str, Any]]:
    budget = options["feedback_tokens"]
    share = None if budget is None else budget // max(len(history), 1)
    sections = tgd_sections(
        role=role,
        value=value,
        constraints=constraints,
        history=[
            (text_of(past), _fitting([text_of(g) for g in said], share, model)) for past, said in history
        ],
        rejected=[(str(past["value"]), past["score"], past["against"]) for past in rejected],
        feedback=[text_of(gradient) for gradient in gradients],
        **_summary(gradients),
    )
    if options["messages"] is None:
        user = "\n".join(part for line in wording("tgd.user").splitlines() if (part := fill(line, sections)))
        return [{"role": "system", "content": wording("tgd.system")}, {"role": "user", "content": user}]
    inputs = {name: text_of(entry) for name, entry in (options["inputs"] or {}).items()}
    plain = [
        {"role": message["role"], "content": [text_of(part) for part in message["content"]]}
        for message in options["messages"]
    ]
    return rendered(plain, {**sections, **inputs})


def _summary(gradients: Sequence[Variable]) -> dict[str, Any]:
    """Return what a prompt says of feedback that was summed up; nothing where all of it is shown."""
    if not isinstance(gradients, Reduced):
        return {}
    reduction = gradients.reduction
    if not reduction.calls and len(gradients) == gradients.gathered:
        return {}
    return {
        "samples": [len(point.sources) for point in reduction.points],
        "failures": [(failure.name, len(failure.members)) for failure in reduction.failures],
        "left_out": len(reduction.failed) + len(reduction.capped),
    }


def _fitting(texts: list[str], budget: int | None, model: ChatModel) -> list[str]:
    """Return the first texts that fit, at least one: of summed up feedback what most samples stand behind."""
    if budget is None:
        return texts
    left, kept = budget, 0
    for text in texts:
        left -= model.count_tokens(text)
        if left < 0 and kept:
            break
        kept += 1
    return texts[:kept]


def value_in(reply: str) -> str:
    """Return the value that an optimizer's reply proposes; a reply in plain words is the value itself.

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


def text_of(value: Any) -> str:
    """Return the text of a Variable, or of anything else."""
    return str(value.data) if isinstance(value, Variable) else str(value)


# Reduce: gathered gradients, cut down to what a proposer can read.


@final
class Reduced(list[Variable]):
    """Gradients as a proposer is shown them; a list of them, each with the provenance of all that is behind it.

    Attributes:
        gathered: how many gradients there were before.
        reduction: what was done to them: its points name, by number, the gradients that stand behind each.
    """

    def __init__(self, gradients: Iterable[Variable], gathered: int, reduction: Reduction) -> None:
        super().__init__(gradients)
        self.gathered = gathered
        self.reduction = reduction

    def part(self, numbers: Sequence[int]) -> Reduced:
        """Return the gradients of those numbers, as if only what is behind them had been gathered."""
        points = tuple(self.reduction.points[number] for number in numbers)
        behind = {source for point in points for source in point.sources}
        reduction = replace(self.reduction, points=points)
        return Reduced([self[number] for number in numbers], len(behind), reduction)


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
    """Return the gradients so that they fit `max_tokens` tokens; without a call if they do already.

    For the `reduce` of any optimizer. Similar failures are put together and summed up in a concurrent tree; each
    gradient that it returns says one thing, and its provenance is that of all the gradients behind it. See
    `afnio.cognitive._reduction` for how.

    Args:
        gradients: of one parameter, each one text.
        model: who sums up.
        role, value: of the parameter.
        max_tokens: tokens of feedback that one prompt may show; None never reduces.
        per_failure: of a cluster of similar failures take so many at most; None takes all.
        quorum: the fraction of the gradients that must have been read where calls fail.

    Raises:
        BatchError: if calls failed and less than the quorum is left.

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
        budget=max_tokens,
        per_failure=per_failure,
        quorum=quorum,
    )
    points: list[Variable] = []
    for point in reduction.points:
        first = point.sources[0]
        if len(point.sources) == 1 and point.text == texts[first]:
            points.append(gradients[first])  # nothing was put together
        else:
            trail = [entry for source in point.sources for entry in gradients[source].provenance]
            points.append(gradient(point.text, role, trail))
    return Reduced(points, len(gradients), reduction)


def gathered_of(gradients: Sequence[Variable]) -> int:
    """Return how many gradients there were before they were reduced."""
    return gradients.gathered if isinstance(gradients, Reduced) else len(gradients)


def evidence_of(gradients: Sequence[Variable]) -> tuple[Evidence, ...]:
    """Return what a proposer was shown, with the samples behind it, for `Change.evidence`."""
    return tuple(Evidence(str(entry.data), entry.provenance) for entry in gradients)


# Optimizers as functions.


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
    """Rewrite `params` in place by `grads`, one list for each, and refill their momentum buffers in place.

    See `afnio.optim.TGD` for the arguments. It launches, and waits where a blocking wait is allowed.
    """
    if not len(params) == len(grads) == len(momentum_buffer_list):
        raise ValueError(
            f"params, grads and momentum_buffer_list need equal lengths (got {len(params)}, {len(grads)}, "
            f"{len(momentum_buffer_list)})"
        )
    # In a group, because a plain list of parameters must not be empty, and here there may be nothing to do.
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
    given = {at: Gathered((), partial(list, gradients)) for at, gradients in enumerate(grads) if gradients}
    slot = launch_step(Launch("tgd"), "tgd", params, optimizer.lanes(given))
    return Pending(slot, list).wait_if_allowed()
