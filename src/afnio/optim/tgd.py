"""TGD: textual gradient descent, a rewrite of each parameter by a model that reads its feedback.

Source: Yuksekgonul et al., "TextGrad: Automatic 'Differentiation' via Text", arXiv:2406.07496.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from afnio.autodiff import Variable
from afnio.cognitive.structured import complete_json, json_object, unfenced
from afnio.cognitive.template import check_inputs, check_messages, fill, rendered
from afnio.errors import ReplyError
from afnio.models import ChatClient, ChatModel
from afnio.models.request import check_completion_args
from afnio.optim.change import Change, Evidence
from afnio.optim.check import objections
from afnio.optim.optimizer import Optimizer
from afnio.optim.prompts import TGD_OBJECTION, TGD_SCHEMA, TGD_SYSTEM, TGD_USER, tgd_sections
from afnio.optim.step import Acceptance
from afnio.runtime import Job

SECTIONS: Final = ("role", "variable", "constraints", "history", "rejected", "feedback")
"""Placeholders that `messages` may use beside those of `inputs`."""

Messages = Sequence[Mapping[str, Any]]

_OBJECT: Final = re.compile(r'(?:```\w*\s*)?\{\s*(?:"|\}|$)')
"""How a JSON object starts, and a prompt with a placeholder doesn't."""


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
        accept: Acceptance | None = None,
        **completion_args: Any,
    ) -> None:
        defaults = {
            "model_client": model_client,
            "messages": messages,
            "inputs": inputs,
            "constraints": listed(constraints),
            "momentum": momentum,
            "completion_args": completion_args,
        }
        super().__init__(params, defaults, accept)

    def add_param_group(self, group: dict[str, Any]) -> None:
        if isinstance(group, dict) and "constraints" in group:
            group = {**group, "constraints": listed(group["constraints"])}
        check_options({**self.defaults, **group} if isinstance(group, dict) else self.defaults)
        super().add_param_group(group)

    async def propose(
        self,
        job: Job,
        parameter: Variable,
        value: Any,
        gradients: Sequence[Variable],
        group: Mapping[str, Any],
    ) -> Change:
        state = self.state[parameter]
        buffer = state.setdefault("momentum_buffer", [])
        return await rewrite(job, parameter.role, value, gradients, buffer, group, state.get("rejected", ()))

    def remember(
        self, parameter: Variable, value: Any, gradients: Sequence[Variable], group: Mapping[str, Any]
    ) -> None:
        buffer = self.state[parameter].setdefault("momentum_buffer", [])
        remember(buffer, Variable(value, parameter.role), gradients, group["momentum"])


def listed(constraints: Any) -> list[str | Variable]:
    """Return constraints as a list, refusing one text, whose letters would become the constraints."""
    if isinstance(constraints, str | Variable):
        raise TypeError(f"constraints is a list of texts or Variables (got {constraints!r}); write [...]")
    return list(constraints or ())


def check_options(options: Mapping[str, Any]) -> None:
    """Raise for options that can't work, at the line that gives them."""
    if not isinstance(options["model_client"], ChatClient):
        raise TypeError(f"model_client must be a model client (got {options['model_client']!r})")
    momentum = options["momentum"]
    if isinstance(momentum, bool) or not isinstance(momentum, int) or momentum < 0:
        raise ValueError(f"momentum must be a number of updates, 0 or more (got {momentum!r})")
    for constraint in options["constraints"]:
        if not isinstance(constraint, str | Variable):
            raise TypeError(f"a constraint is a text or a Variable (got {constraint!r})")
    check_completion_args(**options["completion_args"])
    if options["messages"] is not None:
        check_messages(options["messages"])
        inputs = list(options["inputs"] or ())
        used = "".join(str(part.data) for message in options["messages"] for part in message["content"])
        check_inputs(options["messages"], [*inputs, *(name for name in SECTIONS if f"{{{name}}}" in used)])


async def rewrite(
    job: Job,
    role: str,
    value: Any,
    gradients: Sequence[Variable],
    buffer: Sequence[Any],
    options: Mapping[str, Any],
    rejected: Sequence[Mapping[str, Any]] = (),
) -> Change:
    """Ask for a better value; a proposal that the checks refuse is repaired once, else the value stays."""
    if not isinstance(value, str):
        raise TypeError(f"TGD rewrites texts (the value of {role!r} is {value!r})")
    messages = _messages(role, value, gradients, buffer, options, rejected)
    proposed, reply = await _proposal(job, messages, options)
    evidence = tuple(Evidence(_text(gradient), gradient.provenance) for gradient in gradients)
    reasons = objections(value, proposed)
    if reasons:
        again = [
            *messages,
            {"role": "assistant", "content": reply},
            {"role": "user", "content": TGD_OBJECTION.replace("{reasons}", "; ".join(reasons))},
        ]
        proposed, _ = await _proposal(job, again, options)
        reasons = objections(value, proposed)
    if reasons:
        logging.getLogger("afnio").warning(
            "the proposal for %r was not taken, as %s; the parameter keeps its value",
            role,
            "; ".join(reasons),
        )
        return Change(role, value, value, len(gradients), "; ".join(reasons), evidence)
    return Change(role, value, proposed, len(gradients), None, evidence)


def remember(buffer: list[Any], before: Variable, gradients: Sequence[Variable], momentum: int) -> None:
    """Add one update to the window of the last `momentum` ones, in place."""
    if momentum > 0:
        buffer.append((before, list(gradients)))
        del buffer[:-momentum]


def _messages(
    role: str,
    value: str,
    gradients: Sequence[Variable],
    buffer: Sequence[Any],
    options: Mapping[str, Any],
    rejected: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    momentum = options["momentum"]
    history = list(buffer)[-(momentum - 1) :] if momentum > 1 else []
    sections = tgd_sections(
        role=role,
        value=value,
        constraints=[_text(constraint) for constraint in options["constraints"]],
        history=[(_text(before), [_text(g) for g in past]) for before, past in history],
        rejected=[(str(past["value"]), past["score"], past["against"]) for past in rejected],
        feedback=[_text(gradient) for gradient in gradients],
    )
    if options["messages"] is None:
        user = "\n".join(part for line in TGD_USER.splitlines() if (part := fill(line, sections)))
        return [{"role": "system", "content": TGD_SYSTEM}, {"role": "user", "content": user}]
    inputs = {name: _text(entry) for name, entry in (options["inputs"] or {}).items()}
    plain = [
        {"role": message["role"], "content": [_text(part) for part in message["content"]]}
        for message in options["messages"]
    ]
    return rendered(plain, {**sections, **inputs})


async def _proposal(job: Job, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> tuple[str, str]:
    """Return the proposed value and the whole reply; a reply in plain words is the value."""
    model = ChatModel(options["model_client"], options["completion_args"])
    reply = str(await complete_json(model, job, messages, TGD_SCHEMA, "step"))
    return value_in(reply), reply


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


def _text(value: Any) -> str:
    return str(value.data) if isinstance(value, Variable) else str(value)
